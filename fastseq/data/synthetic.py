"""The embedded data set: generated events with real sequential structure."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError
from .frames import import_polars
from .ids import IdMap, Int64Array
from .interactions import Interactions, build_interactions

CLUSTERS = 10
STYLES = 10  # that each cluster's items come in
FOLLOW = 0.9  # share of events whose cluster follows from the last item's
KEEP_STYLE = 0.9  # share of events whose style is that of the item before the last
REPEAT = 0.05  # share of events that repeat an earlier item of the user
TASTE = 0.3  # concentration of a user's taste: smaller, fewer favourites
ZIPF_SHIFT = 50.0  # of ranks: larger, a flatter head
MIN_LENGTH, MAX_LENGTH = 6, 100
BLOCK = 1 << 20  # events that are drawn at a time


def make_demo(n_users: int = 3_000, n_items: int = 1_000, mean_length: float = 30.0, seed: int = 0) -> Interactions:
    """Generates events of users who walk through a catalogue with habits.

    - Every item has a cluster and a style; popularity follows Zipf's law.
    - Order 1: the next item's cluster is most often the successor of the last item's, on a ring of all clusters.
    - Order 2: its style is most often that of the item before the last, so styles alternate. Who knows the last two
      items knows cluster and style; who knows one knows the cluster alone.
    - Taste: other events draw their cluster from the user's own few favourites. Some events repeat an earlier item.

    Args:
        n_users: at least 1.
        n_items: at least ``CLUSTERS``; an item that nobody happens to choose is not in the result.
        mean_length: mean events of a user, at least ``MIN_LENGTH``; lengths are log-normal within
            ``MIN_LENGTH`` … ``MAX_LENGTH``.
        seed: equal seeds give equal data.

    Returns:
        Raw ids "user-0001", "item-0042", …; timestamps in seconds.
    """
    if n_users < 1 or n_items < CLUSTERS or not MIN_LENGTH <= mean_length <= MAX_LENGTH:
        raise ValueError(
            f"n_users={n_users}, n_items={n_items}, mean_length={mean_length}: expected at least 1 user,"
            f" {CLUSTERS} items, and a mean length of {MIN_LENGTH} … {MAX_LENGTH}"
        )
    rng = np.random.default_rng(seed)
    catalogue = Catalogue.draw(rng, n_items)
    lengths = np.clip(rng.lognormal(np.log(mean_length) - 0.18, 0.6, n_users), MIN_LENGTH, MAX_LENGTH).astype(np.int64)
    grid = _walk(rng, lengths, catalogue)
    inside = np.arange(grid.shape[1]) < lengths[:, None]
    users, items = np.nonzero(inside)[0], catalogue.names[grid[inside]]
    begin = 1_700_000_000 + rng.integers(0, 30 * 86_400, n_users)
    times = begin[:, None] + np.cumsum(rng.exponential(3_600, grid.shape).astype(np.int64) + 1, axis=1)
    order = np.argsort(times[inside], kind="stable")  # as a log would list them
    width = max(4, len(str(max(n_users, n_items))))
    return build_interactions(
        [f"user-{u + 1:0{width}d}" for u in users[order].tolist()],
        [f"item-{i + 1:0{width}d}" for i in items[order].tolist()],
        times[inside][order],
    )


def make_long_tail(n_items: int, n_users: int = 20_000, n_events: int = 1_500_000, seed: int = 0) -> Interactions:
    """Generates events without structure of any size, to measure speed and memory: popularity follows Zipf's law.

    The tape is drawn block by block, and is all that it takes, with a few numbers an item and user.

    Args:
        n_items: every item occurs.
        n_users: lengths of their histories are log-normal, at least 2.
        n_events: at least 2 a user and 1 an item.
        seed: equal seeds give equal data.

    Returns:
        Raw ids are the indices; no timestamps.

    Raises:
        ConfigError: for sizes that do not go together.
    """
    rng, offsets = _long_tail(n_items, n_users, n_events, seed)
    tape = np.empty(n_events, np.int64)
    for start, block in _blocks(rng, n_items, n_events):
        tape[start : start + len(block)] = block
    return Interactions(tape, offsets, IdMap.from_sorted(np.arange(n_users)), IdMap.from_sorted(np.arange(n_items)))


def write_long_tail(
    path: str | os.PathLike[str], n_items: int, n_users: int = 20_000, n_events: int = 1_500_000, seed: int = 0
) -> None:
    """Writes the events of ``make_long_tail`` as CSV with the columns user_id, item_id and timestamp, in order of time,
    block by block: memory does not grow with the events. Needs polars (the extra ``data``).

    Raises:
        ConfigError: as there.
        DataError: if the file cannot be written.
    """
    polars = import_polars("writing generated events")
    rng, offsets = _long_tail(n_items, n_users, n_events, seed)
    try:
        with open(path, "wb") as file:
            file.write(b"user_id,item_id,timestamp\n")
            for start, block in _blocks(rng, n_items, n_events):
                times = np.arange(start, start + len(block))
                users = np.searchsorted(offsets, times, side="right") - 1
                columns = {"user_id": users, "item_id": block, "timestamp": 1_700_000_000 + times}
                polars.DataFrame(columns).write_csv(file, include_header=False)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error


def _long_tail(n_items: int, n_users: int, n_events: int, seed: int) -> tuple[np.random.Generator, Int64Array]:
    """The generator, and where each user's events begin and end: int64 [n_users + 1]."""
    if min(n_items, n_users) < 1 or n_events < max(2 * n_users, n_items):
        raise ConfigError(
            f"n_items={n_items}, n_users={n_users}, n_events={n_events}: expected at least 1 item and user, as many "
            "events as items, and twice as many as users"
        )
    rng = np.random.default_rng(seed)
    share = rng.lognormal(0.0, 0.6, n_users)
    ends = np.cumsum(share) * ((n_events - 2 * n_users) / share.sum())
    offsets = np.concatenate([[0], np.rint(ends).astype(np.int64) + 2 * np.arange(1, n_users + 1)])
    offsets[-1] = n_events
    return rng, offsets


def _blocks(rng: np.random.Generator, n_items: int, n_events: int) -> Iterator[tuple[int, Int64Array]]:
    """The items of all events, ``BLOCK`` at a time, and where each block begins. Each item occurs."""
    chance = np.cumsum(1.0 / (np.arange(n_items, dtype=np.float64) + ZIPF_SHIFT))
    chance /= chance[-1]
    names, once = rng.permutation(n_items), rng.permutation(n_items)
    places = (np.arange(n_items) * (n_events / n_items)).astype(np.int64)  # spread over the tape
    for start in range(0, n_events, BLOCK):
        drawn = rng.random(min(BLOCK, n_events - start))
        block = names[np.minimum(np.searchsorted(chance, drawn), n_items - 1)]
        first, last = np.searchsorted(places, (start, start + len(block)))
        block[places[first:last] - start] = once[first:last]
        yield start, block


@dataclass(frozen=True)
class Catalogue:
    """The hidden structure: what each item is, and which cluster follows which.

    Attributes:
        names: int64 [n_items], the number in each item's raw id; items are in order of popularity.
        cluster, style: int64 [n_items].
        next_cluster: int64 [CLUSTERS], one cycle.
        popularity: float64 [n_items], Zipf's law.
    """

    names: Int64Array
    cluster: Int64Array
    style: Int64Array
    next_cluster: Int64Array
    popularity: NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator, n_items: int) -> Catalogue:
        """The catalogue that ``make_demo`` uses, where ``rng`` is fresh from its seed."""
        return cls(
            names=rng.permutation(n_items),  # ids say nothing about popularity
            cluster=np.concatenate([np.arange(CLUSTERS), rng.integers(CLUSTERS, size=n_items - CLUSTERS)]),
            style=rng.integers(STYLES, size=n_items),
            next_cluster=_ring(rng),
            popularity=1.0 / (np.arange(n_items, dtype=np.float64) + ZIPF_SHIFT),
        )


def _walk(rng: np.random.Generator, lengths: Int64Array, catalogue: Catalogue) -> Int64Array:
    """Items of each user in order, [n_users, longest]; columns beyond a user's length mean nothing."""
    n_users, longest = len(lengths), int(lengths.max())
    cluster, style, popularity = catalogue.cluster, catalogue.style, catalogue.popularity
    of_cluster = [popularity * (cluster == c) for c in range(CLUSTERS)]
    by_cluster = Rows(np.stack(of_cluster))
    # A style that a cluster lacks gives way to all of the cluster's items.
    by_style = Rows(np.stack([w * np.where(style == s, 1.0, 1e-9) for w in of_cluster for s in range(STYLES)]))
    taste = Rows(rng.dirichlet(np.full(CLUSTERS, TASTE), n_users))

    users = np.arange(n_users)
    grid = np.empty((n_users, longest), np.int64)
    last, before = by_cluster.draw(taste.draw(users, rng), rng), by_cluster.draw(taste.draw(users, rng), rng)
    for t in range(longest):
        follow = rng.random(n_users) < FOLLOW
        clusters = np.where(follow, catalogue.next_cluster[cluster[last]], taste.draw(users, rng))
        styled = rng.random(n_users) < KEEP_STYLE
        drawn = np.where(styled, by_style.draw(clusters * STYLES + style[before], rng), by_cluster.draw(clusters, rng))
        repeat = (rng.random(n_users) < REPEAT) & (t > 0)
        grid[:, t] = np.where(repeat, grid[users, (rng.random(n_users) * t).astype(np.int64)], drawn)
        before, last = last, grid[:, t]
    return grid


def _ring(rng: np.random.Generator) -> Int64Array:
    """The successor of each cluster on a ring in random order, int64 [CLUSTERS]."""
    order = rng.permutation(CLUSTERS)
    successor = np.empty(CLUSTERS, np.int64)
    successor[order] = np.roll(order, -1)
    return successor


class Rows:
    """Draws from the rows of a table of weights [n, k]: one binary search in all rows laid end to end."""

    def __init__(self, weights: NDArray[np.float64]) -> None:
        cumulative = np.cumsum(weights, axis=1)
        self.width = weights.shape[1]
        self.flat = (cumulative / cumulative[:, -1:] + np.arange(len(weights))[:, None]).ravel()

    def draw(self, rows: Int64Array, rng: np.random.Generator) -> Int64Array:
        """A column from each of ``rows`` [m], int64 [m]."""
        indices = np.searchsorted(self.flat, rows + rng.random(len(rows)), side="right")
        return np.minimum(indices - rows * self.width, self.width - 1)
