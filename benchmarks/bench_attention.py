"""causal_attention on the CPU beside what PyTorch offers, on the same jagged batches.

    pytest benchmarks/bench_attention.py --benchmark-only --benchmark-group-by=group --benchmark-sort=fullname

    fastseq    the op
    eager      sequences grouped by length, padded to [b, H, l, l] chunks of at most 8 MB, batched products
    sdpa       padded to the longest, F.scaled_dot_product_attention
    reference  ops/reference/attention.py (draws fastseq's own random stream in plain PyTorch)
    compiled   torch.compile of sdpa; only with FASTSEQ_BENCH_COMPILE=1

Every implementation is compared with the float64 reference before it is timed (without dropout where it draws another
mask). Inputs rotate through more memory than the last-level cache of a desktop. Threads: OMP_NUM_THREADS.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import causal_attention, make_rng, record_served, set_backend

HEADS, WIDTH = 4, 32
SETS = 6
CHUNK_BYTES = 8 << 20
RNG = make_rng(1, 2)

_generator = torch.Generator().manual_seed(0)


def _between(low: int, high: int, count: int) -> list[int]:
    return torch.randint(low, high + 1, (count,), generator=_generator).tolist()


SHAPES = {"ml-1m L=200": [200] * 20, "ml-1m mixed": _between(20, 200, 36), "beauty": _between(5, 50, 75)}
Attention = Callable[[Tensor, Tensor, Tensor, Tensor, int, float], Tensor]


def fastseq(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_len: int, dropout_p: float) -> Tensor:
    return causal_attention(q, k, v, offsets, max_len=max_len, dropout_p=dropout_p, rng=RNG)


def reference(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_len: int, dropout_p: float) -> Tensor:
    with set_backend("reference"):
        return fastseq(q, k, v, offsets, max_len, dropout_p)


def padded_rows(starts: Tensor, lengths: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    """Rows [b, longest] of the batch (past the end: the last one again), and which of them are real."""
    position = torch.arange(longest)
    rows = starts[:, None] + torch.minimum(position, lengths[:, None] - 1)
    return rows, position < lengths[:, None]


def sdpa(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_len: int, dropout_p: float) -> Tensor:
    rows, real = padded_rows(offsets[:-1].long(), offsets.diff().long(), max_len)
    queries, keys, values = (x[rows].transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, dropout_p=dropout_p)
    return out.transpose(1, 2)[real]


def eager(q: Tensor, k: Tensor, v: Tensor, offsets: Tensor, max_len: int, dropout_p: float) -> Tensor:
    lengths = offsets.diff().long()
    order = lengths.argsort(descending=True)
    sizes = lengths[order].tolist()
    outs, places, first = [], [], 0
    while first < len(sizes):
        longest, last = sizes[first], first + 1
        most = max(1, CHUNK_BYTES // (HEADS * longest * longest * 4))
        while last < len(sizes) and last - first < most and sizes[last] >= 0.75 * longest:
            last += 1
        group = order[first:last]
        rows, real = padded_rows(offsets[group].long(), lengths[group], longest)
        queries, keys, values = (x[rows].transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        future = torch.full((longest, longest), float("-inf")).triu(1)
        scores = torch.baddbmm(future, queries, keys.transpose(1, 2), alpha=WIDTH**-0.5)
        out = F.dropout(scores.softmax(-1), dropout_p) @ values
        outs.append(out.unflatten(0, (last - first, HEADS)).transpose(1, 2)[real])
        places.append(rows[real])
        first = last
    return torch.zeros_like(q).index_copy(0, torch.cat(places), torch.cat(outs))


IMPLEMENTATIONS: dict[str, Attention] = {"fastseq": fastseq, "eager": eager, "sdpa": sdpa, "reference": reference}
if os.environ.get("FASTSEQ_BENCH_COMPILE", "") not in ("", "0"):
    IMPLEMENTATIONS["compiled"] = torch.compile(sdpa, dynamic=True)


def check(
    attention: Attention, same_mask: bool, inputs: list[Tensor], offsets: Tensor, max_len: int, dropout_p: float
) -> None:
    """Output and gradients agree with the float64 reference."""
    q, k, v, grad = inputs
    p = dropout_p if same_mask else 0.0
    out = attention(q, k, v, offsets, max_len, p)
    exact_inputs = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = reference(exact_inputs[0], exact_inputs[1], exact_inputs[2], offsets, max_len, p)
    torch.testing.assert_close(out.double(), exact, rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(out, (q, k, v), grad)
    for a, b in zip(found, torch.autograd.grad(exact, exact_inputs, grad.double()), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", ["forward", "forward + backward"])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("shape", SHAPES)
def test_causal_attention(benchmark: Any, shape: str, dropout_p: float, direction: str, implementation: str) -> None:
    lengths = SHAPES[shape]
    attention = IMPLEMENTATIONS[implementation]
    offsets = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    rest = (offsets, max(lengths))
    generator = torch.Generator().manual_seed(1)
    size = (sum(lengths), HEADS, WIDTH)
    sets = [[torch.randn(size, generator=generator) for _ in range(4)] for _ in range(SETS)]
    for q, k, v, _ in sets:
        for x in (q, k, v):
            x.requires_grad_()
    with record_served() as served:
        check(attention, implementation in ("fastseq", "reference"), sets[0], *rest, dropout_p)
    if implementation == "fastseq":
        assert ("causal_attention", "cpu") in served
    rotation = itertools.cycle(sets)

    def forward() -> None:
        q, k, v, _ = next(rotation)
        with torch.no_grad():
            attention(q, k, v, *rest, dropout_p)

    def both() -> None:
        q, k, v, grad = next(rotation)
        torch.autograd.grad(attention(q, k, v, *rest, dropout_p), (q, k, v), grad)

    benchmark.group = f"{shape}, dropout {dropout_p}, {direction}"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.extra_info["query_key_head_triples"] = HEADS * sum(n * (n + 1) // 2 for n in lengths)
    benchmark(forward if direction == "forward" else both)
