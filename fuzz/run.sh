#!/usr/bin/env bash
# Fuzzes for a bounded time: fuzz/run.sh SECONDS [wire|files] [TARGET..]
#
# Builds the targets of `fuzz` (what the network says) or `fuzz/files` (what lies on disk) with the compiler at hand, stable
# or not: coverage comes from LLVM's own pass, which rustc lets anyone ask for, and the rest of libFuzzer is C++. Then each
# target runs that long, from what its encoder writes, what is committed under corpus/, and what earlier runs found. The first
# crash, leak beyond the memory limit or input that takes too long ends it, and its input is named.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

if [ $# -lt 1 ]; then
  echo "usage: fuzz/run.sh SECONDS [wire|files] [TARGET..]" >&2
  exit 2
fi
seconds=$1
package=${2:-wire}
shift $(($# < 2 ? $# : 2))
case $package in
  wire) folder=. ;;
  files) folder=files ;;
  *)
    echo "fuzz/run.sh: no package \"$package\"; give wire or files" >&2
    exit 2
    ;;
esac

export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$HOME/.cache/cutlayer/target-fuzz}
host=$(rustc -vV | sed -n 's/^host: //p')
# cargo-fuzz's flags, without a sanitizer: there is no unsafe code here to find, and those are not in stable compilers.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
coverage+=" -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
coverage+=" -Ccodegen-units=1 -Cforce-frame-pointers --cfg fuzzing"

# Given a --target, cargo keeps the flags from build scripts and macros, which have no fuzzer to link with.
(cd "$folder" && RUSTFLAGS=$coverage cargo build --release --locked --bins --target "$host")
work=$CARGO_TARGET_DIR/fuzz-$package
(cd "$folder" && cargo run --quiet --release --locked --example seeds -- "$work/seeds")

targets=("$@")
if [ ${#targets[@]} = 0 ]; then
  for source in "$folder"/fuzz_targets/*.rs; do
    targets+=("$(basename "$source" .rs)")
  done
fi
# Files of targets that read files: in memory, where there is such a place.
[ ! -d /dev/shm ] || export TMPDIR=/dev/shm
for target in "${targets[@]}"; do
  mkdir -p "$work/found/$target" "$work/crashes"
  folders=("$work/found/$target" "$work/seeds/$target")
  [ ! -d "$folder/corpus/$target" ] || folders+=("$folder/corpus/$target")
  log=$work/$target.log
  options=(-max_total_time="$seconds" -rss_limit_mb=1024 -malloc_limit_mb=256 -timeout=10 -max_len=16384)
  options+=(-artifact_prefix="$work/crashes/$target-" -print_final_stats=1)
  if ! "$CARGO_TARGET_DIR/$host/release/$target" "${options[@]}" "${folders[@]}" > "$log" 2>&1; then
    tail -n 60 "$log" >&2
    echo "fuzz: $target FAILED; its input is above, in $work/crashes" >&2
    exit 1
  fi
  executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  covered=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
  printf 'fuzz: %-16s %9d executions in %d s, %d edges covered\n' "$target" "$executed" "$seconds" "${covered:-0}"
done
