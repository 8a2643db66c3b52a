"""Caser as WarpRec defines it, over jagged batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..data.batch import JaggedBatch
from ..errors import ConfigError
from .base import SequentialRecommender

SMALL_START = 0.05  # 0.02 ends below popularity, 0.1 does not (docs/quality.md)
SITE_CONVOLUTIONS = 0  # the one dropout site of the random stream (fastseq/ops/philox.py)


class _Stacked(torch.autograd.Function):
    """Filters of all heights, tap by tap [L(L + 1)/2, n_h, d], from the weights of nn.Conv2d, each [n_h, 1, height, d].
    The gradients of all are one gather and views of it, where autograd copies one after the other."""

    generate_vmap_rule = True

    @staticmethod
    def forward(places: Tensor, *weights: Tensor) -> Tensor:
        return torch.cat([weight.squeeze(1).transpose(0, 1) for weight in weights])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.heights = len(inputs) - 1

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (places,) = grads, ctx.saved_tensors
        _, n_h, d = grad.shape
        heights = range(1, ctx.heights + 1)
        parts = grad.flatten(0, 1).index_select(0, places).split([height * n_h for height in heights])
        return None, *(part.view(n_h, 1, height, d) for part, height in zip(parts, heights, strict=True))


class Caser(SequentialRecommender):
    """Convolutions over the last ``max_seq_len`` items of a history, and a vector for each user.

    ``n_v`` vertical filters as tall as the padded history and ``n_h`` horizontal ones of each height 1 … max_seq_len
    (ReLU, max pool), dropout, a linear layer with ReLU, and a second one over its output beside the user's vector,
    with ReLU too; the result is scored against the item embeddings. Either of ``n_v`` and ``n_h`` may be 0.
    ``output_activation="none"`` leaves the last ReLU out, as the paper does; ``user_vectors=False`` the users' vectors
    (Caser-vh in the paper's ablation), and any history can be scored then.

    Of a longer history the last ``max_seq_len`` events count; in a training batch a target's whole history must
    therefore lie in its sequence (``Windows`` with context). A user the model does not know is −1 in ``encode`` and
    ``encode_last``: the mean of all user vectors. ``recommend`` asks for that with ``unknown_users="mean"``.

    Source: Tang & Wang, "Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding", WSDM
    2018; WarpRec 2.2.8's variant of it.
    """

    needs_user = True
    needs_context: ClassVar[bool] = True
    own_options: ClassVar[tuple[str, ...]] = ("output_activation", "user_vectors")
    reads_length: ClassVar[bool] = False

    embedding_size: int
    n_h: int
    n_v: int
    dropout_prob: float
    reg_weight: float = 0.0
    weight_decay: float
    batch_size: int = 2048
    epochs: int
    learning_rate: float
    neg_samples: int
    max_seq_len: int = 20

    def __init__(self, params: dict, info: dict, *args: Any, seed: int = 42, **kwargs: Any) -> None:
        super().__init__(params, info, *args, seed=seed, **kwargs)
        d, length = self.embedding_size, self.max_seq_len
        self.needs_user = self.user_vectors
        if self.user_vectors:
            self.user_embedding = self._divided(self.n_users)
        self.item_embedding = self._divided(self.n_items + 1, self.n_items)
        # Hold the parameters, under WarpRec's names and with its initial values; encode computes with them.
        if self.n_v > 0:
            self.conv_v = nn.Conv2d(1, self.n_v, (length, 1))
        if self.n_h > 0:
            self.conv_h = nn.ModuleList(nn.Conv2d(1, self.n_h, (height, d)) for height in range(1, length + 1))
            # Where each filter's taps, height after height, stand in _Stacked's result.
            rows = torch.arange(length * (length + 1) // 2 * self.n_h).view(-1, self.n_h)
            places = [rows[h * (h - 1) // 2 : h * (h + 1) // 2].T.flatten() for h in range(1, length + 1)]
            self.register_buffer("_places", torch.cat(places), persistent=False)
        self.fc1 = nn.Linear(self.n_v * d + self.n_h * length, d)
        self.fc2 = nn.Linear(2 * d if self.user_vectors else d, d)
        self.apply(self._init_weights)

    @classmethod
    def check_params(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        values = super().check_params(params)
        if values["n_h"] == 0 and values["n_v"] == 0:
            raise ConfigError(f"{cls.__name__}: n_h and n_v are both 0: without filters it reads no history")
        start, whole = values["initializer_range"], values["user_vectors"] and values["output_activation"] == "relu"
        if start is not None and start < SMALL_START and whole:
            raise ConfigError(
                f"{cls.__name__}: initializer_range is {start:g}: from so small a start the last ReLU sets in a few "
                "steps, and what then learns is the users' vectors; set output_activation to none or user_vectors to "
                f"false, or start from {2 * SMALL_START:g}"
            )
        return values

    def forward(self, user: Tensor, item_seq: Tensor) -> Tensor:  # type: ignore[override]
        """The output after each history.

        Args:
            user: int64 [B], 0 … n_users − 1.
            item_seq: int64 [B, W], each row left-aligned and right-padded with id n_items: a history ends where its
                trailing padding begins, and its last max_seq_len events count.

        Returns:
            [B, d].

        Raises:
            ValueError: naming row, column and value of an id that is out of range.
        """
        return self.encode(self._unpad(item_seq, None, user))

    def predict(  # type: ignore[override]
        self, user_indices: Tensor, user_seq: Tensor, *args: Any, item_indices: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Scores of items as the next one, as ``SequentialRecommender.predict``.

        Args:
            user_indices: int64 [B], 0 … n_users − 1.
            user_seq: int64 [B, W], as in ``forward``.
            item_indices: int64 [B, S], 0 … n_items; None: the whole catalogue.
            args, kwargs: accepted and ignored, ``seq_len`` among them.
        """
        return self._predict(user_indices, user_seq, None, item_indices)

    def encode(self, batch: JaggedBatch) -> Tensor:
        items = self._item_rows(batch)
        x = ops.embed_sequence(batch.items, batch.offsets, items, padding_idx=items.shape[0] - 1)
        rows = torch.arange(x.shape[0], device=x.device) if batch.rows is None else batch.rows
        # The padding row learns from cross-entropy's logits alone, as in WarpRec.
        padding_row = items[-1].detach()
        windows = ops.caser_windows(
            x, batch.offsets, batch.target_sequences, rows + 1, *self._horizontal(), *self._vertical(), padding_row
        )
        windows = ops.dropout(windows, self._rate(self.dropout_prob), self._take_rng(), SITE_CONVOLUTIONS)
        z = ops.linear_relu(windows, self.fc1.weight, self.fc1.bias)
        if self.user_vectors:
            users = self._user_vectors(self._user_rows(batch), batch.users_of_targets)
            z = torch.cat([z, users.to(z.dtype)], dim=1)
        last = ops.linear_relu if self.output_activation == "relu" else ops.linear
        return last(z, self.fc2.weight, self.fc2.bias)

    def _horizontal(self) -> tuple[Tensor, Tensor]:
        """Weights [L(L + 1)/2, n_h, d], tap by tap, and biases [L, n_h] of all heights."""
        d, length = self.embedding_size, self.max_seq_len
        if self.n_h == 0:
            weight = self.fc1.weight
            return weight.new_empty(length * (length + 1) // 2, 0, d), weight.new_empty(length, 0)
        convolutions = [cast(nn.Conv2d, convolution) for convolution in self.conv_h]
        stacked: Tensor = _Stacked.apply(self.get_buffer("_places"), *(each.weight for each in convolutions))
        return stacked, torch.stack([cast(Tensor, each.bias) for each in convolutions])

    def _vertical(self) -> tuple[Tensor, Tensor]:
        """Weights [n_v, L] and biases [n_v]."""
        if self.n_v == 0:
            return self.fc1.weight.new_empty(0, self.max_seq_len), self.fc1.weight.new_empty(0)
        return self.conv_v.weight.flatten(1), cast(Tensor, self.conv_v.bias)

    def _user_vectors(self, rows: Tensor, users: Tensor) -> Tensor:
        """Those [N] of ``rows``: [N, d]; the mean vector for −1."""
        if self.training:  # training batches hold known users only: no look, no host synchronisation
            return F.embedding(users, rows)
        known = F.embedding(users.clamp(min=0), rows)
        if users.device.type == "cpu" and not bool((users < 0).any()):  # a GPU is not waited for
            return known
        return torch.where(users[:, None] < 0, rows.mean(dim=0), known)
