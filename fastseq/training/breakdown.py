"""Metrics of some users and some targets: by the length of a history, and by the popularity of the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastseq.data.split import EvalPart, Split

By: TypeAlias = Literal["length", "popularity"]


@dataclass(frozen=True, eq=False)
class Groups:
    """Users or items in groups.

    Attributes:
        names: one a group.
        of: int64 [n], the group of each user or item.
    """

    names: tuple[str, ...]
    of: NDArray[np.int64]


def length_groups(split: Split, part: EvalPart) -> Groups:
    """The users of a part, quarters of them by the number of their training events; equal numbers stay together."""
    lengths = split.train_stop[part.users] - part.history_start
    cuts = np.unique(np.quantile(lengths, [0.25, 0.5, 0.75, 1.0], method="inverted_cdf"))
    of = np.searchsorted(cuts, lengths)
    return Groups(tuple(_between(lengths[of == group], "training events") for group in range(len(cuts))), of)


def popularity_groups(split: Split) -> Groups:
    """All items: head, mid and tail have a third of the training events each, items of equal numbers of them stay
    together, and those without any are a group of their own. A group without items is left out."""
    counts = split.item_counts()
    ordered = np.sort(counts)
    # Training events of the items that have more of them.
    above = counts.sum() - np.concatenate([[0], np.cumsum(ordered)])[np.searchsorted(ordered, counts, side="right")]
    kinds = np.where(counts > 0, 3 * above // max(1, counts.sum()), 3)
    present = np.unique(kinds)
    words = ("head", "mid", "tail", "untrained")
    names = []
    for kind in present.tolist():
        size = f"{int((kinds == kind).sum()):,} items"
        of_each = "" if kind == 3 else f" of {_between(counts[kinds == kind], 'training events')}"
        names.append(f"{words[kind]}: {size}{of_each}")
    return Groups(tuple(names), np.searchsorted(present, kinds))


def _between(numbers: NDArray[np.int64], what: str) -> str:
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low:,} {what}" if low == high else f"{low:,}–{high:,} {what}"


def rows(groups: Groups, sizes: dict[str, NDArray[Any]], names: list[str], sums: NDArray[np.float64]) -> list[Any]:
    """A line a group, ready for JSON; groups without users are left out.

    Args:
        sizes: "users", and what else there is to count: [groups].
        names: of the metrics.
        sums: over the users of a group, [groups, metrics].
    """
    return [
        {"group": name}
        | {what: int(count[group]) for what, count in sizes.items()}
        | {"metrics": dict(zip(names, (sums[group] / sizes["users"][group]).tolist(), strict=True))}
        for group, name in enumerate(groups.names)
        if sizes["users"][group]
    ]
