#!/usr/bin/env bash
# A run over two "machines": the server in one network namespace, two clients in another, a veth pair between them.
# Usage, as root: tests/netns.sh [CUTLAYER]. Leaves nothing behind. Exits 77 where namespaces are not allowed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cutlayer=${1:-$here/target/release/cutlayer}
model=$here/models/quickstart
corpus=$model/corpus/train.jsonl
server_address=10.77.0.1
client_address=10.77.0.2
port=4433
edge=cutlayer-edge-$$
field=cutlayer-field-$$
work=$(mktemp -d)
started=()
unset RUST_LOG CUTLAYER_KEYS

clean_up() {
    for process in "${started[@]}"; do kill "$process" 2>/dev/null || true; done
    wait 2>/dev/null || true
    # The veth pair goes with its namespaces.
    ip netns del "$edge" 2>/dev/null || true
    ip netns del "$field" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT

fail() {
    echo "FAILED: $1"
    for log in "$work"/*.err; do echo "--- ${log##*/}"; cat "$log"; done
    exit 1
}

cannot() {
    echo "network namespaces cannot be made here: $1"
    exit 77
}

[[ -x $cutlayer ]] || { echo "there is no binary at $cutlayer; build it, or give its path"; exit 2; }
command -v ip >/dev/null || cannot "there is no \`ip\`; install iproute2"
ip netns add "$edge" 2>"$work/why" || cannot "$(cat "$work/why") (root is needed)"
ip netns add "$field" 2>"$work/why" || cannot "$(cat "$work/why")"
ip link add uplink netns "$edge" type veth peer name uplink netns "$field" 2>"$work/why" || cannot "$(cat "$work/why")"
ip -n "$edge" address add $server_address/30 dev uplink
ip -n "$field" address add $client_address/30 dev uplink
for namespace in "$edge" "$field"; do
    ip -n "$namespace" link set lo up
    ip -n "$namespace" link set uplink up
done

in_field() { ip netns exec "$field" "$cutlayer" "$@"; }
cd "$work"
head -n 100 "$corpus" >ada.jsonl
tail -n 100 "$corpus" >bob.jsonl
for name in ada bob stranger; do "$cutlayer" keys new "$name" >"$name.key" 2>/dev/null; done
"$cutlayer" keys new server >server.key 2>/dev/null
for name in ada bob; do "$cutlayer" keys --keys server --quiet enrol "$name" --key "$(cat $name.key)"; done

ip netns exec "$edge" "$cutlayer" serve --model "$model" --keys server --listen $server_address:$port --clients 2 --rounds 2 --cut 2 \
    --set train.local_steps=5 --set train.sequences=4 --set train.tokens_max=96 --set server.join_deadline_s=60 \
    --out adapter >serve.out 2>serve.err &
serve=$!
started+=("$serve")
for _ in $(seq 300); do grep -q '^listening' serve.err && break; kill -0 "$serve" 2>/dev/null || break; sleep 0.1; done
grep -q "^listening on $server_address:$port as $(cat server.key)$" serve.err || fail "the server does not listen at its address"

join() {
    local name=$1
    in_field join --server $server_address:$port --server-id "$(cat server.key)" --keys "$name" --name "$name" --model "$model" --cut 2 \
        --data "$work/${2:-$name}.jsonl" --prompt prompt --completion completion --held-out 0.1 >"$name.out" 2>"$name.err"
}

# A stranger from the other machine is named by its address, which shows whose packets arrive.
code=0
join stranger ada || code=$?
[[ $code == 5 ]] || fail "an unknown key ended with $code, not 5"
grep -q 'does not know this key' stranger.err || fail "the stranger was not told why"
grep -q "turned a connection away: $client_address:[0-9]* was not let in" serve.err || fail "the server did not see $client_address"

join ada & ada=$!
started+=("$ada")
join bob & bob=$!
started+=("$bob")
wait "$ada" || fail "ada ended with $?"
wait "$bob" || fail "bob ended with $?"
wait "$serve" || fail "the server ended with $?"
grep -q 'round 2 done: 2 updates' serve.err || fail "two rounds of two clients were not done"
[[ -s adapter/adapter_model.safetensors && -s adapter/adapter_config.json ]] || fail "there is no adapter"
received=$(ip netns exec "$edge" cat /sys/class/net/uplink/statistics/rx_bytes)
[[ $received -gt 1000000 ]] || fail "only $received bytes crossed the veth pair"

echo "server in $edge at $server_address, clients in $field at $client_address"
sed 's/^/  server:   /' serve.err | grep -v -e 'cutlayer join' -e 'to join' -e ': *$' || true
sed 's/^/  server:   /' serve.out
sed 's/^/  stranger: /' stranger.err
sed 's/^/  ada:      /' ada.err ada.out
sed 's/^/  bob:      /' bob.err bob.out
echo "  $received bytes reached the server over the veth pair; adapter: $(stat -c %s adapter/adapter_model.safetensors) bytes"
