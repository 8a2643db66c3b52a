"""Which implementation serves: the choice, its overrides, the fallback and its report."""

from __future__ import annotations

import types
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fastseq.ops import BackendError, _dispatch, dropout, explain, make_rng, record_served, set_backend
from tests import run_python

from .backends import needs_triton

RNG = make_rng(0)


def call() -> torch.Tensor:
    return dropout(torch.ones(2, 8), 0.5, RNG)


def served_by() -> list[tuple[str, str]]:
    with record_served() as calls:
        call()
    return list(calls)


@pytest.fixture
def without_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The state of an installation whose C++ extension is missing."""

    def missing(name: str) -> types.ModuleType:
        if name == "fastseq.ops.cpu.dropout":
            raise ImportError("No module named 'fastseq._C'")
        return importlib_import(name)

    importlib_import = _dispatch.importlib.import_module
    monkeypatch.setattr(_dispatch.importlib, "import_module", missing)
    monkeypatch.setattr(_dispatch, "_served", {})
    monkeypatch.setattr(_dispatch, "_warned", set())


def test_device_decides() -> None:
    assert served_by() == [("dropout", "cpu")]


def test_set_backend_at_once_and_as_a_context() -> None:
    with set_backend("reference"):
        assert served_by() == [("dropout", "reference")]
        with set_backend("cpu"):
            assert served_by() == [("dropout", "cpu")]
        assert served_by() == [("dropout", "reference")]
    set_backend("reference")
    try:
        assert served_by() == [("dropout", "reference")]
    finally:
        set_backend(None)
    assert served_by() == [("dropout", "cpu")]


def test_context_is_undone_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), set_backend("reference"):
        raise ZeroDivisionError
    assert served_by() == [("dropout", "cpu")]


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="backend is 'cuda', expected one of reference, cpu, triton"):
        set_backend("cuda")
    assert served_by() == [("dropout", "cpu")]


def test_environment() -> None:
    code = (
        "import torch; from fastseq.ops import dropout, make_rng, record_served, set_backend\n"
        "def served():\n"
        "    with record_served() as calls: dropout(torch.ones(2, 8), 0.5, make_rng(0))\n"
        "    return calls\n"
        "print(served(), end=' ')\n"
        "with set_backend('cpu'): print(served())"
    )
    result = run_python("-c", code, FASTSEQ_BACKEND="reference")
    assert result.stdout.strip() == "[('dropout', 'reference')] [('dropout', 'cpu')]"
    result = run_python("-c", "import fastseq.ops", returncode=1, FASTSEQ_BACKEND="cppu")
    assert "FASTSEQ_BACKEND is 'cppu', expected one of reference, cpu, triton" in result.stderr


def test_fallback_is_an_error_when_strict(without_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSEQ_STRICT", "1")
    with pytest.raises(BackendError, match=r"dropout on cpu: cpu is not available .*FASTSEQ_STRICT=1.*reinstall"):
        call()


@pytest.mark.parametrize("value", ["", "0"])
def test_fallback_warns_once(without_cpu: None, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("FASTSEQ_STRICT", value)
    with pytest.warns(RuntimeWarning, match="dropout falls back to plain PyTorch.*No module named.*reinstall") as all_:
        assert served_by() == [("dropout", "reference")]
    assert len(all_) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()
        _dispatch._served.clear()
        call()


def test_results_are_the_same_after_a_fallback(without_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSEQ_STRICT", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fallen = call()
    monkeypatch.undo()
    _dispatch._served.clear()
    assert torch.equal(fallen, call())


def test_an_op_runs_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current GPU: tensors on cuda:1 make that the current one while the op runs, and no longer.

    FakeTensors stand in for those of a GPU.
    """
    current, seen = [0], []

    def exchange(index: int) -> int:
        before = current[0]
        current[0] = index
        return before

    for name in ("_exchange_device", "_maybe_exchange_device"):
        monkeypatch.setattr(torch.cuda, name, exchange)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    record = _dispatch.Served("dropout", "cuda", "triton", "", lambda *arguments: seen.append(current[0]))
    monkeypatch.setitem(_dispatch._served, ("dropout", "cuda"), record)
    for index in (1, 0):
        x = FakeTensor(FakeTensorMode(), torch.empty(2, 8, device="meta"), torch.device("cuda", index))
        _dispatch._call("dropout", "cuda", (x, 0.5, None, 0))
    assert seen == [1, 0] and current == [0]


class OutOfResources(Exception):
    """As triton.runtime.errors has it."""


NOT_BUILT = [
    OutOfResources("out of resource: shared memory, Required: 300000, Hardware limit: 101376."),
    RuntimeError("Triton Error [CUDA]: device kernel image is invalid"),
]


@pytest.mark.parametrize("error", NOT_BUILT, ids=lambda error: type(error).__name__)
def test_a_kernel_that_triton_cannot_build(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under FASTSEQ_STRICT an error that names op, GPU and remedy; else plain PyTorch serves, with one warning."""

    def function(*arguments: object) -> None:
        raise error

    def plant(device: str) -> None:
        served = _dispatch.Served("dropout", device, "triton", "", function)
        monkeypatch.setitem(_dispatch._served, ("dropout", device), served)

    plant("cuda")
    monkeypatch.setattr(_dispatch, "_warned", set())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Old")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (6, 1))
    x = FakeTensor(FakeTensorMode(), torch.empty(2, 8, device="meta"), torch.device("cuda", 0))
    words = r"dropout on cuda: .*NVIDIA Old \(compute capability 6.1\).*FASTSEQ_BACKEND=reference.*device cpu"
    with pytest.raises(BackendError, match=words) as raised:
        _dispatch._call("dropout", "cuda", (x, 0.5, None, 0))
    assert raised.value.__context__ is error
    with set_backend("reference"):
        expected = call()
    plant("cpu")
    monkeypatch.setenv("FASTSEQ_STRICT", "0")
    with pytest.warns(RuntimeWarning, match="dropout falls back to plain PyTorch") as warned:
        assert torch.equal(call(), expected) and torch.equal(call(), expected)
    assert len(warned) == 1


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), IndexError("items[3] is 9")], ids=str)
def test_other_errors_of_a_kernel_stand(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def function(*arguments: object) -> None:
        raise error

    monkeypatch.setenv("FASTSEQ_STRICT", "0")
    served = _dispatch.Served("dropout", "cpu", "triton", "", function)
    monkeypatch.setitem(_dispatch._served, ("dropout", "cpu"), served)
    with pytest.raises(type(error)) as raised:
        call()
    assert raised.value is error


# PyTorch's two ways to say how float32 is multiplied on a GPU, and whether TF32 is allowed after them.
TF32 = {
    "torch.set_float32_matmul_precision('high')": True,
    "torch.set_float32_matmul_precision('medium')": True,
    "torch.set_float32_matmul_precision('highest')": False,
    "torch.backends.cuda.matmul.allow_tf32 = True": True,
    "torch.backends.cuda.matmul.allow_tf32 = False": False,
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'": True,
    "torch.backends.cuda.matmul.fp32_precision = 'ieee'": False,
}


@needs_triton
def test_tf32_by_either_way_of_pytorch() -> None:
    """One way, both in any order, or that of all backends: asking for the precision never raises, the last one counts.

    In a process of its own each, forked from one that has set nothing: a legacy getter of PyTorch raises once both
    ways were used.
    """
    program = f"""
import itertools, os, torch
from fastseq.kernels.products import float32_precision
new = hasattr(torch.backends.cuda.matmul, "fp32_precision")
ways = {{way: tf32 for way, tf32 in {TF32!r}.items() if new or "fp32" not in way}}
runs = [((), False), *(((way,), tf32) for way, tf32 in ways.items())]
runs += [((a, b), ways[b]) for a, b in itertools.permutations(ways, 2)]
if new:
    runs += [(("torch.backends.fp32_precision = 'tf32'",), True)]
for sequence, tf32 in runs:
    if os.fork() == 0:
        for way in sequence:
            exec(way)
        if float32_precision() != ("tf32" if tf32 else "ieee"):
            print(sequence, float32_precision(), flush=True)
            os._exit(1)
        os._exit(0)
    if os.wait()[1]:
        raise SystemExit(f"failed after {{sequence}}")
print(len(runs))
"""
    assert int(run_python("-c", program).stdout) > 20


def test_explain_has_a_line_per_op() -> None:
    lines = explain().splitlines()
    names = [line.split()[0] for line in lines]
    assert names == sorted(names) and set(names) == set(_dispatch._files)
    assert "dropout" in names and "linear_cross_entropy_backward" in names
    line = next(line for line in lines if line.split()[0] == "dropout")
    assert line.split()[1:3] == ["cpu", "cpu"] and "fast path" in line
    with set_backend("reference"):
        assert "reference  set_backend or FASTSEQ_BACKEND" in explain()


def test_explain_reports_what_is_missing(without_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSEQ_STRICT", "1")
    line = next(line for line in explain().splitlines() if line.split()[0] == "dropout")
    assert line.split()[1:3] == ["cpu", "none"] and "No module named 'fastseq._C'" in line


def test_every_op_has_a_reference_and_a_cpu_path() -> None:
    for op in _dispatch._files:
        for backend in ("reference", "cpu"):
            assert callable(_dispatch._find(op, backend)), f"{op} has no {backend} implementation"


def test_recorders_nest_and_stop() -> None:
    with record_served() as outer:
        with record_served() as inner:
            call()
        call()
    call()
    assert len(outer) == 2 and len(inner) == 1


@needs_triton
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU nothing is interpreted")
def test_triton_imported_before_its_interpreter_was_chosen() -> None:
    """Its own functions are compiled then, and kernels that call them would fail: said at once, with the remedy."""
    program = """
import os
os.environ.pop("TRITON_INTERPRET", None)
import triton, torch, fastseq.ops as ops
ops.dropout(torch.ones(2, 8), 0.5, ops.make_rng(0))
"""
    done = run_python("-c", program, returncode=1, FASTSEQ_BACKEND="triton", FASTSEQ_STRICT="1")
    assert "set TRITON_INTERPRET=1 when the process starts" in done.stderr
