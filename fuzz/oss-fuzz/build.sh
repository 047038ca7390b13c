#!/bin/bash
# Builds the fuzz targets as OSS-Fuzz and ClusterFuzzLite expect them in $OUT: the targets, their
# seeds as TARGET_seed_corpus.zip, dictionaries and options. The source is $SRC/fakebinder.
#
# libFuzzer comes with libfuzzer-sys: $LIB_FUZZING_ENGINE is not for Rust. `device` needs a mount:
# not there.
set -eu
cd "$SRC/fakebinder/fuzz"
targets=(ioctl write_buffer alloc wire)
cargo fuzz build -O --no-trace-compares --sanitizer "${SANITIZER:-address}"
host=$(rustc -vV | sed -n 's/^host: //p')
for target in "${targets[@]}"; do
    cp "target/$host/release/$target" "options/$target.options" "$OUT/"
    [ ! -f "dict/$target.dict" ] || cp "dict/$target.dict" "$OUT/"
    rm -f "$OUT/${target}_seed_corpus.zip"
    (cd "corpus/$target" && zip -q -r "$OUT/${target}_seed_corpus.zip" .)
done
