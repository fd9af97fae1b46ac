#!/usr/bin/env bash
# Peak resident memory (VmHWM) of a server with 1 and with 16 clients, and of a client at cut 2, each a process of its own.
#
#   benches/memory.sh [MODEL_DIR]      a random model in the 135M shape, made in a scratch folder, if none is given
#
# Environment: CUTLAYER (the binary; target/release/cutlayer), CLIENTS ("1 16"), CUT (2), SEQUENCES (1), TOKENS (64), STEPS (3).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cutlayer=${CUTLAYER:-${CARGO_TARGET_DIR:-$root/target}/release/cutlayer}
cut=${CUT:-2} sequences=${SEQUENCES:-1} tokens=${TOKENS:-64} steps=${STEPS:-3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
model=${1:-$work/model}
[ -e "$model" ] || (cd "$root" && cargo bench -q --bench step -- --shape smollm2-135m --write "$model")

# The share of the model that a client at the cut holds, in bytes, from the header of the weights.
own=$(python3 - "$model" "$cut" <<'PY'
import json, re, struct, sys
with open(sys.argv[1] + "/model.safetensors", "rb") as file:
    header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
header.pop("__metadata__", None)
total = 0
for name, tensor in header.items():
    block = re.search(r"layers\.(\d+)\.", name)
    if "embed_tokens" in name or (block and int(block.group(1)) < int(sys.argv[2])):
        size = 1
        for dim in tensor["shape"]:
            size *= dim
        total += 4 * size
print(total)
PY
)

for clients in ${CLIENTS:-1 16}; do
    # Records enough for every client; random models learn nothing from them, which costs the same.
    python3 - "$clients" "$tokens" >"$work/train.jsonl" <<'PY'
import json, sys
clients, tokens = int(sys.argv[1]), int(sys.argv[2])
for i in range(8 * clients):
    print(json.dumps({"prompt": f"client {i}", "completion": " ".join(str((i * 7 + k) % 97) for k in range(tokens))}))
PY
    cat >"$work/run.toml" <<TOML
name = "memory-$clients"
seed = 1
[model]
path = "$model"
[adapter]
rank = 8
targets = ["q_proj", "v_proj"]
[split]
cut = $cut
[train]
rounds = 1
local_steps = $steps
sequences = $sequences
tokens_max = $tokens
evaluate_every = 0
[data]
source = { path = "$work/train.jsonl", prompt = "prompt", completion = "completion" }
partition = "iid"
[clients]
count = $clients
TOML
    "$cutlayer" run "$work/run.toml" --runs "$work/runs" --quiet >"$work/out" 2>"$work/err" &
    run=$!
    : >"$work/peaks"
    while kill -0 "$run" 2>/dev/null; do
        # VmHWM only grows: the last line of a process is its peak.
        for child in $(cat "/proc/$run/task/$run/children" /proc/"$run"/task/*/children 2>/dev/null | tr ' ' '\n' | sort -u); do
            peak=$(awk '/^VmHWM/ { print $2 }' "/proc/$child/status" 2>/dev/null) || continue
            role=$(cat "/proc/$child/cmdline" 2>/dev/null | tr "\0" "\n" | grep -m1 -xE 'serve|join') || continue
            [ -n "$peak" ] && echo "$child $role $peak" >>"$work/peaks"
        done
        sleep 0.05
    done
    wait "$run" || { cat "$work/err" >&2; exit 1; }
    awk -v clients="$clients" -v own="$own" '
        { peak[$1] = $3 > peak[$1] ? $3 : peak[$1]; role[$1] = $2 }
        END {
            for (child in peak) {
                mb = peak[child] * 1024 / 1e6
                if (role[child] == "serve") server = mb
                else { n++; sum += mb; if (mb > most) most = mb }
            }
            printf "%2d clients: server %7.1f MB, client %6.1f MB mean %6.1f MB most, own layers %6.1f MB, above them %6.1f MB (%d seen)\n", \
                clients, server, sum / n, most, own / 1e6, most - own / 1e6, n
        }' "$work/peaks"
done
