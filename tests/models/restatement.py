"""WarpRec's SASRec and GRU4Rec stated again in plain PyTorch: padded, one prefix a row, nothing shared.

What fastseq's models are checked against. Nothing here comes from fastseq.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Plain(nn.Module):
    """Constructor, initialisation, loss and optimizer of WarpRec's sequential models."""

    item_embedding: nn.Embedding

    def __init__(self, params: dict[str, Any], n_items: int, seed: int = 42) -> None:
        super().__init__()
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.params, self.padding = params, n_items
        self.build(params, n_items)
        self.apply(self.initialise)

    def build(self, params: dict[str, Any], n_items: int) -> None:
        raise TypeError("build is the subclass's")

    def initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.xavier_normal_(module.weight.data)
            nn.init.zeros_(module.bias.data)
        elif isinstance(module, nn.Embedding):
            nn.init.xavier_normal_(module.weight.data)
            if module.padding_idx is not None:
                module.weight.data[module.padding_idx] = 0.0
        elif isinstance(module, nn.GRU):
            for parameter in module.parameters():
                nn.init.xavier_uniform_(parameter.data)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight.data)
            nn.init.zeros_(module.bias.data)

    def last(self, outputs: Tensor, lengths: Tensor) -> Tensor:
        rows = torch.arange(outputs.shape[0], device=outputs.device)
        return outputs[rows, (lengths - 1).clamp(min=0)]

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """bpr over the negatives, or cross-entropy over every row of the table, plus the L2 term."""
        sequences, lengths, positives, *rest = batch
        h = self(sequences, lengths)
        used = [self.item_embedding(sequences), self.item_embedding(positives)]
        if rest:
            used.append(self.item_embedding(rest[0]))
            positive = (h * used[1]).sum(-1, keepdim=True)
            negative = (h[:, None, :] * used[2]).sum(-1)
            main = F.softplus(negative - positive).mean()
        else:
            main = F.cross_entropy(h @ self.item_embedding.weight.T, positives)
        l2 = 0.5 * sum(e.square().sum() for e in used) / sequences.shape[0]
        return main + self.params.get("reg_weight", 0.0) * l2

    def optimizer(self) -> torch.optim.Adam:
        no_decay = ("bias", "norm", "item_embedding", "user_embedding")
        named = dict(self.named_parameters())
        free = [name for name in named if any(word in name for word in no_decay)]
        return torch.optim.Adam(
            [
                {"params": [p for n, p in named.items() if n not in free], "weight_decay": self.params["weight_decay"]},
                {"params": [named[n] for n in free], "weight_decay": 0.0},
            ],
            lr=self.params["learning_rate"],
        )


class PlainSASRec(Plain):
    causal_mask: Tensor

    def build(self, params: dict[str, Any], n_items: int) -> None:
        d, length = params["embedding_size"], params["max_seq_len"]
        self.item_embedding = nn.Embedding(n_items + 1, d, padding_idx=n_items)
        self.position_embedding = nn.Embedding(length, d)
        self.emb_dropout = nn.Dropout(params["dropout_prob"])
        self.layernorm = nn.LayerNorm(d, eps=1e-8)
        layer = nn.TransformerEncoderLayer(
            d_model=d,
            nhead=params["n_heads"],
            dim_feedforward=params["inner_size"],
            dropout=params["attn_dropout_prob"],
            activation="gelu",
            batch_first=True,
        )
        self.transformer_encoder = nn.TransformerEncoder(layer, params["n_layers"], enable_nested_tensor=False)
        self.register_buffer("causal_mask", torch.ones(length, length).triu(1).bool())

    def forward(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        return self.last(self.outputs(sequences), lengths)

    def outputs(self, sequences: Tensor) -> Tensor:
        """[B, W, d]: the output at every position."""
        width = sequences.shape[1]
        hidden = sequences == self.padding
        hidden[:, 0] &= ~hidden.all(dim=1)
        x = self.item_embedding(sequences) + self.position_embedding.weight[:width]
        x = self.emb_dropout(self.layernorm(x))
        # In evaluation mode torch would take a fused path; the same numbers, but not differentiable.
        causal = self.causal_mask[:width, :width]
        return self.transformer_encoder(x, mask=causal, src_key_padding_mask=hidden)


class PlainGRU4Rec(Plain):
    def build(self, params: dict[str, Any], n_items: int) -> None:
        d, hidden = params["embedding_size"], params["hidden_size"]
        self.item_embedding = nn.Embedding(n_items + 1, d, padding_idx=n_items)
        self.emb_dropout = nn.Dropout(params["dropout_prob"])
        self.gru_layers = nn.GRU(d, hidden, params["num_layers"], bias=False, batch_first=True)
        self.dense = nn.Linear(hidden, d)

    def forward(self, sequences: Tensor, lengths: Tensor) -> Tensor:
        return self.last(self.outputs(sequences), lengths)

    def outputs(self, sequences: Tensor) -> Tensor:
        """[B, W, d]: the output at every position."""
        output, _ = self.gru_layers(self.emb_dropout(self.item_embedding(sequences)))
        return self.dense(output)
