#!/usr/bin/env bash
# Everything that needs a GPU, as one command, on a machine that installs nothing:
#
#   benchmarks/on_gpu.sh OUT [--dry-run] [PIECE ...]
#
# builds the extension in place, runs `pytest -m gpu` and the suites of benchmarks.throughput, and
# leaves every raw file in OUT, which goes into benchmarks/results/ as it is. PIECE is any of
# build, tests, sanitizer, kernels, train (default: all, in that order); each ends within ten
# minutes. --dry-run walks every piece on the CPU with tiny shapes, to see that all of it runs.
# A piece that fails does not keep the next one from running; the exit status tells.
set -uo pipefail
cd "$(dirname "$0")/.."

out="" device=cuda tiny=() pieces=()
for argument in "$@"; do
  case "$argument" in
    --dry-run) device=cpu tiny=(--tiny --quick) ;;
    build | tests | sanitizer | kernels | train) pieces+=("$argument") ;;
    -*) echo "on_gpu.sh: $argument is no option; it takes --dry-run" >&2; exit 2 ;;
    *) if [ -n "$out" ]; then
         echo "on_gpu.sh: $argument is no piece; it takes build, tests, sanitizer, kernels, train" >&2
         exit 2
       fi
       out=$argument ;;
  esac
done
if [ -z "$out" ]; then
  echo "usage: benchmarks/on_gpu.sh OUT [--dry-run] [PIECE ...]" >&2
  exit 2
fi
[ ${#pieces[@]} -gt 0 ] || pieces=(build tests sanitizer kernels train)
mkdir -p "$out"
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1

build() { "$python" setup.py build_ext --inplace; }

# Without a GPU the marked tests are only collected.
tests() {
  if [ "$device" = cpu ]; then
    "$python" -m pytest -m gpu --collect-only
  else
    "$python" -m pytest -m gpu --junit-xml="$out/gpu_tests.xml" -o console_output_style=classic &&
      "$python" -m pytest tests/test_fork.py tests/test_join.py tests/test_accumulate_norm.py
  fi
}

# Every kernel once, on small inputs, under the checkers for stray accesses and races.
sanitizer() {
  local tool run=("$python" -m benchmarks.throughput --suite kernels --tiny --quick)
  if [ "$device" = cpu ]; then
    "${run[@]}" --device cpu --out "$out/sanitized"
    return
  fi
  for tool in memcheck racecheck; do
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 9 \
      "${run[@]}" --device cuda --out "$out/sanitized_$tool" || return
  done
}

kernels() { suite kernels; }
train() { suite train; }
suite() { "$python" -m benchmarks.throughput --suite "$1" --device "$device" --out "$out" "${tiny[@]}"; }

{
  date -u +%FT%TZ
  git describe --always --dirty 2>/dev/null
  command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu --format=csv
} | tee "$out/machine.txt"

status=0
for piece in "${pieces[@]}"; do
  echo "== $piece"
  started=$SECONDS
  "$piece" 2>&1 | tee "$out/$piece.log"
  code=${PIPESTATUS[0]}
  echo "== $piece: exit $code after $((SECONDS - started)) s" | tee -a "$out/pieces.txt"
  [ "$code" -eq 0 ] || status=1
done
exit $status
