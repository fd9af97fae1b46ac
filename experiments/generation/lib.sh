# A host and an endpoint over it, on models/quickstart; sourced by the scripts beside it. What they start is ended with the script.
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
program=${CUTLAYER:-${CARGO_TARGET_DIR:-$here/target}/release/cutlayer}
model=$here/models/quickstart
scratch=$(mktemp -d)
started=()

cleanup() {
  for process in "${started[@]}"; do
    kill -INT "$process" 2> /dev/null || true
  done
  wait
  rm -rf "$scratch"
}
trap cleanup EXIT

# built: the program, where it is not named by CUTLAYER.
built() {
  [ -n "${CUTLAYER:-}" ] || cargo build --release --workspace --bin cutlayer --manifest-path "$here/Cargo.toml"
}

# says FILE PATTERN: waits until a line of a log begins so, and prints what follows up to a space.
says() {
  for _ in $(seq 600); do
    local found
    found=$(sed -n "s|^$2\([^ ]*\).*|\1|p" "$1" 2> /dev/null | head -1)
    [ -z "$found" ] || { echo "$found"; return; }
    sleep 0.1
  done
  cat "$1" >&2
  return 1
}

# start_host ARGUMENTS..: its process in $host, its address in $address.
start_host() {
  host_key=$("$program" keys new "$scratch/host" 2> /dev/null)
  device_key=$("$program" keys new "$scratch/device" 2> /dev/null)
  "$program" keys --keys "$scratch/host" enrol device --key "$device_key" > /dev/null
  "$program" host --model "$model" --keys "$scratch/host" --listen 127.0.0.1:0 "$@" 2> "$scratch/host.log" &
  host=$!
  started+=("$host")
  address=$(says "$scratch/host.log" "listening on ")
}

# start_api ARGUMENTS..: its process in $api, its base address in $url.
start_api() {
  "$program" api --model "$model" --keys "$scratch/device" --server "$address" --server-id "$host_key" --cut 2 \
    --listen 127.0.0.1:0 "$@" 2> "$scratch/api.log" &
  api=$!
  started+=("$api")
  url=$(says "$scratch/api.log" "listening on ")
}
