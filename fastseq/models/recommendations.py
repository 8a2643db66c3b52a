"""Recommendations as a table with the columns user, item, score and rank: made, read and written block by block."""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..data import frames, tables
from ..data.ids import INTEGER, IdMap, Int64Array, RawId, brief, id_kind
from ..data.interactions import Interactions
from ..data.split import Part, Split
from ..devices import memory_named
from ..errors import DataError, check_integer
from .recommend import (
    HISTORIES_PER_PASS,
    UnknownItem,
    UnknownUser,
    check_unknown,
    evaluating,
    is_one_history,
    item_indices,
    keys_and_histories,
    known_items,
    known_users,
    looked_at,
    one_pass,
    user_indices,
    without_events,
)

if TYPE_CHECKING:
    from .base import SequentialRecommender

ROWS_PER_BLOCK = 1 << 17
Ids = NDArray[Any]  # int64, or objects that are strings


class Block(NamedTuple):
    """Rows of the table; those of a user stand together, best first.

    Attributes:
        user, item: raw ids [n], int64 or, of strings, objects.
        score: float32 [n].
        rank: int32 [n], from 1 for each user.
    """

    user: Ids
    item: Ids
    score: NDArray[np.float32]
    rank: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Recommendations:
    """The best items for many users, as a table that is computed when it is read.

    Iterating gives a ``Block`` of about 130,000 rows after the other, so that memory does not grow with the users; so
    does ``write``. The ``to_*`` hold the whole table. Each computes anew, by the model as it is then; all have the
    columns user and item (integers or strings), score (float32) and rank (int32, from 1). A user has fewer than k rows
    where no more are unseen, and none where there are none.

    Attributes:
        users: the raw ids of the column user, in the order of the table; int64 [n_users] or, of strings, objects.
        k: the most rows of a user.
    """

    users: Ids
    k: int
    _model: SequentialRecommender
    _filter_seen: bool
    _histories: Callable[[int, int, list[str]], list[Int64Array]]  # of users from and to; names emptied ones
    _rows: Tensor | None  # int64 [n_users], of a model that needs users

    def __iter__(self) -> Iterator[Block]:
        for _, block in self._blocks():
            yield block

    def _blocks(self) -> Iterator[tuple[int, Block]]:
        """Blocks, each with how many users are done with it."""
        items = _column(known_items(self._model))
        emptied: list[str] = []
        without, example = 0, ""
        per_pass = HISTORIES_PER_PASS
        step = per_pass * max(1, ROWS_PER_BLOCK // (per_pass * min(self.k, self._model.n_items)))
        for first in range(0, len(self.users), step):
            last = min(first + step, len(self.users))
            indices, scores = self._best(first, last, emptied)
            without, example = without + len(emptied), example or "".join(emptied[:1])
            emptied.clear()
            given = indices >= 0
            yield (
                last,
                Block(
                    np.repeat(self.users[first:last], given.sum(axis=1)),
                    items[indices[given]],
                    scores[given].astype(np.float32),
                    np.broadcast_to(np.arange(1, indices.shape[1] + 1, dtype=np.int32), indices.shape)[given],
                ),
            )
        if without:
            warnings.warn(without_events(without, len(self.users), example), stacklevel=3)

    def to_polars(self) -> Any:
        """A ``polars.DataFrame``; ImportError, naming the extra, where polars is not installed."""
        frames.import_polars("a table of polars")
        return _polars(*map(np.concatenate, zip(self._empty(), *self, strict=True)))

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame``; ImportError, naming the extra, where pandas is not installed."""
        pandas = _import("pandas")
        columns = map(np.concatenate, zip(self._empty(), *self, strict=True))
        return pandas.DataFrame(dict(zip(Block._fields, columns, strict=True)))

    def to_arrow(self) -> Any:
        """A ``pyarrow.Table``; ImportError, naming the extra, where pyarrow is not installed."""
        arrow = _import("pyarrow")
        kinds = {"i": arrow.int64(), "O": arrow.string()}
        types = [kinds[self._empty().user.dtype.kind], kinds[self._empty().item.dtype.kind]]
        types += [arrow.float32(), arrow.int32()]
        schema = arrow.schema(list(zip(Block._fields, types, strict=True)))
        return arrow.Table.from_batches(
            [arrow.record_batch([*map(arrow.array, block, types)], schema=schema) for block in self], schema
        )

    def write(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        on_progress: Callable[[int], object] | None = None,
    ) -> int:
        """Writes the table to a file, block by block: wholly or not at all.

        Args:
            path: .csv, .tsv, .parquet or .jsonl.
            overwrite: replace a file that is there.
            on_progress: called after each block with how many users are done.

        Returns:
            How many rows there are.

        Raises:
            ConfigError: if the extension is another, or the file is there.
            DataError: if it cannot be written, or a history has an item that is unknown.
            ImportError: naming the extra, if polars is not installed.
        """

        rows = 0

        def blocks() -> Iterator[Any]:
            nonlocal rows
            yield _polars(*self._empty())  # names and types, also where no user has a row
            for done, block in self._blocks():
                rows += len(block.user)
                yield _polars(*block)
                if on_progress is not None:
                    on_progress(done)

        tables.write_frames(path, blocks(), overwrite=overwrite)
        return rows

    def _empty(self) -> Block:
        items = _column(known_items(self._model))
        return Block(self.users[:0], items[:0], np.empty(0, np.float32), np.empty(0, np.int32))

    def _best(self, first: int, last: int, emptied: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Item indices and scores [last − first, k] of some users; no mode stays behind while the caller has them."""
        device = self._model.item_embedding.weight.device
        what = f"recommending for {last - first} histories"
        with evaluating(self._model) as model, memory_named(device, what, "take another device, or a smaller k"):
            passes = []
            for at in range(first, last, HISTORIES_PER_PASS):
                end = min(at + HISTORIES_PER_PASS, last)
                rows = None if self._rows is None else self._rows[at:end]
                passes.append(one_pass(model, self._histories(at, end, emptied), rows, self.k, self._filter_seen))
            indices, scores = looked_at(model, torch.cat(passes))
        return indices.numpy(), scores.numpy()


def recommendations(
    model: SequentialRecommender,
    histories: Any,
    k: int = 10,
    *,
    users: Sequence[RawId | None] | None = None,
    part: Part | None = None,
    filter_seen: bool = True,
    unknown_items: UnknownItem = "error",
    unknown_users: UnknownUser = "error",
) -> Recommendations:
    """The answers of ``model.recommend`` for many users, as a table: the same items and scores.

    Args:
        model: as for ``recommend``.
        histories: ``Interactions``, whose histories are all events of a user (``read_interactions``, or
            ``read_histories`` for files and frames of users with one event); a ``Split``; or what ``recommend`` takes:
            a list of histories, a mapping from user to history, a pandas Series. Integer and string ids of
            ``Interactions`` are taken for each other where they print alike.
        k: how many items for each, at least 1.
        users: of ``Interactions`` the raw ids of those to recommend for, in this order; None: all. Of a list of
            histories the raw id of each. Without, and with a None among them, the column user has their numbers, from
            0.
        part: of a ``Split`` "validation" or "test": for the users that ``evaluate`` ranks there, from what it ranks
            them by, the events before the part. None: as ``Interactions``.
        filter_seen, unknown_items, unknown_users: as for ``recommend``.

    Returns:
        ``Recommendations``: nothing is computed yet.

    Raises:
        ValueError: naming what is unknown, or the argument that is wrong.
    """
    check_integer("k", k, 1)
    check_unknown(unknown_items, unknown_users)
    split = histories if isinstance(histories, Split) else None
    if part is not None and split is None:
        raise ValueError(f"part is {part!r}, and histories is a {type(histories).__name__}: part is for a Split")
    if split is not None or isinstance(histories, Interactions):
        tape = _Tape.of(model, histories if split is None else split, part, users)
        if unknown_items == "error" and (unknown := tape.unknown()):
            raise DataError(f"{unknown}; pass unknown_items='skip' (--skip-unknown) to leave their events out")
        rows = None
        if model.needs_user:
            alike = as_kind(tape.users.tolist(), known_users(model))
            rows = user_indices(model, alike, len(alike), unknown_users)
        return Recommendations(tape.users, k, model, filter_seen, tape.histories, rows)
    if frames.is_table(histories):
        raise DataError(
            f"histories is a {type(histories).__name__}: pass read_histories(frame, user=…, item=…, timestamp=…)"
        )
    keys, listed = keys_and_histories(histories)
    if keys is None and is_one_history(listed):
        raise DataError("histories is one history, expected a list of them: [history]")
    given = keys if users is None else frames.as_list(users)
    if users is not None and given is None:
        raise DataError("users must be a list, with one raw user id for each history")
    if given is not None and len(given) != len(listed):
        raise ValueError(f"users has {len(given)} entries for {len(listed)} histories")
    items = known_items(model)

    def read(first: int, last: int, emptied: list[str]) -> list[Int64Array]:
        labels = (f"history {number if keys is None else brief(keys[number])}" for number in range(first, last))
        pairs = zip(listed[first:last], labels, strict=True)
        return [item_indices(items, history, label, unknown_items, emptied) for history, label in pairs]

    rows = user_indices(model, given, len(listed), unknown_users) if model.needs_user else None
    unnamed = given is None or any(user is None for user in given)
    column = np.arange(len(listed)) if unnamed or given is None else user_column(given)
    return Recommendations(column, k, model, filter_seen, read, rows)


@dataclass(frozen=True, eq=False)
class _Tape:
    """Histories that stand on a tape: items int64 as the data number them, where those of each user begin and end."""

    data: Interactions
    users: Ids
    start: Int64Array
    stop: Int64Array
    known: IdMap
    codes: Int64Array  # the model's index of each item of the data, or −1

    @classmethod
    def of(
        cls,
        model: SequentialRecommender,
        source: Interactions | Split,
        part: Part | None,
        users: Sequence[RawId | None] | None,
    ) -> _Tape:
        data = source.interactions if isinstance(source, Split) else source
        start, stop, who = data.offsets[:-1], data.offsets[1:], np.arange(data.n_users)
        if isinstance(source, Split) and part is not None:
            ranked = source.part(part)
            start, stop, who = ranked.history_start, ranked.history_stop, ranked.users
        if users is not None:
            if (listed := frames.as_list(users)) is None:
                raise DataError("users must be a list of raw user ids")
            asked = data.user_ids.encode(listed)
            at = np.searchsorted(who, asked)
            if len(away := np.flatnonzero(np.append(who, -1)[at] != asked)):
                raise DataError(f"user {brief(listed[away[0]])} has no history in the part {part!r}")
            start, stop, who = start[at], stop[at], asked
        known = known_items(model)
        codes = known.encode(as_kind(data.item_ids.values, known), unknown="-1")
        return cls(data, _column(data.user_ids)[who], start, stop, known, codes)

    def histories(self, first: int, last: int, emptied: list[str]) -> list[Int64Array]:
        result = []
        for row in range(first, last):
            codes = self.codes[self.data.items[self.start[row] : self.stop[row]]]
            known = codes[codes >= 0]
            if len(codes) and not len(known):
                emptied.append(f"user {brief(self.users[row : row + 1].tolist()[0])}")
            result.append(known)
        return result

    def unknown(self) -> str:
        """How many items the model does not know, in how many events, and the first of them; empty where it knows
        all."""
        if self.codes.min(initial=0) >= 0:
            return ""
        away, events, which = self.codes < 0, 0, np.zeros(len(self.codes), np.bool_)
        for start, stop in zip(self.start.tolist(), self.stop.tolist(), strict=True):
            items = self.data.items[start:stop]
            events += int(away[items].sum())
            which[items] = True
        missing = np.flatnonzero(which & away)
        if not len(missing):
            return ""
        examples = ", ".join(map(brief, self.data.item_ids.decode(missing[:3])))
        kind = "integers" if self.known.kind == "int" else "strings"
        return (
            f"{len(missing)} of the histories' items, in {events} events, are not in the catalogue of "
            f"{len(self.known)} items, whose ids are {kind}: {examples}{', …' if len(missing) > 3 else ''}"
        )


def unknown_items_of(model: SequentialRecommender, data: Interactions) -> str:
    """Which items of some histories the model does not know, in words; empty where it knows all."""
    return _Tape.of(model, data, None, None).unknown()


def user_column(users: list[Any]) -> Ids:
    """Raw user ids as a column; DataError where they are neither all integers nor all strings."""
    return np.array(users, np.int64 if id_kind(users, "user") == "int" else np.object_)


def _column(ids: IdMap) -> Ids:
    """The raw ids of a map, by index."""
    return np.array(ids.values, np.object_) if ids.kind == "str" else np.asarray(ids.values)


def as_kind(values: Any, known: IdMap) -> Any:
    """Raw ids, those of the other kind as the map has them: a column of a file has one type, that of all its ids."""
    if known.kind == "str":
        return [v if isinstance(v, str) else str(v) for v in values]
    if isinstance(values, np.ndarray):
        return values
    return [int(v) if isinstance(v, str) and INTEGER.fullmatch(v) else v for v in values]


def _polars(user: Ids, item: Ids, score: Any, rank: Any) -> Any:
    import polars as pl

    def ids(name: str, values: Ids) -> Any:
        return pl.Series(name, values.tolist(), pl.String) if values.dtype == np.object_ else pl.Series(name, values)

    return pl.DataFrame([ids("user", user), ids("item", item), pl.Series("score", score), pl.Series("rank", rank)])


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(f"a table of {name} needs {name}: pip install 'fastseq-rec[tables]'") from None
