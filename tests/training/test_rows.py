"""Training on the rows that a step touches: the same as on whole tables, whoever looks at the model meanwhile."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq import optim
from fastseq.data.resident import ResidentData
from fastseq.data.split import Split
from fastseq.errors import CheckpointError, ConfigError
from fastseq.models import MODELS, SequentialRecommender
from fastseq.optim import RowAdam
from fastseq.training import rows
from fastseq.training.callbacks import Progress
from fastseq.training.loop import Trainer
from fastseq.training.options import TrainingOptions
from fastseq.training.rows import distinct_in_place
from fastseq.training.run import RunFolder, load
from fastseq.training.steps import StaticSteps
from tests.models.small import small_params

from .tiny import OnSteps, make_model, make_split, same_weights

SHARED = {"loss": "sampled_softmax", "negatives": "shared", "neg_samples": 5}


@pytest.fixture(scope="module")
def split() -> Split:
    return make_split(n_users=60, n_items=200)


def build(split: Split, name: str, **changes: Any) -> SequentialRecommender:
    data = split.interactions
    params = small_params(name, **{"epochs": 2, "neg_samples": 2, "weight_decay": 0.01, **changes})
    return MODELS[name](params, {"n_users": data.n_users, "n_items": data.n_items})


def trained(model: SequentialRecommender, split: Split, **options: Any) -> Trainer:
    trainer = Trainer(model, split, TrainingOptions(**options))
    trainer.fit()
    return trainer


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("changes", [{"reg_weight": 0.01}, SHARED], ids=["bpr", "shared"])
def test_rows_end_where_whole_tables_do(split: Split, name: str, changes: dict[str, Any]) -> None:
    models, moved = [], []
    for updates in ("dense", "rows"):
        model = build(split, name, batch_size=16, **changes).double()
        start = {key: x.clone() for key, x in model.state_dict().items()}
        trainer = trained(model, split, updates=updates, clip_norm=0.02, warmup_steps=3, schedule="cosine")
        assert isinstance(trainer.optimizer, RowAdam) == (updates == "rows")
        models.append(model.state_dict())
        moved.append({key: (x.double() - start[key].double()).abs().max() for key, x in model.state_dict().items()})
    for key, x in models[0].items():
        far = (models[1][key].double() - x.double()).abs().max()
        assert far <= 1e-6 * moved[0][key], key
    assert moved[0]["item_embedding.weight"] > 1e-3


@pytest.mark.parametrize("padding", [None, 9])
@pytest.mark.parametrize("ids", [[3, 1, 3, 9, 0], [4, 4], [9], [-100, 2, -1]])
def test_a_batch_has_room_for_as_many_rows_as_ids(ids: list[int], padding: int | None) -> None:
    distinct, places, count = distinct_in_place(torch.tensor(ids), padding)
    assert distinct.shape[0] == len(ids) + 1 and count.shape == (1,)
    known = sorted({max(x, 0) for x in ids} - {padding})
    assert distinct[: int(count)].tolist() == known
    assert all(int(distinct[place]) == max(x, 0) for x, place in zip(ids, places.tolist(), strict=True))
    if padding is not None:  # its place is the last, which has no gradient
        assert all(place == len(ids) for x, place in zip(ids, places.tolist(), strict=True) if x == padding)
        assert distinct[-1] == padding


def test_no_tensor_of_a_step_is_as_large_as_a_table(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are those of the rows, and only those rows change in a step."""
    model = build(split, "SASRec", batch_size=8)
    trainer = Trainer(model, split, TrainingOptions(updates="rows"))
    table, seen = model.item_embedding.weight, []
    step = RowAdam.step

    def look(self: RowAdam, *arguments: Any) -> Any:
        assert table.grad is not None and table.grad.is_sparse and table.grad.is_coalesced()
        touched, before = table.grad.indices()[0], table.detach().clone()
        assert touched.shape[0] < table.shape[0] / 2 and bool((touched.diff() > 0).all())
        result = step(self, *arguments)
        changed = (table.detach() != before).any(dim=1).nonzero()[:, 0]
        assert set(changed.tolist()) <= set(touched.tolist())
        seen.append(changed.shape[0])
        return result

    monkeypatch.setattr(RowAdam, "step", look)
    trainer.fit()
    assert len(seen) > 4 and min(seen) > 0


@pytest.mark.parametrize("name", ["SASRec", "Caser"])
def test_a_look_at_the_model_changes_no_later_bit(split: Split, name: str, tmp_path: Path) -> None:
    """state_dict, recommend and the checkpoint inside an epoch see the tables as dense training has them."""
    options: dict[str, Any] = {"updates": "rows", "progress_every_seconds": 0.0}
    changes = {"batch_size": 16, "learning_rate": 0.05}
    alone = build(split, name, **changes).double()
    trained(alone, split, **options)
    watched, whole = (build(split, name, **changes).double() for _ in range(2))
    seen: list[dict[str, Tensor]] = []
    answers: list[Any] = []

    def look(progress: Progress) -> None:
        if progress.step % 3 == 0:
            assert watched.waiting_rows is not None
            seen.append({key: x.clone() for key, x in watched.state_dict().items()})
            users = [split.interactions.user_ids.decode([0])[0]] if name == "Caser" else None
            answers.append(watched.recommend([[1, 2, 3]], k=5, users=users))

    Trainer(watched, split, TrainingOptions(**options), callbacks=[OnSteps(look)]).fit()
    assert same_weights(watched, alone)
    assert watched.waiting_rows is None

    twin = build(split, name).double()
    twin.catalogue = watched.catalogue
    expected: list[dict[str, Tensor]] = []

    def keep(progress: Progress) -> None:
        if progress.step % 3 == 0:
            expected.append({key: x.clone() for key, x in whole.state_dict().items()})

    Trainer(whole, split, TrainingOptions(**options | {"updates": "dense"}), callbacks=[OnSteps(keep)]).fit()
    assert len(seen) == len(expected) > 4
    for x, y in zip(seen, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-7)
    for weights, answer in zip(seen, answers, strict=True):
        twin.load_state_dict(weights)
        users = [split.interactions.user_ids.decode([0])[0]] if name == "Caser" else None
        assert twin.eval().recommend([[1, 2, 3]], k=5, users=users) == answer


def test_a_checkpoint_inside_an_epoch_is_loaded_as_training_would_leave_it(split: Split, tmp_path: Path) -> None:
    model = build(split, "SASRec", batch_size=16)
    options = TrainingOptions(updates="rows", progress_every_seconds=0, checkpoint_every_seconds=0)
    there: list[dict[str, Tensor]] = []

    def stop(progress: Progress) -> None:
        there.append({key: x.clone() for key, x in model.state_dict().items()})
        if progress.step == progress.total_steps // 2 + 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(model, split, options, tmp_path / "x", [OnSteps(stop)]).fit()
    # ``last`` was written after the step before.
    loaded = load(RunFolder(tmp_path / "x", resume=True).last_path)
    assert all(torch.equal(x, there[-2][key]) for key, x in loaded.state_dict().items())
    assert not torch.equal(there[-2]["item_embedding.weight"], there[-1]["item_embedding.weight"])
    resumed = build(split, "SASRec", batch_size=16)
    trainer = Trainer(resumed, split, options, tmp_path / "x", resume=True)
    assert same_weights(resumed, loaded), "what waits is made up for, in either"
    assert not torch.equal(resumed.item_embedding.weight, loaded.item_embedding.weight), "and lies as it did"
    trainer.run.unlock()  # type: ignore[union-attr]


def test_what_decides(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    def why(name: str = "SASRec", updates: str = "auto", changes: dict[str, Any] | None = None, **options: Any) -> str:
        trainer = Trainer(build(split, name, **changes or {}), split, TrainingOptions(updates=updates, **options))  # type: ignore[arg-type]
        assert isinstance(trainer.optimizer, RowAdam) == (trainer._why_dense is None)
        return trainer._why_dense or "rows"

    assert why() == "a step names about 256 of 201 rows"
    assert why(per_target=True) == "a step names about 704 of 201 rows"
    assert "betas[0] is not below" in why(optimizer_params={"betas": [0.9, 0.8]})
    assert why(changes={"batch_size": 8}) == "rows"
    monkeypatch.setattr(rows, "FEW_ROWS", {"cpu": 0, "cuda": 0})
    assert why() == why(optimizer_params={"betas": [0.8, 0.99]}) == "rows"
    assert why(updates="dense") == "updates is dense"
    assert "AdamW" in why(optimizer="AdamW")
    assert "amsgrad" in why(optimizer_params={"amsgrad": True})
    with pytest.raises(ConfigError, match="updates is rows, but the optimizer is SGD; use auto or dense"):
        why(updates="rows", optimizer="SGD")
    with pytest.warns(UserWarning, match="updates is rows, but cross_entropy gives every item a gradient: they are"):
        assert "cross_entropy" in why(updates="rows", changes={"loss": "cross_entropy", "neg_samples": 0})
    tiny = Trainer(make_model(split), split, TrainingOptions())
    assert "Tiny is not one of fastseq's own" in str(tiny._why_dense)
    with pytest.raises(ConfigError, match="updates is 'row', expected"):
        TrainingOptions(updates="row")  # type: ignore[arg-type]


def test_a_training_that_was_broken_off_leaves_a_model_like_any_other(split: Split) -> None:
    """Scores, other weights and another training take what rows wait for into account."""
    model, same = build(split, "SASRec", batch_size=16), build(split, "SASRec", batch_size=16)

    def stop(progress: Progress) -> None:
        if progress.step == progress.total_steps // 2 - 3:
            raise KeyboardInterrupt

    every_step = TrainingOptions(updates="rows", progress_every_seconds=0)
    with pytest.raises(KeyboardInterrupt):
        Trainer(model, split, every_step, callbacks=[OnSteps(stop)]).fit()
    assert model.waiting_rows is not None
    same.load_state_dict(model.state_dict())
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same_weights(other, model)
        other.load_state_dict(same.state_dict())
        assert other.waiting_rows is None and model.waiting_rows is not None
    sequence, lengths = torch.tensor([[1, 2, 3]]), torch.tensor([3])
    for each in (model, same):
        each.eval()
    assert torch.equal(model.predict(sequence, lengths), same.predict(sequence, lengths))
    assert torch.equal(model(sequence, lengths), same(sequence, lengths))
    assert not torch.equal(model.item_embedding.weight, same.item_embedding.weight)
    fresh = build(split, "SASRec", batch_size=16)
    first = fresh.state_dict()
    for each in (model, same):
        Trainer(each, split, TrainingOptions(updates="rows")).fit()
    assert same_weights(model, same)

    with pytest.raises(KeyboardInterrupt):
        Trainer(model, split, every_step, callbacks=[OnSteps(stop)]).fit()
    model.load_state_dict(first)
    assert model.waiting_rows is None and same_weights(model, fresh)


def test_a_replay_runs_nothing_of_the_host(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of which only the device's part runs, as a CUDA graph replays them: tables are brought up to date at the
    end of every epoch all the same, and the history that a step writes to is the one that was there."""
    monkeypatch.setattr(optim, "ROOM", 8)
    models = []
    for replayed in (False, True):
        model = build(split, "SASRec", batch_size=16, **{"epochs": 4}).double()
        trainer = Trainer(model, split, TrainingOptions(updates="rows", validation_metric=None))
        optimizer = trainer.optimizer
        assert isinstance(optimizer, RowAdam)
        steps = trainer.steps = StaticSteps(model, optimizer, ResidentData(trainer.loader, "cpu"), trainer.options)
        launch, held = steps._launch, []

        def replay(optimizer: RowAdam = optimizer, model: Any = model, launch: Any = launch, held: Any = held) -> None:
            waiting, room = model.waiting_rows, dict(optimizer._room)
            history = optimizer.state[model.item_embedding.weight].get("history")
            launch()
            if history is not None:
                assert history is optimizer.state[model.item_embedding.weight]["history"]
                model.waiting_rows, optimizer._room = waiting, room

        if replayed:
            monkeypatch.setattr(steps, "_launch", replay)
        trainer.fit()
        assert model.waiting_rows is None
        models.append(model)
    assert same_weights(*models)


def test_a_table_that_is_frozen_stays(split: Split) -> None:
    model = build(split, "SASRec", batch_size=16)
    trainer = Trainer(model, split, TrainingOptions(updates="rows"))
    before = model.item_embedding.weight.detach().clone()
    model.item_embedding.weight.requires_grad_(False)
    trainer.fit()
    assert torch.equal(model.item_embedding.weight, before)


def test_resuming_in_the_other_way_is_refused(split: Split, tmp_path: Path) -> None:
    for updates, other in (("rows", "dense"), ("dense", "rows")):
        folder = tmp_path / updates
        Trainer(build(split, "SASRec"), split, TrainingOptions(updates=updates), folder).fit()
        with pytest.raises(CheckpointError, match="updates"):
            Trainer(build(split, "SASRec"), split, TrainingOptions(updates=other), folder, resume=True)


def test_a_longer_history_is_recorded_anew(split: Split) -> None:
    model = build(split, "SASRec", batch_size=16)
    trainer = Trainer(model, split, TrainingOptions(updates="rows"))
    optimizer = trainer.optimizer
    assert isinstance(optimizer, RowAdam)
    steps = StaticSteps(model, optimizer, ResidentData(trainer.loader, "cpu"), trainer.options)
    trainer.steps = steps
    trainer._step(next(steps.of_epoch(0, 0)))
    reserve = optimizer.reserve
    for room, recorded in ((1, True), (5000, False)):
        steps._graph, steps._recorded = object(), steps._fixed()
        optimizer.reserve = lambda steps, room=room: reserve(room)  # type: ignore[method-assign, misc]
        next(steps.of_epoch(0, 0))
        assert (steps._graph is not None) == recorded
