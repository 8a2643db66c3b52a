"""Caser's convolutions for every history of a batch at once."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _checks
from ._dispatch import register


def caser_windows(
    x: Tensor,
    offsets: Tensor,
    sequences: Tensor,
    stops: Tensor,
    weight_h: Tensor,
    bias_h: Tensor,
    weight_v: Tensor,
    bias_v: Tensor,
    padding_row: Tensor,
) -> Tensor:
    """Horizontal filters of heights 1 … L (then ReLU and max pool) and vertical filters, over N histories.

    History n is the last L rows of sequence ``sequences[n]`` before row ``stops[n]`` of x, that is rows
    [max(offsets[s], stops[n] − L), stops[n]), followed by copies of ``padding_row`` up to L rows. The histories
    of one sequence share their convolutions: any set of stops gives what each history alone would.

    Args:
        x: [T, d], the embedded events of a jagged batch, any floating type, which autocast on a GPU casts to its own.
            The weights and padding_row have the same (under autocast any): horizontal filters are rounded to it.
        offsets: int32 [B + 1], sequence s is rows offsets[s] … offsets[s + 1] − 1.
        sequences: int64 [N], the sequence of each history.
        stops: int64 [N], the row after each history's last one: offsets[s] (an empty history) … offsets[s + 1].
        weight_h: [L(L + 1)/2, n_h, d]; row h(h − 1)/2 + j is tap j (from the oldest) of the filters of height h.
        bias_h: [L, n_h], by height.
        weight_v: [n_v, L], from the oldest row to the last one of the padded history.
        bias_v: [n_v].
        padding_row: [d].

    x must be finite: an infinite or NaN row may reach the histories just before it as NaN, and on a GPU the gradient of
    weight_h from whichever sequence.

    Returns:
        [N, n_v·d + L·n_h]: the vertical outputs [n_v, d], then the pooled horizontal ones [L, n_h]. n_h and n_v may
        be 0. Gradients reach every floating argument; of equal maxima the first one gets it, as in max_pool1d, and a
        pooled value that ReLU made zero passes none.

    Raises:
        ValueError: if shapes or types disagree or, on the CPU or with FASTSEQ_CHECK=1, if offsets is malformed or a
            stop lies outside its sequence.

    Source: Tang & Wang, "Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding",
    WSDM 2018, equations 3 to 7.
    """
    if x.dim() != 2 or bias_h.dim() != 2 or bias_h.shape[0] < 1 or weight_v.dim() != 2:
        raise ValueError(
            f"x has shape {list(x.shape)}, bias_h {list(bias_h.shape)}, weight_v {list(weight_v.shape)}, "
            "expected [T, d], [L, n_h], [n_v, L] with L >= 1"
        )
    d, (length, n_h), n_v = x.shape[1], bias_h.shape, weight_v.shape[0]
    expected = {
        "offsets": (offsets, [offsets.numel()]),
        "sequences": (sequences, [stops.numel()]),
        "stops": (stops, [stops.numel()]),
        "weight_h": (weight_h, [length * (length + 1) // 2, n_h, d]),
        "bias_h": (bias_h, [length, n_h]),
        "weight_v": (weight_v, [n_v, length]),
        "bias_v": (bias_v, [n_v]),
        "padding_row": (padding_row, [d]),
    }
    if offsets.numel() < 1:
        raise ValueError("offsets is empty, expected at least the 0 it starts with")
    for name, (tensor, shape) in expected.items():
        if list(tensor.shape) != shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, expected {shape}")
        index = {"offsets": torch.int32, "sequences": torch.int64, "stops": torch.int64}.get(name)
        if index is not None and tensor.dtype != index:
            raise ValueError(f"{name} is {tensor.dtype}, expected {index}")
    _checks.one_type(x=x, weight_h=weight_h, bias_h=bias_h, weight_v=weight_v, bias_v=bias_v, padding_row=padding_row)
    out, _ = _caser_windows(x, offsets, sequences, stops, weight_h, bias_h, weight_v, bias_v, padding_row)
    return out


def _check_data(x: Tensor, offsets: Tensor, sequences: Tensor, stops: Tensor, *_: Tensor) -> None:
    _checks.offsets_of_rows(offsets, x.shape[0])
    count = offsets.shape[0] - 1
    _checks.in_range("sequences", sequences, count, f"0 to {count - 1}")
    wrong = ((stops < offsets[sequences]) | (stops > offsets[sequences + 1])).nonzero()
    if wrong.shape[0]:
        n = int(wrong[0])
        s = int(sequences[n])
        stop = f"stops[{n}] is {int(stops[n])}"
        raise ValueError(f"{stop}, expected a row of sequence {s}, {int(offsets[s])} to {int(offsets[s + 1])}")


def _fake(x: Tensor, *arguments: Tensor) -> tuple[Tensor, Tensor]:
    _, _, stops, _, bias_h, weight_v, *_ = arguments
    horizontal = bias_h.shape[0] * bias_h.shape[1]
    size = stops.shape[0]
    return (
        x.new_empty(size, weight_v.shape[0] * x.shape[1] + horizontal),
        x.new_empty(size, horizontal, dtype=torch.int32),
    )


# The second output, int32 [N, L·n_h], says where in its history each maximum lies, −1 where ReLU made it zero.
_caser_windows = register(
    "caser_windows", fake=_fake, differentiable=(0, 4, 5, 6, 7, 8), check=_check_data, autocast=(0,)
)
