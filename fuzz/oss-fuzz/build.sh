#!/bin/bash -eu
# Builds the fuzz targets as OSS-Fuzz and ClusterFuzzLite expect them in $OUT: the targets, their
# seeds as TARGET_seed_corpus.zip, dictionaries and options. `device` needs a mount: not there.
cd "$(git -C "${SRC:-.}/fakebinder" rev-parse --show-toplevel 2>/dev/null || echo "$SRC/fakebinder")/fuzz"
cargo fuzz build -O --no-trace-compares
host=$(rustc -vV | sed -n 's/^host: //p')
for target in ioctl write_buffer alloc wire; do
    cp "target/$host/release/$target" "$OUT/"
    cp "options/$target.options" "$OUT/"
    [ ! -f "dict/$target.dict" ] || cp "dict/$target.dict" "$OUT/"
    rm -f "$OUT/${target}_seed_corpus.zip"
    (cd "corpus/$target" && zip -q -r "$OUT/${target}_seed_corpus.zip" .)
done
