"""SASRec as WarpRec defines it, over jagged batches."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from .. import ops
from ..data.batch import JaggedBatch
from ..errors import ConfigError
from ..ops.reference.philox import apply_dropout
from .base import SequentialRecommender
from .jagged import select_rows

# Dropout sites of the random stream (fastseq/ops/philox.py): the embedding's, then these in every layer.
SITE_EMBEDDING = 0
SITE_FIRST_LAYER = 1
SITE_ATTENTION, SITE_ATTENTION_OUTPUT, SITE_INNER, SITE_INNER_OUTPUT = range(4)
SITES_PER_LAYER = 4


class SASRec(SequentialRecommender):
    """Self-attention over the items of a history.

    LayerNorm(item + position), dropout, then ``n_layers`` post-LayerNorm transformer layers (exact GELU) under a
    causal mask; the output at the last event is scored against the item embeddings.

    ``dropout_prob`` is the embedding's dropout, ``attn_dropout_prob`` every other one. ``embedding_size`` is a multiple
    of ``n_heads``. A history has at most ``max_seq_len`` events. In a padded batch the padding ids inside a history are
    masked, wherever they are, as in WarpRec; the attention of such a batch is plain PyTorch.
    ``initializer_range`` is the deviation of the first weights; the positions start at 1 / sqrt(embedding_size) of it.

    Source: Kang & McAuley, "Self-Attentive Sequential Recommendation", ICDM 2018; WarpRec 2.2.8's variant of it.
    """

    embedding_size: int
    n_layers: int
    n_heads: int
    inner_size: int
    dropout_prob: float
    attn_dropout_prob: float
    reg_weight: float = 0.0
    weight_decay: float
    batch_size: int = 2048
    epochs: int
    learning_rate: float
    neg_samples: int
    max_seq_len: int = 200

    def __init__(self, params: dict, info: dict, *args: Any, seed: int = 42, **kwargs: Any) -> None:
        super().__init__(params, info, *args, seed=seed, **kwargs)
        d = self.embedding_size
        self.item_embedding = self._divided(self.n_items + 1, self.n_items)
        self.position_embedding = nn.Embedding(self.max_seq_len, d)
        self.layernorm = nn.LayerNorm(d, eps=1e-8)
        # Holds the parameters, under WarpRec's names and with its initial values; encode computes with them.
        layer = nn.TransformerEncoderLayer(
            d, self.n_heads, self.inner_size, self.attn_dropout_prob, activation="gelu", batch_first=True
        )
        self.transformer_encoder = nn.TransformerEncoder(layer, self.n_layers, enable_nested_tensor=False)
        # In the state_dict of WarpRec; the ops know that they are causal.
        mask = torch.ones(self.max_seq_len, self.max_seq_len, dtype=torch.bool).triu(diagonal=1)
        self.register_buffer("causal_mask", mask)
        self.apply(self._init_weights)
        if self.initializer_range is not None:
            with torch.no_grad():  # an item outweighs its position, as where items are multiplied by sqrt(d)
                self.position_embedding.weight.div_(math.sqrt(d))

    @classmethod
    def check_params(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        values = super().check_params(params)
        d, heads = values["embedding_size"], values["n_heads"]
        if d % heads:
            raise ConfigError(f"{cls.__name__}: embedding_size is {d}, expected a multiple of n_heads ({heads})")
        return values

    def _hidden(self, item_seq: Tensor, lengths: Tensor) -> Tensor | None:
        hidden = item_seq == self.n_items
        hidden[:, :1] &= ~hidden.all(dim=1, keepdim=True)  # a row of padding alone sees its first one
        return hidden & (torch.arange(item_seq.shape[1], device=item_seq.device) < lengths[:, None])

    def encode(self, batch: JaggedBatch) -> Tensor:
        if batch.max_len > self.max_seq_len:
            raise ValueError(
                f"SASRec: a history has {batch.max_len} events, but there are position embeddings for max_seq_len "
                f"({self.max_seq_len}); pass its most recent {self.max_seq_len} events"
            )
        rng = self._take_rng()
        items = self._item_rows(batch)
        x = ops.embed_sequence(
            batch.items,
            batch.offsets,
            items,
            self.position_embedding.weight,
            self.layernorm.weight,
            self.layernorm.bias,
            eps=self.layernorm.eps,
            dropout_p=self._rate(self.dropout_prob),
            rng=rng,
            site=SITE_EMBEDDING,
            padding_idx=items.shape[0] - 1,
        )
        layers = self.transformer_encoder.layers
        for i, layer in enumerate(layers):
            last = i + 1 == len(layers)
            site = SITE_FIRST_LAYER + i * SITES_PER_LAYER
            x = self._layer(cast(nn.TransformerEncoderLayer, layer), x, batch, last, rng, site)
        return x

    def _layer(
        self,
        layer: nn.TransformerEncoderLayer,
        x: Tensor,
        batch: JaggedBatch,
        last: bool,
        rng: Tensor,
        site: int,
    ) -> Tensor:
        """One transformer layer; the last one computes past its attention for the counted rows only."""
        p = self._rate(self.attn_dropout_prob)
        attention = layer.self_attn
        # Where every row counts, sequences are one event long: their last queries are all there are.
        last_only = last and batch.last_only and batch.rows is not None
        if x.device.type != "cpu" and not last_only and batch.hidden is None:
            return self._whole_layer(layer, x, batch, batch.rows if last else None, p, rng, site)
        mixed = self._attention(attention, x, batch, last_only, p, rng, site + SITE_ATTENTION)
        if last and batch.rows is not None:
            x = select_rows(x, batch.rows)
            mixed = mixed if batch.last_only else select_rows(mixed, batch.rows)
        x = ops.dropout_add_norm(
            ops.linear(mixed, attention.out_proj.weight),
            x,
            layer.norm1.weight,
            layer.norm1.bias,
            x_bias=attention.out_proj.bias,
            eps=layer.norm1.eps,
            dropout_p=p,
            rng=rng,
            site=site + SITE_ATTENTION_OUTPUT,
        )
        inner = ops.bias_gelu_dropout(
            ops.linear(x, layer.linear1.weight),
            layer.linear1.bias,
            dropout_p=p,
            rng=rng,
            site=site + SITE_INNER,
        )
        return ops.dropout_add_norm(
            ops.linear(inner, layer.linear2.weight),
            x,
            layer.norm2.weight,
            layer.norm2.bias,
            x_bias=layer.linear2.bias,
            eps=layer.norm2.eps,
            dropout_p=p,
            rng=rng,
            site=site + SITE_INNER_OUTPUT,
        )

    def _whole_layer(
        self,
        layer: nn.TransformerEncoderLayer,
        x: Tensor,
        batch: JaggedBatch,
        rows: Tensor | None,
        p: float,
        rng: Tensor,
        site: int,
    ) -> Tensor:
        """A layer as one node of autograd, which launches less; on the CPU nothing is gained by that."""
        attention = layer.self_attn
        return ops.transformer_layer(
            x,
            batch.offsets,
            rows,
            in_weight=cast(Tensor, attention.in_proj_weight),
            in_bias=cast(Tensor, attention.in_proj_bias),
            out_weight=attention.out_proj.weight,
            out_bias=attention.out_proj.bias,
            norm1_weight=layer.norm1.weight,
            norm1_bias=layer.norm1.bias,
            weight1=layer.linear1.weight,
            bias1=layer.linear1.bias,
            weight2=layer.linear2.weight,
            bias2=layer.linear2.bias,
            norm2_weight=layer.norm2.weight,
            norm2_bias=layer.norm2.bias,
            heads=self.n_heads,
            max_len=batch.max_len,
            eps=layer.norm1.eps,
            dropout_p=p,
            rng=rng,
            site=site,
        )

    def _attention(
        self,
        attention: nn.MultiheadAttention,
        x: Tensor,
        batch: JaggedBatch,
        last_only: bool,
        p: float,
        rng: Tensor,
        site: int,
    ) -> Tensor:
        """softmax(q kᵀ / √(d / heads)) v, heads side by side: [T, d], or [B, d] where only last rows count."""
        d, heads = self.embedding_size, self.n_heads
        weight, bias = cast(Tensor, attention.in_proj_weight), cast(Tensor, attention.in_proj_bias)
        options: dict[str, Any] = {"max_len": batch.max_len, "dropout_p": p, "rng": rng, "site": site}
        if last_only and batch.hidden is None:
            assert batch.rows is not None
            q = ops.linear(select_rows(x, batch.rows), weight[:d], bias[:d]).view(-1, heads, d // heads)
            k, v = ops.linear(x, weight[d:], bias[d:]).view(-1, 2, heads, d // heads).unbind(1)
            return ops.last_query_attention(q, k, v, batch.offsets, **options).reshape(-1, d)
        q, k, v = ops.linear(x, weight, bias).view(-1, 3, heads, d // heads).unbind(1)
        if batch.hidden is None:
            return ops.causal_attention(q, k, v, batch.offsets, **options).reshape(-1, d)
        out = _masked_attention(q, k, v, batch.offsets, batch.hidden, **options).reshape(-1, d)
        return out if not last_only or batch.rows is None else select_rows(out, batch.rows)


def _masked_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offsets: Tensor,
    hidden: Tensor,
    *,
    max_len: int,
    dropout_p: float,
    rng: Tensor,
    site: int,
) -> Tensor:
    """``ops.causal_attention`` where no row sees those in ``hidden`` [T], in plain PyTorch. A row that sees none at all
    gets zeros, as in PyTorch's own attention."""
    kind = torch.promote_types(q.dtype, torch.float32)
    columns = torch.arange(max_len, device=q.device)
    inside = columns < offsets.diff()[:, None]
    rows = (offsets[:-1, None] + columns).clamp(max=q.shape[0] - 1)  # [B, max_len]
    queries, keys, values = (x[rows].transpose(1, 2).to(kind) for x in (q, k, v))  # [B, H, max_len, D]
    unseen = (hidden[rows] | ~inside)[:, None, None, :] | (columns > columns[:, None])
    scores = (queries @ keys.mT / math.sqrt(q.shape[2])).masked_fill(unseen, torch.finfo(kind).min)
    weights = scores.softmax(-1).masked_fill(unseen, 0.0)
    sites = site | torch.arange(q.shape[1], device=q.device)[:, None] << 16
    at = rows[:, None].expand(weights.shape[:-1])
    weights = apply_dropout(weights, at, dropout_p, rng, sites, rows[:, None, :1])
    return (weights @ values).transpose(1, 2)[inside].to(q.dtype)
