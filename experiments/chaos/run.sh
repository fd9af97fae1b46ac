#!/usr/bin/env bash
# Kills the processes of small runs until so many were killed, and holds what comes out against the same run without: run.sh [KILLS [OUT]]
#
# OUT gets the runs' folders. CUTLAYER is the binary; without it, the release build of this tree. Ends with 1 where anything differs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
kills=${1:-200}
out=${2:-$(mktemp -d)}
cutlayer=${CUTLAYER:-${CARGO_TARGET_DIR:-$here/../../target}/release/cutlayer}

"$cutlayer" run "$here/run.toml" --name calm --runs "$out" --quiet > /dev/null
killed=0
seed=0
while [ "$killed" -lt "$kills" ]; do
  seed=$((seed + 1))
  "$cutlayer" run "$here/run.toml" --name "wild-$seed" --runs "$out" --chaos "kill=1/1s,seed=$seed" --quiet > /dev/null
  killed=$((killed + $(grep -c '"event":"killed"' "$out/wild-$seed/metrics.jsonl" || true)))
done
python3 "$here/check.py" "$out"
