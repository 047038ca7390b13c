# Every target has its line in `make help`: what stands after ## behind it.
.DEFAULT_GOAL := run

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | sed 's/\t/                        /;s/^\(.\{20\}\) */\1 /'

# ---------------------------------------------------------------- building and trying it

.PHONY: run build deps example test-deps bench-deps
run: build ## builds all, starts the daemon, sends 10,000 checked transactions, stops it
	scripts/demo

build: deps ## builds the daemon and the client programs, optimized
	cargo build --release --workspace

deps: ## installs what building takes, where it is missing
	@scripts/install-deps

example: build ## the services and clients of examples/c and examples/rsbinder, on daemons of their own (as root)
	@scripts/example
	@scripts/example-rsbinder

export PREFIX DESTDIR
.PHONY: install uninstall deb
install: build ## programs, man pages, completions and the systemd unit, into PREFIX (/usr/local; as root) under DESTDIR
	@scripts/install

uninstall: ## removes what `make install` has put there
	@scripts/install --uninstall

deb: build ## a Debian package, target/deb/*.deb; installs cargo-deb where it is missing
	@scripts/deb

test-deps: ## installs what some tests take, too
	@scripts/install-deps test

bench-deps: ## installs what the benchmark takes, too
	@scripts/install-deps bench

# ---------------------------------------------------------------- testing

.PHONY: test test-uring vm conformance soak coverage coverage-lines coverage-run
test: test-deps build ## every test here, then the tests in a VM with CUSE and the kernel's driver
	@scripts/test

test-uring: test-deps build ## the tests in the VM with the FUSE door over io_uring (some ten minutes)
	@scripts/test --vm-over-io-uring

vm: private export FAKEBINDER_VM_CMD = $(CMD)
vm: ## a shell in that VM; CMD='...' runs a command, VM_FLAGS='--kernel own' adds flags
	@tests/vm/run $(VM_FLAGS) $(if $(CMD),-- sh -c "$$FAKEBINDER_VM_CMD")

conformance: build ## compares the driver and both doors, in the VM; CONFORMANCE_FLAGS="--filter 'death/*' --seed 7"
	@tests/vm/run $(VM_FLAGS) --timeout 1800 -- tests/vm/conformance $(CONFORMANCE_FLAGS)

# The figures go to target/soak.
soak: build ## half an hour of everything at once: is each answer right, does the daemon grow? SOAK_FLAGS='--seconds 600 --seed 7' (as root)
	mkdir -p target/soak
	target/release/fb-stress --samples target/soak/samples.csv --plot target/soak/plot.svg $(SOAK_FLAGS)

# Needs the llvm-cov and llvm-profdata of the LLVM that rustc was built with (Debian: llvm-22 for
# Rust 1.95; rustup: the component llvm-tools).
COVERAGE_DIR ?= target/coverage
COVERAGE_OF ?= src/binder src/binder.rs
COVERAGE_TESTS ?= --test scenes --test round_trip

RUST_LLVM = $(shell rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
RUST_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
RUST_BIN = $(shell rustc --print sysroot)/lib/rustlib/$(RUST_HOST)/bin
LLVM_PATH = $(RUST_BIN):/usr/lib/llvm-$(RUST_LLVM)/bin:$(PATH)

coverage: coverage-run ## how much of src/binder the scenes and the record tests reach
	@PATH='$(LLVM_PATH)' llvm-cov report $$(cat $(COVERAGE_DIR)/objects) \
	  --instr-profile $(COVERAGE_DIR)/scenes.profdata $(COVERAGE_OF)

coverage-lines: coverage-run ## which lines they reach
	@PATH='$(LLVM_PATH)' llvm-cov show $$(cat $(COVERAGE_DIR)/objects) \
	  --instr-profile $(COVERAGE_DIR)/scenes.profdata $(COVERAGE_OF)

coverage-run: ## runs them in a build that counts
	@PATH='$(LLVM_PATH)' llvm-cov --version | grep -q 'LLVM version $(RUST_LLVM)' || \
	  { echo 'coverage: rustc needs the llvm-cov of LLVM $(RUST_LLVM)' >&2; exit 1; }
	rm -rf $(COVERAGE_DIR)/raw
	RUSTFLAGS='-C instrument-coverage' LLVM_PROFILE_FILE='$(abspath $(COVERAGE_DIR))/raw/%p-%m.profraw' \
	  CARGO_TARGET_DIR='$(COVERAGE_DIR)' cargo test $(COVERAGE_TESTS) 2>&1 | tee $(COVERAGE_DIR).log | \
	  grep -E '^(test result|error)'
	sed -n 's|.*Running.*(\(.*\))|--object \1|p' $(COVERAGE_DIR).log | sed '1s/--object //' \
	  > $(COVERAGE_DIR)/objects
	PATH='$(LLVM_PATH)' llvm-profdata merge -sparse -o $(COVERAGE_DIR)/scenes.profdata $(COVERAGE_DIR)/raw/*.profraw

# ---------------------------------------------------------------- changing the engine, and measuring it

.PHONY: prototype wrong-rules planted-model models bench bench-hog bench-stall demo-contention
prototype: build ## what a change does to conformance, random programs and latency; PROTOTYPE_FLAGS='--base main'
	@scripts/prototype $(PROTOTYPE_FLAGS)

wrong-rules: deps ## breaks rules on purpose, one at a time, in a copy of the tree: which tests notice?
	@scripts/planted rules

models: deps ## every order of steps of the page protocol and of deliveries, by a model checker
	RUSTC_WORKSPACE_WRAPPER='$(CURDIR)/scripts/with-loom' cargo test --release --no-default-features --features daemon \
	  --config profile.release.package.fakebinder.codegen-units=16 --test alloc_model --test delivery_model

planted-model: deps ## breaks rules of the page protocol on purpose: does the model check notice?
	@scripts/planted model

bench: bench-deps ## what a call costs, here and in the VM: target/bench/report.md (as root); BENCH_FLAGS='--quick --no-vm'
	cargo bench --bench calls $(if $(BENCH_FLAGS),-- $(BENCH_FLAGS))

bench-stall: deps ## a pair's calls, alone and beside 300 threads whose memory does not come (as root)
	cargo bench --bench stall $(if $(BENCH_FLAGS),-- $(BENCH_FLAGS))

bench-hog: deps ## a pair's calls beside a client with very many references, and while it ends (as root)
	cargo bench --bench hog

demo-contention: deps ## page installs under a shared and an exclusive lock, printed and drawn (as root)
	cargo bench --bench contention

# ---------------------------------------------------------------- fuzzing: docs/fuzzing.md
# rustc is a stable one: RUSTC_BOOTSTRAP=1 lets it take the flags that libFuzzer needs.
TARGET ?= ioctl
TIME ?= 60
JOBS ?= 1
SANITIZER ?= none

FUZZ_LLVM = /usr/lib/llvm-$(RUST_LLVM)/bin
FUZZ_BINARY = fuzz/target/$(RUST_HOST)/release/$(TARGET)
# What a target finds goes here; what is checked in is only read.
FUZZ_WORK = fuzz/target/corpus/$(TARGET)
FUZZ_FLAGS = $(shell sed -nE 's/^(max_len|detect_leaks) = /-\1=/p' fuzz/options/$(TARGET).options) \
  $(addprefix -dict=,$(wildcard fuzz/dict/$(TARGET).dict)) -timeout=20

.PHONY: fuzz fuzz-build fuzz-replay fuzz-minimize fuzz-merge fuzz-coverage fuzz-sanitizers fuzz-planted fuzz-ci

# With several jobs libFuzzer's fork mode: processes of their own, one corpus.
fuzz: fuzz-build ## lets a target run; TARGET=ioctl TIME=60 JOBS=1 SANITIZER=none
	mkdir -p $(FUZZ_WORK) fuzz/artifacts/$(TARGET)
	$(FUZZ_BINARY) $(FUZZ_WORK) fuzz/corpus/$(TARGET) $(FUZZ_FLAGS) -max_total_time=$(TIME) \
	  -artifact_prefix=fuzz/artifacts/$(TARGET)/ $(if $(filter-out 1,$(JOBS)),-fork=$(JOBS))

fuzz-build: ## builds a target; TARGET=ioctl SANITIZER=none
	@cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz build --no-trace-compares --sanitizer $(SANITIZER) $(TARGET)

fuzz-replay: ## what an input of target ioctl or alloc does, step by step; FILE=...
	cd fuzz && cargo run --quiet --release --example replay -- $(abspath $(FILE))

fuzz-minimize: ## the smallest input that still crashes; TARGET=... FILE=...
ifeq ($(TARGET),ioctl)
	cd fuzz && cargo run --quiet --release --example replay -- --minimize $(abspath $(FILE))
else
	cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz tmin --sanitizer $(SANITIZER) $(TARGET) $(abspath $(FILE))
endif

# -use_counters=0: one input for each line that is reached, not one for how often.
fuzz-merge: fuzz-build ## takes what is new in the working corpus over into the checked-in one; TARGET=...
	$(FUZZ_BINARY) -merge=1 -use_counters=0 $(FUZZ_FLAGS) fuzz/corpus/$(TARGET) $(FUZZ_WORK)

fuzz-coverage: ## which lines a target's corpus reaches, as HTML; TARGET=ioctl
	@test -x $(FUZZ_LLVM)/llvm-cov || \
	  { echo 'fuzz-coverage: rustc needs $(FUZZ_LLVM)/llvm-cov (Debian: llvm-22)' >&2; exit 1; }
	cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz coverage --sanitizer none --llvm-path $(FUZZ_LLVM) $(TARGET)
	fuzz/coverage-report $(TARGET) $(FUZZ_LLVM)

fuzz-sanitizers: ## the engine's tests under AddressSanitizer and ThreadSanitizer
	fuzz/sanitizers

fuzz-planted: ## plants faults, and sees that the targets find them
	@scripts/planted fuzz

fuzz-ci: ## every target over its corpus, and FUZZ_SECONDS=60 more
	fuzz/ci
