"""What a run takes, said before it: arithmetic against runs, refusals, the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fastseq import _process
from fastseq.cli import experiment
from fastseq.data.synthetic import make_long_tail
from fastseq.errors import ConfigError
from fastseq.models import MODELS, Shards
from fastseq.training import optimizers, plan
from fastseq.training.options import TrainingOptions
from fastseq.training.plan import DataSize, Foretold
from tests import run_python
from tests.cli.test_commands import answer, here, refusal, write_config, write_data
from tests.models.small import small_params

GRU = {
    "embedding_size": 64, "hidden_size": 64, "num_layers": 1, "dropout_prob": 0.2, "weight_decay": 0.0, "epochs": 1,
    "learning_rate": 0.001, "neg_samples": 1, "max_seq_len": 50,
}  # fmt: skip


def on_meta(
    name: str = "GRU4Rec", n_users: int = 500, n_items: int = 3000, shards: Shards | None = None, **params: Any
) -> Any:
    with torch.device("meta"):
        return MODELS[name](small_params(name, **params), {"n_users": n_users, "n_items": n_items}, shards=shards)


def planned(name: str = "GRU4Rec", processes: int = 1, options: TrainingOptions | None = None, **params: Any) -> Any:
    size = DataSize.assumed(500, 3000, 20_000, 1, 1)
    model, options = on_meta(name, **params), options or TrainingOptions()
    return plan.plan(model, size, options, torch.device("cpu"), processes=processes)


@pytest.mark.parametrize("updates", ["rows", pytest.param("dense", marks=pytest.mark.slow)])
def test_memory_is_what_the_run_then_takes(updates: str, tmp_path: Path) -> None:
    """A table of 128 MB, of which a run holds three to six."""
    data = make_long_tail(500_000, 2_000, 600_000)
    bounds = zip(data.offsets[:-1], data.offsets[1:], strict=True)
    lines = [" ".join(map(str, data.items[start:stop].tolist())) for start, stop in bounds]
    (tmp_path / "data.txt").write_text("\n".join(lines))
    tree = {
        "reader": {"local_path": "data.txt", "file_format": "sequences"},
        "splitter": {"cold": "keep"},
        "models": {"GRU4Rec": GRU | {"batch_size": 30_000, "optimization": {"optimizer": updates}}},
        "evaluation": {"validation_users": 500},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    done = run_python("-m", "fastseq.cli", "train", "config.yaml", "--json", cwd=tmp_path)
    (run,) = json.loads(done.stdout)["runs"]
    training = run["training"]
    assert training["planned_memory_mb"] == run["plan"]["peak"] / 1e6 and training["updates"].startswith(updates)
    assert training["peak_memory_mb"] == pytest.approx(run["peak_rss_mb"], abs=0.1)
    assert training["planned_memory_mb"] == pytest.approx(training["peak_memory_mb"], rel=0.2), run["plan"]
    assert "peak memory" in done.stderr and "planned" in done.stderr and training["epoch_seconds"] > 0


def test_parts_are_those_of_the_model() -> None:
    for name in MODELS:
        model, dense = on_meta(name), planned(name, options=TrainingOptions(updates="dense"))
        real = MODELS[name](small_params(name), {"n_users": 500, "n_items": 3000})
        held = sum(x.nbytes for x in (*real.parameters(), *real.buffers()))
        assert dense.weights == held == sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
        assert dense.step > sum(x.nbytes for x in real.parameters()), "the gradients"
        rows = planned(name, options=TrainingOptions(updates="rows"), batch_size=8)
        tables = [table.shape for table in real.tables().values()]
        more = rows.optimizer - dense.optimizer
        assert more == 4 * (sum(shape[0] for shape in tables) - len(tables)), "but a step count each"
        assert rows.step < dense.step and rows.updates == "rows" and dense.updates == "dense: updates is dense"
    assert planned(loss="cross_entropy", neg_samples=0).updates.startswith("dense: cross_entropy")
    one, two = planned(), planned(processes=2)
    assert two.data == one.data and two.weights == one.weights
    assert two.available == pytest.approx(one.available / 2, rel=0.1)


def test_sampled_ranking_is_planned_by_its_candidates() -> None:
    few, many = (planned(options=TrainingOptions(protocol="sampled", n_negatives=n)) for n in (10, 2010))
    width = on_meta().embedding_size
    assert many.evaluation - few.evaluation == 256 * 2000 * (4 * width + 16)


def test_of_divided_tables_each_process_has_its_part() -> None:
    size, options = DataSize.assumed(500, 3000, 20_000, 1, 1), TrainingOptions()
    whole, part = (
        plan.plan(on_meta("Caser", shards=shards), size, options, torch.device("cpu"), processes=4)
        for shards in (None, Shards(0, 4))
    )
    tables = on_meta("Caser").tables(), on_meta("Caser", shards=Shards(0, 4)).tables()
    elsewhere = sum(x.nbytes - tables[1][name].nbytes for name, x in tables[0].items())
    assert whole.weights - part.weights == elsewhere > whole.weights / 2 and part.updates == "rows"
    assert whole.optimizer - part.optimizer == pytest.approx(2 * elsewhere, abs=4 * 3600)


def test_on_a_gpu_only_what_is_there_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 10**9))
    size = DataSize.assumed(500, 3000, 20_000, 1, 1)
    dense = TrainingOptions(updates="dense")
    gpu, cpu = plan.plan(on_meta(), size, dense, torch.device("cuda", 0)), planned(options=dense)
    assert (gpu.process, gpu.best, gpu.preparing, gpu.reading, gpu.available, gpu.most) == (0, 0, 0, 0, 10**9, 10**9)
    assert (gpu.weights, gpu.step) == (cpu.weights, cpu.step) and gpu.peak < 10**8


@pytest.mark.parametrize("name", optimizers.OPTIMIZERS)
def test_the_optimizers_state_is_counted(name: str) -> None:
    params = {"momentum": 0.9} if name in ("SGD", "RMSprop") else {"amsgrad": True} if name == "Adam" else {}
    real = MODELS["GRU4Rec"](small_params("GRU4Rec"), {"n_users": 500, "n_items": 3000})
    optimizer = optimizers.make_optimizer(name, real.parameter_groups(), 0.1, params)
    for parameter in real.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = sum(x.nbytes for each in optimizer.state.values() for x in each.values() if x is not None)
    options = TrainingOptions(optimizer=name, optimizer_params=params, updates="dense")
    assert planned(options=options).optimizer == state


def test_what_lives_at_a_time_is_counted() -> None:
    with plan._Live() as live:
        x = torch.empty(1000, device="meta")
        y = x.view(10, 100).t()
        for _ in range(3):
            x + 1
        del x, y
        assert (live.now, live.peak) == (0, 8000)
        torch.empty(500, device="meta").mul_(2).add_(1)
        assert live.peak == 8000


def test_an_epoch_is_foretold_from_the_first_seconds() -> None:
    foretold = Foretold()
    for seconds, speed in ((0.1, None), (0.6, None), (1.0, None), (2.6, 500.0), (9.0, 500.0)):
        foretold.see(int(1000 * min(seconds, 0.6) + 500 * max(0.0, seconds - 0.6)), seconds)
        assert foretold.speed == speed


def test_memory_is_that_of_the_machine_or_of_the_container(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 4000 kB\nSwapTotal: 2000 kB\n",
        "/proc/self/status": "VmHWM: 1 kB\nVmRSS: 500 kB\n",
        "/proc/self/cgroup": "0::/a/b\n",
    }

    def text(path: Path, *_: Any, **__: Any) -> str:
        if str(path) not in files:
            raise FileNotFoundError(path)
        return files[str(path)]

    monkeypatch.setattr(Path, "read_text", text)
    assert _process.available_memory() == (4500 * 1024, 11_000 * 1024), "swap too"
    assert _process.available_memory(4) == (1500 * 1024, 2750 * 1024), "what the others hold is theirs, as ours is ours"
    for path, limit in (("a/b", "max\n"), ("a", "4000000\n"), ("", "5000000\n")):
        files[str(Path("/sys/fs/cgroup", path, "memory.max"))] = limit
    assert _process.available_memory() == (4_000_000, 4_000_000 + 2000 * 1024)
    files["/sys/fs/cgroup/memory/memory.limit_in_bytes"] = "3000000"
    assert _process.available_memory(2) == (1_500_000, 1_500_000 + 1000 * 1024)
    del files["/proc/meminfo"]
    assert _process.available_memory() == (3_000_000, 3_000_000)
    files.clear()
    assert _process.available_memory() is None


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_data(tmp_path / "data.csv")
    return write_config(tmp_path, GRU4Rec=GRU)


def test_a_table_that_cannot_fit_is_refused_before_it_is_made(
    tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = write_config(tmp_path, GRU4Rec=GRU | {"embedding_size": 2**30, "hidden_size": 8})
    for command in ("train", "plan"):
        err = refusal(command, huge, folder=tmp_path)
        assert "models.GRU4Rec: the run takes about" in err and "GB are there" in err and "optimizer" in err
        assert "a smaller embedding_size (it is 1073741824)" in err and not (tmp_path / "runs").exists()
    config = write_config(tmp_path, GRU4Rec=GRU)
    monkeypatch.setattr(plan, "available_memory", lambda processes: (10_000_000, 10_000_000))
    assert "10 MB are there" in refusal("train", config, folder=tmp_path) and not (tmp_path / "runs").exists()
    monkeypatch.setattr(plan, "available_memory", lambda processes: None)
    assert here("train", config, folder=tmp_path)[0] == 0


def test_what_comes_near_is_warned_of(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (told,) = answer("plan", config, "--no-time", folder=tmp_path)
    assert told["peak"] > told["process"] + told["weights"] and told["epoch_seconds"] is None
    monkeypatch.setattr(plan, "available_memory", lambda processes: (10_000_000, told["peak"] * 2))
    monkeypatch.setattr(plan, "rss", lambda: told["process"] + told["data"] - plan.LIBRARIES)
    with pytest.warns(UserWarning, match="the run takes about .*To take less: .*a smaller evaluation"):
        code, _, _ = here("plan", config, "--no-time", folder=tmp_path)
    assert code == 0


def test_what_to_change_is_named() -> None:
    def less(**params: Any) -> str:
        entry = experiment.ModelConfig(name="GRU4Rec", params=params, optimization={}, early_stopping=None)
        tight = planned(options=TrainingOptions(updates="dense"), embedding_size=4000)
        with pytest.raises(ConfigError, match="To take less: ") as error:
            experiment.check(plan.replace(tight, available=1, most=1), entry)
        return str(error.value)

    assert "optimizer: rows" in less(embedding_size=4000, neg_samples=1)
    assert "optimizer: rows" not in less(embedding_size=4000, neg_samples=0)


def test_the_command_plans_without_data(tmp_path: Path, config: Path) -> None:
    sizes = ("--items", 200_000, "--users", 5000, "--events", 400_000)
    (tmp_path / "data.csv").unlink()
    (small,), (large,) = (
        answer("plan", config, *sizes[:1], items, *sizes[2:], "--no-time", folder=tmp_path) for items in (1000, 200_000)
    )
    assert large["weights"] - small["weights"] == 199_000 * 64 * 4
    assert large["updates"] == "rows" and large["optimizer"] - 2 * large["weights"] == pytest.approx(800_004, abs=100)
    assert large["targets"] == 5000 * (80 - 2 - 1) and large["users"] == 5000
    code, out, err = here("plan", config, *sizes, "--processes", 2, folder=tmp_path)
    assert code == 0 and "expected peak\t" in out and "each of 2 processes" in err and "an epoch\tnot known" in out
    assert "--items, --users and --events are given together" in refusal("plan", config, *sizes[:2], folder=tmp_path)
    assert "twice as many as users" in refusal("plan", config, *sizes[:5], 9000, folder=tmp_path)
    assert "does not exist" in refusal("plan", config, folder=tmp_path)
    config.write_text(config.read_text().replace("neg_samples", "neg_sample"))
    assert "did you mean 'neg_samples'" in refusal("plan", config, *sizes, folder=tmp_path)


def test_the_command_times_an_epoch(tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (plan, __import__("fastseq.training.throughput", fromlist=["probe"])):
        monkeypatch.setattr(module, "LOOKED_AT", 0.3)
    monkeypatch.setattr(plan, "WARM_UP", 0.0)
    for sizes in ((), ("--items", 300, "--users", 50, "--events", 900)):
        (told,) = answer("plan", config, *sizes, folder=tmp_path)
        assert told["epoch_seconds"] > 0 and told["validation_seconds"] > 0
        assert not (tmp_path / "runs").exists()
