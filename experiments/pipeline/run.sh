#!/usr/bin/env bash
# What staleness costs: the quickstart and Shakespeare at several depths of the pipeline, three seeds each. Prints README.md's table.
#   bash experiments/pipeline/run.sh [OUT]
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
out=${1:-$(mktemp -d)}
program=${CUTLAYER:-${CARGO_TARGET_DIR:-$here/target}/release/cutlayer}
for experiment in quickstart shakespeare; do
    for pipeline in exact stale=1 stale=2 stale=4 stale=8; do
        for seed in 1 2 3; do
            name=$experiment-${pipeline/=/-}-$seed
            [ -e "$out/$name/summary.json" ] || "$program" run "$here/experiments/$experiment/run.toml" --runs "$out" --quiet --format json \
                --set name="\"$name\"" --set seed=$seed --set train.pipeline="\"$pipeline\"" --set split.server_adapters='"per_client"' \
                --set train.evaluate_every=0 >/dev/null
        done
    done
done
python3 - "$out" <<'PY'
import json, pathlib, statistics, sys
out = pathlib.Path(sys.argv[1])

def last(name):
    lines = [json.loads(line) for line in open(out / name / "metrics.jsonl")]
    return [line["loss"] for line in lines if line["event"] == "evaluated" and line["from"] == "server"][-1]

print("| pipeline | quickstart | Shakespeare |\n|---|---|---|")
exact = {}
for pipeline in ["exact", "stale=1", "stale=2", "stale=4", "stale=8"]:
    cells = []
    for experiment in ["quickstart", "shakespeare"]:
        losses = [last(f"{experiment}-{pipeline.replace(chr(61), chr(45))}-{seed}") for seed in (1, 2, 3)]
        exact.setdefault(experiment, losses)
        worse = [100 * (loss / base - 1) for loss, base in zip(losses, exact[experiment])]
        mean = statistics.mean(losses)
        cells.append(f"{mean:.4f}" if pipeline == "exact" else f"{mean:.4f}, {statistics.mean(worse):+.2f} % ({min(worse):+.2f} to {max(worse):+.2f})")
    print(f"| {pipeline} | {' | '.join(cells)} |")
PY
