"""benchmarks/ops and bench_ops.py: cases, check, clock, roof, table, plot and command, without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks import bench_ops
from benchmarks.ops import __main__ as command
from benchmarks.ops import attention, report, timing, topk
from benchmarks.ops.case import BFLOAT16, BOTH, FLOAT32, FORWARD, INT64, TF32, Batch, Case, Spec
from benchmarks.ops.check import Mismatch, Prepared, assert_close, step
from benchmarks.ops.chips import ARCHITECTURES, chip_of
from benchmarks.ops.run import Result, measure, run
from benchmarks.ops.suite import FILES, rivals, specs, tiny
from fastseq.ops import set_backend
from fastseq.ops._dispatch import served

ROOT = Path(__file__).resolve().parents[2]
CPU, META = torch.device("cpu"), torch.device("meta")
each_file = pytest.mark.parametrize("file", FILES)
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")


def test_every_op_has_cases() -> None:
    """On a GPU with both batches, the large shapes and every type: what docs/kernels.md says is measured."""
    files = {path.stem for path in (ROOT / "fastseq" / "ops").glob("[a-z]*.py")}
    assert files - {"philox"} == set(FILES)
    for device in ("cpu", "cuda"):
        cases = specs(device)
        missing = {"linear"} if device == "cuda" else set()  # PyTorch's own there: nothing to measure
        assert {spec.op for spec in cases} == {case.op for case in tiny(CPU)} - missing
        assert all(spec.dtypes and spec.directions for spec in cases)
        names = [f"{spec.op} {spec.words}" for spec in cases]
        assert len(set(names)) == len(names), "two specs share a name"
    built = [(spec, spec.build(META)) for spec in specs("cuda") if spec.op != "sample_negatives"]
    shapes = [f"{case.op} {case.shape}" for _, case in built]
    assert len(set(shapes)) == len(shapes), "two cases share a name"
    assert set(shapes) >= {
        "causal_attention beauty L=50, 16384 targets", "causal_attention B=2048 L=200", "gru B=2048 L=200, H=128",
        "linear_cross_entropy V=1M [2048, 1000001]", "topk V=1M, 2048 users, 1000000 items, top 10",
        "sampled_loss sampled_softmax, V=1M, 1024 shared", "dropout_add_norm [409600, 128]",
    }  # fmt: skip
    for spec, case in built:
        assert not case.products or spec.dtypes == (FLOAT32, TF32, BFLOAT16), spec.op
        assert case.work(FORWARD, FLOAT32)[0] > 0


class NamesTheDevice(TorchFunctionMode):
    """Fails where a tensor is made on the default device, which is not that of the inputs on a GPU."""

    FACTORIES = (torch.arange, torch.zeros, torch.ones, torch.full, torch.empty, torch.tensor, torch.rand, torch.eye)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function not in self.FACTORIES or "device" in (kwargs or {}), f"{function.__name__} without a device"
        return function(*args, **(kwargs or {}))


@each_file
def test_cases_mix_no_devices(file: str) -> None:
    """Also on the meta device, which refuses CPU operands much as a GPU does."""
    for device in (CPU, META):
        for case in tiny(device, [file]):
            for name in ("fastseq", "eager"):
                leaves = [
                    x.detach().requires_grad_(x.is_floating_point() and case.upstream is not None) for x in case.leaves
                ]
                reads_data = device == META and name == "eager" and case.op in ("sample_negatives", "adam_rows")
                with set_backend("reference") if device == CPU else nullcontext(), NamesTheDevice():
                    if not reads_data:
                        results = step(case.functions[name], case.dropout_p, leaves, case.upstream)
                        assert all(x.device == device for x in results)
    with pytest.raises(AssertionError, match="ones without a device"), NamesTheDevice():
        torch.ones(3)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_computes_the_same() -> None:
    batch = Batch("tiny", [5, 1, 3])
    case = attention.causal(CPU, batch, 2, 16)
    with set_backend("reference"):
        expected = case.functions["fastseq"](0.0, *case.leaves)
    assert_close([attention.flex_attention(batch, CPU)(0.0, *case.leaves)], [expected], 1e-5)


def test_topk_may_swap_near_ties_and_nothing_else() -> None:
    assert tiny(META, ["topk"])[0].agree is not None and tiny(CPU, ["topk"])[0].agree is None
    seen, leaves = torch.tensor([[0, 7]]), [torch.ones(1, 2), torch.arange(20.0).view(10, 2)]
    best, near = torch.tensor([[9, 8]]), [leaves[0], leaves[1].index_copy(0, torch.tensor([8]), leaves[1][9:] - 1e-3)]
    assert topk.as_good(seen, [best], [best], leaves) and topk.as_good(seen, [best.flip(1)], [best], near)
    assert not topk.as_good(seen, [best.flip(1)], [best], leaves)
    assert not topk.as_good(seen, [seen], [seen], leaves)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (torch.ones(3) + 1e-3, "result 0 is off by"),
        (torch.ones(3) * float("nan"), "result 0 is off by nan"),
        (torch.ones(2), r"result 0 is \[2\], expected \[3\]"),
        (torch.tensor([1, 3]), "other integers"),
    ],
)
def test_wrong_results_are_not_close(other: Tensor, message: str) -> None:
    x = torch.ones(3) if other.is_floating_point() else torch.tensor([1, 2])
    assert_close([x, torch.zeros(0, 3)], [x * 1, torch.zeros(0, 3)], 0.0)
    with pytest.raises(Mismatch, match=message):
        assert_close([other], [x], 1e-5)


@pytest.mark.parametrize("tolerance", [1e-4, 5e-3, 2e-2, 8e-2, 0.2])  # float32, tf32, bfloat16, its rivals, gru's
@pytest.mark.parametrize("shape", [(16384,), (16384, 128), (2048, 4, 32)])
def test_one_row_left_out_is_found_among_many(shape: tuple[int, ...], tolerance: float) -> None:
    torch.manual_seed(0)
    expected, zero = torch.randn(shape).sign() * (1 + torch.rand(shape)), torch.zeros(1)
    assert_close([expected * (1 + tolerance * (torch.rand(shape) - 0.5))], [expected], tolerance)  # rounding
    table = torch.zeros(50_000, 8)  # a gradient of few rows, their norms far apart
    table[::100] = torch.randn(500, 8).sign() * torch.logspace(0, -2, 500)[:, None]
    assert_close([table.bfloat16()], [table], 2e-2)
    lost_row, lost_gradient = expected.clone(), table.clone()
    lost_row[77], lost_gradient[100] = 0.0, 0.0
    assert_close([zero, lost_row], [zero, expected], max(tolerance, 5e-2), moved=0.01)  # of gradients, not of outputs
    for results, right, moved in (
        ([lost_row], [expected], 0.0),
        ([lost_row], [expected], 0.01),
        ([zero, expected * 0], [zero, expected], 0.01),
        ([lost_gradient], [table], 0.0),
    ):
        with pytest.raises(Mismatch, match="off by"):
            assert_close(results, right, tolerance, moved)


class FakeClock:
    """A device that takes 2 ms, then 1, 3, 2, 4 … for a call, and a wall that moves 10 ms each time."""

    def __init__(self) -> None:
        self.wall, self.calls = 0.0, 0

    def __call__(self, call: Callable[[], Any]) -> tuple[float, float]:
        call()
        self.wall += 0.01
        self.calls += 1
        return [0.002, 0.001, 0.003, 0.002, 0.004][self.calls % 5], 0.0005

    def now(self) -> float:
        return self.wall


@pytest.mark.parametrize(("seconds", "rounds"), [(0.0, 5), (0.2, 20), (9.0, 300)])
def test_rounds(seconds: float, rounds: int) -> None:
    clock, called = FakeClock(), []
    times = timing.timed(lambda: called.append(1), clock, seconds, now=clock.now)
    assert len(times) == pytest.approx(rounds, abs=1) and len(called) == len(times) + 2
    assert set(times) == {(ms / 1000, 0.0005) for ms in (1, 2, 3, 4)}
    assert timing.peak_bytes(lambda: None, CPU) is None


class FakeEvent:
    """Events of a device whose work is a list of seconds, done in order and without waiting."""

    work: list[float]

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        self.at = sum(FakeEvent.work)

    def elapsed_time(self, other: FakeEvent) -> float:
        return 1e3 * (other.at - self.at)


def test_the_cuda_clock_counts_the_call_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the emptying of the cache nor the sleep is in the time; how long to sleep, the call before has shown."""
    FakeEvent.work, slept = [], []
    scratch = SimpleNamespace(zero_=lambda: FakeEvent.work.append(1.0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda d: SimpleNamespace(L2_cache_size=50 << 20))
    monkeypatch.setattr(torch, "empty", lambda size, **k: scratch if size == 100 << 20 else None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda d: None)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: (slept.append(cycles), FakeEvent.work.append(3.0)))
    clock = timing.clock_of(torch.device("cuda"))
    call = lambda: FakeEvent.work.append(0.25)  # noqa: E731
    assert clock(call)[0] == pytest.approx(0.25) and not slept
    assert clock(call)[0] == pytest.approx(0.25) and len(slept) == 1
    assert clock(lambda: FakeEvent.work.append(0.5))[0] == pytest.approx(0.5) and len(slept) == 1
    assert FakeEvent.work.count(1.0) == 3


def test_roof() -> None:
    chip = ARCHITECTURES["sm_90"]
    assert chip.roof(3.35e9, 0) == (pytest.approx(1e-3), "memory")
    assert chip.roof(3.35e9, 989e12, "bf16") == (pytest.approx(1.0), "compute")
    assert chip.roof(0, 67e12, None)[0] == pytest.approx(1.0)
    names = ["H200", "H100 80GB HBM3", "A100-SXM4-80GB", "H100 PCIe", "GeForce RTX 4090", "GB200"]
    chips = [chip_of(f"NVIDIA {name}") for name in names]
    assert [c and c.chip for c in chips] == ["H200", "H100", "A100", None, None, None]


def test_work() -> None:
    case = Case("x", "", {}, [], products=True, elements=(10, 20), indices=8, flops=(100, 200))
    assert case.work(FORWARD, FLOAT32) == (48, 100, None)
    assert case.work(BOTH, TF32) == (136, 300, "tf32")
    assert case.work(BOTH, BFLOAT16) == (76, 300, "bf16")
    assert replace(case, products=False).work(FORWARD, BFLOAT16)[2] is None
    attended = attention.causal(META, Batch("", [3, 1]), 2, 8)  # 7 pairs of query and key, 4 rows
    # Queries, keys, values and the output; of backward those three, their gradients and the output's.
    assert replace(attended, indices=0).work(FORWARD, FLOAT32) == (4 * 64 * 4, 4 * 7 * 16, None)
    assert replace(attended, indices=0).work(BOTH, FLOAT32) == (11 * 64 * 4, 14 * 7 * 16, None)


def broken(p: float, x: Tensor) -> Tensor:
    raise RuntimeError("cannot\nrun")


def measured(case: Case, dtype: str = FLOAT32, directions: Sequence[str] = (FORWARD,)) -> list[Result]:
    return list(measure(case, dtype, directions, CPU, timing.cpu_clock, seconds=0))


def test_nothing_wrong_is_timed() -> None:
    (case,) = tiny(CPU, ["dropout_add_norm"])
    functions = {**case.functions, "twice": lambda p, *a: 2 * case.functions["eager"](p, *a), "broken": broken}
    changed = replace(case, functions=functions, missing={"liger": "not installed: x"}, no_compile="no reason")
    by_name = {r.implementation: r for r in measured(changed)}
    assert by_name["fastseq"].median and by_name["eager"].median and by_name["fastseq"].rounds >= timing.LEAST
    assert by_name["twice"].skipped.startswith("Mismatch: result 0 is off") and by_name["twice"].median is None
    assert by_name["broken"].skipped.startswith(("TypeError", "RuntimeError"))
    assert by_name["liger"].skipped == "not installed: x" and by_name["compiled"].skipped == "no reason"
    assert not any(r.failed for r in by_name.values())
    wrong = replace(case, functions={"fastseq": functions["eager"], "eager": functions["eager"]}, no_compile="-")
    ours = measured(wrong)[0]
    assert ours.failed and "served by" in ours.skipped


def test_only_the_reference_or_a_rival_may_lack_memory() -> None:
    """An op of ours that does not fit where its reference does is a failure."""
    (case,) = tiny(CPU, ["dropout_add_norm"])

    def row(*without_memory: str) -> Result:
        def ours(p: float, *leaves: Tensor) -> Tensor:
            backend = served("dropout_add_norm", "cpu").backend
            if ("reference" if backend == "reference" else "ours") in without_memory:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return case.functions["fastseq"](p, *leaves)

        changed = replace(case, functions={"fastseq": ours}, no_compile="-")
        return measured(changed)[0]

    assert (row("ours").skipped, row("ours").failed) == ("out of memory", True)
    assert (row("reference").skipped, row("reference").failed) == ("out of memory in the reference", False)
    assert not row().failed and row().median


@pytest.mark.parametrize("wrong_in", [FORWARD, BOTH])
def test_evaluation_and_training_are_both_checked(wrong_in: str) -> None:
    """Each is timed, so neither may be wrong where the other is right."""
    (case,) = tiny(CPU, ["dropout_add_norm"])
    right, reference = case.functions["fastseq"], Prepared(case, "fastseq", FLOAT32)
    known: dict[float, list[Tensor]] = {}
    reference.check(known)
    assert known.keys() == {0.0, case.dropout_p} and case.dropout_p > 0

    def wrong(p: float, *leaves: Tensor) -> Tensor:
        return right(p, *leaves) * (2.0 if torch.is_grad_enabled() == (wrong_in == BOTH) else 1.0)

    with pytest.raises(Mismatch, match="result 0 is off"):
        Prepared(replace(case, functions={"fastseq": wrong}), "fastseq", FLOAT32).check(known)


@pytest.mark.slow
@each_file
def test_every_rival_computes_the_same_and_is_measured(file: str) -> None:
    """One after the other on the same case: an op that works in place must leave the next one its inputs."""
    for case in tiny(CPU, [file]):
        for dtype in (FLOAT32, BFLOAT16) if case.upstream is not None else (FLOAT32 if case.leaves else INT64,):
            results = measured(replace(case, no_compile="-"), dtype, [FORWARD, BOTH])
            assert {(r.implementation, r.skipped) for r in results} == {
                ("compiled", "-"), *((name, "") for name in case.functions)
            }  # fmt: skip


def test_run_stops_at_its_budget() -> None:
    cases = [Spec("dropout", lambda device: tiny(device, ["dropout"])[0], {}, [FLOAT32], [BOTH])]
    results = list(run(CPU, cases=cases, against=["eager"], seconds=0))
    assert [r.implementation for r in results] == ["fastseq", "eager"]
    (late,) = run(CPU, cases=cases, budget=-1.0)
    assert late.skipped == "out of time" and not late.failed


def timed_row(implementation: str, median: float | None, **more: Any) -> Result:
    times = {"median": median, "q1": median, "q3": median, "rounds": 5, "host": 2e-5}
    return Result("gru", "[2, 3]", BOTH, FLOAT32, "cuda", implementation, **(times | more))


MACHINE = {"device": "NVIDIA H200", "torch": "2.11.0", "date": "2026-11-30"}
RESULTS = [
    timed_row("fastseq", 0.002, peak_bytes=4_000_000, roof=0.001, bound="memory"),
    timed_row("eager", 0.005, peak_bytes=9_000_000),
    timed_row("compiled", None, skipped="out of memory"),
    timed_row("flex", 0.0025, peak_bytes=1_500_000),
    Result("topk", "late", "", FLOAT32, "cuda", "fastseq", skipped="out of time"),
]


def test_the_table() -> None:
    (row,) = report.rows(RESULTS)
    assert row.ratio == pytest.approx(1.25)
    assert report.cells(row) == [
        "gru", "[2, 3]", BOTH, FLOAT32, "2 (2 – 2) ms", "flex 2.5 (2.5 – 2.5) ms", "1.25×", "eager 5", "50% memory",
        "4.0 MB / 1.5 MB", "20 µs",
    ]  # fmt: skip
    text = report.markdown(RESULTS, MACHINE)
    assert "| gru | [2, 3] | " in text and "1 of 1 below 1.5× of the best other." in text and "No roof" not in text
    assert "Not measured: compiled of gru (float32): out of memory" in text
    assert "Not measured: fastseq of topk (float32): out of time" in text
    assert "No roof" in "\n".join(report.summary([timed_row("fastseq", 0.1)]))
    assert report.rows([timed_row("eager", 1.0)]) == []
    for ours, other, text in ((1.0, None, "0 of 0"), (None, 1.0, "0 of 0"), (1.0, 1.5, "0 of 1"), (1.5, 2.2, "1 of 1")):
        assert report.summary([timed_row("fastseq", ours), timed_row("eager", other)])[0].startswith(text)


def here(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, output and errors of python -m benchmarks.ops."""
    try:
        status = command.main([str(a) for a in arguments])
    except SystemExit as error:
        status = int(error.code or 0)
    return status, *capsys.readouterr()


DROPOUT = ("--device", "cpu", "--only", "dropout", "--against", "eager", "--seconds", 0)


def test_a_saved_run_is_shown_as_it_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.json"
    file.write_text(json.dumps(report.document(RESULTS, MACHINE)))
    assert json.loads(file.read_text())["results"][0]["fraction"] == 0.5
    assert here(capsys, file) == (0, report.markdown(RESULTS, MACHINE) + "\n", "")
    assert here(capsys, file, "--json", "--plot", tmp_path / "p.svg")[1] == file.read_text() + "\n"
    drawn = (tmp_path / "p.svg").read_text()
    assert all(f"<!-- {name} -->" in drawn for name in ("fastseq", "eager", "flex", "roof"))
    file.write_text("{}")
    status, _, errors = here(capsys, file)
    assert status == 2 and "run.json: not what python -m benchmarks.ops --json wrote" in errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.json"], "No such file"),
        (["--device", "cpu", "--against", "any"], "--against is 'any', expected one of eager, compiled"),
        (["--plot", "p.txt"], "--plot is p.txt, expected a .png, .svg or .pdf"),
        (["a.json", "b.json", "--plot", "p.png"], "--plot draws one file, not 2"),
        pytest.param(["--device", "cuda"], "--device is cuda, but PyTorch", marks=without_gpu),
    ],
)
def test_arguments_are_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, errors = here(capsys, *arguments)
    assert status == 2 and message in errors


def test_a_run_that_measured_nothing_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, errors = here(capsys, *DROPOUT, "--budget", 0, "--plot", tmp_path / "p.png")
    assert status == 1 and "out of time" in out and "nothing was measured" in errors and "p.png is not drawn" in errors


@pytest.mark.parametrize(("ending", "expected"), [(KeyboardInterrupt(), 130), (replace(RESULTS[0], failed=True), 1)])
def test_ctrl_c_keeps_what_was_measured_and_a_wrong_op_is_no_success(
    ending: Any, expected: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shortened(device: torch.device, **options: Any) -> Iterator[Result]:
        yield RESULTS[0]
        if isinstance(ending, KeyboardInterrupt):
            raise ending
        yield ending

    monkeypatch.setattr(command, "run", shortened)
    status, out, _ = here(capsys, "--device", "cpu", "--json")
    assert status == expected and json.loads(out)["results"][0]["median"] == 0.002


@pytest.mark.slow
def test_the_command_needs_no_more_than_the_core() -> None:
    """On a machine with PyTorch and little else: what gpu_check.sh runs there."""
    program = (
        "import runpy, sys\n"
        "for name in ('polars', 'pydantic', 'yaml', 'typer', 'rich', 'matplotlib', 'pytest', 'hypothesis'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv = ['ops', *{list(map(str, DROPOUT))}, '--json']\n"
        "runpy.run_module('benchmarks.ops', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    assert [r["implementation"] for r in written["results"]] == ["fastseq", "eager"] * 4
    assert all(r["median"] > 0 and r["op"] == "dropout" for r in written["results"])
    assert written["machine"]["device"] == "CPU"
    assert {name for names in rivals("cuda").values() for name in names} >= {"nested", "flex", "liger", "cce"}


def test_pytest_benchmark_gets_the_rounds_of_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU those that the events measured, with memory and roof beside them."""
    measured: list[float] = []
    monkeypatch.setattr(bench_ops, "clock_of", lambda device: FakeClock())
    monkeypatch.setattr("benchmarks.ops.run.peak_bytes", lambda call, device: 7)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")

    def pedantic(target: Callable[[], None], rounds: int) -> None:
        for _ in range(rounds):
            before = bench_ops.ELAPSED[0]
            target()
            measured.append(bench_ops.ELAPSED[0] - before)

    benchmark = SimpleNamespace(extra_info={}, group="", pedantic=pedantic)
    (case,) = tiny(CPU, ["dropout"])
    bench_ops.measure(benchmark, Prepared(case, "fastseq", FLOAT32), BOTH, torch.device("cuda"), 0.0)
    assert measured == pytest.approx([0.002, 0.004, 0.002, 0.001, 0.003])
    assert benchmark.group.endswith(", cuda, forward + backward")
    info = benchmark.extra_info
    assert (info["implementation"], info["peak_bytes"], info["bound"]) == ("fastseq", 7, "memory")
    assert info["roof"] == pytest.approx(case.work(BOTH, FLOAT32)[0] / 4.8e12)


def test_pytest_benchmark_meets_every_op_and_rival() -> None:
    ids = [parameter.id for parameter in bench_ops.parameters()]
    assert len(set(ids)) == len(ids)
    assert any("linear_cross_entropy" in i and "-liger-" in i for i in ids)
    case = replace(tiny(CPU, ["dropout"])[0], missing={"liger": "not installed: x"})
    bench_ops.checked.cache_clear()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(pytest.skip.Exception, match="liger: not installed: x"):
        patch.setattr(bench_ops, "built", lambda *a: (case, {}))
        bench_ops.checked("cpu", 0, FLOAT32, "liger")
