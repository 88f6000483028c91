#!/usr/bin/env bash
# Everything that needs a GPU, as one command, on a machine that installs nothing:
#
#   benchmarks/on_gpu.sh OUT [--brief] [--dry-run] [PIECE ...]
#
# leaves every raw file in OUT, which goes into benchmarks/results/ as it is, and all of them in
# OUT.tar.gz (ARCHIVE names another place) after every piece. PIECE is any of build (unless a
# current extension is there), tests (`pytest -m gpu`), failed (those of OUT/gpu_tests.xml that
# failed), sanitizer, kernels, train, infer, exit, gpt9x512, paper (the brief preset of
# benchmarks.paper, with ACN_DATA_DIR), report, or the name of a case such as infer_mlp128. Default:
# all but failed and paper, those that take longest several times; each ends within ten minutes and
# leaves what it has, and run again goes on where it stopped. A piece that fails keeps no other from
# running; the exit status tells.
#
# --brief: everything once within eight minutes, the most valuable first; what comes late has less
# time. --dry-run: every piece on the CPU with tiny shapes.
#
# What fits into --brief, on 16 cores and one H200: a build for one architecture 60 s, or none; 1,700
# tests 120 s, 90 with their kernels already in Triton's cache; ViT-B 55 s, most of it torch.compile;
# a max-autotune peer 60 to 100 s, of which there are three (compiled peers that no target names are
# left out); an exit_engine case 15 to 20 s; everything else a few seconds a case, and ten for each
# process.
set -uo pipefail

readonly all=(build tests sanitizer kernels train infer exit gpt9x512 report)
readonly case_name='^(kernel|train|infer|exit|gpt9x512)_[a-z0-9_]+$'
readonly headline=(train_vit_base infer_mlp128 train_mixer_cifar infer_mixer_cifar_b512 exit_mixer_cifar_mean6 train_mlp128)
readonly cases_left=3 # the status that says so
readonly archive_limit=$((16 << 20))

usage() {
  echo "usage: benchmarks/on_gpu.sh OUT [--brief] [--dry-run] [PIECE ...];" \
    "PIECE: ${all[*]} failed paper, or a case" >&2
  exit 2
}

out="" device=cuda brief="" mode=() pieces=()
for argument in "$@"; do
  case "$argument" in
    --dry-run) device=cpu mode+=(--tiny --quick) ;;
    --brief) brief=yes mode+=(--brief) ;;
    -*) echo "on_gpu.sh: $argument is no option" >&2; usage ;;
    *)
      if [ -z "$out" ]; then
        out=$(realpath -m -- "$argument") # of the caller's folder
      elif [[ " ${all[*]} failed paper " == *" $argument "* || $argument =~ $case_name ]]; then
        pieces+=("$argument")
      else
        echo "on_gpu.sh: $argument is no piece" >&2
        usage
      fi ;;
  esac
done
[ -n "$out" ] || usage
cd "$(dirname "$0")/.." || exit
if [ ${#pieces[@]} -eq 0 ]; then
  pieces=("${all[@]}")
  [ "$device" = cpu ] || pieces=(build tests sanitizer kernels train train train infer infer exit exit gpt9x512 report)
  [ -z "$brief" ] || pieces=(build tests "${headline[@]}" kernels gpt9x512 exit infer train sanitizer report)
fi
mkdir -p "$out" && : >>"$out/pieces.txt" || exit 2
archive=${ARCHIVE:-${out%/}.tar.gz}
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1

# --- time: the seconds that a piece may take

readonly brief_total=465 brief_reserve=25 # of that, for the report
limit_of() {
  [ -n "$brief" ] || { echo 590; return; }
  local most left=$((brief_total - brief_reserve - SECONDS))
  case "$1" in
    build | tests) most=150 ;;
    paper) most=$left ;;
    train_vit_base) most=90 ;;
    train_* | infer_* | sanitizer) most=110 ;;
    report) most=30 left=30 ;;
    *) most=45 ;;
  esac
  echo $((left < most ? left : most))
}

# The command with an interrupt at its limit, at which pytest still writes what it has. timeout holds
# it in a process group that no Ctrl-C reaches, so it is handed on; job control lets it be heeded.
within() {
  local limit=$1
  shift
  set -m
  timeout --signal=INT --kill-after=10 "$limit" "$@" &
  set +m
  trap "kill -INT $!" INT TERM
  wait $! || wait $! # again where the first was interrupted; else the same status
}

# --- the pieces, each given its limit

build() {
  if "$python" -W ignore -c "
from acn_kernels import _extension
there = _extension.has_cuda_kernels() if '$device' == 'cuda' else _extension.module()
print('extension', _extension.state())
raise SystemExit(not there)"; then return; fi
  [ "$device" = cpu ] || export TORCH_CUDA_ARCH_LIST=${TORCH_CUDA_ARCH_LIST:-$("$python" -c \
    'import torch; print("{}.{}".format(*torch.cuda.get_device_capability()))')}
  within "$1" "$python" setup.py build_ext --inplace
}

# What everything else stands on goes first.
readonly first_tests=(shares fork join accumulate_norm bias_gelu linear_stack mixer_stack
  whole_mixer_stacks mixer_exit exit_head engine_cuda engine_text_cuda)
tests() {
  if [ "$device" = cpu ]; then # the marked tests are only collected
    within "$1" "$python" -m pytest -m gpu --collect-only
  else
    run_tests "$1" "$out/gpu_tests.xml" "${first_tests[@]/#/tests/test_}" tests
  fi
}
run_tests() {
  local limit=$1 xml=$2 chosen="gpu" parallel=() arguments=()
  shift 2
  for argument in "$@"; do
    [ ! -f "$argument.py" ] || argument+=.py
    arguments+=("$argument")
  done
  [ -z "$brief" ] || chosen="gpu and not slow"
  if "$python" -c 'import xdist' 2>/dev/null; then
    parallel=(-n "$(nproc)" --dist loadgroup)
  fi
  # A test that hangs then ends its process alone.
  if "$python" -c 'import pytest_timeout' 2>/dev/null; then
    parallel+=(--timeout 100 --timeout-method thread)
  fi
  # Test by test: where pytest itself is killed, the log alone says which failed.
  within $((limit - 5)) "$python" -m pytest -v -m "$chosen" "${parallel[@]}" --tb=short \
    --junit-xml="$xml" -o junit_family=xunit1 -o console_output_style=classic "${arguments[@]}"
}
failed() {
  local listed names
  listed=$("$python" -m benchmarks.report.gpu_tests "$out/gpu_tests.xml") || return
  mapfile -t names <<<"$listed"
  if [ -z "$listed" ]; then
    echo "$out/gpu_tests.xml names no test that failed"
  elif [ "$device" = cpu ]; then
    within "$1" "$python" -m pytest -m gpu --collect-only "${names[@]}"
  else
    run_tests "$1" "$out/gpu_tests_again.xml" "${names[@]}"
  fi
}

# Every kernel once, on small inputs, under the checkers for stray accesses and races. Peers and
# torch.compile are left out: those are other people's kernels. In brief memcheck alone, on the
# single kernels.
sanitizer() {
  local tool suite under tools=(memcheck racecheck) suites=(kernels smoke)
  [ -z "$brief" ] || tools=(memcheck) suites=(kernels)
  [ "$device" = cuda ] || tools=(none)
  for tool in "${tools[@]}"; do
    under=()
    [ "$tool" = none ] ||
      under=(compute-sanitizer --tool "$tool" --error-exitcode 9 --print-limit 20)
    for suite in "${suites[@]}"; do
      TORCH_COMPILE_DISABLE=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
        within $(($1 / ${#tools[@]} / ${#suites[@]})) \
        "${under[@]}" "$python" -m benchmarks.throughput --suite "$suite" --tiny --quick --ours \
        --device "$device" --out "$out/sanitized_$tool" || return
    done
    "$python" -m benchmarks.throughput.check "$out/sanitized_$tool" --suite "${suites[@]}" || return
  done
}

# A suite, or one case of it.
throughput() {
  local limit=$1 suite=$2 code
  shift 2
  within "$limit" "$python" -m benchmarks.throughput --suite "$suite" "$@" --device "$device" \
    --out "$out" --budget $((limit * 8 / 10)) --resume "${mode[@]}"
  code=$?
  [ $code -eq $cases_left ] && return 0 # said above; not a failure
  return $code
}

# One network at a time, as their times are compared. What is trained stays beside OUT: the networks
# are large, and the same command goes on with them.
readonly experiments=(cheaper fig1_2 table2 table5 table7 fig4 cheaper_vit) # the most wanted first
paper() {
  local limit=$1 preset=brief code
  [ "$device" = cuda ] || preset=smoke
  within "$limit" "$python" -m benchmarks.paper --preset $preset --seeds 1 --jobs 1 \
    "${experiments[@]/#/--experiment=}" --device "$device" --out "$out/paper" \
    --work "${out%/}.work" --budget $((limit * 8 / 10))
  code=$?
  mkdir -p "$out/paper"
  cp -r "${out%/}.work/runs" "$out/paper/"
  [ $code -eq $cases_left ] && return 0 # as above
  return $code
}

report() {
  local code
  within "$1" "$python" -m benchmarks.report "$out" >"$out/report.txt"
  code=$?
  "$python" -m benchmarks.report.summary "$out" && return $code
}

run_piece() {
  case "$1" in
    build | tests | failed | sanitizer | paper | report) "$1" "$2" ;;
    *_*) throughput "$2" all --case "$1" ;;
    *) throughput "$2" "$1" ;;
  esac
}

pack() {
  local folder name
  folder=$(dirname "$out") name=$(basename "$out")
  tar -C "$folder" -czf "$archive" "$name" || return
  if [ "$(stat -c %s "$archive")" -gt $archive_limit ]; then
    echo "the logs do not fit into $archive"
    tar -C "$folder" --exclude='*.log' -czf "$archive" "$name"
  fi
}

{
  date -u +%FT%TZ
  git describe --always --dirty 2>/dev/null
  command -v nvidia-smi >/dev/null && nvidia-smi --query-gpu=name,driver_version,clocks.sm,clocks.mem,temperature.gpu --format=csv
} | tee "$out/machine.txt"

status=0
trap 'echo "== $piece: interrupted" | tee -a "$out/pieces.txt"; pack; exit 130' INT TERM
for piece in "${pieces[@]}"; do
  echo "== $piece"
  started=$SECONDS limit=$(limit_of "$piece")
  if [ "$limit" -lt 15 ]; then
    echo "== $piece: no time was left" | tee -a "$out/pieces.txt"
    status=1
    continue
  fi
  run_piece "$piece" "$limit" 2>&1 | tee -i -a "$out/$piece.log"
  code=${PIPESTATUS[0]}
  echo "== $piece: exit $code after $((SECONDS - started)) s" | tee -a "$out/pieces.txt"
  [ "$code" -eq 0 ] || status=1
  pack || status=1
done
[ ! -f "$archive" ] || echo "all of it is in $archive"
exit $status
