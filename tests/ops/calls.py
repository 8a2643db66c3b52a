"""A small valid call of every public op, for tests that go over all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastseq import ops
from fastseq.ops.adam_rows import begin_step, end_step, new_history

OFFSETS = torch.tensor([0, 3, 3, 7], dtype=torch.int32)
RNG = ops.make_rng(5, 2)
T, B, D, V = 7, 3, 8, 11  # events, sequences, columns, items


def _adam() -> dict[str, Any]:
    """The third step: rows 3 and 5 had a gradient at the first."""
    betas = (0.5, 0.9)
    history, clock = new_history(betas, 3, torch.device("cpu"))
    for step in range(3):
        begin_step(history, clock, 0.1, betas)
        if step < 2:
            end_step(history, clock, betas)
    last_step = torch.zeros(V, dtype=torch.int32)
    last_step[[3, 5]] = 1
    moved = last_step[:, None] > 0
    return dict(
        weight=torch.randn(V, D),
        exp_avg=torch.randn(V, D) * moved,
        exp_avg_sq=torch.rand(V, D) * moved,
        last_step=last_step,
        history=history,
        clock=clock,
        rows=torch.tensor([3, 4]),
        grad=torch.randn(2, D),
        count=torch.tensor([2]),
        betas=betas,
    )


def _attention(rows: int) -> dict[str, Any]:
    q, k, v = torch.randn(rows, 2, D), torch.randn(T, 2, D), torch.randn(T, 2, D)
    return dict(q=q, k=k, v=v, offsets=OFFSETS, max_len=4, dropout_p=0.2, rng=RNG)


def _caser() -> dict[str, Any]:
    length, n_h, n_v = 3, 2, 1
    return dict(
        x=torch.randn(T, D),
        offsets=OFFSETS,
        sequences=torch.tensor([0, 2, 2]),
        stops=torch.tensor([3, 5, 7]),
        weight_h=torch.randn(length * (length + 1) // 2, n_h, D),
        bias_h=torch.randn(length, n_h),
        weight_v=torch.randn(n_v, length),
        bias_v=torch.randn(n_v),
        padding_row=torch.randn(D),
    )


def _loss() -> dict[str, Any]:
    negatives = torch.tensor([[3, 4], [5, 6], [7, 8]])
    return dict(item_weight=torch.randn(V, D), targets=torch.arange(3), negatives=negatives)


def _gru() -> dict[str, Any]:
    gates = dict(x_gates=torch.randn(T, 12), weight_hh=torch.randn(12, 4) / 2, bias_hh=torch.randn(12))
    return dict(**gates, offsets=OFFSETS, max_len=4)


def _layer() -> dict[str, Any]:
    inner = 12
    shapes = {
        "in_weight": (3 * D, D),
        "in_bias": (3 * D,),
        "out_weight": (D, D),
        "weight1": (inner, D),
        "bias1": (inner,),
        "weight2": (D, inner),
        **dict.fromkeys(("out_bias", "bias2", "norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias"), (D,)),
    }
    weights = {name: torch.randn(shape) / 2 for name, shape in shapes.items()}
    drawn = dict(heads=2, max_len=4, dropout_p=0.2, rng=RNG)
    return dict(x=torch.randn(T, D), offsets=OFFSETS, rows=torch.tensor([0, 2, 5, 6]), **weights, **drawn)


def _seen() -> dict[str, Any]:
    return dict(seen_offsets=torch.tensor([0, 1, 3]), seen_items=torch.tensor([4, 0, 2]))


def _windows() -> dict[str, Any]:
    """Histories of 4 and 3 events, whole; the second alone is a batch, with one sequence and one target more."""
    return dict(
        tape=torch.arange(T),
        user_offsets=torch.tensor([0, 4, 7]),
        users=torch.tensor([0, 1]),
        starts=torch.tensor([0, 4]),
        stops=torch.tensor([3, 6]),
        first_targets=torch.tensor([1, 5]),
        order=torch.tensor([1, 0]),
        inputs_before=torch.tensor([0, 2, 5]),
        targets_before=torch.tensor([0, 2, 5]),
        history_before=torch.tensor([0, 2, 5]),
        place=torch.tensor([0, 1]),
        n_events=5,
        n_sequences=2,
        n_targets=3,
        n_history=3,
        max_len=3,
        padding_idx=V - 1,
    )


# By the name of the public op: its arguments.
CALLS: dict[str, Callable[[], dict[str, Any]]] = {
    "adam_rows": _adam,
    "bias_gelu_dropout": lambda: dict(x=torch.randn(T, D), bias=torch.randn(D), dropout_p=0.2, rng=RNG),
    "caser_windows": _caser,
    "causal_attention": lambda: _attention(T),
    "dropout": lambda: dict(x=torch.randn(T, D), p=0.2, rng=RNG),
    "dropout_add_norm": lambda: dict(
        x=torch.randn(T, D),
        residual=torch.randn(T, D),
        weight=torch.randn(D),
        bias=torch.randn(D),
        x_bias=torch.randn(D),
        dropout_p=0.2,
        rng=RNG,
    ),
    "embed_sequence": lambda: dict(
        items=torch.arange(T),
        offsets=OFFSETS,
        item_weight=torch.randn(V, D),
        position_weight=torch.randn(4, D),
        norm_weight=torch.randn(D),
        norm_bias=torch.randn(D),
        dropout_p=0.2,
        rng=RNG,
        padding_idx=V - 1,
    ),
    "gather_windows": _windows,
    "gru": _gru,
    "gru_sampled_loss": lambda: dict(
        **_gru(), **_loss(), dense_weight=torch.randn(D, 4), dense_bias=torch.randn(D), rows=torch.tensor([1, 2, 6])
    ),
    "last_query_attention": lambda: _attention(B),
    "linear": lambda: dict(x=torch.randn(T, D), weight=torch.randn(5, D), bias=torch.randn(5)),
    "linear_cross_entropy": lambda: dict(
        h=torch.randn(3, D),
        weight=torch.randn(V, D),
        targets=torch.tensor([0, -100, 10]),
        bias=torch.randn(V),
        reduction="none",
    ),
    "sample_negatives": lambda: dict(
        users=torch.tensor([0, 1]), positives=torch.tensor([1, 3]), **_seen(), k=2, n_items=V, rng=RNG
    ),
    "sample_shared_negatives": lambda: dict(size=5, n_items=V, rng=RNG),
    "sampled_loss": lambda: dict(h=torch.randn(3, D), **_loss()),
    "topk": lambda: dict(h=torch.randn(2, D), weight=torch.randn(V, D), k=3, bias=torch.randn(V), **_seen()),
    "transformer_layer": _layer,
}
SHARED = torch.tensor([3, 4, 5])
TABLE = dict(probability=torch.full((V,), 2**31), alias=torch.arange(V).flip(0))
# What a call changes to take the other way through an op: what is optional left out, another setting.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "adam_rows": [dict(grad=None), dict(rows=None, grad=None, count=None)],
    "dropout_add_norm": [dict(x_bias=None)],
    "embed_sequence": [dict(position_weight=None, norm_weight=None, norm_bias=None)],
    "gather_windows": [dict(history_before=None, n_history=0)],
    "gru": [dict(bias_hh=None)],
    "gru_sampled_loss": [dict(bias_hh=None, rows=None, targets=torch.arange(T), negatives=SHARED)],
    "linear": [dict(bias=None)],
    "linear_cross_entropy": [dict(bias=None, softcap=4.0), dict(reduction="mean"), dict(reduction="sum")],
    "sample_negatives": [TABLE],
    "sample_shared_negatives": [TABLE],
    "sampled_loss": [dict(negatives=SHARED), dict(loss="sampled_softmax", log_q=torch.zeros(3, 2), padding_idx=4)],
    "topk": [dict(bias=None, seen_offsets=None, seen_items=None)],
    "transformer_layer": [dict(rows=None)],
}
ALL = [(name, change) for name in CALLS for change in ({}, *VARIANTS.get(name, []))]
IN_PLACE = {"adam_rows": ("weight", "exp_avg", "exp_avg_sq", "last_step")}


def differentiable(name: str, arguments: dict[str, Any]) -> list[str]:
    """Names of the arguments that may have a gradient."""
    if name in (*IN_PLACE, "topk"):
        return []
    return [key for key, x in arguments.items() if isinstance(x, Tensor) and x.is_floating_point() and key != "log_q"]


def results(name: str, arguments: dict[str, Any]) -> list[Tensor]:
    """What the op returns, or what it has written where it works in place."""
    given = getattr(ops, name)(**arguments)
    if name in IN_PLACE:
        return [arguments[written] for written in IN_PLACE[name]]
    return [given] if isinstance(given, Tensor) else list(given)
