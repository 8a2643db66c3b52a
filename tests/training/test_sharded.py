"""Tables divided over processes: the training, the answers and the checkpoints of one process."""

from __future__ import annotations

import json
import multiprocessing
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import fastseq
from fastseq.errors import CheckpointError, ConfigError
from fastseq.models import SASRec, Shards
from fastseq.training import Trainer, TrainingOptions, checkpoint, parts
from fastseq.training.rows import why_dense
from tests.models.small import required_params

from .test_ddp import free_port
from .tiny import make_split
from .worker import sharded_model, train_on, train_sharded

CASES = [("SASRec", 60, 7, "float32"), ("SASRec", 7, 2, "float64"), ("GRU4Rec", 60, 2, "float64")]
CASES += [("Caser", 60, 2, "float64"), ("Caser", 7, 1, "float64")]


def together(world_size: int, run: Callable[..., None], *arguments: Any) -> list[int | None]:
    """Exit codes of so many processes that run the same."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.worker"])
    port = free_port()
    processes = [context.Process(target=run, args=(rank, world_size, port, *arguments)) for rank in range(world_size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


@pytest.mark.slow
def test_divided_tables_end_where_whole_ones_do(tmp_path: Path) -> None:
    """2 and 3 processes: weights, metrics, losses and recommendations, after 200 steps too."""
    for world_size in (1, 2, 3):
        (tmp_path / str(world_size)).mkdir()
        cases = CASES[: 3 if world_size == 2 else None][1 if world_size == 3 else 0 :]
        assert together(world_size, train_sharded, str(tmp_path / str(world_size)), cases) == [0] * world_size
    for name, n_users, _, dtype in CASES:
        ran = (tmp_path / str(world_size) / f"{name}-{n_users}-{dtype}" for world_size in (1, 2, 3))
        one, *others = (each for each in ran if each.is_dir())
        assert others
        expected, answers = load_file(one / "weights.safetensors"), json.loads((one / "answers.json").read_text())
        close = {"rtol": 1e-5, "atol": 1e-7} if dtype == "float64" else {"rtol": 1e-5, "atol": 1e-6}
        assert dtype == "float64" or int(expected["steps"]) >= 200
        for other in others:
            found = load_file(other / "weights.safetensors")
            assert found.keys() == expected.keys()
            for key, tensor in expected.items():
                if dtype == "float32" and key.endswith("in_proj_bias"):  # a key's has no gradient but rounding
                    keys = slice(len(tensor) // 3, 2 * len(tensor) // 3)
                    found[key][keys] = tensor[keys]
                torch.testing.assert_close(found[key], tensor, **close, msg=f"{name} {dtype} {key}")
            said = json.loads((other / "answers.json").read_text())
            if dtype == "float64":
                assert said["test"] == pytest.approx(answers["test"], abs=1e-12)
                assert said["sampled"] == pytest.approx(answers["sampled"], abs=1e-12)
                for (items, scores), (their_items, their_scores) in zip(said["asked"], answers["asked"], strict=True):
                    assert items == their_items
                    assert scores == pytest.approx(their_scores, rel=1e-5)
            for a, b in zip(said["history"], answers["history"], strict=True):
                assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)


@pytest.mark.slow
def test_a_killed_process_and_other_numbers_of_them(tmp_path: Path) -> None:
    """After kill -9 of one a resumed run has the bits of one that was not stopped; other numbers go on too."""
    assert together(2, train_on, str(tmp_path / "whole"), str(tmp_path / "a"), 2, None) == [0, 0]
    codes = together(2, train_on, str(tmp_path / "run"), str(tmp_path / "b"), 2, 9)
    assert codes[1] == -9 and codes[0] not in (0, None)
    last = tmp_path / "run/checkpoints/last.safetensors"
    assert 0 < step_of(last) < 10
    assert together(2, train_on, str(tmp_path / "run"), str(tmp_path / "b"), 2, None) == [0, 0]
    one, two = (load_file(tmp_path / name) for name in "ab")
    assert all(torch.equal(two[key], tensor) for key, tensor in one.items())
    assert len(list(last.parent.glob("last.*-of-2.safetensors"))) == 2, "older parts are gone"

    for world_size in (3, 1):
        ends = tmp_path / f"{world_size}"
        assert (
            together(world_size, train_on, str(tmp_path / "run"), str(ends), 5 - world_size, None) == [0] * world_size
        )
    assert together(2, train_on, str(tmp_path / "whole"), str(tmp_path / "c"), 4, None) == [0, 0]
    same, other = load_file(tmp_path / "c"), load_file(tmp_path / "1")
    assert all(other[key].shape == tensor.shape for key, tensor in same.items())
    reached, expected = (
        [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]
        for run in ("run", "whole")
    )
    assert len(reached) == len(expected) == 4
    assert reached[:2] == pytest.approx(expected[:2], rel=1e-12)
    assert reached == pytest.approx(expected, rel=0.05)  # other dropout masks


def step_of(last: Path) -> int:
    return int(checkpoint.load(last, metadata_only=True)[1]["state"]["step"])


@pytest.mark.slow
def test_parts_that_are_missing_or_of_another_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert together(2, train_on, str(tmp_path / name), str(tmp_path / f"{name}.safetensors"), 1, None) == [0, 0]
    best = [sorted((tmp_path / name / "checkpoints").glob("best.*-of-2.safetensors")) for name in ("one", "two")]
    kept = best[0][1].read_bytes()
    best[0][1].unlink()
    with pytest.raises(CheckpointError, match=r"best.safetensors: written by 2 processes, but best.*1-of-2.* missing"):
        fastseq.load(tmp_path / "one")
    best[0][1].write_bytes(best[1][1].read_bytes())
    with pytest.raises(CheckpointError, match="saved for another checkpoint: of is"):
        fastseq.load(tmp_path / "one")
    best[0][1].write_bytes(kept[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        fastseq.load(tmp_path / "one")
    best[0][1].write_bytes(kept)
    fastseq.load(tmp_path / "one")


def test_one_part_is_the_whole(tmp_path: Path) -> None:
    """No process group is needed, and everything is served."""
    split = make_split()
    model = sharded_model("Caser", split, Shards(0, 1), epochs=1)
    Trainer(model, split, TrainingOptions(updates="rows"), tmp_path / "run").fit()
    loaded = fastseq.load(tmp_path / "run", shards=Shards(0, 1))
    assert loaded.recommend([[0, 1]], unknown_users="mean") == model.recommend([[0, 1]], unknown_users="mean")


TABLES = {"items": torch.arange(14.0).view(7, 2), "users": torch.arange(6.0).view(3, 2)}
ROWS = {name: len(table) for name, table in TABLES.items()}


@pytest.fixture
def save_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, int], None]:
    """Writes TABLES as so many processes would, one after another in this one."""
    monkeypatch.setattr(dist, "broadcast", lambda *_: None)
    monkeypatch.setattr(dist, "barrier", lambda: None)

    def save(path: Path, world_size: int) -> None:
        monkeypatch.setattr(secrets, "randbits", lambda _: world_size)
        for rank in reversed(range(world_size)):
            own = {name: table[rank::world_size].clone() for name, table in TABLES.items()}
            parts.save(path, {**own, "rest": torch.ones(1)}, {}, ROWS, Shards(rank, world_size))

    return save


@pytest.mark.parametrize("writers", [1, 2, 5, 9, 12])
def test_parts_divide_anew_over_any_number(
    writers: int, tmp_path: Path, save_parts: Callable[[Path, int], None]
) -> None:
    """More processes than rows too: some hold none of a table, or of any."""
    save_parts(tmp_path / "last.safetensors", writers)
    for readers in (1, 2, 3, 8, 12):
        for rank in range(readers):
            tensors, _ = parts.load(tmp_path / "last.safetensors", ROWS, Shards(rank, readers))
            assert tensors.keys() == {*TABLES, "rest"}
            for name, table in TABLES.items():
                assert torch.equal(tensors[name], table[rank::readers]), (name, rank, readers)


def test_nothing_of_older_checkpoints_is_left(tmp_path: Path, save_parts: Callable[[Path, int], None]) -> None:
    """Nor what a process was writing when it was killed, once the next checkpoint is there, in parts or whole."""
    path = tmp_path / "last.safetensors"
    for write in (lambda: save_parts(path, 3), lambda: parts.save(path, TABLES, {})):
        save_parts(path, 2)
        cut = tmp_path / ".last.0123456789abcdef.1-of-2.safetensors.tmp"
        cut.write_bytes(b"half")
        others = [tmp_path / name for name in ("best.safetensors", "best.0123456789abcdef.0-of-2.safetensors")]
        for each in others:
            each.touch()
        write()
        assert not cut.exists() and not list(tmp_path.glob("*-of-2.safetensors.tmp"))
        assert not list(tmp_path.glob("last.*-of-2.*")) and all(each.exists() for each in others)
        assert torch.equal(parts.load(path)[0]["items"], TABLES["items"])


def test_a_checkpoint_that_is_replaced_while_it_is_read(
    tmp_path: Path, save_parts: Callable[[Path, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, assembled = tmp_path / "last.safetensors", parts._assembled
    save_parts(path, 2)

    def late(*arguments: Any) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(parts, "_assembled", assembled)
        save_parts(path, 3)
        return assembled(*arguments)

    monkeypatch.setattr(parts, "_assembled", late)
    assert torch.equal(parts.load(path)[0]["items"], TABLES["items"])


@pytest.mark.parametrize("name", ["SASRec", "GRU4Rec", "Caser"])
@pytest.mark.parametrize("changes", [{}, {"initializer_range": 0.1}])
def test_first_weights_are_those_of_the_whole(
    name: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastseq.models.shards.DRAWN_ROWS", 16)
    info = {"n_users": 71, "n_items": 90}
    params = required_params(name, **changes)
    whole = fastseq.models.MODELS[name](params, info, seed=3)
    for world_size in (1, 2, 3, 7):
        for rank in range(world_size):
            part = fastseq.models.MODELS[name](params, info, seed=3, shards=Shards(rank, world_size))
            own = part.state_dict()
            for key, tensor in whole.state_dict().items():
                divided = key.startswith(("item_embedding", "user_embedding"))
                assert torch.equal(own[key], tensor[rank::world_size] if divided else tensor), key


def test_what_a_part_cannot_do() -> None:
    split = make_split()
    model = sharded_model("SASRec", split, Shards(1, 2))
    with pytest.raises(ConfigError, match="the item table is divided over 2 processes"):
        model.predict(torch.tensor([[1, 2]]), torch.tensor([2]))
    with pytest.raises(ConfigError, match=r"part 1 of 2 of its tables, but this is process 0 of 1"):
        Trainer(model, split)
    with pytest.raises(ConfigError, match="needs updates by rows, but cross_entropy gives every item a gradient"):
        why_dense(sharded_model("SASRec", split, Shards(0, 2), neg_samples=0), TrainingOptions(), warn=False)
    with pytest.raises(ConfigError, match="needs updates by rows, but updates is dense"):
        why_dense(model, TrainingOptions(updates="dense"), warn=False)
    with pytest.raises(ValueError, match="rank is 2, expected 0 … world_size − 1, and world_size is 2"):
        Shards(2, 2)
    with pytest.raises(CheckpointError, match="the model holds a part of its tables"):
        fastseq.training.checkpoint.save_warprec("model.pth", model)
    assert isinstance(model, SASRec)
