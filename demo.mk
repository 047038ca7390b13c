# What installing pages under a read lock is good for: the daemon under both rules, its throughput and latency printed
# and drawn. Needs root, as the daemon does.
.PHONY: demo-contention
demo-contention: deps
	cargo bench --bench contention
