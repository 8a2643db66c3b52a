#!/usr/bin/env bash
# Ten minutes on a GPU: proof first, then the figures that matter, each written down as it is found.
#
#   benchmarks/gpu_check.sh [--out DIR] [--data FILE] [--only STAGE ...] [--device cpu] [--list] [--dry-run]
#
# A stage that fails does not stop the next. DIR (default build/gpu_check) gets facts.jsonl, summary.txt, ops*.json
# and logs.tgz, which is written after every stage; the logs lie in LOGS (default DIR/logs).
# --data, or DATA: ml-1m.txt; without it, data in its likeness is generated.
# --device cpu rehearses: small, on the CPU; what needs a GPU is skipped and said to be so.
# Exit status: 0 all passed; 1 a stage failed or lacked something, or none passed; 2 no GPU, or a mistake in the
# arguments. PYTHON is the interpreter (default python3), STAGE_SECONDS multiplies every limit (default 1; 3 on the CPU).
# Needed: torch, Triton, pytest, hypothesis; no network.
set -uo pipefail
cd "$(dirname "$0")/.."

PYTHON="${PYTHON:-python3}"
END=575 # seconds, of all stages
STAGES=(machine build first parity gpu_tests op_tests memcheck speed speed_large peer ops fit speed_types
  cross_entropy peer_compiled racecheck ops_compiled)
out=build/gpu_check data="${DATA:-}" device=cuda dry='' only=()

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }
mistake() { echo "gpu_check: $1" >&2; exit 2; }

while (($#)); do
  case "$1" in
    --out) (($# > 1)) || mistake "--out needs a folder"; out="$2"; shift ;;
    --data) (($# > 1)) || mistake "--data needs ml-1m.txt"; data="$2"; shift ;;
    --device)
      [[ ${2:-} == cuda || ${2:-} == cpu ]] || mistake "--device is '${2:-}', expected cuda or cpu"
      device="$2"; shift ;;
    --only)
      (($# > 1)) || mistake "--only needs a stage: ${STAGES[*]}"
      [[ " ${STAGES[*]} " == *" $2 "* ]] || mistake "--only is '$2', expected one of: ${STAGES[*]}"
      only+=("$2"); shift ;;
    --list) printf '%s\n' "${STAGES[@]}"; exit 0 ;;
    --dry-run) dry=1 ;;
    -h | --help) usage; exit 0 ;;
    *) mistake "'$1' is no option: --out DIR, --data FILE, --only STAGE, --device cpu, --list, --dry-run" ;;
  esac
  shift
done
[[ -z $data || -f $data ]] || mistake "the data is '$data', which is no file"

cuda() { [[ $device == cuda ]]; }
if cuda; then factor=1; else factor=3; fi
factor="${STAGE_SECONDS:-$factor}"
out=$(realpath -m "$out") logs=$(realpath -m "${LOGS:-$out/logs}")
facts="$out/facts.jsonl"
# One cache of compiled kernels for all stages: the sanitizer must not find ptxas at work.
export FASTSEQ_STRICT=1 PYTHONUNBUFFERED=1 TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$out/triton}"

scaled() { "$PYTHON" -c "print(max(1, round($1 * $factor)))" 2> /dev/null; }
has() { "$PYTHON" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)" 2> /dev/null; }
wanted() { ((${#only[@]} == 0)) || [[ " ${only[*]} " == *" $1 "* ]]; }

record() { # name, verdict, seconds, note
  printf '{"stage": "%s", "verdict": "%s", "seconds": %s, "note": "%s"}\n' "$1" "$2" "$3" "${4//[\\\"]/}" >> "$facts"
  printf '== %s: %s, %s s, ends at %s s. %s\n' "$1" "$2" "$3" "$SECONDS" "$4"
  # After every stage: what is there comes back whatever happens next. Stages that run together take turns.
  (flock 9; cd "$logs" && tar czf "$out/logs.tgz" ./*.log) 9> "$logs/.lock" 2> /dev/null
}

left_out() { # name, verdict, reason
  wanted "$1" || return 0
  if [[ $dry ]]; then echo "$1: $2, $3"; else record "$1" "$2" 0 "$3"; fi
}

# stage NAME LIMIT COMMAND ...: never longer than what is left; says how it ended and its last words.
stage() {
  local name="$1" limit started=$SECONDS status verdict note
  wanted "$name" || return 0
  limit=$(scaled "$2")
  shift 2
  if [[ $dry ]]; then echo "$name ($limit s): $*"; return 0; fi
  ((end - SECONDS < limit)) && limit=$((end - SECONDS))
  if ((limit < 1)); then record "$name" timeout 0 "no time was left"; return 0; fi
  # INT first: what was measured or tested until then is still reported.
  timeout --signal=INT --kill-after=5 "$limit" "$@" > "$logs/$name.log" 2>&1
  status=$?
  case $status in
    0) verdict=passed ;;
    124 | 137) verdict=timeout ;;
    *) verdict=failed ;;
  esac
  note=$(grep -aE '[0-9]+ (passed|failed|error|skipped)|tests? collected|SUMMARY|Error' "$logs/$name.log" | tail -n 1 |
    tr -d '=[:cntrl:]' | sed 's/^ *//; s/ *$//' | cut -c1-240)
  if [[ $verdict == passed && $note == *skipped* && $note != *passed* ]]; then
    verdict=failed note="nothing ran: $note"
  fi
  record "$name" "$verdict" "$((SECONDS - started))" "$note"
}

# models NAME LIMIT STAGE OPTION ...: what gpu_check.py asks of whole models.
models() {
  local name="$1" limit="$2"
  shift 2
  stage "$name" "$limit" "$PYTHON" -m benchmarks.gpu_check "$@" --device "$device" --facts "$facts" ${data:+--data "$data"}
}

# tests NAME LIMIT WORKERS FILES EXPRESSION: without a GPU they are only collected.
tests() {
  local parallel=() module
  has xdist && parallel=(-n "$3")
  cuda || parallel=(--collect-only)
  for module in pytest hypothesis triton; do
    [[ $dry ]] || has "$module" || { left_out "$1" missing "not installed: $module (pip install $module)"; return 0; }
  done
  stage "$1" "$2" "$PYTHON" -m pytest -q -p no:cacheprovider "${parallel[@]}" "$4" -k "$5"
}

# sanitized TOOL LIMIT OPTION ...: one training step of every op in tiny sizes; without a GPU, without the tool.
sanitized() {
  local tool="$1" limit="$2" command=()
  shift 2
  if cuda; then
    command=($(command -v compute-sanitizer || ls {/usr/local/cuda*,"${CUDA_HOME:-/none}"}/bin/compute-sanitizer 2> /dev/null))
    if [[ ! $dry && -z ${command[*]} ]]; then
      left_out "$tool" missing "compute-sanitizer is neither on PATH nor in a CUDA toolkit"
      return 0
    fi
    command=("${command[0]:-compute-sanitizer}" --tool "$tool" --error-exitcode 1 --target-processes application-only)
  fi
  # Every tensor an allocation of its own, with nothing of ours behind it.
  stage "$tool" "$limit" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 "${command[@]}" "$PYTHON" -m benchmarks.gpu_check steps \
    --device "$device" "$@"
}

# ops NAME LIMIT OPTION ...: single ops beside their rivals, as JSON in a file of its own.
ops() {
  local name="$1" limit="$2"
  shift 2
  stage "$name" "$limit" bash -c '"${@:2}" > "$1"' ops "$out/$name.json" "$PYTHON" -m benchmarks.ops --device "$device" \
    "$@" --json
}

together() { if [[ $dry ]] || ! cuda; then "$@"; else "$@" & fi; }

end=$(scaled $END) || mistake "$PYTHON does not run, or STAGE_SECONDS is no number: $factor"
if [[ ! $dry ]]; then
  has torch || mistake "$PYTHON has no torch: set PYTHON to the interpreter that does"
  ! cuda || "$PYTHON" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' ||
    mistake "PyTorch sees no GPU; --device cpu rehearses without one"
  mkdir -p "$out" "$logs" && : > "$facts" || mistake "$out or $logs cannot be written to"
  # What the last run left, by name: the folders may have other files.
  for name in "${STAGES[@]}"; do rm -f "$logs/$name.log"; done
  rm -f "$out"/{ops,ops_compiled}.json "$out/logs.tgz" "$out/summary.txt"
fi
if cuda; then
  moment=1.5 few=2048 many=16384 ways=(eager graph) beside=(--against eager nested --seconds 0.05 --budget 60)
else
  moment=0.1 few=256 many=512 ways=(eager) beside=(--against eager --only dropout --seconds 0.02 --budget 20)
  echo "A rehearsal on the CPU, in small: tests are collected, not run; no sanitizer, no CUDA graph, no compiled rivals."
fi

# A. The machine, the extension, some steps of each model.
models machine 30 machine
if [[ $dry ]] || ! "$PYTHON" -c "import fastseq._C, fastseq.kernels" 2> /dev/null; then
  stage build 75 "$PYTHON" -m pip install -q --no-deps --no-build-isolation -e .
else
  left_out build skipped "built before"
fi
models first 60 speed --models GRU4Rec SASRec Caser --batches $few --precisions fp32 --seconds 0.1

# B. Proof. Nothing is timed here, so all of it runs at once.
together models parity 150 parity --executions "${ways[@]}"
together tests gpu_tests 150 5 tests/gpu "equals_the_reference or those_of_the_cpu or same_bits or cuda_graph or replayed or inductor"
together tests op_tests 150 6 tests/ops "triton or segments or test_kernels"
together sanitized memcheck 150
wait

# C. The figures, alone on the device; first those without which the run was for nothing.
models speed 70 speed --batches $few --precisions fp32 tf32 --executions "${ways[@]}" --seconds $moment
models speed_large 80 speed --batches $many --precisions bf16 tf32 fp32 --executions "${ways[@]}" --seconds $moment
models peer 45 peer --batches $few $many --precisions fp32 bf16 --seconds $moment
ops ops 70 "${beside[@]}"
models fit 60 fit

# D. More of the same, races, and slow rivals.
models speed_types 30 speed --batches $few --precisions bf16 --executions "${ways[@]}" --seconds $moment
models cross_entropy 40 speed --models SASRec --batches $few --losses cross_entropy --seconds $moment
if cuda; then
  models peer_compiled 80 peer --batches $many $few --precisions bf16 --executions compiled --seconds $moment
else
  left_out peer_compiled skipped "needs a GPU"
fi
sanitized racecheck 60 --only gru sampled_loss caser_windows attention
if cuda; then
  ops ops_compiled 60 --against compiled flex --seconds 0.05 --budget 40
else
  left_out ops_compiled skipped "needs a GPU"
fi

[[ $dry ]] && exit 0
echo
"$PYTHON" -m benchmarks.gpu_check summary --facts "$facts" | tee "$out/summary.txt"
exit "${PIPESTATUS[0]}"
