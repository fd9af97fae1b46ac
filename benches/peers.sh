#!/usr/bin/env bash
# Our uncut LoRA step against PyTorch's, in turn on the same folder and batch. Prints a markdown table for each job.
#
#   benches/peers.sh [JOB...]          a job is SHAPE:SEQUENCESxTOKENS, such as smollm2-135m:4x128 or gpt2:1x512; in place of a
#                                      SHAPE of shared/peers/gen_model.py also a model folder, named with a `/`, or `minilm`,
#                                      whose peer is benches/peer_encoder.py (transformers + PEFT; nobody wrote a lean one)
#
# Environment: CUTLAYER (the binary; target/release/cutlayer), CUTLAYER_PEERS (../shared/peers), TURNS (3), STEPS (10), WARMUP (3),
# THREADS (all cores), PYTHON (the peers' environment), and VARIANTS out of
#   hf              transformers + PEFT as a user runs it       hf-tuned          the way PyTorch is fastest (tuned.sh)
#   hf-compile      with torch.compile                          hf-tuned-compile
#   lean-tuned      the leanest hand-written PyTorch, tuned     lean-tuned-compile
# and OURS, a list of variants of our own: what follows `cutlayer bench step --uncut`, separated by `;`.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cutlayer=${CUTLAYER:-${CARGO_TARGET_DIR:-$root/target}/release/cutlayer}
peers=$(cd "$root" && cd "${CUTLAYER_PEERS:-../shared/peers}" && pwd)
python=${PYTHON:-$HOME/.cache/cutlayer/peers-venv/bin/python}
turns=${TURNS:-3} steps=${STEPS:-10} warmup=${WARMUP:-3} threads=${THREADS:-$(nproc)}
variants=${VARIANTS:-hf hf-tuned lean-tuned lean-tuned-compile}
IFS=';' read -ra ours <<<"${OURS:-}"
[ ${#ours[@]} -gt 0 ] || ours=("")
[ $# -gt 0 ] || set -- smollm2-135m:4x128 smollm2-135m:1x512
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for job in "$@"; do
    shape=${job%:*} batch=${job##*:}
    sequences=${batch%x*} tokens=${batch#*x}
    [[ $job == *:*x* && $sequences$tokens =~ ^[0-9]+$ ]] || { echo "$job is no job; write SHAPE:SEQUENCESxTOKENS" >&2; exit 2; }
    case $shape in
        */*) model=$shape ;;
        minilm) model=$work/minilm
            [ -e "$model" ] || "$python" "$root/benches/peer_encoder.py" --write "$model" ;;
        *) model=$work/$shape
            [ -e "$model" ] || "$python" "$peers/gen_model.py" "$shape" "$model" >&2 ;;
    esac
    results=$work/$(basename "$shape")-$batch.jsonl
    : >"$results"
    keep() { # keep NAME FILE: one line a result, with who and in which turn
        "$python" -c 'import json, sys; print(json.dumps({"who": sys.argv[1], "turn": int(sys.argv[2]), **json.load(open(sys.argv[3]))}))' \
            "$1" "$turn" "$2" >>"$results"
    }
    for turn in $(seq "$turns"); do
        for own in "${ours[@]}"; do
            echo "$job turn $turn: cutlayer $own" >&2
            # shellcheck disable=SC2086 # a list of arguments
            "$cutlayer" --quiet --threads "$threads" bench step "$model" --uncut --sequences "$sequences" --tokens "$tokens" --steps "$steps" \
                --warmup "$warmup" --json "$work/one.json" $own >/dev/null
            keep "cutlayer${own:+ $own}" "$work/one.json"
        done
        for variant in $variants; do
            script=$peers/torch_split.py
            if grep -q '"model_type": *"bert"' "$model/config.json"; then
                [[ $variant == hf* ]] || continue
                script=$root/benches/peer_encoder.py
            fi
            echo "$job turn $turn: $variant" >&2
            case $variant in hf*) mode=hf ;; *) mode=local ;; esac
            run=("$python" "$script" --model "$model" --mode "$mode" --batch "$sequences" --seq "$tokens"
                --steps "$steps" --warmup "$warmup" --threads "$threads")
            [[ $variant != *-compile* ]] || run+=(--compile)
            [[ $variant != *-tuned* ]] || run=(sh "$peers/tuned.sh" "${run[@]}")
            if "${run[@]}" >"$work/one.out" 2>"$work/one.err"; then
                tail -n 1 "$work/one.out" >"$work/one.json"
                keep "$variant" "$work/one.json"
            else
                echo "$variant failed and is left out:" >&2
                tail -n 5 "$work/one.err" >&2
            fi
        done
    done
    "$python" - "$results" "$job" "$turns" "$steps" "$threads" <<'PY'
import json, statistics, sys

lines = [json.loads(line) for line in open(sys.argv[1])]
job, turns, steps, threads = sys.argv[2:]
names = list(dict.fromkeys(line["who"] for line in lines))
ours = next(name for name in names if name.startswith("cutlayer"))
at = {(line["who"], line["turn"]): line for line in lines}

def peak(line):
    return line["peak_rss_mb"] if "peak_rss_mb" in line else (line["peak_bytes"]["uncut"] or 0) / 2**20

machine = next(line for line in lines if line["who"] == ours)
print(f"\n### {job}, f32, {turns} turns of {steps} steps, {threads} threads of {machine['cores']} cores, {machine['device_name']}\n")
print("| who | median ms | best ms | tokens/s | ours / theirs, by turn | best / best | peak RSS MiB | ours / theirs |")
print("|---|---|---|---|---|---|---|---|")
for name in names:
    mine = [line for line in lines if line["who"] == name]
    middle, best = (statistics.median(l["step_ms"] for l in mine), min(l["step_ms_best"] for l in mine))
    both = [(at[ours, l["turn"]], l) for l in mine]
    ratio = statistics.median(a["step_ms"] / b["step_ms"] for a, b in both)
    best_ratio = min(a["step_ms_best"] for a, _ in both) / best
    rss, our_rss = (statistics.median(peak(l) for l in some) for some in (mine, [a for a, _ in both]))
    tokens = mine[0]["sequences"] * mine[0]["tokens"] if "sequences" in mine[0] else mine[0]["batch"] * mine[0]["seq"]
    print(f"| {name} | {middle:,.1f} | {best:,.1f} | {tokens / middle * 1e3:,.0f} | {ratio:.3f} | {best_ratio:.3f} "
          f"| {rss:,.0f} | {our_rss / max(rss, 1):.2f} |")
PY
done
