# What installing pages under a read lock is good for: the daemon under both rules, its throughput and latency printed
# and drawn. Needs root, as the daemon does.
.PHONY: demo-contention
demo-contention: deps
	cargo bench --bench contention

# What 300 threads whose memory does not come cost the calls of others. Needs root, as the daemon does.
.PHONY: bench-stall
bench-stall: deps
	cargo bench --bench stall $(if $(BENCH_FLAGS),-- $(BENCH_FLAGS))
