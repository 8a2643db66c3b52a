"""What the models share: hyperparameters, the random state, the door to padded batches, losses, scores."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastseq import GRU4Rec, SASRec, ops
from fastseq.data.batch import JaggedBatch
from fastseq.models.base import SequentialRecommender
from fastseq.models.jagged import fill_empty, offsets_of, padded_positions, trailing_lengths
from fastseq.models.losses import row_counts, sum_of_squares
from fastseq.ops.sampled_loss import LOSSES
from tests import run_python

from .exactness import INFO, N_ITEMS, padded_batch
from .small import required_params

GRU = required_params("GRU4Rec", neg_samples=2)
SAS = required_params("SASRec", weight_decay=0.1, neg_samples=0)


def gru(**changes: Any) -> GRU4Rec:
    return GRU4Rec({**GRU, **changes}, INFO)


def test_what_may_be_left_out() -> None:
    model = gru()
    assert (model.batch_size, model.reg_weight, model.max_seq_len) == (2048, 0.0, 200)
    assert (model.loss_name, model.negatives, model.negative_distribution) == ("bpr", "per_target", "uniform")
    assert (model.negative_alpha, model.gbce_t, model.window_stride) == (0.75, 0.75, None)
    assert SASRec(SAS, INFO).loss_name == "cross_entropy"


@pytest.mark.parametrize("key", GRU)
def test_a_missing_hyperparameter_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"GRU4Rec: hyperparameter '{key}' is missing"):
        GRU4Rec({k: v for k, v in GRU.items() if k != key}, INFO)


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("embeding_size", "embedding_size"), ("n_layers", "num_layers"), ("negative_alfa", "negative_alpha")],
)
def test_an_unknown_hyperparameter_names_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown hyperparameter '{key}'; did you mean '{nearest}'"):
        gru(**{key: 1})
    for key, where in (("random_state", "optimization.properties.seed"), ("clip_norm", "TrainingOptions")):
        with pytest.raises(ValueError, match=f"unknown hyperparameter '{key}'; it is .*{where}"):
            gru(**{key: 1})


@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("embedding_size", 0, "an integer >= 1 and <= 2147483647"),
        ("embedding_size", 8.5, "an integer >= 1 and <= 2147483647"),
        ("hidden_size", True, "an integer >= 1 and <= 2147483647"),
        ("num_layers", [1, 2], "an integer >= 1 and <= 4096"),
        ("dropout_prob", 1.0, "a number >= 0 and < 1"),
        ("dropout_prob", math.nan, "a number >= 0 and < 1"),
        ("neg_samples", -1, "an integer >= 0 and <= 2147483647"),
        ("embedding_size", 10**30, "an integer >= 1 and <= 2147483647"),
        ("num_layers", 10**9, "an integer >= 1 and <= 4096"),
        ("learning_rate", 10**400, "a number > 0"),
        ("learning_rate", 0.0, "a number > 0"),
        ("reg_weight", -0.1, "a number >= 0"),
        ("weight_decay", math.inf, "a number >= 0"),
        ("batch_size", 0, "an integer >= 1 and <= 2147483647"),
        ("max_seq_len", 0, "an integer >= 1 and <= 2147483647"),
        ("loss", "hinge", "one of bpr, bce, gbce, sampled_softmax, cross_entropy or null"),
        ("negatives", "none", "one of per_target, shared, shared_unseen"),
        ("gbce_t", 1.5, "a number >= 0 and <= 1"),
        ("window_stride", 0, "an integer >= 1 and <= 2147483647 or null"),
        ("initializer_range", 0.0, "a number > 0 or null"),
    ],
)
def test_a_value_out_of_range_names_what_is_accepted(key: str, value: Any, accepted: str) -> None:
    with pytest.raises(ValueError) as caught:
        gru(**{key: value})
    assert str(caught.value) == f"GRU4Rec: {key} is {value!r}, expected {accepted}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "cross_entropy"}, "loss 'cross_entropy' .* neg_samples is 2"),
        ({"loss": "bpr", "neg_samples": 0}, "loss 'bpr' needs neg_samples >= 1"),
        ({"negatives": "shared", "neg_samples": 0}, "negatives is 'shared', but neg_samples is 0"),
        ({"window_stride": 21, "max_seq_len": 20}, r"window_stride is 21, expected 1 to max_seq_len \(20\)"),
    ],
)
def test_contradictions_are_errors(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gru(**changes)


@pytest.mark.parametrize("info", [{}, {"n_users": 3}, {"n_users": 3, "n_items": 0}, {"n_users": 3, "n_items": 2.5}])
def test_info_must_give_the_catalogue(info: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"info\['n_(users|items)'\] is"):
        GRU4Rec(GRU, info)


def test_hyperparameters_are_the_annotations_of_the_nearest_class_that_has_any() -> None:
    class Inherits(GRU4Rec):
        pass

    class Redeclares(GRU4Rec):
        embedding_size: int
        temperature: float = 2.0

    assert Inherits.hyperparameter_names() == GRU4Rec.hyperparameter_names()
    assert Redeclares.hyperparameter_names() == ["embedding_size", "temperature"]
    assert SASRec.hyperparameter_names()[:4] == ["embedding_size", "n_layers", "n_heads", "inner_size"]
    with pytest.raises(ValueError, match="unknown hyperparameter 'hidden_size'"):
        Redeclares(GRU, INFO)


def test_get_params_rebuilds_the_model_and_adds_nothing_to_warprecs_keys() -> None:
    assert set(gru().get_params()) == set(GRU4Rec.hyperparameter_names())
    model = gru(loss="gbce", gbce_t=0.5, negatives="shared", window_stride=7)
    assert GRU4Rec(model.get_params(), INFO).get_params() == model.get_params()
    assert {
        "loss": "gbce",
        "gbce_t": 0.5,
        "negatives": "shared",
        "window_stride": 7,
    }.items() <= model.get_params().items()


@pytest.mark.parametrize(("model", "params"), [(GRU4Rec, GRU), (SASRec, SAS)])
def test_initializer_range_is_the_deviation_of_linear_and_embedding_weights(model: Any, params: dict[str, Any]) -> None:
    """And of nothing else: the padding row stays zero, the rest what WarpRec makes of it."""
    built, usual = (model({**params, "initializer_range": std}, INFO) for std in (0.02, None))
    assert not built.item_embedding.weight[-1].any()
    for name, module in built.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
            weight = module.weight[:-1] if module is built.item_embedding else module.weight
            # An item outweighs its position.
            std = 0.02 / built.embedding_size**0.5 if name == "position_embedding" else 0.02
            assert weight.std().item() == pytest.approx(std, rel=6 / weight.numel() ** 0.5), name
        elif isinstance(module, torch.nn.LayerNorm):
            assert module.weight.eq(1).all()
    assert built.get_params()["initializer_range"] == 0.02
    assert "initializer_range" not in usual.get_params()


def test_warprecs_extra_arguments_are_ignored() -> None:
    assert GRU4Rec(GRU, INFO, "interactions", seed=1, sessions=None, block_size=50).seed == 1


def test_optimizer_groups_are_warprecs() -> None:
    model = SASRec(SAS, INFO)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    optimizer = model.configure_optimizers()
    assert isinstance(optimizer, torch.optim.Adam)
    decayed, free = ([names[id(p)] for p in group["params"]] for group in optimizer.param_groups)
    layer = "transformer_encoder.layers.0."
    parts = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
    assert decayed == ["position_embedding.weight", *(layer + part for part in parts)]
    assert len(decayed) + len(free) == len(names)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    model = SASRec({**SAS, "weight_decay": 0.0}, INFO)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    (group,) = model.parameter_groups()  # in the same order, by which checkpoints number what the optimizer keeps
    assert group["weight_decay"] == 0.0 and [names[id(p)] for p in group["params"]] == decayed + free


def test_rng_is_no_state_and_advances_in_training_only() -> None:
    model = gru(dropout_prob=0.5)
    assert "rng" not in model.state_dict()
    batch = padded_batch(9, 2)
    assert model.rng.tolist() == [42, 0]
    first = model.training_step(batch, 0)
    second = model.training_step(batch, 1)
    assert model.rng.tolist() == [42, 2]
    (first + second).backward()  # the first step's masks are still known
    assert first != second
    model.set_rng(42, 0)
    assert model.training_step(batch, 0) == first
    model.eval()(*batch[:2])
    assert model.rng.tolist() == [42, 1]
    model.train().hold_rng(ops.make_rng(42, 0))
    assert model.training_step(batch, 0) == model.training_step(batch, 1) == first
    assert model.rng.tolist() == [42, 0]


def test_moving_to_another_type_keeps_the_rng() -> None:
    assert gru().bfloat16().rng.dtype == torch.int64


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=5), max_size=6))
def test_unpadding_and_filling_are_what_a_loop_would_do(rows: list[list[int]]) -> None:
    width = 6
    padded = torch.tensor([row + [5] * (width - len(row)) for row in rows]).view(-1, width).long()
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    offsets = offsets_of(lengths)
    items = padded.view(-1)[padded_positions(lengths, offsets, width, sum(map(len, rows)))]
    assert items.tolist() == [i for row in rows for i in row]
    assert offsets.dtype == torch.int32
    assert [items[a:b].tolist() for a, b in pairwise(offsets)] == rows
    filled, bounds = fill_empty(items, offsets, 5)
    assert [filled[a:b].tolist() for a, b in pairwise(bounds)] == [row or [5] for row in rows]
    assert trailing_lengths(padded, 5).tolist() == lengths.tolist()


def call(model: SequentialRecommender, **changes: Tensor) -> Tensor:
    inputs = {
        "user_indices": torch.zeros(2).long(),
        "user_seq": torch.zeros(2, 4).long(),
        "seq_len": torch.tensor([4, 2]),
    }
    return model.predict(**{**inputs, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"user_seq": torch.tensor([[0, 1], [2, 24]])},
            "item sequences has id 24 at row 1, column 1; expected 0 to 23",
        ),
        ({"user_seq": torch.tensor([[0, -1], [2, 3]])}, "item sequences has id -1 at row 0, column 1"),
        ({"user_seq": torch.zeros(2, 4)}, "item sequences is torch.float32, expected int64 ids"),
        ({"user_seq": torch.zeros(4).long()}, r"shape \[4\], expected \[batch, width\]"),
        ({"seq_len": torch.tensor([1, 5])}, "sequence lengths has id 5 at row 1; expected 0 to 4"),
        ({"seq_len": torch.tensor([-1, 1])}, "sequence lengths has id -1 at row 0"),
        ({"seq_len": torch.tensor([1])}, r"sequence lengths have shape \[1\], expected \[2\]"),
        ({"item_indices": torch.tensor([[0, 24], [1, 1]])}, "item_indices has id 24 at row 0, column 1"),
        ({"item_indices": torch.tensor([0, 1])}, r"item_indices has shape \[2\], expected \[2, S\]"),
    ],
)
def test_ids_out_of_range_are_named(changes: dict[str, Tensor], message: str) -> None:
    if "user_seq" in changes and changes["user_seq"].dim() == 2 and changes["user_seq"].shape[1] == 2:
        changes = {**changes, "seq_len": torch.tensor([2, 2])}
    with pytest.raises(ValueError, match=message):
        call(gru(), **changes)


@pytest.mark.parametrize("index", [2, 3])
def test_bad_training_batches_are_named(index: int) -> None:
    batch = list(padded_batch(9, 2))
    batch[index] = torch.full_like(batch[index], 99)
    with pytest.raises(ValueError, match="has id 99 at row 0"):
        gru().training_step(batch, 0)
    with pytest.raises(ValueError, match=r"takes batches of \(seq, len, pos, neg\), got 3 tensors"):
        gru().training_step(batch[:3], 0)


@pytest.mark.parametrize("model", [GRU4Rec(GRU, INFO).eval(), SASRec(SAS, INFO).eval()], ids=lambda m: type(m).__name__)
def test_predict_scores_the_catalogue_or_the_items_asked(model: SequentialRecommender) -> None:
    sequences, lengths, _ = padded_batch(9, 0)
    users = torch.zeros(len(lengths), dtype=torch.int64)
    inputs = {"user_indices": users, "user_seq": sequences, "seq_len": lengths}
    h = model(sequences, lengths)
    scores = model.predict(**inputs)
    torch.testing.assert_close(scores, h @ model.item_embedding.weight[:-1].T)
    asked = torch.randint(0, N_ITEMS + 1, (len(lengths), 5))
    some = model.predict(**inputs, item_indices=asked)
    torch.testing.assert_close(some, (h[:, None] * model.item_embedding.weight[asked]).sum(-1))
    short = lengths <= 3
    narrow = model.predict(user_indices=users[short], user_seq=sequences[short, :3], seq_len=lengths[short])
    torch.testing.assert_close(narrow, scores[short])
    with torch.no_grad():
        again = model.predict(**inputs)
        again[:] = -math.inf  # as WarpRec does with seen items
    with torch.autocast("cpu", torch.bfloat16):
        half = model.predict(**inputs)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, scores, atol=0.05, rtol=0.05)
    assert len(half[2].unique()) == N_ITEMS  # scores in half precision would tie
    torch.testing.assert_close(model.predict(**inputs), scores)


def test_predict_takes_no_rows_and_no_columns() -> None:
    model = gru().eval()
    none = torch.zeros(0, dtype=torch.int64)
    assert model.predict(user_indices=none, user_seq=torch.zeros(0, 3).long(), seq_len=none).shape == (0, N_ITEMS)
    one = torch.zeros(1, dtype=torch.int64)
    empty = model.predict(user_indices=one, user_seq=torch.zeros(1, 0).long(), seq_len=one)
    padded = model.predict(user_indices=one, user_seq=torch.full((1, 3), N_ITEMS), seq_len=one)
    assert torch.equal(empty, padded)


def jagged(model: SequentialRecommender, negatives: Tensor | None, log_q: Tensor | None = None) -> JaggedBatch:
    lengths = torch.tensor([3, 1, 4])
    items = torch.randint(0, N_ITEMS, (8,))
    return JaggedBatch(
        items=items,
        offsets=offsets_of(lengths),
        users=torch.zeros(3, dtype=torch.int64),
        max_len=4,
        rows=torch.tensor([0, 2, 3, 6, 7]),
        targets=torch.tensor([4, 5, 6, 7, 8]),
        target_sequences=torch.tensor([0, 0, 1, 2, 2]),
        negatives=negatives,
        log_q=log_q,
    )


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_their_formulas(loss: str, shared: bool, layers: int) -> None:
    changes = {"loss": loss, "negatives": "shared" if shared else "per_target", "neg_samples": 3, "num_layers": layers}
    model = gru(**changes).double()
    negatives = torch.randint(9, N_ITEMS, (3,) if shared else (5, 3))
    log_q = torch.rand(negatives.shape).log() if loss == "sampled_softmax" else None
    batch = jagged(model, negatives, log_q)
    h = model.encode(batch)
    table = model.item_embedding.weight
    positive = (h * table[batch.targets]).sum(-1, keepdim=True)
    negative = h @ table[negatives].T if shared else (h[:, None] * table[negatives]).sum(-1)
    alpha = 3 / (N_ITEMS - 1)
    beta = alpha * (0.75 * (1 - 1 / alpha) + 1 / alpha) if loss == "gbce" else 1.0
    if loss == "bpr":
        expected = F.softplus(negative - positive).mean()
    elif loss == "sampled_softmax":
        assert log_q is not None
        logits = torch.cat((positive, negative - log_q - math.log(3)), dim=1)
        expected = F.cross_entropy(logits, torch.zeros(5, dtype=torch.int64))
    else:
        assert loss in ("bce", "gbce")
        expected = ((beta * F.softplus(-positive).squeeze(1) + F.softplus(negative).sum(1)) / 4).mean()
    torch.testing.assert_close(model.loss(batch), expected, rtol=1e-6, atol=0)  # log_q is float32
    batch.n_targets_global = 20
    torch.testing.assert_close(model.loss(batch), expected / 4, rtol=1e-6, atol=0)


def test_a_shared_set_of_negatives_counts_once_in_the_l2_term(monkeypatch: pytest.MonkeyPatch) -> None:
    def counted(weight: Tensor, ids: list[tuple[Tensor, Tensor | None]]) -> Tensor:
        """Whole numbers alone, whose sum does not depend on the order in which a GPU adds them."""
        assert all(times is None or torch.equal(times, times.round()) for _, times in ids)
        return row_counts(weight, ids)

    monkeypatch.setattr("fastseq.models.base.row_counts", counted)
    model = gru(negatives="shared", neg_samples=3, reg_weight=0.5).double()
    batch = jagged(model, torch.tensor([9, 10, 11]))
    batch.l2_items, batch.l2_weights, batch.l2_padding = batch.items, torch.full((8,), 2.0), 4
    table = model.item_embedding.weight
    squares = 2 * table[batch.items].square().sum() + table[4:9].square().sum() + table[9:12].square().sum()
    with_l2 = model.loss(batch)
    model.reg_weight = 0.0
    torch.testing.assert_close(with_l2 - model.loss(batch), 0.5 * 0.5 * squares / 5)
    batch.n_targets_global = 20  # of four ranks
    without = model.loss(batch)
    model.reg_weight = 0.5
    squares -= 0.75 * table[9:12].square().sum()
    torch.testing.assert_close(model.loss(batch) - without, 0.5 * 0.5 * squares / 20)


@pytest.mark.parametrize("loss", ["bpr", "cross_entropy"])
@pytest.mark.parametrize(("model_class", "params"), [(GRU4Rec, GRU), (SASRec, SAS)], ids=["GRU4Rec", "SASRec"])
def test_autocast_and_half_precision(
    model_class: type[SequentialRecommender], params: dict[str, Any], loss: str
) -> None:
    model = model_class({**params, "neg_samples": 2 * (loss == "bpr"), "reg_weight": 0.1, "max_seq_len": 9}, INFO)
    batch = padded_batch(9, model.neg_samples)
    expected = model.training_step(batch, 0)
    with torch.autocast("cpu", torch.bfloat16):
        value = model.training_step(batch, 0)
    value.backward()
    torch.testing.assert_close(value, expected, rtol=0.01, atol=0)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    model.eval().bfloat16()
    sequences, lengths = batch[:2]
    assert model.predict(user_seq=sequences, seq_len=lengths).dtype == torch.float32


def test_training_step_gives_uniform_probabilities_to_sampled_softmax() -> None:
    model = gru(loss="sampled_softmax")
    sequences, lengths, positives, negatives = padded_batch(9, 2)
    h, table = model(sequences, lengths), model.item_embedding.weight
    scores = torch.cat(((h * table[positives]).sum(-1, keepdim=True), (h[:, None] * table[negatives]).sum(-1)), dim=1)
    scores[:, 1:] += math.log(N_ITEMS / 2)
    expected = F.cross_entropy(scores, torch.zeros(len(lengths), dtype=torch.int64))
    torch.testing.assert_close(model.training_step((sequences, lengths, positives, negatives), 0), expected)
    with pytest.raises(ValueError, match="'popularity' needs the negatives' probabilities"):
        gru(loss="sampled_softmax", negative_distribution="popularity").training_step(padded_batch(9, 2), 0)


def test_batches_that_lack_what_the_loss_needs_are_named() -> None:
    with pytest.raises(ValueError, match=r"loss 'bpr' needs batch\.negatives"):
        gru().loss(jagged(gru(), None))
    with pytest.raises(ValueError, match=r"reg_weight is 0\.5 and needs batch\.l2_items"):
        gru(reg_weight=0.5).loss(jagged(gru(), torch.zeros(5, 1).long()))


def test_sum_of_squares_counts_padding_without_a_gradient() -> None:
    table = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    ids = torch.tensor([[0, 5, 2], [2, 2, 5]])
    total = sum_of_squares(
        table, row_counts(table, [(ids, None), (torch.tensor([1]), torch.tensor([4]))]), padding_idx=5
    )
    total.backward()
    expected = table[ids].square().sum() + 4 * table[1].square().sum()
    torch.testing.assert_close(total, expected)
    counts = torch.tensor([1.0, 4, 3, 0, 0, 0])
    torch.testing.assert_close(table.grad, 2 * counts[:, None] * table.detach(), check_dtype=False)


def test_importing_fastseq_pulls_in_nothing_heavy() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import fastseq; fastseq.SASRec; fastseq.ops; "
        "print(*{m.split('.')[0] for m in set(sys.modules) - before})"
    )
    loaded = run_python("-c", code).stdout.split()
    assert "fastseq" in loaded
    assert not {"polars", "pandas", "pydantic", "yaml", "typer", "rich", "matplotlib", "triton", "scipy"} & set(loaded)
