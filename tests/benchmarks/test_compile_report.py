"""benchmarks/ops/compile_report.py: what it records, and what makes a launch fail.

What records or compiles runs in a process of its own: this one's kernels are those of the interpreter.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ops import compile_report
from tests.ops.backends import needs_triton

ROOT = Path(__file__).resolve().parents[2]

RECORD = """
import json
from benchmarks.ops import compile_report as c
kernels = {f"{launch['file']}.{launch['kernel']}" for launch in c.record(["sm_90"])}
every = c.cases
call = "gru, ml-1m L=50, 16384 targets, H=128, training", "tf32"
c.cases = lambda reference: [case for case in every(True) if case[:2] == call]
launches = c.record(["sm_80", "sm_90"])
constants = {x["architecture"]: [x["num_warps"], x["num_stages"], *x["constants"].values()] for x in launches}
print(json.dumps([sorted(kernels), constants]))
"""

# A tile that no register file holds; products that the wrapper forgets to give to the matrix units.
PLANTED = """
import sys
from benchmarks.ops import compile_report as c
from fastseq.kernels import cross_entropy, dropout
dropout.TILE = 1 << 15
cross_entropy.float32_precision = lambda: "ieee"
every = c.cases
words = "dropout, 64 columns", "linear_cross_entropy, width 64, softcap None, none"
c.cases = lambda reference: [call for call in every(False) if call[0] in words and call[1] == "tf32"]
sys.argv += ["--arch", "sm_90", "--only", "dropout", "cross_entropy"]
sys.exit(c.main())
"""


# Triton makes an argument that is 1 a constant: the first stage of the compiler sees every kernel with all of them 1.
ONES = """
import importlib
from triton._C.libtriton import ir
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from benchmarks.ops import compile_report as c
every = c.cases
c.cases = lambda reference: [case for case in every(False) if case[1] == "float32"]
target = c._Driver("sm_90").get_current_target()
backend = make_backend(target)
options = backend.parse_options({})
seen = set()
for launch in c.record(["sm_90"]):
    kernel = getattr(importlib.import_module(f"fastseq.kernels.{launch['file']}"), launch["kernel"])
    signature, constants = launch["signature"], launch["constants"]
    for i, parameter in enumerate(kernel.params):
        if signature[parameter.name] in ("i32", "i64") and not parameter.do_not_specialize:
            signature[parameter.name], constants[i,] = "constexpr", 1
    flags = sorted((path, x) for path, x in constants.items() if x is None or isinstance(x, (bool, str)))
    if repr(key := (launch["file"], launch["kernel"], flags)) in seen:
        continue
    seen.add(repr(key))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    source = ASTSource(kernel, signature, constants, {})
    try:
        source.make_ir(target, options, backend.get_codegen_implementation(options), backend.get_module_map(), context)
    except Exception as error:
        print(*key, repr(error.__cause__ or error))
assert len(seen) > 40
"""

# A training step of two batches of other sizes, one divisible by 16 and one not: what Triton would compile for each.
SIZES = """
import torch
from benchmarks.ops import compile_report as c
from fastseq import ops

D, V, K, L = 16, 100, 8, 200

def x(*shape, grad=True):
    return torch.empty(*shape, device="meta", requires_grad=grad)

def ids(*shape, kind=torch.int64):
    return torch.empty(*shape, dtype=kind, device="meta")

def calls(events, sequences, targets):
    rng, offsets, table = ids(2), ids(sequences + 1, kind=torch.int32), x(V + 1, D)
    gates, drawn, summed = x(events, 3 * D), dict(dropout_p=0.1, rng=rng), dict(reduction="sum", divisor=targets)
    layer = dict(in_weight=x(3 * D, D), in_bias=x(3 * D), out_weight=x(D, D), weight1=x(2 * D, D), bias1=x(2 * D))
    layer |= {f"{name}_bias": x(D) for name in ("out", "norm1", "norm2")} | dict(bias2=x(D), weight2=x(D, 2 * D))
    layer |= dict(norm1_weight=x(D), norm2_weight=x(D), heads=2, max_len=L)
    rows, chosen, negatives = ids(targets), ids(targets), ids(targets, K)
    yield ops.transformer_layer, (x(events, D), offsets, rows), layer | drawn
    yield ops.embed_sequence, (ids(events), offsets, table, x(L, D), x(D), x(D)), drawn | dict(padding_idx=V)
    yield ops.dropout, (x(events, D), 0.1, rng), {}
    few = dict(max_len=L) | summed
    yield ops.gru_sampled_loss, (gates, x(3 * D, D), offsets, x(D, D), x(D), rows, table, chosen, negatives), few
    yield ops.sampled_loss, (x(targets, D), table, chosen, ids(64)), summed
    yield ops.linear_cross_entropy, (x(targets, D), table, chosen), dict(reduction="sum")
    yield ops.caser_windows, (x(events, D), offsets, rows, rows, x(15, 4, D), x(5, 4), x(2, 5), x(2), x(D)), {}
    for alias in ({}, dict(probability=ids(V), alias=ids(V))):
        yield ops.sample_negatives, (chosen, chosen, ids(50), ids(500), K, V, rng), alias
    sizes = dict(n_events=events, n_sequences=sequences, n_targets=targets, n_history=events)
    windows = [ids(50)] * 7 + [ids(51)] * 3 + [ids(2)]
    yield ops.gather_windows, windows, sizes | dict(max_len=L, padding_idx=V)
    seen = dict(seen_offsets=ids(sequences + 1), seen_items=ids(events), seen_sorted=True)
    yield ops.topk, (x(sequences, D), x(V, D), 10), seen
    dense = [x(V, D, grad=False) for _ in range(3)]
    history = torch.empty(events, 8, dtype=torch.float64, device="meta"), ids(2)
    yield ops.adam_rows, (*dense, ids(V, kind=torch.int32), *history, chosen, x(targets, D, grad=False), ids(1)), {}

def compiled(*sizes):
    def case(function, arguments, options):
        result = function(*arguments, **options)
        return result if isinstance(result, torch.Tensor) else None

    c.cases = lambda _: [(f.__name__, "float32", lambda f=f, a=a, o=o: case(f, a, o)) for f, a, o in calls(*sizes)]
    parts = "file", "kernel", "signature", "constants", "attributes"
    return {repr([launch[part] for part in parts]) for launch in c.record(["sm_90"])}

some, others = compiled(1024, 64, 512), compiled(1031, 67, 513)
assert len(some) > 30
print(*sorted(some ^ others), sep="\\n", end="")
"""


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, env=environment)


@needs_triton
def test_a_batch_of_another_size_compiles_nothing() -> None:
    """Numbers of rows are no constants to Triton, nor whether 16 divides them: else steps in between wait for it."""
    done = python("-c", SIZES)
    assert done.returncode == 0, done.stderr
    assert not done.stdout, done.stdout


@pytest.mark.slow
@needs_triton
def test_every_kernel_that_is_launched_is_recorded() -> None:
    """And a wrapper sees the chip that is compiled for: of a GRU's weight H100 holds more than A100."""
    done = python("-c", RECORD)
    assert done.returncode == 0, done.stderr
    kernels, constants = json.loads(done.stdout)
    launched = {"negatives._uniform", "negatives._weighted"}  # by a name that holds one of them
    for path in (ROOT / "kernels").glob("*.py"):
        names = re.findall(r"^ +(?:x\.launch\()?(_\w+)[\[,]", path.read_text(), re.MULTILINE)
        launched |= {f"{path.stem}.{name}" for name in names if f"def {name}(" in path.read_text()}
    assert len(launched) > 40 and set(kernels) == launched
    assert 128 in constants["sm_90"] and constants["sm_90"] != constants["sm_80"]


@pytest.mark.slow
@needs_triton
def test_every_kernel_takes_arguments_of_one() -> None:
    """A width of 1, one row, one sequence, one item."""
    done = python("-c", ONES)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


ROW: dict[str, Any] = {
    "file": "gru", "kernel": "_forward", "case": "gru, H=128", "architecture": "sm_80", "dtype": "tf32", "error": None,
    "registers": 80, "spilled_bytes": 0, "shared_bytes": 163 << 10, "products": True, "matrix": ["mma"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "faults"),
    [
        ({}, []),
        ({"spilled_bytes": 4}, ["spills 4 bytes"]),
        ({"shared_bytes": (163 << 10) + 1}, ["166913 bytes of shared memory, over the limit of 166912"]),
        ({"matrix": []}, ["no matrix instruction, expected for tf32"]),
        ({"matrix": [], "products": False}, []),
        ({"matrix": [], "dtype": "float32"}, []),
        ({"error": "CompilationError: at 1:1"}, ["CompilationError: at 1:1"]),
        ({"error": "CompilationError: at 1:1", "architecture": "gfx942"}, []),
    ],
)
def test_faults(change: dict[str, Any], faults: list[str]) -> None:
    row = ROW | change
    assert compile_report.faults(row) == faults
    lines = compile_report.table([ROW | {"faults": []}, row | {"faults": faults}]).splitlines()
    assert [line for line in lines if ": " in line] == [f"gru._forward on sm_80, gru, H=128: {x}" for x in faults]


@pytest.mark.slow
@needs_triton
def test_planted_faults_are_found() -> None:
    done = python("-c", PLANTED)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"dropout\._dropout on sm_90, dropout, 64 columns, tf32: spills \d+ bytes", done.stdout)
    assert "cross_entropy._losses on sm_90" in done.stdout and "no matrix instruction, expected for tf32" in done.stdout


@pytest.mark.slow
@needs_triton
def test_report() -> None:
    """Every launch of a kernel, compiled for two makers' chips."""
    command = "-m benchmarks.ops.compile_report --only dropout --reference-shapes --arch sm_90 gfx942 --json"
    done = python(*command.split())
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(done.stdout)
    assert {row["architecture"] for row in rows} == {"sm_90", "gfx942"}
    for row in rows:
        assert row["kernel"] == "_dropout" and row["registers"] > 0 and row["faults"] == []
        assert row["constants"]["ROWS"] * row["constants"]["COLUMNS"] == 2048


def test_what_would_check_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # what main sets is undone
    monkeypatch.setattr(compile_report, "record", lambda *_: [])
    monkeypatch.setattr(sys, "argv", ["compile_report"])
    with pytest.raises(SystemExit) as left:
        compile_report.main()
    assert left.value.code == 2 and "no launch is left" in capsys.readouterr().err
