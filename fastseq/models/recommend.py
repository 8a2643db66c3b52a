"""Recommendations from histories of raw ids, and which raw id each index of a model stands for."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from .. import ops
from ..data import frames
from ..data.batch import Packed
from ..data.ids import IdMap, RawId, brief
from ..devices import memory_named
from ..errors import CheckpointError, DataError, check_integer
from ..ops.topk import FEW_USERS

if TYPE_CHECKING:
    from ..data.interactions import Interactions
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


class ItemCodes:
    """``ops.item_codes`` of a table as it is now. It is kept alive until then, so that no other has its address."""

    def __init__(self) -> None:
        self._made: tuple[Any, ...] | None = None
        self._steps = 0
        own = weakref.ref(self)

        def count(*_: Any) -> None:
            if (codes := own()) is not None:
                codes._steps += 1

        # A step of a fused optimizer changes parameters and leaves their count of changes as it was.
        weakref.finalize(self, register_optimizer_step_post_hook(count).remove)

    def of(self, table: Tensor) -> tuple[Tensor, Tensor] | None:
        """Codes of all rows but the last, padding; None for a table that they do not serve."""
        if table.dtype != torch.float32 or table.device.type != "cpu" or table.is_inference():
            self._made = None
            return None
        made, changes = self._made, (table._version, self._steps)
        if made is None or made[0] is not table or made[1].data_ptr() != table.data_ptr() or made[2] != changes:
            now = table.detach()
            made = self._made = (table, now, changes, ops.item_codes(now[:-1]))
        codes: tuple[Tensor, Tensor] = made[3]
        return codes

    def __reduce__(self) -> tuple[Any, ...]:
        return ItemCodes, ()  # a copy makes its own


def check_catalogue(model: SequentialRecommender, data: Interactions, *, users: bool) -> None:
    """Refuses data in which an index means another item than in the model, or (``users``) another user.

    Raises:
        DataError: naming both sizes, or the first id that differs.
    """
    items_known, users_known = (
        (None, None) if model.catalogue is None else (model.catalogue.items, model.catalogue.users)
    )
    kinds = [("item", model.n_items, items_known, data.item_ids)]
    if users:
        kinds.append(("user", model.n_users, users_known, data.user_ids))
    for kind, size, known, ids in kinds:
        if size != len(ids):
            raise DataError(
                f"the model was built for {size} {kind}s, the data has {len(ids)}; use the data that it was trained "
                "on, or build a model for these"
            )
        if known is not None and known is not ids and known != ids:
            ours, theirs = (m.decode(range(size)) for m in (known, ids))
            at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
            raise DataError(
                f"the model's catalogue and the data name other {kind}s: number {at} is {ours[at]!r} in the model and "
                f"{theirs[at]!r} in the data; use the data that it was trained on, or build a model for these"
            )


class Recommendation(NamedTuple):
    """The best items for one history, best first: raw ids and scores. Fewer than k where no more are unseen."""

    items: list[RawId]
    scores: list[float]


@overload
def recommend(
    model: SequentialRecommender,
    histories: Sequence[list[Any] | tuple[Any, ...] | NDArray[Any]] | Iterator[Any],
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
    histories: Mapping[Any, Any],
    k: int = 10,
    *,
    users: Sequence[RawId | None] | None = None,
    filter_seen: bool = True,
    unknown_items: UnknownItem = "error",
    unknown_users: UnknownUser = "error",
) -> dict[Any, Recommendation]: ...
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
        histories: a list of histories, each a list of item ids, oldest first; or one such history. Arrays, tensors,
            Series and generators count as lists. A mapping, or a pandas Series of histories with an index of its own,
            is from user to history. An empty history is fine; of one longer than max_seq_len the last max_seq_len
            events are read.
        k: how many items, at least 1.
        users: raw user ids, one for each history (one id for one history), for a model that needs users. None: the
            keys of a mapping; without keys, an unknown user.
        filter_seen: recommend no item of the whole history.
        unknown_items: for an item the model does not know: "error", or "skip" the event, with a warning where that
            leaves a history empty. An item that is unknown for its type alone ("7" for 7) is always an error.
        unknown_users: for such a user: "error", or score with the "mean" user vector.

    Returns:
        A list of ``Recommendation`` (items, scores); one for one history; for a mapping a dict with its keys.

    Raises:
        ValueError: naming the history and the id that is unknown, or the argument that is wrong.
    """
    check_integer("k", k, 1)
    check_unknown(unknown_items, unknown_users)
    keys, listed = keys_and_histories(histories)
    single = keys is None and is_one_history(listed)
    if single:
        listed, users = [listed], None if users is None else [users]
    elif users is None:
        users = keys
    elif (users := frames.as_list(users)) is None:
        raise DataError("users must be a list, with one raw user id for each history")
    rows = user_indices(model, users, len(listed), unknown_users) if model.needs_user else None
    items = known_items(model)
    passes: list[Tensor] = []
    emptied: list[str] = []
    recommending = f"recommending for {len(listed)} histories"
    device = model.item_embedding.weight.device
    with evaluating(model) as model, memory_named(device, recommending, "pass fewer histories at a time"):
        for first in range(0, len(listed), HISTORIES_PER_PASS):
            part = slice(first, first + HISTORIES_PER_PASS)
            seen = []
            for number, history in enumerate(listed[part], first):
                label = f"history {number if keys is None else brief(keys[number])}"
                seen.append(item_indices(items, history, label, unknown_items, emptied))
            passes.append(one_pass(model, seen, None if rows is None else rows[part], k, filter_seen))
        result = _answers(model, torch.cat(passes)) if passes else []
    if emptied:
        warnings.warn(without_events(len(emptied), len(listed), emptied[0]), stacklevel=2)
    if keys is not None:
        return dict(zip(keys, result, strict=True))
    return result[0] if single else result


def check_unknown(items: str, users: str) -> None:
    """Refuses other values of ``unknown_items`` and ``unknown_users``."""
    for name, value, choices in (
        ("unknown_items", items, ("error", "skip")),
        ("unknown_users", users, ("error", "mean")),
    ):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")


def without_events(count: int, of: int, first: str) -> str:
    """The warning of histories of which ``unknown_items="skip"`` left nothing."""
    return (
        f"unknown_items='skip' left {count} of {of} histories without an event ({first}): "
        "they get what an empty history gets"
    )


def known_items(model: SequentialRecommender) -> IdMap:
    """The raw item ids of a model: those of its catalogue, or indices."""
    return IdMap.from_sorted(np.arange(model.n_items)) if model.catalogue is None else model.catalogue.items


def known_users(model: SequentialRecommender) -> IdMap:
    """The raw user ids of a model, likewise."""
    names = None if model.catalogue is None else model.catalogue.users
    return IdMap.from_sorted(np.arange(model.n_users)) if names is None else names


def has_replaced_method(model: nn.Module) -> bool:
    """Whether this instance has a method that its class does not give it, as by ``torch.compile``."""
    return any(callable(value) and hasattr(type(model), name) for name, value in vars(model).items())


@contextmanager
def evaluating(model: SequentialRecommender) -> Iterator[SequentialRecommender]:
    """Yields ``model`` in evaluation mode; gradients are off.

    Where a part of it is in training mode these are the same tensors under modules of their own, so that no mode is
    touched while others use it; what a method writes to ``self`` is then lost. Only a model with a method replaced, as
    by ``torch.compile``, is itself switched and switched back: the new method is bound to it. Where rows of its tables
    wait for an optimizer, they are read as it would leave them, from copies.
    """
    training = [part for part in model.modules() if part.training]
    with torch.inference_mode():
        if not has_replaced_method(model) and (tables := model.caught_up()):
            yield _with_tables(_in_evaluation_mode(model), tables)
            return
        if not (training and has_replaced_method(model)):
            yield _in_evaluation_mode(model)
            return
        try:
            for part in training:
                part.training = False
            yield model
        finally:
            for part in training:
                part.training = True


def _in_evaluation_mode(module: _Module) -> _Module:
    if not any(part.training for part in module.modules()):
        return module
    twin = _twin(module)
    twin.__dict__["training"] = False
    children = module._modules.items()
    twin.__dict__["_modules"] = {name: child and _in_evaluation_mode(child) for name, child in children}
    return twin


def _with_tables(model: SequentialRecommender, tables: Mapping[str, Tensor]) -> SequentialRecommender:
    """The same model with other item and user tables, under modules of their own."""
    twin, children = _twin(model), dict(model._modules)
    for name, table in tables.items():
        embedding = _twin(getattr(model, f"{name}_embedding"))
        embedding.__dict__["_parameters"] = {"weight": nn.Parameter(table, requires_grad=False)}
        children[f"{name}_embedding"] = embedding
    twin.__dict__.update(_modules=children, waiting_rows=None, item_codes=None)
    return twin


def _twin(module: _Module) -> _Module:
    """Another module with the same attributes."""
    twin = module.__class__.__new__(module.__class__)
    twin.__dict__.update(vars(module))
    return twin


def is_one_history(listed: list[Any]) -> bool:
    """Whether a list has item ids, not histories."""
    return len(listed) > 0 and isinstance(listed[0], str | int | float | np.number)


def keys_and_histories(histories: Any) -> tuple[list[Any] | None, list[Any]]:
    """Keys where there are some, and a list: of histories, or without keys also the ids of one history."""
    if (keyed := frames.keyed(histories)) is not None:
        pairs = list(keyed)
        keys, values = [key for key, _ in pairs], [value for _, value in pairs]
        if not isinstance(histories, Mapping) and values and frames.as_list(values[0]) is None:
            return None, values  # a Series of ids: one history
        if len(set(keys)) < len(keys):
            raise DataError("histories has a key twice: pass a list of histories and users=[…]")
        return keys, values
    listed = None if frames.is_frame(histories) else frames.as_list(histories)
    if listed is None:
        raise DataError(
            f"histories is a {type(histories).__name__}, expected a list of item ids, a list of such lists, or a "
            "mapping from user to list (a data frame: read_interactions(frame).history(user))"
        )
    return None, listed


def one_pass(
    model: SequentialRecommender,
    seen: list[NDArray[np.int64]],
    users: Tensor | None,
    k: int,
    filter_seen: bool,
) -> Tensor:
    """The best k on the model's device, which is not waited for: int64 [B, 2k + 1], indices, the bits of scores, and
    those of the output's sum, which is not finite where the output is not."""
    padding = np.array([model.n_items])
    recent = [history[-model.max_seq_len :] if len(history) else padding for history in seen]
    asked = _Asked(*_jagged(recent), users, *(_jagged(seen) if filter_seen else (None, None)))
    asked = asked.to(model.item_embedding.weight.device, non_blocking=True)
    h = model.encode_last(asked.items, asked.offsets, asked.users, max(map(len, recent)), False)
    kept = model.item_codes if len(seen) <= FEW_USERS and model.shards is None else None
    codes = None if kept is None else kept.of(model.item_embedding.weight)
    k = min(k, model.n_items)
    scores, indices = model.best(h, k, asked.seen_offsets, asked.seen_items, codes=codes)
    numbers = torch.cat([scores.float(), h.float().sum(dim=1, keepdim=True)], dim=1)
    return torch.cat([indices, numbers.double().view(torch.int64)], dim=1)


@dataclass
class _Asked(Packed):
    """Histories, jagged, of which none is empty, their users where they are read, and what is left out of the lists."""

    items: Tensor
    offsets: Tensor
    users: Tensor | None
    seen_items: Tensor | None
    seen_offsets: Tensor | None


def _jagged(histories: list[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Items int64 [T] and offsets int32 [B + 1]."""
    offsets = np.zeros(len(histories) + 1, np.int32)
    np.cumsum([len(history) for history in histories], out=offsets[1:])
    return torch.from_numpy(np.concatenate(histories)), torch.from_numpy(offsets)


def diverged(model: object) -> CheckpointError:
    """What a model is refused with whose outputs are not finite."""
    return CheckpointError(
        f"{type(model).__name__} gives outputs that are not finite: its training has diverged; go back to an earlier "
        "checkpoint or train with a lower learning rate"
    )


def looked_at(model: SequentialRecommender, best: Tensor) -> tuple[Tensor, Tensor]:
    """What ``one_pass`` gave: int64 item indices [B, k], −1 behind the last, and float64 scores; the one look at the
    device."""
    indices, bits, total = best.cpu().tensor_split([best.shape[1] // 2, best.shape[1] - 1], dim=1)
    if not total.view(torch.float64).isfinite().all():
        raise diverged(model)
    return indices, bits.view(torch.float64)


def _answers(model: SequentialRecommender, best: Tensor) -> list[Recommendation]:
    """What ``one_pass`` gave, in raw ids."""
    indices, scores = looked_at(model, best)
    counts = (indices >= 0).sum(dim=1).tolist()
    raw = _raw_items(model, indices.numpy())
    return [Recommendation(ids[:n], row[:n]) for ids, row, n in zip(raw, scores.tolist(), counts, strict=True)]


def _raw_items(model: SequentialRecommender, indices: NDArray[np.int64]) -> list[list[Any]]:
    if model.catalogue is None:
        return indices.tolist()
    flat = model.catalogue.items.decode(np.maximum(indices, 0).ravel())
    width = indices.shape[1]
    return [flat[row * width : (row + 1) * width] for row in range(indices.shape[0])]


def item_indices(items: IdMap, history: Any, label: str, unknown: UnknownItem, emptied: list[str]) -> NDArray[np.int64]:
    """Indices of the known items of a history; ``emptied`` gets the label of one in which none is known."""
    if isinstance(history, Tensor):
        history = history.numpy(force=True)
    integers = isinstance(history, np.ndarray) and history.ndim == 1 and history.dtype.kind in "iu"
    raw = history if integers else frames.as_list(history)
    if raw is None:
        raise DataError(f"{label} is {brief(history)}, expected a list of item ids, oldest first")
    indices = items.encode(raw, unknown="-1")
    missing = np.flatnonzero(indices < 0)
    for event in missing.tolist():
        item = raw[event].item() if integers else raw[event]
        if (hint := items.of_other_type(item)) is not None:
            raise DataError(f"{label}, event {event}: item {hint}")
        if unknown == "error":
            kind = "integers" if items.kind == "int" else "strings"
            raise DataError(
                f"{label}, event {event}: item {brief(item)} is not in the catalogue of {len(items)} items, "
                f"whose ids are {kind}; pass unknown_items='skip' (--skip-unknown) to leave such events out"
            )
    if len(missing) and len(missing) == len(indices):
        emptied.append(label)
    return np.delete(indices, missing)


def user_indices(
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
    names = known_users(model)
    indices = names.encode(users, unknown="-1")
    for row in np.flatnonzero(indices < 0).tolist():
        if (hint := names.of_other_type(users[row])) is not None:
            raise DataError(f"history {row}: user {hint}")
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
