# `make coverage`: which lines of src/binder the scenes and the record tests reach.
#
# Needs the llvm-cov and llvm-profdata of the LLVM that rustc was built with (Debian: llvm-22 for
# Rust 1.95; rustup: the component llvm-tools). The lines themselves: `make ... coverage-lines`.

COVERAGE_DIR ?= target/coverage
COVERAGE_OF ?= src/binder src/binder.rs
COVERAGE_TESTS ?= --test scenes --test round_trip

RUST_LLVM = $(shell rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
RUST_BIN = $(shell rustc --print sysroot)/lib/rustlib/$(shell rustc -vV | sed -n 's/^host: //p')/bin
LLVM_PATH = $(RUST_BIN):/usr/lib/llvm-$(RUST_LLVM)/bin:$(PATH)

.PHONY: coverage coverage-run coverage-lines

coverage: coverage-run
	@PATH='$(LLVM_PATH)' llvm-cov report $$(cat $(COVERAGE_DIR)/objects) \
	  --instr-profile $(COVERAGE_DIR)/scenes.profdata $(COVERAGE_OF)

coverage-lines: coverage-run
	@PATH='$(LLVM_PATH)' llvm-cov show $$(cat $(COVERAGE_DIR)/objects) \
	  --instr-profile $(COVERAGE_DIR)/scenes.profdata $(COVERAGE_OF)

coverage-run:
	@PATH='$(LLVM_PATH)' llvm-cov --version | grep -q 'LLVM version $(RUST_LLVM)' || \
	  { echo 'coverage: rustc needs the llvm-cov of LLVM $(RUST_LLVM)' >&2; exit 1; }
	rm -rf $(COVERAGE_DIR)/raw
	RUSTFLAGS='-C instrument-coverage' LLVM_PROFILE_FILE='$(abspath $(COVERAGE_DIR))/raw/%p-%m.profraw' \
	  CARGO_TARGET_DIR='$(COVERAGE_DIR)' cargo test $(COVERAGE_TESTS) 2>&1 | tee $(COVERAGE_DIR).log | \
	  grep -E '^(test result|error)'
	sed -n 's|.*Running.*(\(.*\))|--object \1|p' $(COVERAGE_DIR).log | sed '1s/--object //' \
	  > $(COVERAGE_DIR)/objects
	PATH='$(LLVM_PATH)' llvm-profdata merge -sparse -o $(COVERAGE_DIR)/scenes.profdata $(COVERAGE_DIR)/raw/*.profraw
