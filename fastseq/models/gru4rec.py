"""GRU4Rec as WarpRec defines it, over jagged batches."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .. import ops
from ..data.batch import JaggedBatch
from ..ops.sampled_loss import needs_log_q
from .base import SequentialRecommender
from .jagged import select_rows

SITE_EMBEDDING = 0  # the one dropout site of the random stream (fastseq/ops/philox.py)


class GRU4Rec(SequentialRecommender):
    """A recurrent network over the items of a history.

    Item embedding, dropout, ``num_layers`` GRU layers of ``hidden_size`` without biases, and a linear layer back to
    ``embedding_size``; the output at the last event is scored against the item embeddings.

    Source: Tan, Xu & Liu, "Improved Recurrent Neural Networks for Session-based Recommendations", DLRS 2016;
    WarpRec 2.2.8's variant of it.
    """

    embedding_size: int
    hidden_size: int
    num_layers: int
    dropout_prob: float
    reg_weight: float = 0.0
    weight_decay: float
    batch_size: int = 2048
    epochs: int
    learning_rate: float
    neg_samples: int
    max_seq_len: int = 200

    def __init__(self, params: dict, info: dict, *args: Any, seed: int = 42, **kwargs: Any) -> None:
        super().__init__(params, info, *args, seed=seed, **kwargs)
        self.item_embedding = self._divided(self.n_items + 1, self.n_items)
        # Holds the parameters, under WarpRec's names and with its initial values; encode computes with them.
        self.gru_layers = nn.GRU(self.embedding_size, self.hidden_size, self.num_layers, bias=False, batch_first=True)
        self.dense = nn.Linear(self.hidden_size, self.embedding_size)
        self.apply(self._init_weights)

    def encode(self, batch: JaggedBatch) -> Tensor:
        gates, weight_hh = self._last_gates(batch)
        h = ops.gru(gates, weight_hh, batch.offsets, max_len=batch.max_len)
        if batch.rows is not None:
            h = select_rows(h, batch.rows)
        return ops.linear(h, self.dense.weight, self.dense.bias)

    def _last_gates(self, batch: JaggedBatch) -> tuple[Tensor, Tensor]:
        """Input gates [T, 3H] of the last GRU layer, the layers below it computed, and its recurrent weight."""
        items = self._item_rows(batch)
        x = ops.embed_sequence(
            batch.items,
            batch.offsets,
            items,
            dropout_p=self._rate(self.dropout_prob),
            rng=self._take_rng(),
            site=SITE_EMBEDDING,
            padding_idx=items.shape[0] - 1,
        )
        weights = self.gru_layers.all_weights
        for weight_ih, weight_hh in weights[:-1]:
            x = ops.gru(ops.linear(x, weight_ih), weight_hh, batch.offsets, max_len=batch.max_len)
        weight_ih, weight_hh = weights[-1]
        return ops.linear(x, weight_ih), weight_hh

    def _main_loss(self, batch: JaggedBatch, divisor: int) -> Tensor:
        if self.loss_name == "cross_entropy" or batch.negatives is None:
            return super()._main_loss(batch, divisor)
        gates, weight_hh = self._last_gates(batch)
        items = self._item_rows(batch)
        return ops.gru_sampled_loss(
            gates,
            weight_hh,
            batch.offsets,
            self.dense.weight,
            self.dense.bias,
            batch.rows,
            items,
            batch.targets,
            batch.negatives,
            max_len=batch.max_len,
            loss=self.loss_name,
            log_q=batch.log_q if needs_log_q(self.loss_name) else None,
            beta=self._beta,
            reduction="sum",
            padding_idx=items.shape[0] - 1,
            divisor=divisor,
        )
