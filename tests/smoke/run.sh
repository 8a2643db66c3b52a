#!/usr/bin/env bash
# Installs a wheel into an empty environment and uses it there, outside the tree: the core alone, then with the extra cli.
#
#   tests/smoke/run.sh WHEEL
#
# PYTHON names the interpreter, TORCH what pip installs as PyTorch. ENV is an environment to use, and to keep, in place of
# a new one.
set -euo pipefail
wheel=$(realpath "${1:?tests/smoke/run.sh WHEEL}")
cd "$(dirname "$0")"
smoke=$(mktemp -d)
trap 'rm -rf "$smoke"' EXIT
bin=$(realpath -m "${ENV:-$smoke/env}")/bin
[ -x "$bin/python" ] || "${PYTHON:-python3}" -m venv "$(dirname "$bin")"
"$bin/python" -m pip install -q "${TORCH:-torch==2.13.0}" "$wheel"
if "$bin/python" -m pip list --format=freeze | grep -iE '^(polars|pydantic|typer|matplotlib)=='; then
  echo "the core installation pulls these in; they belong to the extra cli" >&2
  exit 1
fi
cp core.py config.yaml "$smoke"
cd "$smoke"
export FASTSEQ_STRICT=1
"$bin/python" core.py
"$bin/python" -m pip install -q "${TORCH:-torch==2.13.0}" "$wheel[cli]"
"$bin/fastseq" train config.yaml
"$bin/fastseq" recommend runs/demo/GRU4Rec --sample 2 --json
