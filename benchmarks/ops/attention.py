"""causal_attention and last_query_attention beside what PyTorch offers, on the same jagged batches.

eager    padded to the longest, F.scaled_dot_product_attention
grouped  on the CPU: sequences grouped by length, padded to [b, H, l, l] chunks of at most 8 MB, batched products
nested   on a GPU: F.scaled_dot_product_attention of jagged tensors (FlashAttention's varlen for half types)
flex     on a GPU: FlexAttention over the packed batch with a block mask. It has no dropout, and does without
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import causal_attention, last_query_attention, make_rng

from .case import (
    BATCHES,
    EVENTS,
    FLOAT32,
    LARGE,
    Case,
    Function,
    Spec,
    described,
    dtypes_of,
    lengths_of,
    offsets_of,
    padded_rows,
)

HEADS, HEAD_WIDTH = 4, 32
CHUNK_BYTES = 8 << 20
SHAPES = ["ml-1m L=200", "beauty L=50"]
USERS = 256  # of one batch of evaluation, every history whole
P = 0.3


def groups(lengths: list[int], heads: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Padded rows of sequences of similar length, longest first."""
    offsets, order = offsets_of(lengths).tolist(), sorted(range(len(lengths)), key=lambda i: -lengths[i])
    while order:
        longest = lengths[order[0]]
        most = max(1, CHUNK_BYTES // (heads * longest * longest * 4))
        count = sum(lengths[i] >= 0.75 * longest for i in order[:most])
        chosen, order = order[:count], order[count:]
        length, start = torch.tensor([lengths[i] for i in chosen]), torch.tensor([offsets[i] for i in chosen])
        position = torch.arange(longest)
        yield start[:, None] + torch.minimum(position, length[:, None] - 1), position < length[:, None]


def grouped_attention(lengths: list[int], heads: int, width: int) -> Function:
    chunks = list(groups(lengths, heads))

    def grouped(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        outs = []
        for rows, real in chunks:
            queries, keys, values = (x[rows].transpose(1, 2).flatten(0, 1) for x in (q, k, v))
            future = torch.full((rows.shape[1], rows.shape[1]), float("-inf"), dtype=q.dtype).triu(1)
            scores = torch.baddbmm(future, queries, keys.transpose(1, 2), alpha=width**-0.5)
            out = F.dropout(scores.softmax(-1), p) @ values
            outs.append(out.unflatten(0, (len(rows), heads)).transpose(1, 2)[real])
        places = torch.cat([rows[real] for rows, real in chunks])
        return torch.zeros_like(q).index_copy(0, places, torch.cat(outs))

    return grouped


def nested_attention(offsets: Tensor, longest: int) -> Function:
    def nested(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys, values = (
            torch.nested.nested_tensor_from_jagged(x, offsets, min_seqlen=1, max_seqlen=longest).transpose(1, 2)
            for x in (q, k, v)
        )
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, dropout_p=p)
        packed: Tensor = out.transpose(1, 2).values()
        return packed

    return nested


def flex_attention(lengths: list[int], device: torch.device) -> Function:
    """The mask is made once, for nothing: only the attention is timed."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as attend

    events = sum(lengths)
    document = torch.repeat_interleave(torch.tensor(lengths)).to(device)

    def same_and_earlier(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (document[query] == document[key]) & (query >= key)

    # Compiled on a GPU: without it the mask of a large batch is made whole, [events, events].
    make: Any = torch.compile(create_block_mask) if device.type == "cuda" else create_block_mask
    mask: Any = make(same_and_earlier, None, None, events, events, device=str(device))
    kernel: Any = torch.compile(attend) if device.type == "cuda" else attend

    def flex(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = kernel(*(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=mask)
        return out[0].transpose(0, 1)

    return flex


def lazily(make: Any, *arguments: Any) -> Function:
    """The function that ``make(*arguments)`` gives, made at its first call: FlexAttention compiles its mask."""
    made: list[Function] = []

    def call(p: float, *leaves: Tensor) -> Any:
        if not made:
            made.append(make(*arguments))
        return made[0](p, *leaves)

    return call


def causal(device: torch.device, shape: str, targets: int = EVENTS) -> Case:
    return causal_of(device, described(shape, targets), lengths_of(shape, targets))


def causal_of(
    device: torch.device, shape: str, lengths: list[int], heads: int = HEADS, width: int = HEAD_WIDTH
) -> Case:
    events, rng = sum(lengths), make_rng(1, 2, device)
    offsets, (rows, real) = offsets_of(lengths, device), padded_rows(lengths)
    places = real.flatten().nonzero().squeeze(1).to(device)  # a mask on the device would have to be waited for
    rows, real, on_cpu = rows.to(device), real.to(device), device.type == "cpu"

    def fastseq(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal_attention(q, k, v, offsets, max_len=max(lengths), dropout_p=p, rng=rng)

    def eager(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys, values = (x[rows].transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, dropout_p=p).transpose(1, 2)
        return out[real] if on_cpu else out.flatten(0, 1).index_select(0, places)

    functions: dict[str, Function] = {"fastseq": fastseq, "eager": eager}
    if on_cpu:
        functions["grouped"] = grouped_attention(lengths, heads, width)
    else:
        functions["nested"] = nested_attention(offsets.long(), max(lengths))
        functions["flex"] = lazily(flex_attention, lengths, device)
    q, k, v, upstream = torch.randn(4, events, heads, width, device=device)
    n, pairs = q.numel(), sum(length * (length + 1) // 2 for length in lengths)
    return Case(
        "causal_attention", shape, functions, [q, k, v], upstream, dropout_p=P, products=True, indices=offsets.nbytes,
        elements=(4 * n, 8 * n), flops=(4 * pairs * heads * width, 10 * pairs * heads * width),
    )  # fmt: skip


def last_query(device: torch.device, shape: str, users: int = USERS) -> Case:
    lengths = [200] * users if shape == LARGE else (lengths_of(shape) * users)[:users]
    return last_query_of(device, f"{users} users, {shape}", lengths)


def last_query_of(
    device: torch.device, shape: str, lengths: list[int], heads: int = HEADS, width: int = HEAD_WIDTH
) -> Case:
    users, rng = len(lengths), make_rng(1, 2, device)
    offsets, (rows, real) = offsets_of(lengths, device), padded_rows(lengths, device)

    def fastseq(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return last_query_attention(q, k, v, offsets, max_len=max(lengths), dropout_p=p, rng=rng)

    def eager(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values, mask = k[rows].transpose(1, 2), v[rows].transpose(1, 2), real[:, None, None]
        return F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=mask, dropout_p=p).squeeze(2)

    q, upstream = torch.randn(2, users, heads, width, device=device)
    k, v = torch.randn(2, sum(lengths), heads, width, device=device)
    m, n = q.numel(), k.numel()
    return Case(
        "last_query_attention", shape, {"fastseq": fastseq, "eager": eager}, [q, k, v], upstream, dropout_p=P,
        products=True, indices=offsets.nbytes, elements=(2 * m + 2 * n, 4 * m + 4 * n), flops=(4 * n, 10 * n),
    )  # fmt: skip


def suite(device: str) -> list[Spec]:
    if device == "cpu":
        return [
            *(Spec("causal_attention", partial(causal, shape=shape), [FLOAT32]) for shape in SHAPES),
            *(Spec("last_query_attention", partial(last_query, shape=shape), [FLOAT32]) for shape in SHAPES),
        ]
    kinds = dtypes_of(True)
    full = [(shape, targets) for targets in BATCHES for shape in SHAPES] + [(LARGE, EVENTS)]
    last = [(shape, users) for users in (256, 2048) for shape in SHAPES] + [(LARGE, 2048)]
    return [
        *(Spec("causal_attention", partial(causal, shape=s, targets=n), kinds) for s, n in full),
        *(Spec("last_query_attention", partial(last_query, shape=s, users=n), kinds) for s, n in last),
    ]


def tiny(device: torch.device) -> list[Case]:
    lengths = [5, 3, 1]
    return [causal_of(device, "tiny", lengths, 2, 8), last_query_of(device, "tiny", lengths, 2, 8)]
