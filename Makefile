# make run     builds all, starts the daemon, sends 10,000 checked transactions, stops it
# make test    the same, then every test, then the tests in a VM with CUSE and the kernel's driver
# make conformance   fb-conformance and fb-differ on the driver and both doors, in the VM, as one table
# make demo-contention   page installs under a shared and an exclusive lock, printed and drawn
# make bench-stall   a pair's calls, alone and beside 300 threads whose memory does not come
# make prototype   what a change does: conformance tests, random programs, latency, before and after
# make wrong-rules   rules broken on purpose, and which tests notice
# make coverage   which lines of the engine the scenes reach
# make vm      a shell in that VM (CMD='...' runs a command)
.DEFAULT_GOAL := run

.PHONY: run test build deps test-deps
run: build
	scripts/demo

test: test-deps build
	@scripts/test

build: deps
	cargo build --release --workspace

deps:
	@scripts/install-deps

test-deps:
	@scripts/install-deps test

include tests/vm/vm.mk tests/vm/conformance.mk scripts/prototype.mk demo.mk coverage.mk fuzz/fuzz.mk
