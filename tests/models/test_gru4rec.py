"""GRU4Rec against its plain re-statement, and the windows that share work against per-target prefixes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastseq import GRU4Rec
from fastseq.ops import record_served
from tests.ops.compare import relative_error

from . import exactness
from .exactness import INFO, N_ITEMS
from .restatement import PlainGRU4Rec

PARAMS: dict[str, Any] = {
    "embedding_size": 12,
    "hidden_size": 20,
    "num_layers": 1,
    "dropout_prob": 0.0,
    "weight_decay": 0.01,
    "reg_weight": 0.03,
    "epochs": 1,
    "learning_rate": 0.01,
    "neg_samples": 2,
    "max_seq_len": 9,
}


@pytest.mark.parametrize("padding_row", ["zero", "non-zero"])
@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("layers", [1, 2])
def test_equals_the_restatement_in_float64(negatives: int, padding_row: str, layers: int) -> None:
    params = {**PARAMS, "neg_samples": negatives, "num_layers": layers}
    with record_served() as calls:
        exactness.assert_equal_in_float64(*exactness.pair(GRU4Rec, PlainGRU4Rec, params, padding_row), params)
    assert {backend for _, backend in calls} == {"cpu"}
    assert ("gru_sampled_loss" in {op for op, _ in calls}) == (negatives > 0)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("negatives", [0, 4])
def test_is_as_accurate_as_pytorch_in_float32(negatives: int, layers: int) -> None:
    params = {**PARAMS, "neg_samples": negatives, "num_layers": layers, "max_seq_len": 14}
    model, plain = exactness.pair(GRU4Rec, PlainGRU4Rec, params, "non-zero")
    exactness.assert_accurate_in_float32(model, plain, params)
    batches = [exactness.padded_batch(14, negatives, [0, 1, 5, 14, 20, 2] * 4) for _ in range(20)]
    exactness.assert_accurate_after_steps(model, plain, batches)


@pytest.mark.parametrize("seed", [42, 7])
@pytest.mark.parametrize("layers", [1, 3])
def test_same_seed_gives_the_same_parameters(seed: int, layers: int) -> None:
    params = {**PARAMS, "num_layers": layers}
    ours, theirs = GRU4Rec(params, INFO, seed=seed).state_dict(), PlainGRU4Rec(params, INFO, seed).state_dict()
    names = [f"gru_layers.weight_{part}_l{k}" for k in range(layers) for part in ("ih", "hh")]
    assert list(ours) == ["item_embedding.weight", *names, "dense.weight", "dense.bias"] == list(theirs)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize(("events", "stride"), [(2, 9), (5, 4), (10, 9), (10, 1), (10, 3), (11, 1), (31, 1)])
@pytest.mark.parametrize("layers", [1, 2])
def test_shared_windows_equal_per_target_prefixes(events: int, stride: int, layers: int) -> None:
    """At stride 1 for any history, at any stride for at most L + 1 events: outputs, loss with L2 term, gradients."""
    params = {**PARAMS, "num_layers": layers}
    model, plain = exactness.pair(GRU4Rec, PlainGRU4Rec, params, "non-zero")
    history = torch.randint(0, N_ITEMS, (events,))
    batch, tuples = exactness.shared_batch(history, params["max_seq_len"], stride, params["neg_samples"])
    assert relative_error(model.encode(batch), plain(*tuples[:2])) < 1e-10
    loss, expected = model.loss(batch), plain.loss(tuples)
    assert relative_error(loss, expected) < 1e-10
    loss.backward()
    expected.backward()
    for name, reference in exactness.gradients(plain).items():
        error = (exactness.gradients(model)[name] - reference).norm() / max(1e-3, float(reference.norm()))
        assert error < 1e-10, name


def test_padding_inside_a_history_is_an_event_as_in_warprec() -> None:
    model, plain = exactness.pair(GRU4Rec, PlainGRU4Rec, PARAMS, "non-zero")
    sequences, lengths = exactness.histories(6, [6, 4])
    sequences[1, 2] = N_ITEMS
    assert relative_error(model(sequences, lengths), plain(sequences, lengths)) < 1e-10


def test_a_history_may_be_longer_than_max_seq_len() -> None:
    model, plain = exactness.pair(GRU4Rec, PlainGRU4Rec, PARAMS, "zero")
    sequences, lengths = exactness.histories(30, [30, 12, 0])
    assert relative_error(model(sequences, lengths), plain(sequences, lengths)) < 1e-10


def test_dropout_acts_in_training_mode_only() -> None:
    sequences, lengths = exactness.histories(9, [9, 4, 1])
    model = GRU4Rec({**PARAMS, "dropout_prob": 0.5}, INFO)
    assert not torch.equal(model(sequences, lengths), model(sequences, lengths))
    model.eval()
    assert torch.equal(model(sequences, lengths), GRU4Rec(PARAMS, INFO).eval()(sequences, lengths))
