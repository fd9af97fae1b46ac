#!/usr/bin/env bash
# Makes crates/model/tests/architectures/*.safetensors: logits by transformers of the models that the test of that name draws
# from a seed. Needs a Python with torch and transformers: PYTHON, by default that of ~/.cache/cutlayer/peers-venv.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-$HOME/.cache/cutlayer/peers-venv/bin/python}
models=$(mktemp -d); trap 'rm -rf "$models"' EXIT
CUTLAYER_WRITE_ARCHITECTURES=$models cargo nextest run --release -p cutlayer-model --test architectures every_family
mkdir -p crates/model/tests/architectures
for model in "$models"/*/; do
  "$python" tests/peer/make_architectures.py "$model" "crates/model/tests/architectures/$(basename "$model").safetensors"
done
