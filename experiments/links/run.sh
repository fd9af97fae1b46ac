#!/usr/bin/env bash
# Runs the quickstart, shortened, over each link profile, and prints what the link costs: run.sh [OUT [KEY=VALUE..]]
#
# OUT gets the runs' folders; the rest are --set of each run. CUTLAYER is the binary; without it, the release build of this tree.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-$(mktemp -d)}
shift $(($# < 1 ? $# : 1))
cutlayer=${CUTLAYER:-${CARGO_TARGET_DIR:-$here/../../target}/release/cutlayer}

changes=(--set train.rounds=2 --set train.local_steps=6 --set train.evaluate_every=0)
for change in "$@"; do
  changes+=(--set "$change")
done
for profile in loopback fibre wifi 5g lte satellite train; do
  "$cutlayer" run "$here/../quickstart/run.toml" --name "$profile" --runs "$out" --set "link.profile=$profile" "${changes[@]}" --quiet > /dev/null
done
python3 "$here/table.py" "$out"
