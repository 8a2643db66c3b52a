"""benchmarks/compile_report.py: what kernel files list, and what makes a row fail."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.ops.backends import needs_triton

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "compile_report.py"
FAULTS = """
import dataclasses, json, sys
sys.path.insert(0, "benchmarks")
import compile_report as c
row = {"architecture": "sm_80", "spilled_bytes": 0, "shared_bytes": 163 << 10, "expected": None, "matrix": []}
changes = [{}, {"spilled_bytes": 4}, {"shared_bytes": (163 << 10) + 1}, {"expected": "tf32"},
           {"expected": "tf32", "matrix": ["mma"]}, {"error": "CompilationError: at 1:1"}]
from fastseq.kernels.compiled import distinct
lists = {}
for file, _, entry in c.entries():
    lists.setdefault(file, []).append(entry)
twice = [file for file in ("attention", "caser_windows", "gru") if len(distinct(lists[file])) != len(lists[file])]
one = lists["dropout"][0]
odd = dataclasses.replace(one, arguments={**one.arguments, "columns": 63})
two = [one, dataclasses.replace(one, shape="other"), odd]
launches = {f"| {file} `{entry.kernel.__name__}` | {entry.shape} |" for file, _, entry in c.entries()}
table = open("docs/kernels_compiled.md").read()
absent = [launch for launch in launches if launch not in table] + [table.count("\\n| ") - 2 - len(launches)]
print(json.dumps([*(c.faults({**row, **change}) for change in changes), twice, len(distinct(two)), absent]))
"""

BINARY = """
import contextlib, io, json, sys
sys.path.insert(0, "benchmarks")
import compile_report as c
import triton
from triton.backends.compiler import GPUTarget
entry = next(entry for file, _, entry in c.entries() if file == "dropout")
triton.knobs.compilation.always_compile = triton.knobs.nvidia.dump_ptxas_log = True
log = io.StringIO()
with contextlib.redirect_stdout(log):
    compiled = triton.compile(c.source(entry), target=GPUTarget("cuda", 90, 32), options={"num_warps": entry.num_warps})
print(json.dumps([c.cuda_row(compiled, log.getvalue()), c.cuda_row(compiled, "")]))
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: this one's kernels are those of the interpreter."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)


@needs_triton
def test_every_entry_names_its_kernels_arguments() -> None:
    import fastseq.kernels.compiled

    folder = Path(fastseq.kernels.compiled.__path__[0])
    seeds: dict[str, int] = {}
    for path in sorted(set(folder.glob("*.py")) - {folder / "__init__.py"}):
        module = importlib.import_module(f"fastseq.kernels.compiled.{path.stem}")
        for entry in module.COMPILED:
            name = f"{path.stem}.{entry.kernel.__name__}, {entry.shape}"
            assert set(entry.arguments) == set(entry.kernel.arg_names), name
            assert entry.bytes > 0 and entry.flops >= 0, name
            assert entry.matrix in (None, "tf32", "bf16", "fp16"), name
            seeds[path.stem] = seeds.get(path.stem, 0) + entry.seed
    assert {"dropout", "gru", "caser_windows"} <= seeds.keys()
    assert all(seeds.values()), "a file lists nothing that a seed configuration launches"


@needs_triton
def test_every_kernel_that_is_launched_is_listed() -> None:
    import fastseq.kernels.compiled

    folder = Path(fastseq.kernels.__path__[0])
    listed = set()
    for path in set((folder / "compiled").glob("*.py")) - {folder / "compiled" / "__init__.py"}:
        listed |= {
            entry.kernel.fn for entry in importlib.import_module(f"fastseq.kernels.compiled.{path.stem}").COMPILED
        }
    for path in folder.glob("*.py"):
        module = importlib.import_module(f"fastseq.kernels.{path.stem}")
        for name in set(re.findall(r"\b(_\w+)\[", path.read_text())):
            kernel = getattr(module, name, None)
            assert not hasattr(kernel, "arg_names") or kernel.fn in listed, f"{path.stem}.{name}"


@needs_triton
def test_faults() -> None:
    result = python("-c", FAULTS)
    assert result.returncode == 0, result.stderr
    none, spill, shared, missing, found, error, twice, kept, absent = json.loads(result.stdout)
    assert twice == [] and kept == 2, "launches with the same code, or taken for such"
    assert absent == [0], "docs/kernels_compiled.md is not of these launches: write it again (docs/kernels.md)"
    assert none == found == []
    assert spill == ["spills 4 bytes"] and shared == ["shared memory over the limit of 163 KB"]
    assert missing == ["no matrix instruction, expected tf32"] and error == ["CompilationError: at 1:1"]


def test_the_table_is_of_these_sources() -> None:
    """Its figures, not its names alone, are those of the kernels here."""
    program = "import sys; sys.path.insert(0, 'benchmarks'); import compile_report as c; print(*c.sources(), sep='\\n')"
    done = python("-c", program)
    assert done.returncode == 0, done.stderr
    table = (ROOT / "docs" / "kernels_compiled.md").read_text()
    listed = re.findall(r"^- `kernels/.*$", table, re.MULTILINE)
    assert len(listed) > 20 and listed == done.stdout.splitlines(), (
        "docs/kernels_compiled.md is not of these kernels: write it again (docs/kernels.md)"
    )


@needs_triton
def test_report(tmp_path: Path) -> None:
    """Compiled, then read from the cache: the same rows, as JSON and as a table."""
    arguments = (str(SCRIPT), "--only", "dropout", "--seed-shapes", "--arch", "sm_90", "--cache", str(tmp_path))
    first = python(*arguments, "--json")
    if "ptxas" in first.stdout and first.returncode:
        pytest.skip("this Triton has no ptxas")
    assert first.returncode == 0, first.stdout + first.stderr
    rows: list[dict[str, Any]] = json.loads(first.stdout)
    assert len(rows) == len(list(tmp_path.glob("*.json"))) > 0
    for row in rows:
        assert row["kernel"] == "_dropout" and row["registers"] > 0 and row["faults"] == []
        assert row["roof_us"] == pytest.approx(1e6 * row["bytes"] / 3.35e12)
    assert json.loads(python(*arguments, "--json").stdout) == rows
    program = "import json, sys; sys.path.insert(0, 'benchmarks'); import compile_report as c; "
    text = python("-c", f"{program} print(c.markdown(json.loads(sys.argv[1])))", json.dumps(rows)).stdout
    assert "H100 (sm_90)" in text and text.count("| dropout `_dropout` | float32, 2048 x 128 | ") == 1
    assert text.count("\n| dropout") == len(rows) and "no row spills" in text
    table = python(*arguments).stdout.splitlines()
    assert len(table) == 1 + len(rows) and all(line.endswith("ok") for line in table[1:])


def test_arguments_that_would_check_nothing_are_refused() -> None:
    """Before Triton is needed, but for the last."""
    for arguments, message in (
        (["--only", "grue"], "invalid choice: 'grue'"),
        (["--processes", "0"], "argument --processes: 0: expected 1 or more"),
        (["--markdown", "--only", "gru"], "--markdown is the whole table"),
        (["--markdown", "--arch", "sm_90"], "--markdown is the whole table"),
        (["--markdown", "--seed-shapes"], "--markdown is the whole table"),
    ):
        done = python(str(SCRIPT), *arguments)
        assert done.returncode == 2 and message in done.stderr, done.stderr


@needs_triton
def test_no_launch_is_no_success() -> None:
    program = "import sys; sys.path.insert(0, 'benchmarks'); import compile_report as c; c.entries = lambda: []; "
    done = python("-c", program + "sys.argv = ['compile_report.py']; sys.exit(c.main())")
    assert done.returncode == 2 and "no launch is left" in done.stderr


@needs_triton
def test_without_ptxas_log_the_binary_tells_registers_and_stack() -> None:
    done = python("-c", BINARY)
    assert done.returncode == 0, done.stderr
    logged, read = json.loads(done.stdout)
    assert read == logged and read["registers"] > 0
