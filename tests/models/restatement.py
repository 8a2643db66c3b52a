"""WarpRec's SASRec, GRU4Rec and Caser stated again in plain PyTorch: padded, one prefix a row, nothing shared.

What the tests check fastseq's models against, with or without WarpRec. Nothing here comes from fastseq.
tests/warprec/test_verify.py compares it with WarpRec itself.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Plain(nn.Module):
    """Constructor, initialisation, loss, scores and optimizer of WarpRec's sequential models.

    Args:
        params: hyper-parameters, WarpRec's names; none may be left out.
        info: n_users and n_items.
        seed: of Python's, numpy's and torch's global generators.
    """

    item_embedding: nn.Embedding
    user_embedding: nn.Embedding

    def __init__(self, params: dict[str, Any], info: dict[str, int], seed: int = 42) -> None:
        super().__init__()
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        self.params, self.padding = params, info["n_items"]
        self.build(params, info["n_users"], info["n_items"])
        self.apply(self.initialise)

    def build(self, params: dict[str, Any], n_users: int, n_items: int) -> None:
        """Makes the layers."""
        raise TypeError("build is the subclass's")

    def initialise(self, module: nn.Module) -> None:
        """WarpRec's initial values, for ``apply``."""
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_normal_(module.weight.data)
            assert module.bias is not None
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
        """The output [B, d] at each history's last event, of outputs [B, W, d]."""
        rows = torch.arange(outputs.shape[0], device=outputs.device)
        return outputs[rows, (lengths - 1).clamp(min=0)]

    def encode(self, users: Tensor | None, sequences: Tensor, lengths: Tensor) -> Tensor:
        """The output [B, d] after each history."""
        return self(sequences, lengths)

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """bpr over the negatives, or cross-entropy over every row of the table, plus the L2 term."""
        users = batch[0] if hasattr(self, "user_embedding") else None
        sequences, lengths, positives, *rest = batch if users is None else batch[1:]
        h = self.encode(users, sequences, lengths)
        used = [self.item_embedding(sequences), self.item_embedding(positives)]
        if users is not None:
            used.append(self.user_embedding(users))
        if rest:
            used.append(self.item_embedding(rest[0]))
            positive = (h * used[1]).sum(-1, keepdim=True)
            negative = (h[:, None, :] * used[-1]).sum(-1)
            main = F.softplus(negative - positive).mean()
        else:
            main = F.cross_entropy(h @ self.item_embedding.weight.T, positives)
        l2 = 0.5 * sum(e.square().sum() for e in used) / sequences.shape[0]
        return main + self.params.get("reg_weight", 0.0) * l2

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int = 0) -> Tensor:
        """``loss``, under WarpRec's name."""
        return self.loss(batch)

    def predict(self, user_indices: Tensor, user_seq: Tensor, seq_len: Tensor) -> Tensor:
        """Scores [B, n_items]."""
        return self.encode(user_indices, user_seq, seq_len) @ self.item_embedding.weight[:-1].T

    def optimizer(self) -> torch.optim.Adam:
        """Adam with coupled weight decay, of which biases, LayerNorms and embeddings of items and users have none."""
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

    def configure_optimizers(self) -> torch.optim.Adam:
        """``optimizer``, under WarpRec's name."""
        return self.optimizer()


class PlainSASRec(Plain):
    """Self-attention, post-LayerNorm."""

    causal_mask: Tensor

    def build(self, params: dict[str, Any], n_users: int, n_items: int) -> None:
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
    """Embedding, GRU without biases, linear layer."""

    def build(self, params: dict[str, Any], n_users: int, n_items: int) -> None:
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


class PlainCaser(Plain):
    """One padded window a row, one convolution for each height."""

    def build(self, params: dict[str, Any], n_users: int, n_items: int) -> None:
        d, length = params["embedding_size"], params["max_seq_len"]
        n_h, n_v = params["n_h"], params["n_v"]
        self.user_embedding = nn.Embedding(n_users, d)
        self.item_embedding = nn.Embedding(n_items + 1, d, padding_idx=n_items)
        if n_v:
            self.conv_v = nn.Conv2d(1, n_v, (length, 1))
        if n_h:
            self.conv_h = nn.ModuleList(nn.Conv2d(1, n_h, (height, d)) for height in range(1, length + 1))
        self.fc1 = nn.Linear(n_v * d + n_h * length, d)
        self.fc2 = nn.Linear(2 * d, d)

    def encode(self, users: Tensor | None, sequences: Tensor, lengths: Tensor) -> Tensor:
        """The output [B, d] after each history, which ends where its trailing padding begins."""
        return self(users, sequences)

    def forward(self, users: Tensor, sequences: Tensor) -> Tensor:
        missing = self.params["max_seq_len"] - sequences.shape[1]
        image = self.item_embedding(F.pad(sequences, (0, missing), value=self.padding))[:, None]
        parts = [self.conv_v(image).flatten(1)] if self.params["n_v"] else []
        for convolution in self.conv_h if self.params["n_h"] else ():
            activated = convolution(image).squeeze(3).relu()
            parts.append(F.max_pool1d(activated, activated.shape[2]).squeeze(2))
        z = F.relu(self.fc1(torch.cat(parts, dim=1)))
        return F.relu(self.fc2(torch.cat([z, self.user_embedding(users)], dim=1)))


PLAIN: dict[str, type[Plain]] = {"SASRec": PlainSASRec, "GRU4Rec": PlainGRU4Rec, "Caser": PlainCaser}
