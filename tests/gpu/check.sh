#!/bin/sh
# Serves the built-in models on the first GPU and asks each of them, then times texts of a language model there.
#
#     tests/gpu/check.sh [CHECKPOINT]
#
# Needs target/release/trustformers-serve, the built-in models, and a Python with this package's torch first on PATH.
# CHECKPOINT: a language model's folder; without it `tinylm`.
set -eu
cd "$(dirname "$0")/../.."
exec python tests/gpu/check.py "$@"
