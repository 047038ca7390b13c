# make fuzz            TARGET=ioctl TIME=60 JOBS=1 SANITIZER=none: lets a target run (see docs/fuzzing.md)
# make fuzz-replay     FILE=...: what an input of target ioctl or alloc does, step by step
# make fuzz-minimize   TARGET=... FILE=...: the smallest input that still crashes
# make fuzz-merge      TARGET=...: takes what is new in the working corpus over into the checked-in one
# make fuzz-coverage   TARGET=ioctl: which lines its corpus reaches, as HTML
# make fuzz-sanitizers the engine's tests under AddressSanitizer and ThreadSanitizer
# make fuzz-planted    plants faults, and sees that the targets find them
# make fuzz-ci         every target over its corpus, and FUZZ_SECONDS=60 more
#
# rustc is a stable one: RUSTC_BOOTSTRAP=1 lets it take the flags that libFuzzer needs.
FUZZ := $(patsubst %/,%,$(dir $(lastword $(MAKEFILE_LIST))))
TARGET ?= ioctl
TIME ?= 60
JOBS ?= 1
SANITIZER ?= none

FUZZ_HOST = $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_LLVM = /usr/lib/llvm-$(shell rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')/bin
FUZZ_BINARY = $(FUZZ)/target/$(FUZZ_HOST)/release/$(TARGET)
# What a target finds goes here; what is checked in is only read.
FUZZ_WORK = $(FUZZ)/target/corpus/$(TARGET)
FUZZ_FLAGS = $(shell sed -nE 's/^(max_len|detect_leaks) = /-\1=/p' $(FUZZ)/options/$(TARGET).options) \
  $(addprefix -dict=,$(wildcard $(FUZZ)/dict/$(TARGET).dict)) -timeout=20

.PHONY: fuzz fuzz-build fuzz-replay fuzz-minimize fuzz-merge fuzz-coverage fuzz-sanitizers fuzz-planted fuzz-ci

fuzz-build:
	@cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	cd $(FUZZ) && RUSTC_BOOTSTRAP=1 cargo fuzz build --no-trace-compares --sanitizer $(SANITIZER) $(TARGET)

# With several jobs libFuzzer's fork mode: processes of their own, one corpus.
fuzz: fuzz-build
	mkdir -p $(FUZZ_WORK) $(FUZZ)/artifacts/$(TARGET)
	$(FUZZ_BINARY) $(FUZZ_WORK) $(FUZZ)/corpus/$(TARGET) $(FUZZ_FLAGS) -max_total_time=$(TIME) \
	  -artifact_prefix=$(FUZZ)/artifacts/$(TARGET)/ $(if $(filter-out 1,$(JOBS)),-fork=$(JOBS))

fuzz-replay:
	cd $(FUZZ) && cargo run --quiet --release --example replay -- $(abspath $(FILE))

fuzz-minimize:
ifeq ($(TARGET),ioctl)
	cd $(FUZZ) && cargo run --quiet --release --example replay -- --minimize $(abspath $(FILE))
else
	cd $(FUZZ) && RUSTC_BOOTSTRAP=1 cargo fuzz tmin --sanitizer $(SANITIZER) $(TARGET) $(abspath $(FILE))
endif

# -use_counters=0: one input for each line that is reached, not one for how often.
fuzz-merge: fuzz-build
	$(FUZZ_BINARY) -merge=1 -use_counters=0 $(FUZZ_FLAGS) $(FUZZ)/corpus/$(TARGET) $(FUZZ_WORK)

fuzz-coverage:
	@test -x $(FUZZ_LLVM)/llvm-cov || { echo 'fuzz-coverage: rustc needs $(FUZZ_LLVM)/llvm-cov (Debian: llvm-22)' >&2; exit 1; }
	cd $(FUZZ) && RUSTC_BOOTSTRAP=1 cargo fuzz coverage --sanitizer none --llvm-path $(FUZZ_LLVM) $(TARGET)
	$(FUZZ)/coverage-report $(TARGET) $(FUZZ_LLVM)

fuzz-sanitizers:
	$(FUZZ)/sanitizers

fuzz-planted:
	@scripts/planted fuzz

fuzz-ci:
	$(FUZZ)/ci
