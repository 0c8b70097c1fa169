#!/usr/bin/env bash
# Everything that needs a GPU, in one command, within nine minutes: build, GPU tests, benchmarks, plots, dispatch table.
# A part that fails or takes too long does not stop the others. Run it from anywhere; see usage below.
set -u

usage() {
    cat <<'TEXT'
usage: benchmarks/gpu_all.sh [--device cuda|cpu] [--out DIR] [--wheels DIR] [--parts "PART ..."] [--seconds N]

  --device   what to test and time (default cuda). cpu takes the same way with quick settings, and builds nothing.
  --out      results folder (default benchmarks/results/DEVICE); gets CSV files, plots, logs/ and summary.txt
  --wheels   a folder of wheels to install first, for a machine without a network
  --parts    some of: wheels build gpu_tests triton_tests pgd ops ops_more unet stage1 attack plots plots_steps table
             (default all, so ordered); ops is bf16 with torch.compile, ops_more the other dtypes without
  --seconds  for everything together (default 530); each part's budget grows and shrinks with it

Needs Python with torch, scikit-build-core and pybind11, and nvcc for CUDA. PYTHON names the interpreter.
Exit status: 0 if every part succeeded.
TEXT
}

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
device=cuda out="" wheels="" parts="" total=530
while [ $# -gt 0 ]; do
    case $1 in
        --device | --out | --wheels | --parts | --seconds) [ $# -gt 1 ] || { usage >&2; exit 2; } ;;
    esac
    case $1 in
        --device) device=$2 ;;
        --out) out=$2 ;;
        --wheels) wheels=$2 ;;
        --parts) parts=$2 ;;
        --seconds) total=$2 ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; exit 2 ;;
    esac
    shift 2
done
case $device in
    cuda) quick=() more=(fp32 fp16) ;;
    cpu) quick=(--quick) more=(fp32) ;;
    *) usage >&2; exit 2 ;;
esac

started=$SECONDS
if [ -z "$out" ]; then
    # The benchmarks' own name for the device, before the package is built.
    if [ "$device" = cuda ]; then
        name=$("$python" -c 'import torch; print(torch.cuda.get_device_name().replace(" ", "-"))') || name=cuda
    else
        find='import torch; from lordfast.profiling.machine import device_key; print(device_key(torch.device("cpu")))'
        name=$(cd / && "$python" -c "$find") || name=cpu
    fi
    out=$root/benchmarks/results/$name
fi
mkdir -p "$out/logs" || exit 2
out=$(cd "$out" && pwd)
summary=$out/summary.txt
printf '%-14s %6s %8s\n' part status seconds >"$summary"
failed=0

# part NAME SECONDS COMMAND...: run it under its own budget and what is left of the whole, note how it went.
part() {
    local name=$1 budget=$(($2 * total / 530)) left=$((total - (SECONDS - started))) begun=$SECONDS status
    shift 2
    # What was measured is worth most when it can be looked at: the last parts always have their time.
    case $name in plots | plots_steps | table) ;; *) left=$((left - 50 * total / 530)) ;; esac
    if [ -n "$parts" ] && [[ " $parts " != *" $name "* ]]; then return; fi
    if [ "$left" -lt "$budget" ]; then budget=$left; fi
    if [ "$budget" -lt 5 ]; then
        status=skipped failed=1
    else
        # INT first: a benchmark keeps its finished rows either way, pytest prints what it has.
        timeout --signal=INT --kill-after=10 "$budget" "$@" >"$out/logs/$name.log" 2>&1
        status=$?
        [ "$status" -eq 0 ] || failed=1
    fi
    printf '%-14s %6s %8s\n' "$name" "$status" $((SECONDS - begun)) | tee -a "$summary"
}

build() {
    local capability
    capability=$("$python" -c 'import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + ("a" if a >= 9 else ""))') || return
    (cd "$root" && LORDFAST_CUDA=ON "$python" -m pip install . --no-build-isolation --no-deps \
        -C "cmake.define.CMAKE_CUDA_ARCHITECTURES=$capability-real")
}
export -f build
export root python

# From a folder of its own: in the checkout, `python -m` would find the source tree, which has no compiled extension.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 2
tests() { # tests STATUS-FILE ARGUMENTS...: no test selected is no failure
    "$python" -m pytest -c "$root/pyproject.toml" --rootdir "$root" -p no:cacheprovider -q \
        --continue-on-collection-errors "$@"
    local status=$?
    [ "$status" -eq 5 ] && return 0
    return "$status"
}
export -f tests

bench() { # bench NAME SECONDS FLAGS...: NAME is the script's, and after "_" what tells its parts apart
    part "$1" "$2" "$python" "$root/benchmarks/bench_${1%%_*}.py" --device "$device" --out "$out/$1.csv" "${@:3}"
}

if [ -n "$wheels" ]; then
    wheels=$(cd "$root" && cd "$wheels" && pwd) || exit 2
    part wheels 60 bash -c '"$python" -m pip install --no-index --no-deps "$0"/*.whl' "$wheels"
fi
[ "$device" = cuda ] && part build 150 bash -c build
part gpu_tests 120 bash -c 'tests -m gpu "$root/tests"'
triton_tests=$root/tests/ops/backends/triton
[ -d "$triton_tests" ] && part triton_tests 90 bash -c 'tests "$0"' "$triton_tests"
bench pgd 40 "${quick[@]}" --seconds 0.5
bench ops 150 "${quick[@]}" --seconds 1.5 --dtype bf16
bench ops_more 80 "${quick[@]}" --seconds 1 --no-compile --dtype "${more[@]}"
bench unet 90 "${quick[@]}" --seconds 15
bench stage1 120 "${quick[@]}" --seconds 20
bench attack 110 "${quick[@]}" --seconds 10
csv=()
for name in ops ops_more pgd unet; do [ -s "$out/$name.csv" ] && csv+=("$out/$name.csv"); done
part plots 40 "$python" "$root/benchmarks/plot.py" "${csv[@]}" --out "$out"
steps=()
for name in stage1 attack_steps; do [ -s "$out/$name.csv" ] && steps+=("$out/$name.csv"); done
[ ${#steps[@]} -gt 0 ] && part plots_steps 20 "$python" "$root/benchmarks/plot_steps.py" "${steps[@]}" --out "$out"
part table 20 "$python" "$root/benchmarks/dispatch_table.py" "${csv[@]}" --out "$out/dispatch.json"

printf '%-14s %6s %8s\n' total "$failed" $((SECONDS - started)) | tee -a "$summary"
echo "Results: $out"
exit "$failed"
