"""WarpRec's Caser stated again in plain PyTorch: one padded window per target, one nn.Conv2d per height.

What fastseq's Caser is checked against. Nothing here comes from fastseq.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .restatement import Plain


class PlainCaser(Plain):
    n_users = 7

    def build(self, params: dict[str, Any], n_items: int) -> None:
        d, length = params["embedding_size"], params["max_seq_len"]
        n_h, n_v = params["n_h"], params["n_v"]
        self.user_embedding = nn.Embedding(self.n_users, d)
        self.item_embedding = nn.Embedding(n_items + 1, d, padding_idx=n_items)
        if n_v:
            self.conv_v = nn.Conv2d(1, n_v, (length, 1))
        if n_h:
            self.conv_h = nn.ModuleList(nn.Conv2d(1, n_h, (height, d)) for height in range(1, length + 1))
        self.fc1 = nn.Linear(n_v * d + n_h * length, d)
        self.fc2 = nn.Linear(2 * d, d)

    def initialise(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_normal_(module.weight.data)
            nn.init.zeros_(module.bias.data)
        else:
            super().initialise(module)

    def forward(self, users: Tensor, sequences: Tensor) -> Tensor:
        missing = self.params["max_seq_len"] - sequences.shape[1]
        image = self.item_embedding(F.pad(sequences, (0, missing), value=self.padding))[:, None]
        parts = [self.conv_v(image).flatten(1)] if self.params["n_v"] else []
        for convolution in self.conv_h if self.params["n_h"] else ():
            activated = convolution(image).squeeze(3).relu()
            parts.append(F.max_pool1d(activated, activated.shape[2]).squeeze(2))
        z = F.relu(self.fc1(torch.cat(parts, dim=1)))
        return F.relu(self.fc2(torch.cat([z, self.user_embedding(users)], dim=1)))

    def loss(self, batch: tuple[Tensor, ...]) -> Tensor:
        """bpr over the negatives, or cross-entropy over every row of the table, plus the L2 term."""
        users, sequences, _, positives, *rest = batch
        h = self(users, sequences)
        used = [self.item_embedding(sequences), self.user_embedding(users), self.item_embedding(positives)]
        if rest:
            used.append(self.item_embedding(rest[0]))
            positive = (h * used[2]).sum(-1, keepdim=True)
            main = F.softplus((h[:, None, :] * used[3]).sum(-1) - positive).mean()
        else:
            main = F.cross_entropy(h @ self.item_embedding.weight.T, positives)
        l2 = 0.5 * sum(e.square().sum() for e in used) / sequences.shape[0]
        return main + self.params["reg_weight"] * l2
