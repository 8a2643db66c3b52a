"""Negatives for training: what each user has seen, and the distribution to draw from."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastseq.errors import DataError
from fastseq.native import _C
from fastseq.ops import sample_negatives, sample_shared_negatives

from .batch import JaggedBatch
from .ids import Int64Array
from .interactions import Interactions
from .split import Split

Mode: TypeAlias = Literal["per_target", "shared", "shared_unseen"]
Distribution: TypeAlias = Literal["uniform", "popularity"]


def integer_masses(weights: NDArray[np.float64]) -> Int64Array:
    """Weights in proportion, as integers that sum to ``len(weights) * 2^32``; a positive weight stays positive.

    Args:
        weights: float64 [n], finite, none negative, not all 0.

    Raises:
        ValueError: if they are not.
    """
    if not len(weights) or not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError("weights must be finite, none of them negative, and not all 0")
    total = len(weights) << 32
    shares = weights / weights.max()  # no overflow in the sum
    masses = np.maximum(np.floor(shares / shares.sum() * total), weights > 0).astype(np.int64)
    masses[np.argmax(masses)] += total - masses.sum()  # rounding, well below the largest mass
    return masses


def alias_table(masses: Int64Array) -> tuple[Tensor, Tensor]:
    """Walker's table of a distribution in integers, for ``fastseq.ops.sample_negatives``.

    Args:
        masses: int64 [n] that sum to ``n * 2^32``.

    Returns:
        ``probability`` and ``alias``, int64 [n]: column ``i`` holds item ``i`` for ``probability[i]`` parts of 2^32
        and item ``alias[i]`` for the rest. Over all columns every item has exactly its mass.
    """
    probability, alias = np.empty_like(masses), np.empty_like(masses)
    _C.alias_table(masses.copy(), probability, alias)
    return torch.from_numpy(probability), torch.from_numpy(alias)


class NegativeSampler:
    """Draws negatives for targets of the training part of a data set.

    Args:
        data: the split (or all of the interactions) whose training events are what users have seen.
        size: negatives per target, or in the set that the targets of a batch share; at least 1.
        mode: ``"per_target"``: never an item that the user has seen, nor the target. ``"shared"``: one set per
            batch from the whole catalogue. ``"shared_unseen"``: the same set, but each target's row has the target
            itself in place of what its user has seen, which every loss masks out (``fastseq.ops.sampled_loss``).
        distribution: ``"uniform"``, or ``"popularity"``: in proportion to (training events of the item)^alpha, so an
            item without any is never drawn (at alpha 0 it is).
        alpha: at least 0; for ``"popularity"``.
        with_log_q: whether ``sample`` also reports log-probabilities, which sampled softmax needs.

    Raises:
        ValueError: if an argument is out of range.
    """

    def __init__(
        self,
        data: Interactions | Split,
        size: int,
        *,
        mode: Mode = "per_target",
        distribution: Distribution = "uniform",
        alpha: float = 0.75,
        with_log_q: bool = False,
    ) -> None:
        if size < 1:
            raise ValueError(f"size is {size}, expected at least 1: without negatives pass no sampler")
        for name, value, choices in (("mode", mode, Mode), ("distribution", distribution, Distribution)):
            if value not in get_args(choices):
                raise ValueError(f"{name} is {value!r}, expected one of {', '.join(get_args(choices))}")
        if not (np.isfinite(alpha) and alpha >= 0.0):
            raise ValueError(f"alpha is {alpha}, expected a number, at least 0")
        split = self._split = as_split(data)
        self.size, self.mode, self.with_log_q = size, mode, with_log_q
        self.n_items = split.interactions.n_items
        self._probability: Tensor | None = None
        self._alias: Tensor | None = None
        if distribution == "popularity":
            self._masses = integer_masses(split.item_counts().astype(np.float64) ** alpha)
            self._probability, self._alias = alias_table(self._masses)
        else:
            self._masses = np.ones(self.n_items, np.int64)
        if mode != "shared":
            offsets, items = split.seen()
            self._seen_offsets, self._seen_items = torch.from_numpy(offsets), torch.from_numpy(items)

    def sample(
        self, users: Tensor, targets: Tensor, rng: Tensor, *, first: int = 0, threads: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Negatives of one batch, and their log-probabilities if ``with_log_q``.

        Args:
            users: int64 [N], the user of each target; not read where the set is shared.
            targets: int64 [N]; likewise.
            rng: int64 [2], (seed, step).
            first: number of the first target in the whole batch, for a worker that holds a part of it.
            threads: threads to use; 0 takes torch's setting. The result does not depend on it.

        Returns:
            int64 [N, size], or [size] in mode ``"shared"``; and float32 of that shape, or None.

        Raises:
            ValueError: if a user has seen everything that could be drawn, naming the user's index.
        """
        table = {"probability": self._probability, "alias": self._alias}
        if self.mode != "per_target":
            negatives = sample_shared_negatives(self.size, self.n_items, rng, **table, threads=threads)
            if self.mode == "shared_unseen":
                negatives = self._without_seen(users, targets, negatives)
        else:
            negatives = sample_negatives(
                users,
                targets,
                self._seen_offsets,
                self._seen_items,
                self.size,
                self.n_items,
                rng,
                **table,
                first=first,
                threads=threads,
            )
        return negatives, self._log_q(users, targets, negatives) if self.with_log_q else None

    def _without_seen(self, users: Tensor, targets: Tensor, shared: Tensor) -> Tensor:
        """The shared set [S] as rows [N, S], a row's target in place of what its user has seen."""
        distinct, row = users.unique(return_inverse=True)
        pairs = distinct[:, None].expand(-1, len(shared)).reshape(-1), shared.repeat(len(distinct))
        seen = torch.from_numpy(self._has_seen(*pairs)).view(len(distinct), len(shared))
        return torch.where(seen[row], targets[:, None], shared)

    def check_drawable(self) -> None:
        """Finds out before training what ``sample`` would find out in its midst.

        Raises:
            DataError: if a user with training targets has seen everything that could be drawn, naming the user.
        """
        if self.mode != "per_target":
            return
        drawable = int((self._masses > 0).sum())
        seen = self._seen_offsets.diff().numpy()
        trained = self._split.train_stop - self._split.interactions.offsets[:-1] >= 2
        exhausted = np.flatnonzero(trained & (seen >= drawable))
        if len(exhausted):
            (name,) = self._split.interactions.user_ids.decode(exhausted[:1])
            more = f" (and {len(exhausted) - 1} more users)" if len(exhausted) > 1 else ""
            raise DataError(
                f"user {name!r}{more} has seen every one of the {drawable} items that could be drawn as a negative: "
                "leave such users out, draw shared negatives (negatives: shared), or train without any (neg_samples: 0)"
            )

    def log_q(self, users: Tensor, positives: Tensor, items: Tensor) -> Tensor:
        """Log-probability that one draw gives an item, given what cannot be drawn for that target.

        Args:
            users: int64 [N]; not read where the set is shared.
            positives: int64 [N]; likewise.
            items: int64 [N, K], or [S] in mode ``"shared"``.

        Returns:
            float32, shaped as ``items``; -inf for an item that is never drawn: seen, the positive, or without weight.
        """
        result = self._log_q(users, positives, items)
        if self.mode != "shared":
            never = self._has_seen(users[:, None].expand_as(items).reshape(-1), items.reshape(-1))
            result[torch.from_numpy(never).view_as(items) | (items == positives[:, None])] = -torch.inf
        return result

    def _log_q(self, users: Tensor, positives: Tensor, items: Tensor) -> Tensor:
        """As ``log_q``, of items that are neither seen nor the positive."""
        own = self._log_masses[items.numpy()]
        if self.mode != "per_target":
            left = np.log(self._masses.sum())
        else:
            new = ~self._has_seen(users, positives)
            excluded = self._seen_masses[users.numpy()] + new * self._masses[positives.numpy()]
            left = np.log(self._masses.sum() - excluded)[:, None]
        return torch.from_numpy((own - left).astype(np.float32))

    def tables(self) -> dict[str, Tensor]:
        """What draws for the training data need, by name, on the CPU.

        ``probability`` and ``alias``, int64 [n_items]; ``seen_offsets``, ``seen_items``, int64, per target;
        ``seen_keys``, int64: user * n_items + item of all that is seen, ascending; and ``log_masses``, float64
        [n_items], with ``log_left``, float64 [] or, per target, [n_users]: their difference is log q.
        """
        tables: dict[str, Tensor] = {}
        if self._probability is not None and self._alias is not None:
            tables |= {"probability": self._probability, "alias": self._alias}
        if self.mode == "per_target":
            tables |= {"seen_offsets": self._seen_offsets, "seen_items": self._seen_items}
        elif self.mode == "shared_unseen":
            users = torch.arange(len(self._seen_offsets) - 1).repeat_interleave(self._seen_offsets.diff())
            tables["seen_keys"] = users * self.n_items + self._seen_items
        if self.with_log_q:
            # Of the training data every positive is among the seen.
            left = self._masses.sum() - (self._seen_masses if self.mode == "per_target" else 0)
            with np.errstate(divide="ignore"):
                tables["log_left"] = torch.from_numpy(np.asarray(np.log(left)))
            tables["log_masses"] = torch.from_numpy(self._log_masses)
        return tables

    @cached_property
    def _log_masses(self) -> NDArray[np.float64]:
        """-inf for an item without weight."""
        with np.errstate(divide="ignore"):
            return np.log(self._masses)

    @cached_property
    def _seen_masses(self) -> Int64Array:
        """Mass of what each user has seen, int64 [n_users]."""
        # The running sum over all users may wrap around; a user's difference is below 2^63 and so comes out right.
        running = np.concatenate([[0], np.cumsum(self._masses[self._seen_items.numpy()])])
        return np.diff(running[self._seen_offsets.numpy()])

    def _has_seen(self, users: Tensor, items: Tensor) -> NDArray[np.bool_]:
        """Whether each user has seen the item, both [N]: a binary search in every list at once."""
        seen, wanted = self._seen_items.numpy(), items.numpy()
        low = self._seen_offsets.numpy()[users.numpy()]
        end = self._seen_offsets.numpy()[users.numpy() + 1]
        high = end.copy()
        while (open_ := low < high).any():
            middle = (low + high) // 2
            below = open_ & (seen[np.where(open_, middle, 0)] < wanted)
            low = np.where(below, middle + 1, low)
            high = np.where(open_ & ~below, middle, high)
        inside = low < end
        return inside & (seen[np.where(inside, low, 0)] == wanted) if len(seen) else inside


class DeviceSampler:
    """The draws of a ``NegativeSampler`` for batches of its training data, from tables on a device, without a wait.

    Args:
        sampler: whose draws these are, bit for bit.
        device: of the batches.
    """

    def __init__(self, sampler: NegativeSampler, device: torch.device) -> None:
        self.size, self.n_items, self.mode = sampler.size, sampler.n_items, sampler.mode
        self._tables = {name: table.to(device) for name, table in sampler.tables().items()}

    @staticmethod
    def bytes_of(sampler: NegativeSampler) -> int:
        """What its tables take on a device."""
        return sum(table.nbytes for table in sampler.tables().values())

    def sample(
        self, batch: JaggedBatch, rng: Tensor, *, first: int = 0, partly: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """As ``NegativeSampler.sample``.

        Args:
            batch: its users and targets are looked at.
            rng: int64 [2], (seed, step), on the device.
            first: number of the first target in the whole batch.
            partly: whether some targets are -100; what they get is an item, no more.
        """
        tables, targets, users = self._tables, batch.targets, batch.users_of_targets
        drawn_from: dict[str, Any] = {name: tables.get(name) for name in ("probability", "alias")}
        if self.mode == "per_target":
            seen = tables["seen_offsets"], tables["seen_items"]
            negatives = sample_negatives(users, targets, *seen, self.size, self.n_items, rng, first=first, **drawn_from)
        else:
            negatives = sample_shared_negatives(self.size, self.n_items, rng, **drawn_from)
        if self.mode == "shared_unseen":
            keys = tables["seen_keys"]
            # The users of the sequences: in most batches fewer than targets.
            wanted = batch.users[:, None] * self.n_items + negatives
            found = torch.searchsorted(keys, wanted).clamp_(max=keys.shape[0] - 1)
            seen_by = (keys[found] == wanted)[batch.target_sequences]
            masked = targets.clamp(min=0) if partly else targets
            negatives = torch.where(seen_by, masked[:, None], negatives)
        if "log_masses" not in tables:
            return negatives, None
        left = tables["log_left"]
        return negatives, (
            tables["log_masses"][negatives] - (left if left.dim() == 0 else left[users][:, None])
        ).float()


def as_split(data: Interactions | Split) -> Split:
    """``data`` itself, or the split in which all events of the interactions are training events."""
    if isinstance(data, Split):
        return data
    end = data.offsets[1:].copy()
    return Split(data, end, end, strategy="none")
