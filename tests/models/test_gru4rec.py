"""What GRU4Rec alone does; tests/models/test_exactness.py has what all models do."""

from __future__ import annotations

import torch

from fastseq import GRU4Rec
from tests.ops.compare import relative_error

from . import exactness
from .exactness import INFO, N_ITEMS

PARAMS = exactness.PARAMS["GRU4Rec"]


def test_padding_inside_a_history_is_an_event_as_in_warprec() -> None:
    model, plain = exactness.pair("GRU4Rec")
    sequences, lengths = exactness.histories(6, [6, 4])
    sequences[1, 2] = N_ITEMS
    assert relative_error(model(sequences, lengths), plain(sequences, lengths)) < 1e-10


def test_a_history_may_be_longer_than_max_seq_len() -> None:
    model, plain = exactness.pair("GRU4Rec", "zero")
    sequences, lengths = exactness.histories(30, [30, 12, 0])
    assert relative_error(model(sequences, lengths), plain(sequences, lengths)) < 1e-10


def test_dropout_acts_in_training_mode_only() -> None:
    sequences, lengths = exactness.histories(9, [9, 4, 1])
    model = GRU4Rec({**PARAMS, "dropout_prob": 0.5}, INFO)
    assert not torch.equal(model(sequences, lengths), model(sequences, lengths))
    model.eval()
    assert torch.equal(model(sequences, lengths), GRU4Rec(PARAMS, INFO).eval()(sequences, lengths))
