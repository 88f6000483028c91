#!/usr/bin/env bash
# Everything that needs a GPU, as one command, on a machine that installs nothing:
#
#   benchmarks/on_gpu.sh OUT [--dry-run] [PIECE ...]
#
# builds the extension in place, runs `pytest -m gpu`, the kernels under compute-sanitizer and the
# suites of benchmarks.throughput, and leaves every raw file in OUT, which goes into
# benchmarks/results/ as it is. PIECE is any of build, tests, sanitizer, kernels, train, infer,
# exit, gpt9x512, report (default: all, in that order, train and infer until they are done).
# Each ends within ten minutes and leaves in OUT what it has; a suite that has cases left says so,
# and the same piece run again goes on where it stopped. --dry-run walks every piece on the CPU
# with tiny shapes and checks the files. A piece that fails does not keep the next one from
# running; the exit status tells.
set -uo pipefail
cd "$(dirname "$0")/.."

readonly all=(build tests sanitizer kernels train infer exit gpt9x512 report)
readonly limit=590  # seconds, of a piece
readonly budget=480 # seconds, after which a suite winds up by itself
readonly cases_left=3

usage() {
  echo "usage: benchmarks/on_gpu.sh OUT [--dry-run] [PIECE ...]; PIECE: ${all[*]}" >&2
  exit 2
}

out="" device=cuda mode=() pieces=()
for argument in "$@"; do
  case "$argument" in
    --dry-run) device=cpu mode=(--tiny --quick) ;;
    -*) echo "on_gpu.sh: $argument is no option" >&2; usage ;;
    *)
      if [ -z "$out" ]; then
        out=$argument
      elif [[ " ${all[*]} " == *" $argument "* ]]; then
        pieces+=("$argument")
      else
        echo "on_gpu.sh: $argument is no piece" >&2
        usage
      fi ;;
  esac
done
[ -n "$out" ] || usage
if [ ${#pieces[@]} -eq 0 ]; then
  pieces=("${all[@]}")
  [ "$device" = cpu ] || pieces=(build tests sanitizer kernels train train train infer infer exit exit gpt9x512 report)
fi
mkdir -p "$out"
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1

build() { timeout "$limit" "$python" setup.py build_ext --inplace; }

# Without a GPU the marked tests are only collected.
tests() {
  if [ "$device" = cpu ]; then
    timeout "$limit" "$python" -m pytest -m gpu --collect-only
  else
    timeout "$limit" "$python" -m pytest -m gpu --junit-xml="$out/gpu_tests.xml" \
      -o console_output_style=classic
  fi
}

# Every kernel once, on small inputs, under the checkers for stray accesses and races. Peers and
# torch.compile are left out: those are other people's kernels.
sanitizer() {
  local tool suite under tools=(memcheck racecheck)
  [ "$device" = cuda ] || tools=(none)
  for tool in "${tools[@]}"; do
    under=()
    [ "$tool" = none ] ||
      under=(compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20)
    for suite in kernels smoke; do
      TORCH_COMPILE_DISABLE=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout $((limit / 4)) \
        "${under[@]}" "$python" -m benchmarks.throughput --suite "$suite" --tiny --quick --ours \
        --device "$device" --out "$out/sanitized_$tool" || return
    done
    "$python" -m benchmarks.throughput.check "$out/sanitized_$tool" --suite kernels smoke || return
  done
}

kernels() { suite kernels; }
train() { suite train; }
infer() { suite infer; }
exit_() { suite exit; }
gpt9x512() { suite gpt9x512; }
suite() {
  local code
  timeout "$limit" "$python" -m benchmarks.throughput --suite "$1" --device "$device" \
    --out "$out" --budget "$budget" --resume "${mode[@]}"
  code=$?
  [ $code -eq $cases_left ] && return 0 # said above; not a failure
  [ $code -eq 0 ] || return $code
  "$python" -m benchmarks.throughput.check "$out" --suite "$1"
}

report() { timeout "$limit" "$python" -m benchmarks.report "$out"; }

{
  date -u +%FT%TZ
  git describe --always --dirty 2>/dev/null
  command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu --format=csv
} | tee "$out/machine.txt"

status=0
for piece in "${pieces[@]}"; do
  echo "== $piece"
  started=$SECONDS
  function=$piece
  [ "$piece" != exit ] || function=exit_
  "$function" 2>&1 | tee -a "$out/$piece.log"
  code=${PIPESTATUS[0]}
  echo "== $piece: exit $code after $((SECONDS - started)) s" | tee -a "$out/pieces.txt"
  [ "$code" -eq 0 ] || status=1
done
echo "to carry it: tar -C '$(dirname "$out")' -czf '$out.tar.gz' '$(basename "$out")'"
exit $status
