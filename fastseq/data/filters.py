"""WarpRec's filters by name, event for event, and one of ours: Duplicates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastseq.errors import DataError, check_integer, did_you_mean

from .interactions import Interactions, filter_interactions, take

# The parameters of each filter, all of them required.
FILTERS: dict[str, tuple[str, ...]] = {
    "MinRating": ("min_rating",),
    "UserAverage": (),
    "ItemAverage": (),
    "UserMin": ("min_interactions",),
    "UserMax": ("max_interactions",),
    "ItemMin": ("min_interactions",),
    "ItemMax": ("max_interactions",),
    "IterativeKCore": ("min_interactions",),
    "NRoundsKCore": ("rounds", "min_interactions"),
    "UserHeadN": ("num_interactions",),
    "UserTailN": ("num_interactions",),
    "DropUser": ("user_ids_to_filter",),
    "DropItem": ("item_ids_to_filter",),
    "Duplicates": ("keep",),
}
RATED = ("MinRating", "UserAverage", "ItemAverage")


def check_filter(name: str, parameters: Mapping[str, Any]) -> str:
    """The filter's name in its own spelling; names are the same in upper and lower case.

    Raises:
        ValueError: naming the filter or parameter that is unknown, missing or out of range.
    """
    spelled = {known.lower(): known for known in FILTERS}.get(name.lower())
    if spelled is None:
        raise ValueError(f"unknown filter {name!r}: {did_you_mean(name, FILTERS)}")
    wanted = FILTERS[spelled]
    if parameters.keys() != set(wanted):
        given = ", ".join(map(str, parameters)) or "none"
        raise ValueError(f"{spelled} takes {', '.join(wanted) or 'no parameter'}, got {given}")
    for key, value in parameters.items():
        if key == "keep":
            ok, expected = value in ("first", "last"), "'first' or 'last'"
        elif key == "min_rating":
            ok, expected = isinstance(value, int | float) and value > 0, "a number above 0"
        elif key.endswith("to_filter"):
            ok, expected = value is not None, "an id or a list of ids"
        else:
            check_integer(f"{spelled}.{key}", value, 1)
            continue
        if not ok:
            raise ValueError(f"{spelled}.{key} is {value!r}, expected {expected}")
    return spelled


def apply_filter(interactions: Interactions, name: str, **parameters: Any) -> Interactions:
    """The events that one of WarpRec's filters keeps; ids are indexed anew.

    Args:
        interactions: what to filter; unchanged. MinRating, UserAverage and ItemAverage need its ``ratings``.
        name: a key of ``FILTERS``. ``Duplicates`` keeps the "first" or "last" event of each item in a history.
        parameters: the filter's, as in WarpRec.

    Raises:
        DataError: if no user keeps two events, or the data lacks what the filter needs.
        ValueError: as ``check_filter``.
    """
    name = check_filter(name, parameters)
    if name == "Duplicates":
        data = filter_interactions(interactions, duplicates=parameters["keep"])
    else:
        kept = np.arange(interactions.n_events)
        for _ in range(parameters.get("rounds", interactions.n_events if name == "IterativeKCore" else 1)):
            before = len(kept)
            kept = kept[_kept(interactions, kept, "UserMin" if name.endswith("KCore") else name, parameters)]
            if name.endswith("KCore"):
                kept = kept[_kept(interactions, kept, "ItemMin", parameters)]
            if len(kept) == before:
                break
        whole = len(kept) == interactions.n_events
        data = interactions if whole else take(interactions, kept, f"the filter {name} {parameters}")
    return replace(data, filters=(*interactions.filters, {"filter": name, **parameters}))


def _kept(data: Interactions, rows: NDArray[np.int64], name: str, parameters: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Whether the filter keeps each of the tape rows [m], increasing, of which alone it knows."""
    by_item = name.startswith("Item") or name == "DropItem"
    ids = data.item_ids if by_item else data.user_ids
    groups = data.items[rows] if by_item else data.event_users[rows]
    counts = np.bincount(groups, minlength=len(ids))
    if name in RATED:
        if data.ratings is None:
            raise DataError(
                f"{name} needs ratings, which were not read: name their column with rating=… (in a configuration: "
                "reader.labels.rating_label)"
            )
        ratings = data.ratings[rows]
        if name == "MinRating":
            return ratings >= parameters["min_rating"]
        return ratings > (np.bincount(groups, ratings, len(ids)) / np.maximum(counts, 1))[groups]
    if name.startswith("Drop"):
        (dropped,) = parameters.values()
        dropped = dropped if isinstance(dropped, list) else [dropped]
        indices = ids.encode(dropped, unknown="-1")
        for at in np.flatnonzero(indices < 0).tolist():  # an id that is nowhere is dropped already
            if hint := ids.of_other_type(dropped[at]):
                raise DataError(f"{name}: {hint}")
        return ~np.isin(groups, indices)
    (limit,) = (value for key, value in parameters.items() if key != "rounds")
    if name in ("UserHeadN", "UserTailN"):
        position = np.arange(len(rows)) - (counts.cumsum() - counts)[groups]
        return position < limit if name == "UserHeadN" else position >= counts[groups] - limit
    return counts[groups] >= limit if name.endswith("Min") else counts[groups] <= limit
