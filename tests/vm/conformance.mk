# `make conformance`: fb-conformance and fb-differ on the kernel's driver and both doors, in the test VM.
# CONFORMANCE_FLAGS="--filter 'death/*' --programs 100 --seed 7"
.PHONY: conformance
conformance: build
	@tests/vm/run $(VM_FLAGS) --timeout 1800 -- tests/vm/conformance $(CONFORMANCE_FLAGS)
