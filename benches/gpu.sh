#!/usr/bin/env bash
# Everything of issue "the training step" that needs a GPU, in one command: the fused operations and whole models against the CPU, the step
# of two shapes in bf16 and f32, and device memory over 1,000 steps. Prints markdown. PyTorch rows appear where python3 has torch with
# CUDA, transformers and peft.
#
#   benches/gpu.sh                        needs target/release/cutlayer built with --features cuda (or wgpu, and DEVICE=wgpu)
#
# Environment: DEVICE (cuda), CUTLAYER, SHAPES ("smollm2-135m llama-1b"), BATCH (8x512), STEPS (30), LONG (1000), TESTS: a folder with the
# test binaries `wgpu-*` and `cutlayer_model-*` of crates/model, run first if given.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cutlayer=${CUTLAYER:-${CARGO_TARGET_DIR:-$root/target}/release/cutlayer}
device=${DEVICE:-cuda} batch=${BATCH:-8x512} steps=${STEPS:-30}
sequences=${batch%x*} tokens=${batch#*x}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader

for test in ${TESTS:+"$TESTS"/*}; do
    CUTLAYER_TEST_DEVICE=$device "$test" ops:: agrees --include-ignored || echo "FAILED: $test"
done

echo "| shape | who | median ms | tokens/s | GFLOP/s | of a plain product's |"
echo "|---|---|---|---|---|---|"
for shape in ${SHAPES:-smollm2-135m llama-1b}; do
    for precision in bf16 f32; do
        if "$cutlayer" --quiet bench step --shape "$shape" --device "$device" --precision "$precision" --uncut --sequences "$sequences" \
            --tokens "$tokens" --steps "$steps" --warmup 5 --json "$work/one.json" >/dev/null 2>"$work/one.err"; then
            python3 - "$shape" "$precision" "$work/one.json" <<'PY'
import json, sys
shape, precision, file = sys.argv[1:]
r = json.load(open(file))
print(f"| {shape} | cutlayer {precision} | {r['step_ms']:,.1f} | {r['tokens_per_s']:,.0f} | {r['gflops']:,.0f} | {r['gflops'] / r['gemm_gflops']:.0%} |")
PY
        else
            echo "| $shape | cutlayer $precision | $(tail -n 1 "$work/one.err") |"
        fi
    done
    if python3 -c 'import torch, transformers, peft; assert torch.cuda.is_available()' 2>/dev/null; then
        for mode in eager compile; do
            python3 "$root/benches/peer_gpu.py" --shape "$shape" --batch "$sequences" --seq "$tokens" --steps "$steps" --mode "$mode"
        done
    fi
done

if command -v nvidia-smi >/dev/null; then
    "$cutlayer" --quiet bench step --shape llama-tiny --device "$device" --uncut --steps "${LONG:-1000}" --warmup 1 >/dev/null &
    pid=$!
    echo "MiB of the card in use, each second over ${LONG:-1000} steps of llama-tiny:"
    while kill -0 "$pid" 2>/dev/null; do
        nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits | head -n 1 | tr '\n' ' '
        sleep 1
    done
    wait "$pid"
    echo
fi
