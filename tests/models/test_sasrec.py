"""What SASRec alone does; tests/models/test_exactness.py has what all models do."""

from __future__ import annotations

import pytest
import torch

from fastseq import SASRec

from . import exactness
from .exactness import INFO, N_ITEMS

PARAMS = exactness.PARAMS["SASRec"]


def test_rows_none_counts_every_row() -> None:
    model, _ = exactness.pair("SASRec", "zero")
    batch, _ = exactness.shared_batch(torch.arange(8), 9, 9, 2)
    some = model.encode(batch)
    batch.rows = None
    assert torch.equal(model.encode(batch), some)


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
