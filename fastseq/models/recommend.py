"""Recommendations from histories of raw ids, and which raw id each index of a model stands for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from .. import ops
from ..data.ids import IdMap, RawId
from ..errors import DataError

if TYPE_CHECKING:
    from .base import SequentialRecommender

HISTORIES_PER_PASS = 512
_Module = TypeVar("_Module", bound=nn.Module)
UnknownItem = Literal["error", "skip"]
UnknownUser = Literal["error", "mean"]


@dataclass(frozen=True)
class Catalogue:
    """The raw ids a model was trained on; index ``i`` of the model is ``values[i]`` of the map.

    Attributes:
        items: the n_items raw item ids.
        users: the n_users raw user ids, or None where users have no names.
    """

    items: IdMap
    users: IdMap | None = None


class Recommendation(NamedTuple):
    """The best items for one history, best first: raw ids and scores. Fewer than k where no more are unseen."""

    items: list[RawId]
    scores: list[float]


@overload
def recommend(
    model: SequentialRecommender,
    histories: Sequence[list[Any] | tuple[Any, ...] | NDArray[Any]],
    k: int = 10,
    *,
    users: Sequence[RawId | None] | None = None,
    filter_seen: bool = True,
    unknown_items: UnknownItem = "error",
    unknown_users: UnknownUser = "error",
) -> list[Recommendation]: ...
@overload
def recommend(
    model: SequentialRecommender,
    histories: Sequence[RawId] | Tensor,
    k: int = 10,
    *,
    users: RawId | None = None,
    filter_seen: bool = True,
    unknown_items: UnknownItem = "error",
    unknown_users: UnknownUser = "error",
) -> Recommendation: ...
def recommend(
    model: SequentialRecommender,
    histories: Any,
    k: int = 10,
    *,
    users: Any = None,
    filter_seen: bool = True,
    unknown_items: UnknownItem = "error",
    unknown_users: UnknownUser = "error",
) -> Any:
    """The best next items for histories of raw ids (those of ``catalogue``; without one, indices).

    Args:
        model: computes in evaluation mode and without gradients here; its own mode is not touched.
        histories: a list of histories, each a list of item ids, oldest first; or one such history. An empty history is
            fine; of one longer than max_seq_len the last max_seq_len events are read.
        k: how many items, at least 1.
        users: raw user ids, one for each history (one id for one history), for a model that needs users. None: an
            unknown user.
        filter_seen: recommend no item of the whole history.
        unknown_items: for an item the model does not know: "error", or "skip" the event.
        unknown_users: for such a user: "error", or score with the "mean" user vector.

    Returns:
        A list of ``Recommendation`` (items, scores), or one for one history.

    Raises:
        ValueError: naming the history and the id that is unknown, or the argument that is wrong.
    """
    if k < 1:
        raise ValueError(f"k is {k}, expected at least 1")
    for name, value, choices in (
        ("unknown_items", unknown_items, ("error", "skip")),
        ("unknown_users", unknown_users, ("error", "mean")),
    ):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
    single = _is_one_history(histories)
    if single:
        histories, users = [histories], None if users is None else [users]
    rows = _user_indices(model, users, len(histories), unknown_users) if model.needs_user else None
    result: list[Recommendation] = []
    with evaluating(model) as model:
        for first in range(0, len(histories), HISTORIES_PER_PASS):
            part = slice(first, first + HISTORIES_PER_PASS)
            seen = [_item_indices(model, h, first + i, unknown_items) for i, h in enumerate(histories[part])]
            result += _one_pass(model, seen, None if rows is None else rows[part], k, filter_seen)
    return result[0] if single else result


@contextmanager
def evaluating(model: SequentialRecommender) -> Iterator[SequentialRecommender]:
    """Yields ``model`` in evaluation mode; gradients are off.

    Where it is in training mode these are the same tensors under modules of their own, so that its mode is not touched
    while others use it. Only a model with a method replaced, as by ``torch.compile``, is itself switched and switched
    back: the new method is bound to it.
    """
    replaced = any(callable(value) and hasattr(type(model), name) for name, value in vars(model).items())
    with torch.inference_mode():
        if not replaced or not model.training:
            yield _in_evaluation_mode(model)
            return
        model.eval()
        try:
            yield model
        finally:
            model.train()


def _in_evaluation_mode(module: _Module) -> _Module:
    if not any(part.training for part in module.modules()):
        return module
    twin = module.__class__.__new__(module.__class__)
    twin.__dict__.update(vars(module))
    twin.__dict__["training"] = False
    children = module._modules.items()
    twin.__dict__["_modules"] = {name: child and _in_evaluation_mode(child) for name, child in children}
    return twin


def _is_one_history(histories: Any) -> bool:
    """Whether this is one list of ids rather than a list of histories."""
    if isinstance(histories, Tensor | np.ndarray):
        return histories.ndim == 1
    return len(histories) > 0 and isinstance(histories[0], str | int | np.integer)


def _one_pass(
    model: SequentialRecommender,
    seen: list[NDArray[np.int64]],
    users: Tensor | None,
    k: int,
    filter_seen: bool,
) -> list[Recommendation]:
    device = model.item_embedding.weight.device
    items, offsets, longest = _jagged([history[-model.max_seq_len :] for history in seen], device)
    h = model.encode_last(items, offsets, None if users is None else users.to(device), longest)
    seen_items, seen_offsets, _ = _jagged(seen, device) if filter_seen else (None, None, 0)
    weight = model.item_embedding.weight[:-1]
    best = min(k, model.n_items)
    scores, indices = ops.topk(h.to(weight.dtype), weight, best, seen_offsets=seen_offsets, seen_items=seen_items)
    counts = (indices >= 0).sum(dim=1).tolist()
    raw = _raw_items(model, indices.cpu().numpy())
    return [Recommendation(ids[:n], row[:n]) for ids, row, n in zip(raw, scores.float().tolist(), counts, strict=True)]


def _jagged(histories: list[NDArray[np.int64]], device: torch.device) -> tuple[Tensor, Tensor, int]:
    lengths = [len(history) for history in histories]
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    items = torch.from_numpy(np.concatenate(histories)).to(device)
    return items, torch.from_numpy(offsets).to(device), max(lengths)


def _raw_items(model: SequentialRecommender, indices: NDArray[np.int64]) -> list[list[Any]]:
    if model.catalogue is None:
        return indices.tolist()
    flat = model.catalogue.items.decode(np.maximum(indices, 0).ravel())
    width = indices.shape[1]
    return [flat[row * width : (row + 1) * width] for row in range(indices.shape[0])]


def _lookup(ids: IdMap | None, raw: Sequence[Any], size: int) -> NDArray[np.int64]:
    """Indices of raw ids, −1 where unknown. Without a map an id is its own index."""
    if ids is not None:
        return ids.encode(raw, unknown="-1")
    known = [isinstance(r, int | np.integer) and not isinstance(r, bool) and 0 <= r < size for r in raw]
    return np.fromiter((int(r) if ok else -1 for r, ok in zip(raw, known, strict=True)), np.int64, len(raw))


def _item_indices(model: SequentialRecommender, history: Any, number: int, unknown: UnknownItem) -> NDArray[np.int64]:
    if isinstance(history, str | bytes) or not hasattr(history, "__len__"):
        raise DataError(f"history {number} is {history!r}, expected a list of item ids")
    history = history.tolist() if isinstance(history, Tensor) else history
    indices = _lookup(None if model.catalogue is None else model.catalogue.items, history, model.n_items)
    missing = indices < 0
    if not missing.any():
        return indices
    if unknown == "error":
        event = int(np.argmax(missing))
        raise DataError(
            f"history {number}, event {event}: item {history[event]!r} is not in the catalogue of {model.n_items} "
            "items; pass unknown_items='skip' (--skip-unknown) to leave such events out"
        )
    return indices[~missing]


def _user_indices(
    model: SequentialRecommender, users: Sequence[RawId | None] | None, count: int, unknown: UnknownUser
) -> Tensor:
    """int64 [count], −1 where the model does not know the user."""
    name = type(model).__name__
    if users is None:
        if unknown == "error":
            raise DataError(
                f"{name} needs users: pass users=[...], or unknown_users='mean' (--mean-user) for the mean user vector"
            )
        return torch.full((count,), -1, dtype=torch.int64)
    if len(users) != count:
        raise ValueError(f"users has {len(users)} entries for {count} histories")
    indices = _lookup(None if model.catalogue is None else model.catalogue.users, users, model.n_users)
    if unknown == "error" and (indices < 0).any():
        row = int(np.argmax(indices < 0))
        if users[row] is None:
            raise DataError(
                f"history {row} comes without a user, and {name} needs one; name the user, or pass "
                "unknown_users='mean' (--mean-user) to score with the mean user vector"
            )
        raise DataError(
            f"user {users[row]!r} (history {row}) is unknown to this {name}; pass unknown_users='mean' "
            "(--mean-user) to score with the mean user vector"
        )
    return torch.from_numpy(indices)
