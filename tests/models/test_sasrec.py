"""What SASRec alone does; tests/models/test_exactness.py has what all models do."""

from __future__ import annotations

import pytest
import torch

from fastseq import SASRec
from tests.ops.compare import relative_error

from . import exactness
from .exactness import INFO

PARAMS = exactness.PARAMS["SASRec"]


def test_rows_none_counts_every_row() -> None:
    model, _ = exactness.pair("SASRec", "zero")
    batch, _ = exactness.shared_batch(torch.arange(8), 9, 9, 2)
    some = model.encode(batch)
    batch.rows = None
    assert torch.equal(model.encode(batch), some)


@pytest.mark.parametrize("counted", [None, [1, 3, 6]])
def test_a_layer_as_one_node_is_the_layer(counted: list[int] | None) -> None:
    """As a GPU runs it and as the CPU does, dropout included: output and gradients."""
    model, _ = exactness.pair("SASRec", "zero", attn_dropout_prob=0.3)
    batch, _ = exactness.shared_batch(torch.arange(8), 9, 9, 2)
    batch.rows = None if counted is None else torch.tensor(counted)
    x, rng = torch.randn(batch.items.shape[0], model.embedding_size, dtype=torch.float64), model.rng
    layer, results = model.transformer_encoder.layers[0], []
    for run in (
        lambda x: model._layer(layer, x, batch, True, rng, 5),
        lambda x: model._whole_layer(layer, x, batch, batch.rows, 0.3, rng, 5),
    ):
        leaves = [x.clone().requires_grad_(), *layer.parameters()]
        output = run(leaves[0])
        results.append([output, *torch.autograd.grad(output.square().sum(), leaves)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_history_over_max_seq_len_is_an_error() -> None:
    model = SASRec(PARAMS, INFO)
    sequences, lengths = exactness.histories(12, [12])
    with pytest.raises(ValueError, match=r"12 events.*max_seq_len \(9\)"):
        model(sequences, lengths)
    assert model(sequences, lengths.clamp(max=9)).shape == (1, 24)  # a wide batch of short histories is none


def test_masked_keys_draw_the_dropout_of_the_op() -> None:
    """Hiding nothing changes nothing: the masks are those of the random stream."""
    model = SASRec({**PARAMS, "attn_dropout_prob": 0.4}, INFO).double()
    sequences, lengths = exactness.histories(9, [9, 4, 1])
    batch = model._unpad(sequences, lengths, None)
    model.set_rng(1, 5)
    expected = model.encode(batch)
    assert batch.hidden is None
    batch.hidden = torch.zeros(len(batch.items), dtype=torch.bool)
    model.set_rng(1, 5)
    torch.testing.assert_close(model.encode(batch), expected, rtol=0, atol=1e-12)


def test_heads_must_divide_the_embedding() -> None:
    with pytest.raises(ValueError, match=r"embedding_size is 24, expected a multiple of n_heads \(5\)"):
        SASRec({**PARAMS, "n_heads": 5}, INFO)


def test_a_head_may_be_as_wide_as_in_warprec() -> None:
    model, plain = exactness.pair("SASRec", embedding_size=256, n_heads=1)
    batch = exactness.batch_of(model)
    assert relative_error(model(*batch[:2]), plain(*batch[:2])) < 1e-10
    exactness.assert_same_loss(model, model.training_step(batch, 0), plain, plain.loss(batch))
