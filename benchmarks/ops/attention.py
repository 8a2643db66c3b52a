"""causal_attention and last_query_attention beside what PyTorch offers, on the same jagged batches.

eager    padded to the longest, F.scaled_dot_product_attention
nested   on a GPU: F.scaled_dot_product_attention of jagged tensors (FlashAttention's varlen for half types)
flex     on a GPU: FlexAttention over the packed batch with a block mask. It has no dropout, and does without
fla      on a GPU: flash-linear-attention's softmax attention, in Triton and jagged, likewise (pip install
         flash-linear-attention)
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastseq.ops import causal_attention, last_query_attention, make_rng

from .case import HALF, LARGE, PRODUCTS, Batch, Case, Cases, Function, batch_of, batches

HEADS, HEAD_WIDTH = 4, 32
NAMES = ["ml-1m L=200", "beauty L=50"]
USERS = 256  # of one batch of evaluation, every history whole
P = 0.3


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


def flex_attention(batch: Batch, device: torch.device) -> Function:
    """The mask is made once, at the first call, and not timed: only the attention is."""
    from torch.nn.attention.flex_attention import create_block_mask
    from torch.nn.attention.flex_attention import flex_attention as attend

    # Compiled on a GPU: without it the mask of a large batch is made whole, [events, events].
    compiled: Any = torch.compile if device.type == "cuda" else lambda function: function
    kernel = compiled(attend)

    @cache
    def mask() -> Any:
        document = torch.repeat_interleave(torch.tensor(batch.lengths)).to(device)

        def same_and_earlier(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (document[query] == document[key]) & (query >= key)

        return compiled(create_block_mask)(same_and_earlier, None, None, batch.events, batch.events, device=str(device))

    def flex(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = kernel(*(x.transpose(0, 1)[None] for x in (q, k, v)), block_mask=mask())
        return out[0].transpose(0, 1)

    return flex


def fla_attention(offsets: Tensor) -> Function:
    module: Any = importlib.import_module("fla.ops.attn.parallel")
    starts = offsets.long()
    return lambda p, q, k, v: module.parallel_attn(q[None], k[None], v[None], cu_seqlens=starts)[0]


def causal(
    device: torch.device, batch: Batch, heads: int = HEADS, width: int = HEAD_WIDTH, triton: bool = False
) -> Case:
    offsets, (rows, real), rng = batch.offsets(device), batch.padded(device), make_rng(1, 2, device)
    # A mask on the device would have to be waited for: there the rows of the padded batch that are real.
    order = batch.padded(torch.device("cpu"))[1].flatten().nonzero().squeeze(1).to(device)
    on_cpu = device.type == "cpu"

    def fastseq(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return causal_attention(q, k, v, offsets, max_len=batch.longest, dropout_p=p, rng=rng)

    def eager(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys, values = (x[rows].transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, dropout_p=p).transpose(1, 2)
        return out[real] if on_cpu else out.flatten(0, 1).index_select(0, order)

    functions: dict[str, Function] = {"fastseq": fastseq, "eager": eager}
    if not on_cpu:
        functions |= {"nested": nested_attention(offsets.long(), batch.longest), "flex": flex_attention(batch, device)}
    missing: dict[str, str] = {}
    if triton or not on_cpu:
        try:
            functions["fla"] = fla_attention(offsets)
        except Exception as error:  # where it is installed, it asks for the name of the GPU
            missing["fla"] = f"not installed: {error}"
    q, k, v, upstream = torch.randn(4, batch.events, heads, width, device=device)
    pairs = sum(length * (length + 1) // 2 for length in batch.lengths)
    return Case(
        "causal_attention", str(batch), functions, [q, k, v], upstream, dropout_p=P, missing=missing, products=True,
        indices=offsets.nbytes, flops=(4 * pairs * heads * width, 10 * pairs * heads * width),
    )  # fmt: skip


def last_query(device: torch.device, batch: Batch, heads: int = HEADS, width: int = HEAD_WIDTH) -> Case:
    users, rng = len(batch.lengths), make_rng(1, 2, device)
    offsets, (rows, real) = batch.offsets(device), batch.padded(device)

    def fastseq(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return last_query_attention(q, k, v, offsets, max_len=batch.longest, dropout_p=p, rng=rng)

    def eager(p: float, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values, mask = k[rows].transpose(1, 2), v[rows].transpose(1, 2), real[:, None, None]
        return F.scaled_dot_product_attention(q[:, :, None], keys, values, attn_mask=mask, dropout_p=p).squeeze(2)

    q, upstream = torch.randn(2, users, heads, width, device=device)
    k, v = torch.randn(2, batch.events, heads, width, device=device)
    return Case(
        "last_query_attention", str(batch), {"fastseq": fastseq, "eager": eager}, [q, k, v], upstream,
        dropout_p=P, products=True, indices=offsets.nbytes, flops=(4 * k.numel(), 10 * k.numel()),
    )  # fmt: skip


def last_batches(*users: int) -> list[tuple[Batch]]:
    return [(Batch(f"{n} users, {name}", (batch_of(name).lengths * n)[:n]),) for n in users for name in NAMES]


TINY = [(Batch("tiny", [5, 3, 1]), 2, 8)]
CASES = [
    Cases(
        "causal_attention", causal, "batch", cpu=batches("cpu", *NAMES), cuda=batches("cuda", *NAMES), tiny=TINY,
        dtypes=HALF, cuda_dtypes=PRODUCTS,
    ),
    Cases(
        "last_query_attention", last_query, "batch", cpu=last_batches(USERS),
        cuda=[*last_batches(USERS, 8 * USERS), (LARGE,)], tiny=TINY, cuda_dtypes=PRODUCTS,
    ),
]  # fmt: skip
