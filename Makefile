# make run     builds all, starts the daemon, sends 10,000 checked transactions, stops it
# make test    the same, then every test, then the tests in a VM with CUSE and the kernel's driver
# make conformance   fb-conformance and fb-differ on the driver and both doors, in the VM, as one table
# make demo-contention   page installs under a shared and an exclusive lock, printed and drawn
# make bench-hog   what a client with a million references costs the others
# make prototype   what a change does: conformance tests, random programs, latency, before and after
# make wrong-rules   rules broken on purpose, and which tests notice
# make planted-model   rules of the page protocol broken on purpose, for the model check
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
