"""The one random stream: Philox-4x32-10 on logical indices.

Every random element of fastseq (dropout, negatives) is a pure function of the seed, the step and the element's
logical position, never of tiles, threads, workers or the device. The reference, C++ and Triton implementations
draw the same bits.

``rng`` is an int64 tensor ``[seed, step]`` on the device of the op. As a tensor it may change at every step without
recompiling a graph or being frozen into a CUDA graph.

Key
    ``(seed & 0xffffffff, (seed >> 32) & 0xffffffff)``
Counter
    ``(c0, c1, c2, c3)``, with ``c2 = step & 0xffffffff`` for every op.

==========================  ===========  ======  =====================  ================
op                          c0           c1      c3                     output
==========================  ===========  ======  =====================  ================
dropout and the fused glue  column // 8  row     site                   value column % 8
causal_attention            key // 8     query   site | head << 16      value key % 8
negatives, per target       draw // 4    target  SITE_NEGATIVES         word draw % 4
negatives, shared           draw // 4    0       SITE_SHARED_NEGATIVES  word draw % 4
==========================  ===========  ======  =====================  ================

A counter gives four words of 32 bits. Its eight values are their halves: value ``2 * word + half``, half 0 the low 16
bits. So they lie in this order in the memory of a little-endian machine.

``row`` is the row of the jagged batch (``x`` flattened to two dimensions). ``query`` and ``key`` are rows of it too, so
a last-query pass draws the mask that the full pass draws for that row. ``target`` is the target's number in the whole
batch; fastseq/ops/negatives.py says how ``draw`` counts. ``site`` (0 ... 0x7fff) tells the dropouts of one model apart;
SITE_* lie above them.

An element is dropped when its value is below ``threshold(p)``: an integer comparison, equal on every machine. What is
kept is multiplied by ``keep_scale(p)``, rounded once to the type of the computation. So p is rounded to a multiple of
1/65536 (one that is not 0 to at least 1/65536 and at most 65535/65536), and the scale is the inverse of the share that
is kept of that: the mean is exact.

``STREAM`` is the number of this contract. It rises when a seed and a step give other masks or negatives, and a training
is resumed only with the number that it began with. Stream 1 compared whole words for dropout, four columns a counter,
and counted keys from the start of their sequence.

Source: Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

STREAM = 2
SITE_NEGATIVES = 0x8000
SITE_SHARED_NEGATIVES = 0x8001


def make_rng(seed: int, step: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """The ``rng`` argument of every random op: int64 ``[seed, step]``.

    Raises:
        ValueError: if one of them does not fit into 64 bits with sign.
    """
    for name, value in (("seed", seed), ("step", step)):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"{name} is {value}, expected an integer from -2**63 to 2**63 - 1")
    if torch.device(device).type == "cpu":
        return torch.tensor([seed, step], dtype=torch.int64)
    rng = torch.full((2,), seed, dtype=torch.int64, device=device)
    rng[1:].fill_(step)  # not copied there, so no wait
    return rng


def threshold(p: float) -> int:
    """The 16-bit value below which an element is dropped: ``round(p * 65536)``, for p > 0 from 1 to 65535.

    Raises:
        ValueError: if not ``0 <= p < 1``.
    """
    if not 0.0 <= p < 1.0:
        raise ValueError(f"p is {p}, expected 0 <= p < 1")
    return min(max(round(p * 65536.0), 1), 65535) if p > 0.0 else 0


def keep_scale(p: float) -> float:
    """What an element that dropout keeps is multiplied by: ``1 / (1 - threshold(p) / 65536)``."""
    return 65536.0 / (65536 - threshold(p))


def check_dropout(p: float, rng: Tensor | None, site: int, name: str = "dropout_p") -> None:
    """Raises ValueError unless ``p``, the argument ``name``, is a probability below 1 with something to draw from."""
    if not 0.0 <= p < 1.0:
        raise ValueError(f"{name} is {p}, expected 0 <= {name} < 1")
    if not 0 <= site < SITE_NEGATIVES:
        raise ValueError(f"site is {site}, expected 0 <= site <= 0x7fff: sites above belong to the samplers")
    if p > 0.0 and rng is None:
        raise ValueError(f"{name} is {p} but rng is None: pass rng=fastseq.ops.make_rng(seed, step)")
    if rng is not None and (rng.dtype != torch.int64 or rng.shape != (2,)):
        raise ValueError(f"rng is {rng.dtype} {list(rng.shape)}, expected torch.int64 [2]: (seed, step)")
