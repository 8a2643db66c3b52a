"""Caser against its plain re-statement, and the windows that share convolutions against per-target histories."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastseq import Caser
from fastseq.data.batch import JaggedBatch
from fastseq.errors import ConfigError, DataError
from fastseq.models.jagged import offsets_of
from fastseq.ops import record_served
from tests.ops.compare import assert_as_accurate, relative_error

from . import exactness
from .exactness import INFO, N_ITEMS
from .restatement import PlainCaser

N_USERS = INFO["n_users"]
PARAMS: dict[str, Any] = {
    "embedding_size": 12,
    "n_h": 3,
    "n_v": 2,
    "dropout_prob": 0.0,
    "weight_decay": 0.01,
    "reg_weight": 0.03,
    "epochs": 1,
    "learning_rate": 0.01,
    "neg_samples": 2,
    "max_seq_len": 9,
}
FILTERS = pytest.mark.parametrize(("n_h", "n_v"), [(3, 2), (0, 2), (3, 0)])


def pair(padding_row: str = "non-zero", **changes: Any) -> tuple[Caser, PlainCaser]:
    """The model and its re-statement in float64 with the same parameters."""
    model, plain = exactness.pair(Caser, PlainCaser, {**PARAMS, **changes}, padding_row)
    assert isinstance(model, Caser) and isinstance(plain, PlainCaser)
    return model, plain


def padded_batch(max_len: int, negatives: int, lengths: list[int] | None = None) -> tuple[Tensor, ...]:
    batch = exactness.padded_batch(max_len, negatives, lengths)
    return torch.randint(0, N_USERS, (len(batch[0]),)), *batch


def assert_same_gradients(model: Caser, plain: PlainCaser) -> None:
    ours = exactness.gradients(model)
    for name, reference in exactness.gradients(plain).items():
        error = (ours[name] - reference).norm() / max(1e-3, float(reference.norm()))
        assert error < 1e-10, f"gradient of {name}: {error:.2g}"


@pytest.mark.parametrize("padding_row", ["zero", "non-zero"])
@pytest.mark.parametrize("negatives", [0, 1, 3])
@FILTERS
def test_equals_the_restatement_in_float64(n_h: int, n_v: int, negatives: int, padding_row: str) -> None:
    """Forward, loss, every gradient, then twenty Adam steps on changing batches."""
    model, plain = pair(padding_row, neg_samples=negatives, n_h=n_h, n_v=n_v)
    length = model.max_seq_len
    batch = padded_batch(length, negatives)
    with record_served() as calls:
        assert relative_error(model(*batch[:2]), plain(*batch[:2])) < 1e-10
    assert ("caser_windows", "cpu") in calls and {backend for _, backend in calls} == {"cpu"}
    loss, expected = model.training_step(batch, 0), plain.loss(batch)
    assert relative_error(loss, expected) < 1e-10
    loss.backward()
    expected.backward()
    assert_same_gradients(model, plain)

    optimizer, plain_optimizer = model.configure_optimizers(), plain.optimizer()
    for _ in range(20):
        batch = padded_batch(length, negatives)
        model.zero_grad()
        plain.zero_grad()
        model.training_step(batch, 0).backward()
        plain.loss(batch).backward()
        optimizer.step()
        plain_optimizer.step()
    for name, parameter in plain.state_dict().items():
        assert relative_error(model.state_dict()[name], parameter) < 1e-10, f"{name} after 20 steps"


@pytest.mark.parametrize("negatives", [0, 4])
def test_is_as_accurate_as_pytorch_in_float32(negatives: int) -> None:
    model, plain = pair(neg_samples=negatives, max_seq_len=14)
    batch = padded_batch(14, negatives, [0, 1, 5, 9, 3, 14, 20, 2] * 4)
    state = {name: value.float().double() for name, value in model.state_dict().items()}
    results = {}
    for key, module, dtype in (
        ("reference", plain, torch.float64),
        ("pytorch", plain, torch.float32),
        ("model", model, torch.float32),
    ):
        module.load_state_dict(state)
        module.to(dtype).zero_grad()
        loss = module.training_step(batch, 0) if isinstance(module, Caser) else module.loss(batch)
        loss.backward()
        results[key] = {"forward": module(*batch[:2]).detach(), "loss": loss.detach(), **exactness.gradients(module)}
    for name, reference in results["reference"].items():
        factor = 2 if name in ("forward", "loss") else 3
        assert_as_accurate(results["model"][name], results["pytorch"][name], reference, factor, name)
    batches = [padded_batch(14, negatives, [0, 1, 5, 14, 20, 2] * 4) for _ in range(20)]
    exactness.assert_accurate_after_steps(model, plain, batches)


@pytest.mark.parametrize("seed", [42, 7])
@FILTERS
def test_same_seed_gives_the_same_parameters(n_h: int, n_v: int, seed: int) -> None:
    params = {**PARAMS, "n_h": n_h, "n_v": n_v}
    ours = Caser(params, INFO, seed=seed).state_dict()
    theirs = PlainCaser(params, INFO, seed).state_dict()
    vertical = ["conv_v.weight", "conv_v.bias"] if n_v else []
    horizontal = [f"conv_h.{i}.{part}" for i in range(9 if n_h else 0) for part in ("weight", "bias")]
    linear = [f"{name}.{part}" for name in ("fc1", "fc2") for part in ("weight", "bias")]
    names = ["user_embedding.weight", "item_embedding.weight", *vertical, *horizontal, *linear]
    assert list(ours) == names == list(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize(("events", "stride"), [(2, 9), (5, 4), (10, 9), (10, 1), (11, 1), (31, 1), (31, 9), (40, 4)])
def test_shared_windows_equal_per_target_histories(events: int, stride: int) -> None:
    """Any history, any stride: outputs, loss with L2 term, gradients. Windows carry L − 1 events of context."""
    model, plain = pair()
    length = model.max_seq_len
    history, user = torch.randint(0, N_ITEMS, (events,)), 4
    shared, (padded, sizes, targets, negatives) = exactness.shared_batch(history, length, stride, PARAMS["neg_samples"])
    firsts = list(range(1, events, stride))
    starts = [max(0, first - length) for first in firsts]
    ends = [min(first + stride, events) - 1 for first in firsts]
    offsets = offsets_of(torch.tensor([end - start for start, end in zip(starts, ends, strict=True)]))
    windows = [(number, target) for number, first in enumerate(firsts) for target in range(first, ends[number] + 1)]
    batch = JaggedBatch(
        items=torch.cat([history[start:end] for start, end in zip(starts, ends, strict=True)]),
        offsets=offsets,
        users=torch.full((len(firsts),), user),
        max_len=int(offsets.diff().max()),
        rows=torch.tensor([int(offsets[number]) + target - 1 - starts[number] for number, target in windows]),
        targets=targets,
        target_sequences=torch.tensor([number for number, _ in windows]),
        negatives=negatives,
        l2_items=shared.l2_items,
        l2_weights=shared.l2_weights,
        l2_padding=shared.l2_padding,
        n_targets_global=len(targets),
    )
    users = torch.full((len(targets),), user)
    assert relative_error(model.encode(batch), plain(users, padded)) < 1e-10
    loss, expected = model.loss(batch), plain.loss((users, padded, sizes, targets, negatives))
    assert relative_error(loss, expected) < 1e-10
    loss.backward()
    expected.backward()
    assert_same_gradients(model, plain)


@pytest.mark.parametrize("width", [1, 4, 9])
def test_a_narrow_batch_is_padded_to_the_full_window(width: int) -> None:
    """Evaluation pads to the longest history of the batch only."""
    model, plain = pair()
    users = torch.tensor([0, 6, 2])
    sequences, lengths = exactness.histories(width, [0, width, width // 2])
    h = plain(users, sequences)
    table = plain.item_embedding.weight
    assert relative_error(model.predict(users, sequences, lengths), h @ table[:-1].T) < 1e-10
    items = torch.randint(0, N_ITEMS + 1, (3, 5))
    scores = model.predict(user_indices=users, user_seq=sequences, seq_len=lengths, item_indices=items)
    assert relative_error(scores, torch.einsum("be,bse->bs", h, table[items])) < 1e-10


def test_padding_inside_a_history_is_an_event_as_in_warprec() -> None:
    model, plain = pair()
    sequences, _ = exactness.histories(9, [7, 4])
    sequences[0, 3] = sequences[1, 0] = N_ITEMS
    users = torch.tensor([1, 2])
    assert relative_error(model(users, sequences), plain(users, sequences)) < 1e-10


def test_of_an_over_long_history_the_last_events_count() -> None:
    model, plain = pair()
    items = torch.randint(0, N_ITEMS, (14,))
    h = model.encode_last(items, offsets_of(torch.tensor([14])), torch.tensor([5]))
    assert relative_error(h, plain(torch.tensor([5]), items[None, -9:])) < 1e-10


def test_dropout_is_drawn_from_the_random_stream() -> None:
    model = Caser({**PARAMS, "dropout_prob": 0.5}, INFO)
    batch = padded_batch(9, 2)
    still = model.eval()(*batch[:2])
    model.train().set_rng(5, 8)
    first, second = model(*batch[:2]), model(*batch[:2])
    model.set_rng(5, 8)
    assert torch.equal(model(*batch[:2]), first)
    assert not torch.equal(first, second) and not torch.equal(first, still)


def test_an_unknown_user_is_refused_or_takes_the_mean_vector() -> None:
    model, plain = pair()
    model.eval()
    history = [3, 1, 4, 1, 5]
    items, offsets = torch.tensor(history), torch.tensor([0, 5], dtype=torch.int32)
    with torch.no_grad():
        plain.user_embedding.weight[2] = plain.user_embedding.weight.mean(dim=0)
    expected = plain(torch.tensor([2]), items[None])
    assert relative_error(model.encode_last(items, offsets, torch.tensor([-1])), expected) < 1e-10
    with pytest.raises(DataError, match=r"user 99 \(history 0\) is unknown"):
        model.recommend([history], 3, users=[99])
    best = model.recommend([history], 3, users=[99], unknown_users="mean")[0]
    scores = (expected @ plain.item_embedding.weight[:-1].T)[0]
    scores[items] = -torch.inf
    assert best.items == scores.topk(3).indices.tolist()
    with pytest.raises(ValueError, match="users has id 7"):
        model.predict(torch.tensor([7]), items[None], torch.tensor([5]))


def test_without_any_filter_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_h and n_v are both 0"):
        Caser({**PARAMS, "n_h": 0, "n_v": 0}, INFO)
