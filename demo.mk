# What installing pages under a read lock is good for: the daemon under both rules, its throughput and latency printed
# and drawn. Needs root, as the daemon does.
.PHONY: demo-contention
demo-contention: deps
	cargo bench --bench contention

# What a client that has very much costs the others: a pair's latencies beside it and while it ends, against idle. Needs
# root and /dev/fuse.
.PHONY: bench-hog
bench-hog: deps
	cargo bench --bench hog
