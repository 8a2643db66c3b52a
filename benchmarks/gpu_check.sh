#!/usr/bin/env bash
# Proof on a GPU: builds, tests the kernels natively, looks for races and bad addresses, measures. Under ten minutes.
#
#   benchmarks/gpu_check.sh [--out DIR] [--only STAGE ...] [--list] [--dry-run]
#
# Stages: build ops gpu memcheck racecheck kernels. Each has a time limit, and one that fails does not stop the next. The
# last lines are a short table; DIR (default benchmarks/results) gets gpu_<name>_<date and time>.json and .md, and the logs
# stay in build/gpu_check. Exit status: 0 all passed; 1 a stage failed or lacked something, or none passed; 2 no GPU, or a
# mistake in the arguments.
# PYTHON chooses the interpreter (default python3), STAGE_SECONDS multiplies every limit (default 1), WORK is the logs' folder.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3}"
FACTOR="${STAGE_SECONDS:-1}"
STAGES=(build ops gpu memcheck racecheck kernels)
out=benchmarks/results
only=()
dry=

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }
mistake() { echo "gpu_check: $1" >&2; exit 2; }

while (($#)); do
  case "$1" in
    --out) (($# > 1)) || mistake "--out needs a folder"; out="$2"; shift ;;
    --only)
      (($# > 1)) || mistake "--only needs a stage: ${STAGES[*]}"
      [[ " ${STAGES[*]} " == *" $2 "* ]] || mistake "--only is '$2', expected one of: ${STAGES[*]}"
      only+=("$2"); shift ;;
    --list) printf '%s\n' "${STAGES[@]}"; exit 0 ;;
    --dry-run) dry=1 ;;
    -h | --help) usage; exit 0 ;;
    *) mistake "'$1' is no option: --out DIR, --only STAGE, --list, --dry-run" ;;
  esac
  shift
done

work="${WORK:-build/gpu_check}"
export FASTSEQ_STRICT=1 PYTHONUNBUFFERED=1
# One cache of compiled kernels for all stages: the sanitizer must not find ptxas at work.
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$(realpath "$work")/triton}"

has() { "$PYTHON" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)" 2>/dev/null; }
imports() { "$PYTHON" -c "import $1" > "$work/import.log" 2>&1; }
wanted() { ((${#only[@]} == 0)) || [[ " ${only[*]} " == *" $1 "* ]]; }

record() { # name, verdict, seconds, note
  printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >> "$work/stages.tsv"
  printf '== %s: %s, %s s. %s\n' "$@"
}

# stage NAME SECONDS "MODULES NEEDED" COMMAND ...: runs the command under a limit, says what is missing.
stage() {
  local name="$1" limit="$2" needed="$3" started verdict status missing=() note
  shift 3
  wanted "$name" || return 0
  limit=$("$PYTHON" -c "print(max(1, round($limit * $FACTOR)))" 2>/dev/null || echo "$limit")
  if [[ $dry ]]; then
    echo "$name (${limit} s): $*"
    return 0
  fi
  for module in $needed; do has "$module" || missing+=("$module"); done
  if ((${#missing[@]})); then
    record "$name" missing 0 "not installed: ${missing[*]} (pip install ${missing[*]})"
    return 0
  fi
  printf '\n== %s (at most %s s): %s\n' "$name" "$limit" "$*"
  started=$SECONDS
  # INT first: what was measured or tested until then is still reported.
  timeout --signal=INT --kill-after=10 "$limit" "$@" > "$work/$name.log" 2>&1
  status=$?
  tail -n 12 "$work/$name.log"
  case $status in
    0) verdict=passed ;;
    124 | 137) verdict=timeout ;;
    *) verdict=failed ;;
  esac
  note=$(grep -E '[0-9]+ (passed|failed|error|skipped)|(ERROR|RACECHECK) SUMMARY' "$work/$name.log" | tail -n 1 | tr -d '=\t' | sed 's/^ *//; s/ *$//')
  if [[ $verdict == passed && $note == *skipped* && $note != *passed* ]]; then
    verdict=failed note="nothing ran: $note"
  fi
  record "$name" "$verdict" "$((SECONDS - started))" "$note"
}

if [[ ! $dry ]]; then
  has torch || mistake "$PYTHON has no torch: set PYTHON to the interpreter that does"
  "$PYTHON" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' || mistake "PyTorch sees no GPU"
  mkdir -p "$work" || mistake "$work cannot be made"
  # What the last run left, by name: WORK may be a folder with other files.
  for name in "${STAGES[@]}" small import; do rm -f "$work/$name.log"; done
  rm -f "$work/kernels.json"
  : > "$work/stages.tsv" || mistake "$work cannot be written to"
fi

# The tests import fastseq from this tree; the kernels' folder is mapped into the package by an installation.
if [[ $dry ]] || ! imports "fastseq._C, fastseq.kernels"; then
  stage build 75 "pip setuptools pybind11 ninja" "$PYTHON" -m pip install -q --no-deps --no-build-isolation -e .
elif wanted build; then
  record build passed 0 "built before"
fi
if [[ ! $dry ]] && ! imports fastseq.kernels && [[ ! -e fastseq/kernels ]]; then
  echo "fastseq.kernels is not installed: a link to kernels/ stands in for it during this run"
  ln -s ../kernels fastseq/kernels
  trap 'rm -f fastseq/kernels' EXIT
fi

parallel=()
has xdist && parallel=(-n 6)
pytest=("$PYTHON" -m pytest -q -p no:cacheprovider "${parallel[@]}")
stage ops 120 "pytest hypothesis triton" "${pytest[@]}" tests/ops -k "triton or segments"
stage gpu 110 "pytest hypothesis triton" "${pytest[@]}" tests/gpu/test_gpu.py

# The sanitizer slows a kernel down a lot: tiny sizes, and the kernels compiled before it looks.
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda*/bin/compute-sanitizer \
  "${CUDA_HOME:-/nonexistent}/bin/compute-sanitizer" 2>/dev/null | head -n 1)
if [[ $dry ]]; then sanitizer=compute-sanitizer; fi
if [[ -n $sanitizer ]]; then
  small=("$PYTHON" -m tests.gpu.small)
  if [[ ! $dry ]] && { wanted memcheck || wanted racecheck; }; then
    timeout 30 "${small[@]}" > "$work/small.log" 2>&1 || tail -n 3 "$work/small.log"
  fi
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1 # every tensor an allocation of its own, with nothing of ours behind it
  for tool in memcheck racecheck; do
    stage "$tool" 60 triton "$sanitizer" --tool "$tool" --error-exitcode 1 --target-processes application-only \
      "${small[@]}"
  done
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
else
  for tool in memcheck racecheck; do
    wanted "$tool" && record "$tool" missing 0 "compute-sanitizer is neither on PATH nor in a CUDA toolkit"
  done
fi

kernels=("$PYTHON" benchmarks/kernels.py --device cuda --seconds 0.1 --budget 75)
stage kernels 100 triton bash -c '"${@:2}" > "$1"' kernels "$work/kernels.json" "${kernels[@]}"

if [[ $dry ]]; then
  exit 0
fi
"$PYTHON" benchmarks/gpu_report.py --work "$work" --out "$out"
