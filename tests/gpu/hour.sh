#!/bin/bash
# One GPU (H100, H200), at most nine minutes: what this project has not been measured on a GPU.
#   tests/gpu/hour.sh [CIFAR10]      CIFAR10: an ImageFolder with train/ and test/ for the last part, else it is left out
# $PYTHON (.venv/bin/python) runs it; results go to $OUT (runs/gpu-hour): a .txt for each part, and losses_<GPU>.json, to
# be kept as tests/gpu/losses_<GPU>.json. Parts are independent: one that fails or runs out of time ends only itself.
set -u
cd "$(dirname "$0")/../.." || exit 1
PYTHON=${PYTHON:-.venv/bin/python} OUT=${OUT:-runs/gpu-hour} END=$((SECONDS + ${LIMIT:-540})) FAILED=0
mkdir -p "$OUT"

part() { # part NAME SECONDS COMMAND…
    local name=$1 limit=$2 left=$((END - SECONDS)) start=$SECONDS code
    shift 2
    [ "$limit" -gt "$left" ] && limit=$left
    if [ "$limit" -lt 5 ]; then echo "== $name: no time was left"; return; fi
    echo "== $name: $*"
    timeout --signal=INT --kill-after=15 "$limit" "$@" 2>&1 | tee "$OUT/$name.txt"
    code=${PIPESTATUS[0]}
    echo "== $name: exit code $code after $((SECONDS - start)) s" | tee -a "$OUT/$name.txt"
    case $code in 0 | 75 | 124) ;; *) FAILED=1 ;; esac # 75: saved and stopped; 124: the time of this part is over
}

GPU=$($PYTHON -c 'from tests.gpu.hour import device_name; print(device_name().replace(" ", "_"))' 2> /dev/null)
part losses 45 "$PYTHON" -m tests.gpu.hour losses "$OUT/losses_$GPU.json"
part deep 150 "$PYTHON" tools/doctor.py --deep # the C4 step, memory, precision against the CPU
part speed 150 "$PYTHON" -m tests.gpu.hour speed 32 128 256
part pipelines 40 "$PYTHON" -m tests.gpu.hour pipelines
if [ $# -gt 0 ]; then # as many epochs of afternoon_gpu.yaml's SimSiam as fit into what is left
    part pretrain $((END - SECONDS - 15)) "$PYTHON" tools/pretrain.py --config-file simsiam_r50_b256_200ep_base \
        --overlay afternoon --output "$OUT/pretrain" --resume DATA.ROOT "$1" DATA.WORKERS 8 MODEL.ARCH resnet50 \
        MODEL.PROJ_LAYERS 2 SOLVER.BASE_LR 0.1 SOLVER.BATCH_SIZE 256 SOLVER.EPOCHS 100 SOLVER.OPTIMIZER_IMPL fused
fi
exit $FAILED
