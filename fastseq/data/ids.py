"""Raw ids ↔ indices 0 … n − 1."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastseq.errors import DataError

RawId: TypeAlias = int | str
Int64Array: TypeAlias = NDArray[np.int64]

INT64 = np.iinfo(np.int64)
MISSING = ("", "NaN", "nan", "null", "NULL", "None")  # texts that are no id
BLANKS = " \t\r"  # around an id they do not count
INTEGER = re.compile("0|-?[1-9][0-9]{0,18}")  # as Python prints it


class IdMap:
    """Raw ids, all strings or all integers, in sorted order; an id's index is its place in that order.

    Integers sort numerically and strings by code point, so the map depends on the set of ids alone, never on the
    order in which a file lists them. Integers are kept as int64 and never pass through a float.

    Args:
        values: ids in any order, repeats allowed: a sequence of ``str``, a sequence of ``int``, or an integer array.
        name: what the ids are, for error messages.

    Raises:
        DataError: if an id is neither string nor integer, both kinds occur, an integer does not fit int64, or a
            string is no valid Unicode text.
    """

    __slots__ = ("_index", "_values")

    def __init__(self, values: Iterable[RawId] | NDArray[np.integer], *, name: str = "id") -> None:
        self._values: Int64Array | list[str]
        self._index: dict[str, int] | None = None
        if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
            self._values = np.unique(as_int64(values, name))
            return
        listed = values if isinstance(values, list) else list(values)
        if id_kind(listed, name) == "str":
            self._values = sorted(set(listed))
        else:
            self._values = np.array(sorted(set(listed)), dtype=np.int64)

    @classmethod
    def from_sorted(cls, values: Int64Array | list[str]) -> IdMap:
        """From ids that are already checked, unique and in order; keeps ``values`` itself."""
        result = object.__new__(cls)
        result._values, result._index = values, None
        return result

    @property
    def kind(self) -> Literal["int", "str"]:
        """``"int"`` or ``"str"``."""
        return "str" if isinstance(self._values, list) else "int"

    @property
    def values(self) -> Int64Array | list[str]:
        """The raw ids in order: int64 [n] or a list of n strings. Not to be changed."""
        return self._values

    def encode(self, values: Sequence[Any] | NDArray[Any], *, unknown: Literal["raise", "-1"] = "raise") -> Int64Array:
        """Indices of raw ids.

        Args:
            values: raw ids [k]. An id of the other kind (``"7"`` where ids are integers) is unknown.
            unknown: ``"raise"``, or ``"-1"`` to give −1 for an id that is not in the map.

        Returns:
            int64 [k].

        Raises:
            DataError: naming the first unknown id.
        """
        if isinstance(self._values, list):
            if self._index is None:
                self._index = {value: i for i, value in enumerate(self._values)}
            get = self._index.get
            indices = np.fromiter((get(v, -1) if isinstance(v, str) else -1 for v in values), np.int64, len(values))
        else:
            indices = self._encode_integers(self._values, values)
        if unknown == "raise" and len(indices) and indices.min() < 0:
            missing = values[int(np.argmax(indices < 0))]
            raise DataError(
                "unknown id "
                + (
                    self.of_other_type(missing)
                    or f"{_plain(missing)!r}: not among the {len(self)} known {self.kind} ids"
                )
            )
        return indices

    def of_other_type(self, value: Any) -> str | None:
        """What to say of an id that is unknown for its type alone: converted without loss, it is in the map."""
        other: RawId | None
        if isinstance(value, str):
            was, text = "a string", value.strip(BLANKS)
            number = int(text) if INTEGER.fullmatch(text) else None
            other, how = (text, "id.strip()") if self.kind == "str" else (number, "int(id)")
        elif isinstance(value, bytes):
            was, text = "bytes", value.decode("utf-8", "replace")
            number = int(text) if INTEGER.fullmatch(text) else None
            other, how = (text, "id.decode()") if self.kind == "str" else (number, "int(id)")
        elif is_int64(value) or (
            isinstance(value, float | np.floating) and float(value).is_integer() and abs(float(value)) <= 2**53
        ):
            was, text = ("an integer", "str(id)") if is_int64(value) else ("a float", "str(int(id))")
            other, how = (str(int(value)), text) if self.kind == "str" else (int(value), "int(id)")
        else:
            return None
        if other is None or self.encode([other], unknown="-1")[0] < 0:
            return None
        kind = "an integer" if self.kind == "int" else "a string"
        return f"{_plain(value)!r} is {was}, and the known id is {other!r}, {kind}: convert ids with {how}"

    @staticmethod
    def _encode_integers(known: Int64Array, values: Sequence[Any] | NDArray[Any]) -> Int64Array:
        valid: Any = True
        if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
            if values.dtype == np.uint64:
                valid = values <= INT64.max
            asked = values.astype(np.int64)
        else:
            valid = np.fromiter((is_int64(v) for v in values), np.bool_, len(values))
            asked = np.fromiter(
                (int(v) if ok else 0 for v, ok in zip(values, valid, strict=True)), np.int64, len(values)
            )
        if not len(known):
            return np.full(len(asked), -1, np.int64)
        index = np.minimum(np.searchsorted(known, asked), len(known) - 1)
        return np.where((known[index] == asked) & valid, index, -1)

    def decode(self, indices: Sequence[int] | NDArray[np.integer]) -> list[int] | list[str]:
        """Raw ids at ``indices`` [k] as Python values.

        Raises:
            DataError: naming the first index outside 0 … n − 1.
        """
        positions = np.asarray(indices, dtype=np.int64)
        outside = (positions < 0) | (positions >= len(self))
        if outside.any():
            raise DataError(
                f"index {positions[outside][0]} is outside 0 … {len(self) - 1}, the indices of the known ids"
            )
        if isinstance(self._values, list):
            return [self._values[i] for i in positions.tolist()]
        return self._values[positions].tolist()

    def take(self, indices: Int64Array) -> IdMap:
        """The map of the ids at ``indices``, which increase strictly."""
        if isinstance(self._values, list):
            return IdMap.from_sorted([self._values[i] for i in indices.tolist()])
        return IdMap.from_sorted(self._values[indices])

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IdMap):
            return NotImplemented
        if isinstance(self._values, list) or isinstance(other._values, list):
            return self._values is other._values or (self.kind == other.kind and self._values == other._values)
        return np.array_equal(self._values, other._values)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"IdMap({len(self)} {self.kind} ids)"

    def digest(self) -> str:
        """sha256 (hex) of the kind and the ids."""
        state = hashlib.sha256(self.kind.encode())
        for array in self.to_arrays().values():
            state.update(np.ascontiguousarray(array).data)
        return state.hexdigest()

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """The ids as arrays to save: "values" int64 [n], or (UTF-8) "bytes" uint8 [m] and "offsets" int64 [n + 1]."""
        if not isinstance(self._values, list):
            return {"values": self._values}
        encoded = [value.encode() for value in self._values]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(e) for e in encoded], out=offsets[1:])
        return {"bytes": np.frombuffer(b"".join(encoded), np.uint8), "offsets": offsets}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> IdMap:
        """The map that ``to_arrays`` saved.

        Raises:
            DataError: if the arrays are not what ``to_arrays`` writes.
        """
        if "values" in arrays:
            values = arrays["values"]
            if values.dtype != np.int64 or values.ndim != 1 or (values[1:] <= values[:-1]).any():
                raise DataError("saved ids: 'values' must be int64, one-dimensional and strictly increasing")
            return cls.from_sorted(np.array(values))
        if not {"bytes", "offsets"} <= set(arrays):
            raise DataError(f"saved ids: expected 'values', or 'bytes' and 'offsets'; found {sorted(arrays)}")
        raw, offsets = arrays["bytes"].astype(np.uint8).tobytes(), arrays["offsets"].tolist()
        if not offsets or offsets[0] != 0 or offsets[-1] != len(raw):
            raise DataError(f"saved ids: 'offsets' must run from 0 to {len(raw)}, the number of bytes")
        try:
            texts = [raw[a:b].decode() for a, b in pairwise(offsets)]
        except UnicodeDecodeError as error:
            raise DataError(f"saved ids: not valid UTF-8 ({error})") from None
        if any(a >= b for a, b in pairwise(texts)):
            raise DataError("saved ids: the strings must be strictly increasing")
        return cls.from_sorted(texts)


def stripped(values: Iterable[Any], name: str) -> list[Any]:
    """Raw ids with the blanks around strings dropped; DataError naming row and column of a missing one."""
    result = [value.strip(BLANKS) if isinstance(value, str) else value for value in values]
    for row, value in enumerate(result):
        if isinstance(value, str) and value in MISSING:
            raise DataError(f"row {row + 1}, column {name!r}: {missing_id(value)}")
    return result


def missing_id(text: str) -> str:
    """What to say of a text that is no id."""
    return f"the id is missing ({text!r}); drop the row or name the id"


def factorise(values: Sequence[RawId] | NDArray[Any], name: str) -> tuple[IdMap, NDArray[np.int32]]:
    """The map of a column's ids, and the index of each row's id, int32 [rows].

    Raises:
        DataError: as ``IdMap``, naming the row (from 1) and the column ``name``.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        column = as_int64(values, name)
        if len(column) and 0 <= (span := int(column.max()) - int(column.min())) <= 4 * len(column) + 1024:
            return _factorise_dense(column, int(column.min()), span)
        known, inverse = np.unique(column, return_inverse=True)
        return IdMap.from_sorted(known), inverse.astype(np.int32)
    listed = values if isinstance(values, list) else list(values)
    id_kind(listed, name)
    ids: list[Any] = sorted(set(listed))
    index = {value: i for i, value in enumerate(ids)}
    codes: NDArray[np.int32] = np.fromiter(map(index.__getitem__, listed), np.int32, len(listed))
    is_text = bool(ids) and isinstance(ids[0], str)
    return IdMap.from_sorted(ids if is_text else np.array(ids, np.int64)), codes


def _factorise_dense(column: Int64Array, low: int, span: int) -> tuple[IdMap, NDArray[np.int32]]:
    """Integers of a narrow range: a table over the range instead of a sort."""
    shifted = column - low
    present = np.zeros(span + 1, np.bool_)
    present[shifted] = True
    rank = np.cumsum(present, dtype=np.int32) - np.int32(1)
    return IdMap.from_sorted(np.flatnonzero(present) + low), rank[shifted].astype(np.int32, copy=False)


def as_int64(values: NDArray[Any], name: str) -> Int64Array:
    """An integer array as int64, or DataError where a value does not fit."""
    if values.dtype == np.uint64 and len(values) and values.max() > INT64.max:
        row = int(np.argmax(values > INT64.max))
        raise DataError(f"row {row + 1}, column {name!r}: {values[row]} does not fit a 64-bit signed integer")
    return values.astype(np.int64, copy=False)


def id_kind(values: Sequence[Any], name: str) -> Literal["int", "str"]:
    """Whether ``values`` are all strings or all integers; DataError naming the first row that breaks this."""
    want = str if len(values) and isinstance(values[0], str) else int
    for row, value in enumerate(values):
        if want is str and isinstance(value, str):
            if value.isascii() or _is_unicode(value):
                continue
            raise DataError(f"row {row + 1}, column {name!r}: {value!r} is not valid Unicode text")
        if want is int and is_int64(value):
            continue
        where = f"row {row + 1}, column {name!r}"
        if isinstance(value, str | int | np.integer) and not isinstance(value, bool | np.bool_):
            if want is int and not isinstance(value, str):
                raise DataError(f"{where}: {value} does not fit a 64-bit signed integer; pass the ids as strings")
            first, this = ("strings", "an integer") if want is str else ("integers", "a string")
            raise DataError(f"{where}: {_plain(value)!r} is {this}, the ids before it are {first}; make them one type")
        if is_missing(value):
            raise DataError(f"{where}: the id is missing ({value!r}); drop the row or name the id")
        raise DataError(
            f"{where}: {brief(value)} ({type(value).__name__}) is neither a string nor an integer"
            + ("; give each id a row (frame.explode)" if isinstance(value, list | tuple | np.ndarray) else "")
        )
    return "str" if want is str else "int"


def is_int64(value: Any) -> bool:
    """Whether ``value`` is an integer (a bool is none) that fits int64."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and INT64.min <= int(value) <= INT64.max


def is_missing(value: Any) -> bool:
    """Whether this is None, NaN, NaT or pandas' NA."""
    try:
        return value is None or bool(value != value)
    except (TypeError, ValueError):  # NA has no truth value, nor has an array
        return type(value).__name__ == "NAType"


def brief(value: object) -> str:
    """One line of a value for messages."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:79] + "…"


def _is_unicode(value: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in value)


def _plain(value: object) -> object:
    """A numpy scalar as the Python value it holds, for messages."""
    return value.item() if isinstance(value, np.generic) else value
