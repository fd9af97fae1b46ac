#!/usr/bin/env bash
# Runs openai_client.py, with the official client, against the echo example, or against what its arguments name:
#
#     crates/api/tests/openai.sh
#     crates/api/tests/openai.sh --base-url http://127.0.0.1:8000/v1 --key KEY --model NAME --chat-model NAME
#
# Makes the client's virtual environment in ~/.cache/cutlayer/openai-venv if it is not there.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

openai_version=3.54.0
venv=${OPENAI_VENV:-$HOME/.cache/cutlayer/openai-venv}
if ! "$venv/bin/python" -c "import openai; assert openai.__version__ == '$openai_version'" 2> /dev/null; then
  python3 -m venv --clear "$venv"
  "$venv/bin/pip" install --quiet --disable-pip-version-check "openai==$openai_version"
fi

if [ $# -gt 0 ]; then
  exec "$venv/bin/python" "$here/openai_client.py" "$@"
fi

scratch=$(mktemp -d)
server=
cleanup() {
  [ -z "$server" ] || kill "$server" 2> /dev/null || true
  rm -rf "$scratch"
}
trap cleanup EXIT

# Once with a key and once without: built first, so that only the program itself is waited for.
cargo build --release --manifest-path "$here/../Cargo.toml" --example echo
binary=${CARGO_TARGET_DIR:-$here/../../../target}/release/examples/echo
for key in "" sesame; do
  "$binary" 127.0.0.1:0 ${key:+"$key"} > "$scratch/log" &
  server=$!
  for _ in $(seq 100); do
    grep -q '^listening on ' "$scratch/log" && break
    sleep 0.1
  done
  address=$(sed -n 's/^listening on //p' "$scratch/log")
  [ -n "$address" ] || { echo "the echo example does not listen" >&2; exit 1; }
  "$venv/bin/python" "$here/openai_client.py" --base-url "http://$address/v1" ${key:+--key "$key"} \
    --model echo --chat-model org/plain --embed-model embed
  kill -INT "$server"
  wait "$server"
  server=
done
