"""Static steps on a CPU, where nothing is recorded: what a CUDA graph would replay equals the eager steps."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastseq.data.readers import from_sequences
from fastseq.data.resident import ResidentData
from fastseq.data.split import Split, leave_one_out
from fastseq.errors import ConfigError, TrainingError
from fastseq.models import MODELS
from fastseq.training import Trainer, TrainingOptions
from fastseq.training.steps import EagerSteps, StaticSteps

SMALL: dict[str, dict[str, Any]] = {
    "SASRec": {
        "embedding_size": 8, "n_layers": 2, "n_heads": 2, "inner_size": 16, "dropout_prob": 0.2,
        "attn_dropout_prob": 0.3,
    },
    "GRU4Rec": {"embedding_size": 8, "hidden_size": 12, "num_layers": 1, "dropout_prob": 0.2},
    "Caser": {"embedding_size": 8, "n_h": 2, "n_v": 2, "dropout_prob": 0.3},
}  # fmt: skip
LOSSES: list[dict[str, Any]] = [
    {"neg_samples": 2},
    {"neg_samples": 0},
    {"neg_samples": 3, "loss": "gbce", "negatives": "shared_unseen"},
    {"neg_samples": 5, "loss": "sampled_softmax", "negatives": "shared", "negative_distribution": "popularity"},
    {"neg_samples": 2, "loss": "sampled_softmax", "reg_weight": 0.01},
]


def histories(lengths: list[int], n_items: int = 12) -> Split:
    random = np.random.default_rng(sum(lengths))
    return leave_one_out(from_sequences([random.integers(n_items, size=n).tolist() for n in lengths]))


def trainer(split: Split, name: str, options: dict[str, Any], run_dir: Path | None = None, **params: Any) -> Trainer:
    common = {"weight_decay": 0.01, "learning_rate": 0.01, "epochs": 3, "batch_size": 16, "max_seq_len": 5}
    data = split.interactions
    model = MODELS[name](
        {**SMALL[name], **common, **params}, {"n_users": data.n_users, "n_items": data.n_items}, seed=3
    )
    return Trainer(model.train(), split, TrainingOptions(validation_metric=None, **options), run_dir, resume=True)


def eager(made: Trainer) -> EagerSteps:
    return EagerSteps(made.model, made.optimizer, made.loader, made.options, made.model.loss, made.ranks)


def static(made: Trainer) -> StaticSteps:
    return StaticSteps(made.model, made.optimizer, ResidentData(made.loader, "cpu"), made.options)


def run(made: Trainer, steps: EagerSteps | StaticSteps, epochs: int, start: int = 0) -> list[float]:
    """The losses of some epochs, the loader's batches one after the other."""
    made.steps = steps
    for epoch in range(epochs):
        for work in steps.of_epoch(epoch, start if epoch == 0 else 0):
            made._step(work)
    return steps.losses()


def weights(made: Trainer) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in made.model.parameters()])


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("params", LOSSES, ids=lambda p: p.get("loss", "bpr") if p["neg_samples"] else "softmax")
@pytest.mark.parametrize("updates", ["dense", "rows"])
def test_static_steps_are_the_eager_ones(name: str, params: dict[str, Any], updates: str) -> None:
    if updates == "rows" and params["neg_samples"] == 0:
        pytest.skip("the full softmax is dense")
    split = histories([3, 9, 4, 14, 6, 3, 22, 5, 7, 11])
    options: dict[str, Any] = {"clip_norm": 0.5, "schedule": "linear", "warmup_steps": 3}
    options["optimizer_params"] = {"eps": 1e-3}  # the bias of attention's keys has no gradient but rounding
    first = trainer(split, name, options | {"updates": "dense"}, **params)
    second = trainer(split, name, options | {"updates": updates}, **params)
    expected, losses = run(first, eager(first), 3), run(second, static(second), 3)
    second.model.settle()
    assert len(losses) == len(expected) == second.total_steps > 9
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    torch.testing.assert_close(weights(second), weights(first), rtol=1e-4, atol=2e-5)
    assert second.optimizer.param_groups[0]["lr"] == first.optimizer.param_groups[0]["lr"]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(4, 14), min_size=1, max_size=9),
    batch_size=st.integers(1, 30),
    max_len=st.integers(1, 6),
    name=st.sampled_from(sorted(SMALL)),
    margin=st.integers(0, 20),
)
def test_every_target_once_and_no_gradient_of_what_is_unused(
    lengths: list[int], batch_size: int, max_len: int, name: str, margin: int
) -> None:
    split = histories(lengths, n_items=30)
    made = trainer(split, name, {}, neg_samples=1, batch_size=batch_size, max_seq_len=max_len)
    data = ResidentData(made.loader, "cpu").epoch(0)
    sizes = data.capacities(margin / 10)
    assert data.fits(sizes)
    counted: list[int] = []
    for number, batch in enumerate(made.loader.batches(0)):
        roomy = data.batch_at(data.places[number], sizes)
        gradients = []
        for each in (batch, roomy):
            assert each.rng is not None
            made.model.zero_grad()
            made.model.hold_rng(each.rng)
            made.model.loss(each).backward()
            gradients.append({n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None})
        for key, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-4, atol=1e-6, msg=key)
        counted += roomy.targets[roomy.targets != -100].tolist()
    events = np.concatenate([split.interactions.items[a + 1 : b] for a, b in zip(
        split.interactions.offsets[:-1], split.train_stop, strict=True)])  # fmt: skip
    assert sorted(counted) == sorted(events.tolist())


def test_a_training_that_goes_on_has_the_same_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever it was stopped, it takes the steps of one that was not, bit for bit."""
    monkeypatch.setattr("fastseq.training.steps.MARGIN", 0.0)
    split = histories([3, 9, 4, 14, 6, 3, 22, 5, 7, 11])
    whole, first, again = (trainer(split, "SASRec", {}, neg_samples=1) for _ in range(3))
    sizes = []
    steps = whole.steps = static(whole)
    for epoch in range(4):
        for work in steps.of_epoch(epoch, 0):
            whole._step(work)
        sizes.append(steps.sizes)
    assert len(set(sizes)) > 1, "no epoch has a larger batch than those before it"
    run(first, static(first), 3)
    again.model.load_state_dict(first.model.state_dict())
    again.optimizer.load_state_dict(first.optimizer.state_dict())
    again.state = first.state
    steps = again.steps = static(again)
    for work in steps.of_epoch(3, 0):
        again._step(work)
    assert steps.sizes == sizes[-1] and torch.equal(weights(again), weights(whole))


def test_a_graph_that_is_not_served_is_refused_with_the_reason() -> None:
    split = histories([9, 4, 14])
    with pytest.raises(ConfigError, match="execution is graph, but the model is on the CPU; use auto or eager"):
        trainer(split, "GRU4Rec", {"execution": "graph"}, neg_samples=1)
    made = trainer(split, "GRU4Rec", {}, neg_samples=1)
    assert isinstance(made.steps, EagerSteps) and made.fit().execution == "eager"
    made.device, made.loader.resident = torch.device("cuda", 0), static(made).data
    assert made._why_eager() is None
    made.model.loss = made.model.loss  # type: ignore[method-assign]
    assert made._why_eager() == "GRU4Rec is not one of fastseq's own models as they are"


def test_a_recording_that_fails_leaves_steps_that_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, the same losses; with execution: graph an error."""
    split = histories([3, 9, 4, 14, 6, 3, 22, 5, 7, 11])
    first, second = (trainer(split, "GRU4Rec", {}, neg_samples=1) for _ in range(2))
    steps = static(second)

    class Graph:
        def __enter__(self) -> None:
            raise RuntimeError("no graph today")

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **settings: graph)
    steps.recording = True
    expected = run(first, eager(first), 2)
    with pytest.warns(UserWarning, match="a CUDA graph cannot record them: no graph today"):
        losses = run(second, steps, 2)
    np.testing.assert_allclose(losses, expected, rtol=2e-5)
    strict = trainer(split, "GRU4Rec", {}, neg_samples=1)
    steps = static(strict)
    steps.options, steps.recording = dataclasses.replace(strict.options, execution="graph"), True
    with pytest.raises(TrainingError, match="execution is graph, but the step cannot be recorded"):
        run(strict, steps, 1)


def test_what_was_changed_between_two_trainings_is_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay would update weights that were moved away or frozen since, with another optimizer's state."""
    made = trainer(histories([3, 9, 4, 14, 6, 3, 22, 5, 7, 11]), "GRU4Rec", {}, neg_samples=1)
    steps = static(made)

    class Graph:
        def replay(self) -> None:
            steps._step()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **settings: contextlib.nullcontext())
    steps.recording = True
    run(made, steps, 2)
    graph = steps._graph
    assert graph is not None
    made.optimizer.param_groups[0]["lr"] = 0.5
    run(made, steps, 1)
    assert steps._graph is graph
    weight = made.model.item_embedding.weight
    changes: list[Callable[[], Any]] = [
        lambda: made.optimizer.load_state_dict(copy.deepcopy(made.optimizer.state_dict())),
        lambda: made.model.double().float(),
        lambda: weight.requires_grad_(False),
        lambda: made.optimizer.param_groups[1].update(weight_decay=0.3),
    ]
    for change in changes:
        graph = steps._graph
        change()
        run(made, steps, 1)
        assert steps._graph is not None and steps._graph is not graph
    frozen = weight.clone()
    run(made, steps, 1)
    assert torch.equal(weight, frozen)


def test_another_execution_is_told_when_a_run_goes_on(tmp_path: Path) -> None:
    split = histories([3, 9, 4, 14, 6])
    trainer(split, "GRU4Rec", {"max_seconds": 1e-9}, tmp_path, neg_samples=1).fit()
    resumed = trainer(split, "GRU4Rec", {}, tmp_path, neg_samples=1)
    resumed.steps = static(resumed)
    with pytest.warns(UserWarning, match="execution was eager and is graph: .* never stopped; execution: eager goes"):
        resumed.fit()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="execution was")
        resumed.fit()
