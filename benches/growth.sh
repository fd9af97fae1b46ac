#!/usr/bin/env bash
# Does a step's time grow with its tokens alone, and does its memory stay where it is? Prints two markdown tables.
#
#   benches/growth.sh [SHAPE_OR_FOLDER]      (smollm2-135m)
#
# 1. The uncut step over 128 to 2048 tokens, as sequences of 128 and as one sequence: the products are the same, the attention is not.
# 2. The resident memory of one process over 1,000 uncut steps of llama-tiny, sampled four times a second.
#
# Environment: CUTLAYER (the binary; target/release/cutlayer), STEPS (6), TOKENS ("128 256 512 1024 2048"), LONG (1000).
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cutlayer=${CUTLAYER:-${CARGO_TARGET_DIR:-$root/target}/release/cutlayer}
subject=${1:-smollm2-135m}
if [ -d "$subject" ]; then subject=("$subject"); else subject=(--shape "$subject"); fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

measure() { # measure SEQUENCES TOKENS: median ms and peak MiB
    "$cutlayer" --quiet bench step "${subject[@]}" --uncut --sequences "$1" --tokens "$2" --steps "${STEPS:-6}" --warmup 2 \
        --json "$work/one.json" >/dev/null
    python3 -c 'import json, sys; r = json.load(open(sys.argv[1])); print(r["step_ms"], r["peak_bytes"]["uncut"] / 2**20)' "$work/one.json"
}

echo "| tokens | as sequences of 128: ms | us a token | as one sequence: ms | us a token | of which its attention adds | peak MiB, one sequence |"
echo "|---|---|---|---|---|---|---|"
for tokens in ${TOKENS:-128 256 512 1024 2048}; do
    read -r many _ < <(measure $((tokens / 128)) 128)
    read -r one peak < <(measure 1 "$tokens")
    python3 - "$tokens" "$many" "$one" "$peak" <<'PY'
import sys
tokens, many, one, peak = map(float, sys.argv[1:])
print(f"| {tokens:.0f} | {many:,.0f} | {many / tokens * 1e3:,.0f} | {one:,.0f} | {one / tokens * 1e3:,.0f} | {1 - many / one:.0%} | {peak:,.0f} |")
PY
done

echo
"$cutlayer" --quiet bench step --shape llama-tiny --uncut --steps "${LONG:-1000}" --warmup 1 --json "$work/long.json" >/dev/null &
pid=$!
: >"$work/rss"
while kill -0 "$pid" 2>/dev/null; do
    awk '/VmRSS/ { print $2 }' "/proc/$pid/status" 2>/dev/null >>"$work/rss" || true
    sleep 0.25
done
wait "$pid"
python3 - "$work/rss" "${LONG:-1000}" <<'PY'
import statistics, sys
rss = [int(line) / 1024 for line in open(sys.argv[1]) if line.strip()]
rss = rss[len(rss) // 20:]  # loading
tenth = len(rss) // 10
parts = [statistics.median(rss[i * tenth:(i + 1) * tenth]) for i in range(10)]
print(f"| resident MiB by tenths of {sys.argv[2]} steps | " + " | ".join(f"{part:.0f}" for part in parts) + " |")
print("|---|" + "---|" * 10)
PY
