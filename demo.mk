# What installing pages under a read lock is good for: throughput and latency, printed and drawn.
.PHONY: demo-contention
demo-contention:
	cargo bench --bench contention
