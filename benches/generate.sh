#!/usr/bin/env bash
# Greedy generation of the uncut model against PyTorch and llama.cpp, in turn on the same folder. Prints a markdown table.
#
#   benches/generate.sh [SHAPE]        of shared/peers/gen_model.py; smollm2-135m
#
# Environment: CUTLAYER (the binary; target/release/cutlayer), CUTLAYER_PEERS (../shared/peers), TURNS (3), REPEATS (5), PROMPT (128), NEW (64),
# THREADS (all cores), PYTHON (the peers' environment), PRECISIONS (f32 bf16), and VARIANTS out of
#   hf         transformers' generate() as a user runs it        llamacpp   llama.cpp, where llama-cpp-python is installed
#   hf-tuned   the way PyTorch is fastest (tuned.sh)             lean-tuned the leanest hand-written PyTorch, tuned
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cutlayer=${CUTLAYER:-${CARGO_TARGET_DIR:-$root/target}/release/cutlayer}
peers=$(cd "$root" && cd "${CUTLAYER_PEERS:-../shared/peers}" && pwd)
python=${PYTHON:-$HOME/.cache/cutlayer/peers-venv/bin/python}
turns=${TURNS:-3} repeats=${REPEATS:-5} prompt=${PROMPT:-128} new=${NEW:-64} threads=${THREADS:-$(nproc)}
variants=${VARIANTS:-hf hf-tuned lean-tuned llamacpp}
shape=${1:-smollm2-135m}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# llamacpp_gen.py keeps its converted files in the home folder, named as this: another model of this name would be taken for it.
model=$work/$shape
"$python" "$peers/gen_model.py" "$shape" "$model" >&2
export PYTHONWARNINGS=ignore TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1
: >"$work/results.jsonl"

keep() { # keep NAME PRECISION FILE: one line a result; the load is what stood when the process began
    "$python" - "$1" "$2" "$turn" "$load" "$3" >>"$work/results.jsonl" <<'PY'
import json, sys
who, precision, turn, load, file = sys.argv[1:]
found = json.load(open(file))
found = {**found, **found.get("uncut", {})}
peak = found["peak_rss_mb"] if "peak_rss_mb" in found else (found["peak_bytes"] or 0) / 2**20
row = {key: found[key] for key in ("prefill_tok_s", "decode_tok_s")}
print(json.dumps({"who": who, "precision": precision, "turn": int(turn), "load": float(load), "peak": peak, **row}))
PY
}

for turn in $(seq "$turns"); do
    for precision in ${PRECISIONS:-f32 bf16}; do
        load=$(cut -d' ' -f1 /proc/loadavg)
        echo "turn $turn: cutlayer $precision (load $load)" >&2
        "$cutlayer" --quiet --threads "$threads" bench generate uncut "$model" --precision "$precision" --prompt "$prompt" --new "$new" \
            --repeats "$repeats" --json "$work/one.json" >/dev/null
        keep cutlayer "$precision" "$work/one.json"
        for variant in $variants; do
            case $precision in f32) type=fp32 ;; *) type=$precision ;; esac
            run=("$python" "$peers/torch_gen.py" --model "$model" --dtype "$type")
            case $variant in
                lean*) run+=(--impl lean) ;;
                llamacpp) run=("$python" "$peers/llamacpp_gen.py" --model "$model" --type "$precision") ;;
            esac
            run+=(--prompt "$prompt" --new "$new" --repeat "$repeats" --threads "$threads")
            [[ $variant != *-tuned ]] || run=(sh "$peers/tuned.sh" "${run[@]}")
            load=$(cut -d' ' -f1 /proc/loadavg)
            echo "turn $turn: $variant $precision (load $load)" >&2
            if "${run[@]}" >"$work/one.out" 2>"$work/one.err"; then
                tail -n 1 "$work/one.out" >"$work/one.json"
                keep "$variant" "$precision" "$work/one.json"
            else
                echo "$variant failed and is left out:" >&2
                tail -n 3 "$work/one.err" >&2
            fi
        done
    done
done

[ -z "${KEEP:-}" ] || cp "$work/results.jsonl" "$KEEP"
"$python" - "$work/results.jsonl" "$shape" "$turns" "$repeats" "$prompt" "$new" "$threads" <<'PY'
import json, statistics, sys

lines = [json.loads(line) for line in open(sys.argv[1])]
shape, turns, repeats, prompt, new, threads = sys.argv[2:]
at = {(line["who"], line["precision"], line["turn"]): line for line in lines}
loads = [line["load"] for line in lines]
print(f"\n### {shape}, prompt {prompt}, {new} new, {turns} turns of {repeats}, {threads} threads, load {min(loads):.1f} to {max(loads):.1f}\n")
print("| precision | who | prefill tok/s | ours / theirs, by turn | decode tok/s | ours / theirs, by turn | their range | peak MiB |")
print("|---|---|---|---|---|---|---|---|")
for precision, name in dict.fromkeys((line["precision"], line["who"]) for line in lines):
    mine = [line for line in lines if (line["who"], line["precision"]) == (name, precision)]
    middle = {key: statistics.median(line[key] for line in mine) for key in ("prefill_tok_s", "decode_tok_s", "peak")}
    ratio = {key: statistics.median(at["cutlayer", precision, line["turn"]][key] / line[key] for line in mine)
             for key in ("prefill_tok_s", "decode_tok_s")}
    decode = [line["decode_tok_s"] for line in mine]
    print(f"| {precision} | {name} | {middle['prefill_tok_s']:,.0f} | {ratio['prefill_tok_s']:.2f} | {middle['decode_tok_s']:.1f} "
          f"| {ratio['decode_tok_s']:.2f} | {min(decode):.1f} to {max(decode):.1f} | {middle['peak']:,.0f} |")
PY
