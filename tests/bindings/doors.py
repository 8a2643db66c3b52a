"""Valid arguments for every function of fastseq._C, and what of them may be broken: the table behind test_doors.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from fastseq import _C

Array = np.ndarray[Any, Any]
Arguments = dict[str, Any]


@dataclass
class Call:
    """Arguments that a door takes, in its order.

    Attributes:
        outputs: names of the arrays that it writes to.
        strided: names of the arrays that may have any strides.
        ids: for arrays of which every entry must lie in a range, that range's bounds.
        offsets: for arrays that must begin at 0 and never decrease, where they must end.
    """

    arguments: Arguments
    outputs: set[str]
    strided: set[str]
    ids: dict[str, tuple[int, int]]
    offsets: dict[str, int]


class Maker:
    """Arrays of random sizes, up to about ``scale``, and contents; ``kind`` is the type of the floats.

    It notes which arrays are outputs, may be strided, hold ids or offsets: a Call says the same of its arguments.
    """

    def __init__(self, seed: int, scale: int, kind: type) -> None:
        self.rng, self.scale, self.kind = np.random.default_rng(seed), scale, kind
        self.arrays: list[tuple[Array, str, Any]] = []

    def note(self, x: Array, role: str, value: Any = None) -> Array:
        self.arrays.append((x, role, value))
        return x

    def notes(self, arguments: Arguments, role: str) -> dict[str, Any]:
        """By name of an argument: what was noted of it in this role."""
        return {name: value for name, x in arguments.items() for y, was, value in self.arrays if y is x and was == role}

    def size(self, least: int = 0, most: int | None = None) -> int:
        top = self.scale if most is None else min(most, least + self.scale)
        return int(self.rng.integers(least, max(least, top) + 1))

    def floats(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(self.kind)

    def integers(self, low: int, high: int, *shape: int, dtype: type = np.int64) -> Array:
        return self.rng.integers(low, max(high, low + 1), shape, dtype=dtype)

    def flag(self) -> bool:
        return bool(self.rng.integers(2))

    def maybe(self, x: Array) -> Array | None:
        return x if self.flag() else None

    def drawn(self) -> Arguments:
        """The arguments of a dropout."""
        return {"p": float(self.rng.choice([0.0, 0.3])), "seed": int(self.rng.integers(-(2**63), 2**63 - 1)),
                "step": self.size(), "site": self.size()}  # fmt: skip

    def written(self, x: Array) -> Array:
        return self.note(x, "output")

    def empty(self, *shape: int) -> Array:
        """An output: poisoned, so that what is not written shows."""
        return self.written(np.full(shape, np.nan, self.kind))

    def zeros(self, *shape: int) -> Array:
        """An output that is added to."""
        return self.written(np.zeros(shape, self.kind))

    def blank(self, *shape: int, dtype: Any = np.int64) -> Array:
        """An output of integers."""
        return self.written(np.full(shape, -1, dtype))

    def within(self, x: Array, low: int, high: int) -> Array:
        return self.note(x, "ids", (low, high))

    def ids(self, low: int, high: int, *shape: int, dtype: type = np.int64) -> Array:
        return self.within(self.integers(low, high, *shape, dtype=dtype), low, high)

    def user_offsets(self, users: int) -> Array:
        lengths = self.rng.integers(0, min(self.scale, 40) + 1, users)
        return np.concatenate(([0], np.cumsum(lengths)))

    def offsets(self, sequences: int) -> Array:
        offsets = self.user_offsets(sequences).astype(np.int32)
        return self.note(offsets, "offsets", int(offsets[-1]))


THREADS = {"threads": 2}


def dropout(m: Maker) -> Arguments:
    x = m.floats(m.size(), m.size(most=200))
    return {"x": x, "y": m.empty(*x.shape), **m.drawn(), **THREADS}


def philox(m: Maker) -> Arguments:
    return {name: m.size() for name in ("seed", "step", "c0", "c1", "c3")}


def bias_gelu_dropout(m: Maker) -> Arguments:
    x = m.floats(m.size(), m.size(most=200))
    return {"x": x, "bias": m.floats(x.shape[1]), "y": m.empty(*x.shape), **m.drawn(), **THREADS}


def bias_gelu_dropout_backward(m: Maker) -> Arguments:
    rows, width = m.size(), m.size(most=200)
    return {"grad": m.floats(rows, width), "x": m.floats(rows, width), "bias": m.floats(width),
            "dx": m.empty(rows, width), "dbias": m.empty(width), **m.drawn(), **THREADS}  # fmt: skip


def dropout_add_norm(m: Maker) -> Arguments:
    rows, width = m.size(), m.size(1, 200)
    return {
        "x": m.floats(rows, width), "residual": m.floats(rows, width), "weight": m.floats(width),
        "bias": m.floats(width), "x_bias": m.maybe(m.floats(width)), "y": m.empty(rows, width),
        "mean": m.empty(rows), "rstd": m.empty(rows), "eps": 1e-5, **m.drawn(), **THREADS,
    }  # fmt: skip


def dropout_add_norm_backward(m: Maker) -> Arguments:
    rows, width = m.size(), m.size(1, 200)
    x_bias = m.maybe(m.floats(width))
    return {
        "grad": m.floats(rows, width), "x": m.floats(rows, width), "residual": m.floats(rows, width),
        "weight": m.floats(width), "x_bias": x_bias, "mean": m.floats(rows), "rstd": m.floats(rows),
        "dx": m.empty(rows, width), "dresidual": m.empty(rows, width), "dweight": m.empty(width),
        "dbias": m.empty(width), "dx_bias": None if x_bias is None else m.empty(width), **m.drawn(), **THREADS,
    }  # fmt: skip


def sequence_positions(m: Maker) -> Arguments:
    offsets, n_items = m.offsets(m.size()), m.size(1)
    rows = int(offsets[-1])
    return {
        "items": m.ids(0, n_items, rows), "offsets": offsets, "n_items": n_items,
        "n_positions": int(m.rng.choice([-1, 40])), "positions": m.blank(rows, dtype=np.int32),
    }  # fmt: skip


def _embedding(m: Maker) -> tuple[Arguments, int, int]:
    rows, n_items, n_positions, width = m.size(), m.size(1), m.size(1), m.size(1, 200)
    position_weight = m.maybe(m.floats(n_positions, width))
    positions = m.integers if position_weight is None else m.ids
    tensors = {
        "items": m.ids(0, n_items, rows), "positions": positions(0, n_positions, rows, dtype=np.int32),
        "item_weight": m.floats(n_items, width), "position_weight": position_weight,
    }  # fmt: skip
    return tensors, rows, width


def embed_sequence(m: Maker) -> Arguments:
    tensors, rows, width = _embedding(m)
    norm = m.flag()
    return {
        **tensors, "norm_weight": m.floats(width) if norm else None, "norm_bias": m.floats(width) if norm else None,
        "y": m.empty(rows, width), "mean": m.empty(rows) if norm else None, "rstd": m.empty(rows) if norm else None,
        "eps": 1e-8, **m.drawn(), **THREADS,
    }  # fmt: skip


def embed_sequence_norm_backward(m: Maker) -> Arguments:
    tensors, rows, width = _embedding(m)
    return {
        "grad": m.floats(rows, width), **tensors, "norm_weight": m.floats(width), "mean": m.floats(rows),
        "rstd": m.floats(rows), "de": m.empty(rows, width), "dnorm_weight": m.empty(width),
        "dnorm_bias": m.empty(width), **m.drawn(), **THREADS,
    }  # fmt: skip


def embed_sequence_scatter(m: Maker) -> Arguments:
    offsets, n_items, width = m.offsets(m.size()), m.size(1), m.size(1, 60)
    rows = int(offsets[-1])
    return {
        "de": m.floats(rows, width), "items": m.ids(0, n_items, rows), "offsets": offsets,
        "ditem": m.zeros(n_items, width), "dposition": m.maybe(m.empty(40, width)), "padding_idx": m.size(), **THREADS,
    }  # fmt: skip


def attention(m: Maker, last: bool, backward: bool) -> Arguments:
    offsets, heads, width = m.offsets(m.size()), m.size(1, 3), m.size(1, 40)
    rows = int(offsets[-1])
    queries = len(offsets) - 1 if last else rows
    joint = m.floats(rows, 3, heads, width)  # as a joint projection gives them
    q = m.floats(queries, heads, width) if last else joint[:, 0]
    tensors = {name: m.note(x, "strided") for name, x in (("q", q), ("k", joint[:, 1]), ("v", joint[:, 2]))}
    settings = {"offsets": offsets, "max_len": 40, **m.drawn(), "scale": 0.3, **THREADS}
    if not backward:
        return {**tensors, "out": m.empty(queries, heads, width), "lse": m.empty(queries, heads), **settings}
    return {
        "grad": m.floats(queries, heads, width), **tensors, "lse": m.floats(queries, heads) + m.kind(9),
        "grad_q": m.empty(queries, heads, width), "grad_k": m.empty(rows, heads, width),
        "grad_v": m.empty(rows, heads, width), **settings,
    }  # fmt: skip


causal_attention = partial(attention, last=False, backward=False)
causal_attention_backward = partial(attention, last=False, backward=True)
last_query_attention = partial(attention, last=True, backward=False)
last_query_attention_backward = partial(attention, last=True, backward=True)


def gru(m: Maker) -> Arguments:
    offsets, hidden = m.offsets(m.size()), m.size(1, 40)
    rows = int(offsets[-1])
    return {
        "x_gates": m.floats(rows, 3 * hidden), "weight_hh": m.floats(3 * hidden, hidden),
        "bias_hh": m.maybe(m.floats(3 * hidden)), "offsets": offsets, "max_len": 40,
        "h": m.empty(rows, hidden), "saved": m.empty(rows, 4 * hidden), **THREADS,
    }  # fmt: skip


def gru_backward(m: Maker) -> Arguments:
    offsets, hidden = m.offsets(m.size()), m.size(1, 40)
    rows = int(offsets[-1])
    return {
        "grad": m.floats(rows, hidden), "weight_hh": m.floats(3 * hidden, hidden) / m.kind(hidden),
        "offsets": offsets, "h": m.floats(rows, hidden), "saved": np.tanh(m.floats(rows, 4 * hidden)),
        "grad_x": m.empty(rows, 3 * hidden), "grad_hidden": m.empty(rows, 3 * hidden),
        "previous": m.empty(rows, hidden), "carry": m.empty(len(offsets) - 1, hidden), **THREADS,
    }  # fmt: skip


def product(m: Maker) -> Arguments:
    rows, columns, depth = m.size(), m.size(most=200), m.size(most=300)
    b = m.floats(depth, columns).T if m.flag() else m.floats(columns, depth)
    return {
        "a": m.floats(rows, depth), "b": m.note(b, "strided"), "bias": m.maybe(m.floats(columns)),
        "out": m.empty(rows, columns), "bfloat16": m.flag(), **THREADS,
    }  # fmt: skip


def transposed_product(m: Maker) -> Arguments:
    rows, columns, depth = m.size(most=200), m.size(most=200), m.size()
    return {"a": m.floats(depth, rows), "b": m.floats(depth, columns), "out": m.empty(rows, columns),
            "bfloat16": m.flag(), **THREADS}  # fmt: skip


def _caser(m: Maker) -> tuple[Arguments, dict[str, Array], int, int]:
    offsets = m.offsets(m.size(1))
    rows, count = int(offsets[-1]), m.size()
    max_len, d, n_h, n_v = m.size(1, 6), m.size(1, 20), m.size(most=5), m.size(most=3)
    sequences = m.ids(0, len(offsets) - 1, count)
    lengths = np.diff(offsets)[sequences]
    stops = offsets[sequences] + (m.rng.random(count) * (lengths + 1)).astype(np.int64)
    index = {"offsets": offsets, "sequences": sequences, "stops": m.within(stops, 0, rows + 1)}
    weights = {
        "weight_h": m.floats(max_len * (max_len + 1) // 2, n_h, d), "bias_h": m.floats(max_len, n_h),
        "weight_v": m.floats(n_v, max_len), "bias_v": m.floats(n_v), "padding_row": m.floats(d),
    }  # fmt: skip
    return {"x": m.floats(rows, d), **index, **weights}, weights, n_v * d + max_len * n_h, max_len * n_h


def caser_windows(m: Maker) -> Arguments:
    inputs, _, width, lanes = _caser(m)
    count = len(inputs["stops"])
    return {**inputs, "out": m.empty(count, width), "position": m.blank(count, lanes, dtype=np.int32), **THREADS}


def caser_windows_backward(m: Maker) -> Arguments:
    inputs, weights, width, lanes = _caser(m)
    count = len(inputs["stops"])
    position = m.ids(-1, len(inputs["bias_h"]), count, lanes, dtype=np.int32)
    grads = {f"{name}_grad": m.zeros(*w.shape) for name, w in {"x": inputs["x"], **weights}.items()}
    return {"grad": m.floats(count, width), **inputs, "position": position, **grads, **THREADS}


def sampled_loss(m: Maker) -> Arguments:
    rows, width, items, count = m.size(), m.size(most=40), m.size(1), m.size(most=12)
    shape = (count,) if m.flag() else (rows, count)
    name = str(m.rng.choice(["bpr", "bce", "gbce", "sampled_softmax"]))
    return {
        "h": m.floats(rows, width), "item_weight": m.floats(items, width), "targets": m.ids(0, items, rows),
        "negatives": m.ids(0, items, *shape), "loss": name,
        "log_q": m.floats(*shape) if name == "sampled_softmax" else None, "beta": 0.5, "losses": m.empty(rows),
        "grad_h": m.empty(rows, width), "grad_scores": m.zeros(rows, count + 1), **THREADS,
    }  # fmt: skip


def gru_sampled_loss(m: Maker) -> Arguments:
    events, width, items, hidden = m.size(), m.size(most=40), m.size(1), m.size(most=40)
    rows = m.ids(0, events, m.size()) if events > 0 and m.flag() else None
    counted, count = events if rows is None else len(rows), m.size(most=12)
    name = str(m.rng.choice(["bpr", "bce", "gbce", "sampled_softmax"]))
    return {
        "h": m.floats(events, hidden), "rows": rows, "weight": m.floats(width, hidden), "bias": m.floats(width),
        "item_weight": m.floats(items, width), "targets": m.ids(0, items, counted),
        "negatives": m.ids(0, items, count), "loss": name,
        "log_q": m.floats(count) if name == "sampled_softmax" else None, "beta": 0.5, "ignored": -100, "scale": 0.5,
        "losses": m.empty(counted), "y": m.empty(counted, width),
        "d_scores": m.empty(counted, 1), "d_h": m.empty(counted, hidden),
        "d_weight": m.empty(width, hidden), "d_bias": m.empty(width),
        "d_negatives": m.empty(count, width), **THREADS,
    }  # fmt: skip


def item_gradient(m: Maker) -> Arguments:
    rows, columns, width, items = m.size(), m.size(most=12), m.size(most=40), m.size(1)
    return {
        "ids": m.ids(0, items, rows, columns), "coefficients": m.floats(rows, columns),
        "source": m.floats(rows, width), "padding_idx": m.size() - 1, "out": m.empty(items, width), **THREADS,
    }  # fmt: skip


def cross_entropy(m: Maker) -> Arguments:
    rows, width, classes = m.size(), m.size(1, 40), m.size(1, 300)
    bias, trains = m.maybe(m.floats(classes)), m.flag()
    return {
        "h": m.floats(rows, width), "weight": m.floats(classes, width), "bias": bias,
        "targets": m.ids(0, classes, rows), "ignore_index": -100, "softcap": [None, 5.0][m.rng.integers(2)],
        "upstream": m.maybe(m.floats(rows)), "loss": m.empty(rows), "lse": m.empty(rows),
        "dh": m.empty(rows, width) if trains else None, "dweight": m.empty(classes, width) if trains else None,
        "dbias": m.empty(classes) if trains and bias is not None else None, "bfloat16": m.flag(), **THREADS,
    }  # fmt: skip


def topk(m: Maker) -> Arguments:
    users, count, width, k, first_item = m.size(), m.size(most=300), m.size(most=40), m.size(1, 8), m.size()
    n_items, seen_offsets = first_item + count + m.size(1), m.user_offsets(users)
    coded = m.flag()
    return {
        "h": m.floats(users, width), "items": m.floats(count, width), "bias": m.maybe(m.floats(count)),
        "codes": m.integers(-127, 128, count, -(-width // 32) * 32, dtype=np.int8) if coded else None,
        "scales": np.abs(m.floats(count)).astype(np.float32) if coded else None,
        "seen_offsets": seen_offsets, "seen_items": m.ids(0, n_items, int(seen_offsets[-1])),
        "best": m.written(np.full((users, k), -np.inf, m.kind)), "ids": m.blank(users, k),
        "first_user": m.size(), "first_item": first_item, "n_items": n_items, **THREADS,
    }  # fmt: skip


def adam_rows(m: Maker) -> Arguments:
    rows, width, step, before = m.size(), m.size(most=40), m.size(1), m.size(1)
    steps = bool(m.flag())
    touched = m.within(np.sort(m.rng.permutation(rows)[: m.size(most=rows)]), 0, rows)
    moments = {"exp_avg": m.written(m.floats(rows, width)), "exp_avg_sq": m.written(np.abs(m.floats(rows, width)))}
    history = np.abs(m.rng.standard_normal((before + step + 1, 8)))
    return {
        "weight": m.written(m.floats(rows, width)), **moments,
        "last_step": m.written(m.integers(0, step - steps + 1, rows, dtype=np.int32)), "history": history,
        "clock": np.array([step, before]), "rows": touched, "grad": m.floats(len(touched), width) if steps else None,
        "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, **THREADS,
    }  # fmt: skip


def alias_table(m: Maker) -> Arguments:
    n = m.size(1)
    shares = m.rng.multinomial(n * 1000, np.full(n, 1 / n)).astype(np.int64)
    mass = shares * (2**32 // 1000)
    mass[0] += n * 2**32 - mass.sum()
    return {"mass": m.written(m.within(mass, 0, n * 2**32 + 1)), "probability": m.blank(n), "alias": m.blank(n)}


def _table(m: Maker, n_items: int) -> Arguments:
    if m.flag():
        return {"probability": None, "alias": None}
    return {"probability": m.ids(0, 2**32 + 1, n_items), "alias": m.ids(0, n_items, n_items)}


def sample_negatives(m: Maker) -> Arguments:
    n_users, n_items, count, k = m.size(1), m.size(2), m.size(), m.size(most=6)
    lists = [np.flatnonzero(m.rng.random(n_items) < m.rng.random()) for _ in range(n_users)]
    seen_offsets = np.concatenate(([0], np.cumsum([len(seen) for seen in lists])))
    return {
        "users": m.ids(0, n_users, count), "positives": m.ids(0, n_items, count),
        "seen_offsets": seen_offsets, "seen_items": np.concatenate(lists), "n_items": n_items,
        "seed": m.size(), "step": m.size(), **_table(m, n_items), "first": m.size(), "out": m.blank(count, k),
        **THREADS,
    }  # fmt: skip


def sample_shared_negatives(m: Maker) -> Arguments:
    n_items = m.size(1)
    return {"n_items": n_items, "seed": m.size(), "step": m.size(), **_table(m, n_items), "out": m.blank(m.size()),
            **THREADS}  # fmt: skip


def count_windows(m: Maker) -> Arguments:
    """User offsets, and the arguments that say how windows are cut."""
    offsets, max_len = m.user_offsets(m.size()), m.size(1, 9)
    stop = offsets[:-1] + (m.rng.random(len(offsets) - 1) * (np.diff(offsets) + 1)).astype(np.int64)
    return {
        "offsets": offsets, "stop": m.within(stop, 0, int(offsets[-1]) + 1), "max_len": max_len,
        "stride": int(m.rng.integers(1, max_len + 1)), "per_target": m.flag(), "context": m.flag(),
    }  # fmt: skip


def pack_windows(m: Maker) -> Arguments:
    arguments = count_windows(m)
    count = _C.count_windows(**arguments)
    return arguments | {name: m.blank(count) for name in ("user", "start", "window_stop", "first_target")}


def gather_windows(m: Maker) -> Arguments:
    shape = pack_windows(m)
    _C.pack_windows(**shape)
    offsets, max_len = shape["offsets"], shape["max_len"]
    user, start, stop, first = (shape[name].copy() for name in ("user", "start", "window_stop", "first_target"))
    order = m.ids(0, len(user), m.size() if len(user) else 0)
    events, targets = int((stop - start)[order].sum()), int((stop - first + 1)[order].sum())
    history = int((stop - np.maximum(offsets[user], first - max_len))[order].sum())
    l2 = {"l2_items": m.blank(history), "l2_weights": m.written(np.full(history, np.nan, np.float32))}
    return {
        "tape": m.integers(0, 99, int(offsets[-1])), "user_offsets": offsets, "user": user, "start": start,
        "stop": stop, "first_target": first, "order": order, "max_len": max_len, "items": m.blank(events),
        "offsets": m.blank(len(order) + 1, dtype=np.int32), "users": m.blank(len(order)), "rows": m.blank(targets),
        "targets": m.blank(targets), "target_sequences": m.blank(targets), **(l2 if m.flag() else dict.fromkeys(l2)),
    }  # fmt: skip


def build_tape(m: Maker) -> Arguments:
    n, n_users = m.size(), m.size(1)
    times = m.maybe(m.rng.standard_normal(n) if m.flag() else m.integers(-5, 5, n))
    return {
        "users": m.ids(0, n_users, n, dtype=np.int32), "items": m.integers(0, 99, n, dtype=np.int32),
        "times": times, "offsets": m.blank(n_users + 1), "tape": m.blank(n),
        "tape_times": None if times is None else m.blank(n, dtype=times.dtype), **THREADS,
    }  # fmt: skip


def call_of(build: Callable[[Maker], Arguments], m: Maker) -> Call:
    arguments = build(m)
    outputs, strided, ids, offsets = (m.notes(arguments, role) for role in ("output", "strided", "ids", "offsets"))
    return Call(arguments, set(outputs), set(strided), ids, offsets)


# By the name of a function of _C: what makes a call of it.
BUILDERS: dict[str, Callable[[Maker], Call]] = {
    name: partial(call_of, build) for name, build in list(globals().items()) if name[0] != "_" and hasattr(_C, name)
}
