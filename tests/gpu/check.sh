#!/bin/sh
# Serves the built-in models and a language model on the first GPU, fails where they say other than on the CPU, and
# times texts of the language model there.
#
#     tests/gpu/check.sh [CHECKPOINT] [--device cuda:0]
#
# Needs target/release/trustformers-serve, the built-in models, and a Python with this package's torch first on PATH.
# CHECKPOINT: a language model's folder; without it `tinylm`.
set -eu
cd "$(dirname "$0")/../.."
exec python tests/gpu/check.py "$@"
