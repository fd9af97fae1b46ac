#!/usr/bin/env bash
# Fits policies on stories and commonsense questions, the large model split with a host behind an LTE link: run.sh DATA [OUT]
#
# DATA is the shared data folder. OUT gets the questions and a folder for each fit. CUTLAYER is the binary; without it, the release build of
# this tree.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
data=$1
out=${2:-$(mktemp -d)}
cutlayer=${CUTLAYER:-${CARGO_TARGET_DIR:-$here/../../target}/release/cutlayer}
mkdir -p "$out"
python3 "$here/questions.py" "$data" "$out/questions"

# host MODEL LINK..: starts one behind that link, and leaves the flags that reach it in $flags
host() {
  rm -f "$out/host.log" "$out/link.log"
  "$cutlayer" host --model "$1" --listen 127.0.0.1:0 --keys "$out/host-keys" --invite device 2> "$out/host.log" &
  until grep -qs -- --token "$out/host.log"; do sleep 0.1; done
  flags=$(grep -m 1 -- --token "$out/host.log" | xargs)
  address=$(echo "$flags" | awk '{print $2}')
  "$cutlayer" link --to "$address" "${@:2}" 2> "$out/link.log" &
  until grep -qs listening "$out/link.log"; do sleep 0.1; done
  flags=${flags/$address/$(grep -o '127.0.0.1:[0-9]*' "$out/link.log" | head -n 1)}
}

# fit NAME QUESTIONS LOCAL FLAGS..
fit() {
  echo "== $1"
  # shellcheck disable=SC2086
  "$cutlayer" offload fit --data "$out/questions/$2.jsonl" --local-model "$3" --model "$large" --keys "$out/device-keys" $flags \
    --out "$out/$1" "${@:4}" || true
  flags=${flags% --token *}
}

trap 'kill $(jobs -p) 2> /dev/null || true' EXIT
stories=$data/stories260k-hf
larger=$data/tinystories-656k-hf

large=$stories
host "$large" --profile lte
fit cloze-lte cloze "$larger" --options options --tail 0 --accuracy 0.84
fit stories-lte stories "$larger" --local-share 0.5 --tokens-max 6 --records-max 200
kill $(jobs -p); wait || true
rm -rf "$out/host-keys" "$out/device-keys"

large=$larger
host "$large" --profile lte
fit commonsense-lte commonsense "$stories" --options options --tail 0 --local-share 0.5 --records-max 300
kill $(jobs -p); wait || true

# How right both are, all of it here: who is right does not depend on where.
flags=
for set in commonsense ARC-Easy boolq openbookqa piqa winogrande cloze; do
  fit "$set" "$set" "$stories" --options options --local-share 0.5
done
large=$stories
fit stories stories "$larger" --tokens-max 6 --local-share 0.5
for blocks in 3 4; do
  python3 "$here/early_exit.py" "$stories" $blocks "$out/first-$blocks"
  fit "cloze-first-$blocks" cloze "$out/first-$blocks" --options options --local-share 0.5
  fit "stories-first-$blocks" stories "$out/first-$blocks" --tokens-max 6 --local-share 0.5
done
