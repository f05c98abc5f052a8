#!/usr/bin/env bash
# Builds, tests and times the GPU kernel in one run of at most 8 minutes. Each part has its own limit, so that a slow one
# does not take the time of the others; the table at the end says which parts failed or reached it.
#
#     OUT=results benchmarks/gpu_suite.sh
#
# PEER is the requirement of torch-ms-deform-attn for pip (a path without a network), or empty to leave it out.
set -uo pipefail
cd "$(dirname "$0")/.."
OUT=$(realpath -m "${OUT:-benchmarks/results}")
PEER=${PEER-torch-ms-deform-attn}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT/logs"
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
summary=()

part() { # name, seconds, command
    local name=$1 limit=$2 start=$SECONDS
    shift 2
    timeout "$limit" "$@" >"$OUT/logs/$name.log" 2>&1
    local status=$?
    summary+=("$(printf '%-22s %4ss of %4ss  exit %s' "$name" $((SECONDS - start)) "$limit" "$status")")
    tail -n 4 "$OUT/logs/$name.log"
}

"$PYTHON" -c "import torch; assert torch.cuda.is_available(), 'this machine has no GPU'" || exit 1
part install 25 "$PYTHON" -m pip install --no-deps --no-build-isolation -e .
if [ -n "$PEER" ]; then
    # Takes minutes for many architectures, and only the CPU: run it beside the tests.
    architecture=$("$PYTHON" -c "import torch; print('{}.{}'.format(*torch.cuda.get_device_capability()))")
    TORCH_CUDA_ARCH_LIST=$architecture MAX_JOBS=8 timeout 150 \
        "$PYTHON" -m pip install --no-deps --no-build-isolation "$PEER" >"$OUT/logs/peer.log" 2>&1 &
    peer=$!
fi

part tests 165 "$PYTHON" -m pytest -rs -s tests/kernels/test_triton_kernel.py
if command -v compute-sanitizer >/dev/null; then
    part sanitizer 45 compute-sanitizer --error-exitcode 9 "$PYTHON" benchmarks/sanitized_kernel.py
else
    summary+=("sanitizer              not installed")
fi
if [ -n "$PEER" ]; then
    wait "$peer" && summary+=("peer                   built") || summary+=("peer                   exit $?")
fi

part operator 105 "$PYTHON" benchmarks/deformable_attention.py --device cuda --output "$OUT" \
    --dtypes float32 bfloat16 --repeats 7 \
    --shapes "UN-EPT encoder" "UN-EPT DeiT encoder" "Deformable DETR encoder" "UN-EPT decoder"
part training 85 "$PYTHON" benchmarks/training_memory.py --repeats 3 --output "$OUT"
part tuning 50 "$PYTHON" benchmarks/triton_tuning.py --shapes "UN-EPT encoder" --dtypes bfloat16 --output "$OUT"

printf '%s\n' "" "${summary[@]}" "results in $OUT" | tee "$OUT/logs/summary.txt"
