"""SASRec against its plain re-statement, and the windows that share work against per-target prefixes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastseq import SASRec
from fastseq.ops import record_served
from tests.ops.compare import relative_error

from . import exactness
from .exactness import INFO, N_ITEMS
from .restatement import PlainSASRec

PARAMS: dict[str, Any] = {
    "embedding_size": 24,
    "n_layers": 2,
    "n_heads": 3,
    "inner_size": 40,
    "dropout_prob": 0.0,
    "attn_dropout_prob": 0.0,
    "weight_decay": 0.01,
    "reg_weight": 0.03,
    "epochs": 1,
    "learning_rate": 0.01,
    "neg_samples": 2,
    "max_seq_len": 9,
}


@pytest.mark.parametrize("padding_row", ["zero", "non-zero"])
@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize("layers", [1, 3])
def test_equals_the_restatement_in_float64(negatives: int, padding_row: str, layers: int) -> None:
    params = {**PARAMS, "neg_samples": negatives, "n_layers": layers}
    with record_served() as calls:
        exactness.assert_equal_in_float64(*exactness.pair(SASRec, PlainSASRec, params, padding_row), params)
    assert {backend for _, backend in calls} == {"cpu"}
    assert "last_query_attention" in {op for op, _ in calls}


@pytest.mark.parametrize("negatives", [0, 4])
def test_is_as_accurate_as_pytorch_in_float32(negatives: int) -> None:
    params = {**PARAMS, "neg_samples": negatives, "max_seq_len": 14}
    model, plain = exactness.pair(SASRec, PlainSASRec, params, "non-zero")
    exactness.assert_accurate_in_float32(model, plain, params)
    batches = [exactness.padded_batch(14, negatives, [0, 1, 5, 14, 20, 2] * 4) for _ in range(20)]
    exactness.assert_accurate_after_steps(model, plain, batches)


@pytest.mark.parametrize("seed", [42, 7])
def test_same_seed_gives_the_same_parameters(seed: int) -> None:
    params = {**PARAMS, "dropout_prob": 0.3, "attn_dropout_prob": 0.2}
    ours, theirs = SASRec(params, INFO, seed=seed).state_dict(), PlainSASRec(params, INFO, seed).state_dict()
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        assert torch.equal(ours[name], value), name
    assert ours["causal_mask"].dtype == torch.bool


def test_state_dict_has_warprecs_names() -> None:
    layer = "transformer_encoder.layers.{}.{}"
    parts = ["self_attn.in_proj_weight", "self_attn.in_proj_bias", "self_attn.out_proj.weight"]
    parts += [
        "self_attn.out_proj.bias",
        *(f"{m}.{w}" for m in ("linear1", "linear2", "norm1", "norm2") for w in ("weight", "bias")),
    ]
    expected = {
        "item_embedding.weight",
        "position_embedding.weight",
        "layernorm.weight",
        "layernorm.bias",
        "causal_mask",
    }
    expected |= {layer.format(i, part) for i in range(2) for part in parts}
    assert set(SASRec(PARAMS, INFO).state_dict()) == expected


@pytest.mark.parametrize(("events", "stride"), [(2, 9), (5, 4), (10, 9), (10, 1), (10, 3), (11, 1), (31, 1)])
def test_shared_windows_equal_per_target_prefixes(events: int, stride: int) -> None:
    """At stride 1 for any history, at any stride for at most L + 1 events: outputs, loss with L2 term, gradients."""
    model, plain = exactness.pair(SASRec, PlainSASRec, PARAMS, "non-zero")
    history = torch.randint(0, N_ITEMS, (events,))
    batch, tuples = exactness.shared_batch(history, PARAMS["max_seq_len"], stride, PARAMS["neg_samples"])
    assert relative_error(model.encode(batch), plain(*tuples[:2])) < 1e-10
    loss, expected = model.loss(batch), plain.loss(tuples)
    assert relative_error(loss, expected) < 1e-10
    loss.backward()
    expected.backward()
    for name, reference in exactness.gradients(plain).items():
        error = (exactness.gradients(model)[name] - reference).norm() / max(1e-3, float(reference.norm()))
        assert error < 1e-10, name


def test_rows_none_counts_every_row() -> None:
    model, _ = exactness.pair(SASRec, PlainSASRec, PARAMS, "zero")
    batch, _ = exactness.shared_batch(torch.arange(8), 9, 9, 2)
    some = model.encode(batch)
    batch.rows = None
    assert torch.equal(model.encode(batch), some)


def test_dropout_is_drawn_where_warprec_draws_it() -> None:
    """dropout_prob acts on the embedding alone, attn_dropout_prob inside the layers; neither in eval mode."""
    sequences, lengths = exactness.histories(9, [9, 4, 1])
    for key in ("dropout_prob", "attn_dropout_prob"):
        model = SASRec({**PARAMS, key: 0.5}, INFO)
        model.set_rng(1, 5)
        first, second = model(sequences, lengths), model(sequences, lengths)
        assert not torch.equal(first, second)
        model.set_rng(1, 5)
        assert torch.equal(model(sequences, lengths), first)
        model.eval()
        assert torch.equal(model(sequences, lengths), SASRec(PARAMS, INFO).eval()(sequences, lengths))


def test_a_history_over_max_seq_len_is_an_error() -> None:
    model = SASRec(PARAMS, INFO)
    sequences, lengths = exactness.histories(12, [12])
    with pytest.raises(ValueError, match=r"12 events.*max_seq_len \(9\)"):
        model(sequences, lengths)
    assert model(sequences, lengths.clamp(max=9)).shape == (1, 24)  # a wide batch of short histories is none


def test_padding_inside_a_history_is_an_error() -> None:
    model = SASRec(PARAMS, INFO)
    sequences, lengths = exactness.histories(6, [6, 4])
    sequences[1, 2] = N_ITEMS
    with pytest.raises(ValueError, match="padding id 23 at row 1, column 2"):
        model(sequences, lengths)
    sequences[1, 1:] = N_ITEMS
    assert model(sequences, torch.tensor([6, 1])).shape == (2, 24)


def test_heads_must_divide_the_embedding() -> None:
    with pytest.raises(ValueError, match=r"embedding_size is 24, expected a multiple of n_heads \(5\)"):
        SASRec({**PARAMS, "n_heads": 5}, INFO)
