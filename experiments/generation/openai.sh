#!/usr/bin/env bash
# The official OpenAI client against a split model: `cutlayer host` and `cutlayer api` on models/quickstart, and crates/api/tests/openai_client.py.
# With an encoder in ~/.cache/cutlayer/models/all-minilm-l6-v2 (or $ENCODER), embeddings too. Builds the program unless $CUTLAYER names it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
built
encoder=${ENCODER:-$HOME/.cache/cutlayer/models/all-minilm-l6-v2}
embeds=()
checks=()
if [ -f "$encoder/model.safetensors" ]; then
  embeds=(--embed-model "$encoder")
  checks=(--embed-model "$(basename "$encoder")")
fi
start_host
CUTLAYER_API_KEY=sesame start_api "${embeds[@]}"
"$here/crates/api/tests/openai.sh" --base-url "$url" --key sesame --model quickstart --chat-model quickstart "${checks[@]}"
