#!/bin/bash -eu
# ClusterFuzzLite looks for it here.
exec "$SRC/fakebinder/fuzz/oss-fuzz/build.sh"
