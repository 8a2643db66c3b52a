"""causal_attention and last_query_attention on the CPU beside what PyTorch offers, on the same jagged batches.

pytest benchmarks/bench_attention.py --benchmark-only

eager    padded to the longest, F.scaled_dot_product_attention
grouped  sequences grouped by length, padded to [b, H, l, l] chunks of at most 8 MB, batched products
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from op_bench import DIRECTIONS, DTYPES, EVENTS, IMPLEMENTATIONS, LENGTHS, RNG, measure, offsets_of, padded_rows
from torch import Tensor

from fastseq.ops import causal_attention, last_query_attention

HEADS, HEAD_WIDTH = 4, 32
CHUNK_BYTES = 8 << 20
SHAPES = ["ml-1m L=200", "beauty L=50"]
USERS = 256  # of one batch of evaluation, every history whole


def groups(lengths: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Padded rows of sequences of similar length, longest first."""
    offsets, order = offsets_of(lengths).tolist(), sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        longest = lengths[order[0]]
        most = max(1, CHUNK_BYTES // (HEADS * longest * longest * 4))
        count = sum(lengths[i] >= 0.75 * longest for i in order[:most])
        chosen, order = order[:count], order[count:]
        length, start = torch.tensor([lengths[i] for i in chosen]), torch.tensor([offsets[i] for i in chosen])
        position = torch.arange(longest)
        yield start[:, None] + torch.minimum(position, length[:, None] - 1), position < length[:, None]


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "grouped"])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_causal_attention(benchmark: Any, shape: str, dtype: str, direction: str, implementation: str) -> None:
    lengths = LENGTHS[shape]
    offsets, (rows, real), chunks = offsets_of(lengths), padded_rows(lengths), list(groups(lengths))

    def fastseq(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal_attention(q, k, v, offsets, max_len=max(lengths), dropout_p=p, rng=RNG)

    def eager(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys, values = (x[rows].transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, dropout_p=p)
        return out.transpose(1, 2)[real]

    def grouped(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs = []
        for rows, real in chunks:
            queries, keys, values = (x[rows].transpose(1, 2).flatten(0, 1) for x in (q, k, v))
            future = torch.full((rows.shape[1], rows.shape[1]), float("-inf"), dtype=q.dtype).triu(1)
            scores = torch.baddbmm(future, queries, keys.transpose(1, 2), alpha=HEAD_WIDTH**-0.5)
            out = F.dropout(scores.softmax(-1), p) @ values
            outs.append(out.unflatten(0, (len(rows), HEADS)).transpose(1, 2)[real])
        places = torch.cat([rows[real] for rows, real in chunks])
        return torch.zeros_like(q).index_copy(0, places, torch.cat(outs))

    q, k, v, upstream = torch.randn(4, EVENTS, HEADS, HEAD_WIDTH)
    functions = {"fastseq": fastseq, "eager": eager, "grouped": grouped}
    measure(
        benchmark, implementation, functions, [q, k, v], upstream,
        op="causal_attention", shape=shape, direction=direction, dtype=dtype, dropout_p=0.3,
    )  # fmt: skip


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_last_query_attention(benchmark: Any, shape: str, direction: str, implementation: str) -> None:
    lengths = (LENGTHS[shape] * USERS)[:USERS]
    offsets, (rows, real) = offsets_of(lengths), padded_rows(lengths)

    def fastseq(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return last_query_attention(q, k, v, offsets, max_len=max(lengths), dropout_p=p, rng=RNG)

    def eager(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values, mask = k[rows].transpose(1, 2), v[rows].transpose(1, 2), real[:, None, None]
        return F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=mask, dropout_p=p).squeeze(2)

    q, upstream = torch.randn(2, USERS, HEADS, HEAD_WIDTH)
    k, v = torch.randn(2, sum(lengths), HEADS, HEAD_WIDTH)
    measure(
        benchmark, implementation, {"fastseq": fastseq, "eager": eager}, [q, k, v], upstream,
        op="last_query_attention", shape=f"{USERS} users, {shape}", direction=direction, dropout_p=0.3,
    )  # fmt: skip
