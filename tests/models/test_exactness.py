"""Every model against its plain re-statement, and the windows that share work against per-target prefixes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastseq.models import MODELS
from fastseq.ops import record_served
from tests.ops.compare import relative_error

from . import exactness
from .exactness import INFO, N_ITEMS, PARAMS
from .restatement import PLAIN

OPS = {"SASRec": "last_query_attention", "GRU4Rec": "gru_sampled_loss", "Caser": "caser_windows"}
LAYERS: list[tuple[str, dict[str, Any]]] = [
    ("SASRec", {"n_layers": 1}),
    ("SASRec", {"n_layers": 3}),
    ("GRU4Rec", {"num_layers": 1}),
    ("GRU4Rec", {"num_layers": 2}),
]
FILTERS: list[tuple[str, dict[str, Any]]] = [
    ("Caser", {"n_h": 3, "n_v": 2}),
    ("Caser", {"n_h": 0, "n_v": 2}),
    ("Caser", {"n_h": 3, "n_v": 0}),
]


@pytest.mark.parametrize("padding_row", ["zero", "non-zero"])
@pytest.mark.parametrize("negatives", [0, 1, 3])
@pytest.mark.parametrize(("name", "changes"), LAYERS + FILTERS)
def test_equals_the_restatement_in_float64(
    name: str, changes: dict[str, Any], negatives: int, padding_row: str
) -> None:
    with record_served() as calls:
        exactness.assert_equal_in_float64(*exactness.pair(name, padding_row, neg_samples=negatives, **changes))
    assert {backend for _, backend in calls} == {"cpu"}
    assert (OPS[name] in {op for op, _ in calls}) == (negatives > 0 or name != "GRU4Rec")


@pytest.mark.parametrize("negatives", [0, 4])
@pytest.mark.parametrize(("name", "changes"), [("SASRec", {}), ("Caser", {}), *LAYERS[2:]])
def test_is_as_accurate_as_pytorch_in_float32(name: str, changes: dict[str, Any], negatives: int) -> None:
    model, plain = exactness.pair(name, neg_samples=negatives, max_seq_len=14, **changes)
    exactness.assert_accurate_in_float32(model, plain)
    batches = [exactness.batch_of(model, [0, 1, 5, 14, 20, 2] * 4) for _ in range(20)]
    exactness.assert_accurate_after_steps(model, plain, batches)


@pytest.mark.parametrize(
    ("name", "key"), [*((name, "dropout_prob") for name in PARAMS), ("SASRec", "attn_dropout_prob")]
)
def test_dropout_is_drawn_from_the_random_stream_in_training_alone(name: str, key: str) -> None:
    """SASRec's dropout_prob acts on the embedding alone, its attn_dropout_prob inside the layers."""
    model = MODELS[name]({**PARAMS[name], key: 0.5}, INFO)
    batch = exactness.batch_of(model, [9, 4, 1])[:2]
    model.set_rng(1, 5)
    first, second = model(*batch), model(*batch)
    model.set_rng(1, 5)
    assert torch.equal(model(*batch), first) and not torch.equal(first, second)
    still = model.eval()(*batch)
    assert torch.equal(still, MODELS[name](PARAMS[name], INFO).eval()(*batch)) and not torch.equal(first, still)


@pytest.mark.parametrize("name", list(PARAMS))
def test_padding_ids_anywhere_in_a_row_are_what_they_are_in_warprec(name: str) -> None:
    """Inside, first, last, rows of padding alone, and lengths that end before or after them."""
    model, plain = exactness.pair(name)
    width = model.max_seq_len
    rows = [[1, 2, -1, 3], [-1, 2, 3], [-1, -1, 4], [5, -1], [], [-1, 7], [6], [8, -1, -1, 9, 1, 2, 3, 4, -1]]
    lengths = torch.tensor([4, 3, 2, 6, 5, 0, width, width])
    users, _, _, positives, negatives = exactness.batch_of(exactness.pair("Caser")[0], [1] * len(rows))
    sequences = torch.full((len(rows), width), N_ITEMS)
    for row, events in zip(sequences, rows, strict=True):
        row[: len(events)] = torch.tensor(events, dtype=torch.int64) % (N_ITEMS + 1)
    batch = (users, sequences, lengths, positives, negatives)[not model.needs_user :]
    assert relative_error(model(*batch[:2]), plain(*batch[:2])) < 1e-10
    exactness.assert_same_loss(model, model.training_step(batch, 0), plain, plain.loss(batch))


def test_gru4recs_history_may_be_longer_than_max_seq_len() -> None:
    model, plain = exactness.pair("GRU4Rec", "zero")
    sequences, lengths = exactness.histories(30, [30, 12, 0])
    assert relative_error(model(sequences, lengths), plain(sequences, lengths)) < 1e-10


def warprecs_names(name: str, params: dict[str, Any]) -> set[str]:
    """The entries of the model's state_dict in WarpRec."""
    if name == "SASRec":
        norms = [f"{m}.{w}" for m in ("linear1", "linear2", "norm1", "norm2") for w in ("weight", "bias")]
        parts = ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]
        layer = [*(f"self_attn.{part}" for part in parts), *norms]
        layers = [f"transformer_encoder.layers.{i}.{part}" for i in range(params["n_layers"]) for part in layer]
        own = ["causal_mask", "item_embedding.weight", "position_embedding.weight", "layernorm.weight"]
        return {*own, "layernorm.bias", *layers}
    if name == "GRU4Rec":
        gru = [f"gru_layers.weight_{part}_l{k}" for k in range(params["num_layers"]) for part in ("ih", "hh")]
        return {"item_embedding.weight", *gru, "dense.weight", "dense.bias"}
    vertical = ["conv_v.weight", "conv_v.bias"] if params["n_v"] else []
    heights = range(params["max_seq_len"] if params["n_h"] else 0)
    horizontal = [f"conv_h.{i}.{part}" for i in heights for part in ("weight", "bias")]
    linear = [f"{layer}.{part}" for layer in ("fc1", "fc2") for part in ("weight", "bias")]
    return {"user_embedding.weight", "item_embedding.weight", *vertical, *horizontal, *linear}


@pytest.mark.parametrize("seed", [42, 7])
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("SASRec", {"dropout_prob": 0.3, "attn_dropout_prob": 0.2}),
        *LAYERS[2:],
        ("GRU4Rec", {"num_layers": 3}),
        *FILTERS,
    ],
)
def test_same_seed_gives_the_same_parameters(name: str, changes: dict[str, Any], seed: int) -> None:
    params = {**PARAMS[name], **changes}
    ours, theirs = MODELS[name](params, INFO, seed=seed).state_dict(), PLAIN[name](params, INFO, seed).state_dict()
    assert list(ours) == list(theirs) and set(ours) == warprecs_names(name, params)
    for key, value in theirs.items():
        assert ours[key].dtype == value.dtype and torch.equal(ours[key], value), key


@pytest.mark.parametrize(("events", "stride"), [(2, 9), (5, 4), (10, 9), (10, 1), (10, 3), (11, 1), (31, 1)])
@pytest.mark.parametrize(("name", "changes"), [("SASRec", {}), *LAYERS[2:]])
def test_shared_windows_equal_per_target_prefixes(name: str, changes: dict[str, Any], events: int, stride: int) -> None:
    """At stride 1 for any history, at any stride for at most L + 1 events: outputs, loss with L2 term, gradients."""
    model, plain = exactness.pair(name, **changes)
    history = torch.randint(0, N_ITEMS, (events,))
    batch, tuples = exactness.shared_batch(history, model.max_seq_len, stride, model.neg_samples)
    assert relative_error(model.encode(batch), plain(*tuples[:2])) < 1e-10
    exactness.assert_same_loss(model, model.loss(batch), plain, plain.loss(tuples))
