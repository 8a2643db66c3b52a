"""Valid arguments for every function of fastseq._C, and what of them may be broken: the table behind test_doors.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass
class Call:
    """Arguments that a door takes, in its order.

    Attributes:
        outputs: names of the arrays that it writes to.
        strided: names of the arrays that may have any strides.
        ids: for arrays of which every entry must lie in a range, that range's bounds.
        offsets: for arrays that must begin at 0 and never decrease, where they must end.
    """

    arguments: dict[str, Any]
    outputs: set[str]
    strided: set[str] = field(default_factory=set)
    ids: dict[str, tuple[int, int]] = field(default_factory=dict)
    offsets: dict[str, int] = field(default_factory=dict)


class Maker:
    """Arrays of random sizes, up to about ``scale``, and contents; ``kind`` is the type of the floats."""

    def __init__(self, seed: int, scale: int, kind: type) -> None:
        self.rng, self.scale, self.kind = np.random.default_rng(seed), scale, kind

    def size(self, least: int = 0, most: int | None = None) -> int:
        top = self.scale if most is None else min(most, least + self.scale)
        return int(self.rng.integers(least, max(least, top) + 1))

    def floats(self, *shape: int) -> Array:
        return self.rng.standard_normal(shape).astype(self.kind)

    def empty(self, *shape: int) -> Array:
        """An output: poisoned, so that what is not written shows."""
        return np.full(shape, np.nan, self.kind)

    def zeros(self, *shape: int) -> Array:
        return np.zeros(shape, self.kind)

    def integers(self, low: int, high: int, *shape: int, dtype: type = np.int64) -> Array:
        return self.rng.integers(low, max(high, low + 1), shape, dtype=dtype)

    def offsets(self, sequences: int, dtype: type = np.int32) -> Array:
        lengths = self.rng.integers(0, min(self.scale, 40) + 1, sequences)
        return np.concatenate(([0], np.cumsum(lengths))).astype(dtype)

    def drawn(self) -> dict[str, Any]:
        """The arguments of a dropout."""
        return {"p": float(self.rng.choice([0.0, 0.3])), "seed": int(self.rng.integers(-(2**63), 2**63 - 1)),
                "step": self.size(), "site": self.size()}  # fmt: skip

    def maybe(self, x: Array) -> Array | None:
        return x if self.rng.integers(2) else None


THREADS = {"threads": 2}


def dropout(m: Maker) -> Call:
    x = m.floats(m.size(), m.size(most=200))
    return Call({"x": x, "y": m.empty(*x.shape), **m.drawn(), **THREADS}, {"y"})


def philox(m: Maker) -> Call:
    return Call({name: m.size() for name in ("seed", "step", "c0", "c1", "c3")}, set())


def bias_gelu_dropout(m: Maker) -> Call:
    x = m.floats(m.size(), m.size(most=200))
    return Call({"x": x, "bias": m.floats(x.shape[1]), "y": m.empty(*x.shape), **m.drawn(), **THREADS}, {"y"})


def bias_gelu_dropout_backward(m: Maker) -> Call:
    rows, width = m.size(), m.size(most=200)
    arguments = {"grad": m.floats(rows, width), "x": m.floats(rows, width), "bias": m.floats(width),
                 "dx": m.empty(rows, width), "dbias": m.empty(width), **m.drawn(), **THREADS}  # fmt: skip
    return Call(arguments, {"dx", "dbias"})


def dropout_add_norm(m: Maker) -> Call:
    rows, width = m.size(), m.size(1, 200)
    arguments = {
        "x": m.floats(rows, width), "residual": m.floats(rows, width), "weight": m.floats(width),
        "bias": m.floats(width), "x_bias": m.maybe(m.floats(width)), "y": m.empty(rows, width),
        "mean": m.empty(rows), "rstd": m.empty(rows), "eps": 1e-5, **m.drawn(), **THREADS,
    }  # fmt: skip
    return Call(arguments, {"y", "mean", "rstd"})


def dropout_add_norm_backward(m: Maker) -> Call:
    rows, width = m.size(), m.size(1, 200)
    x_bias = m.maybe(m.floats(width))
    arguments = {
        "grad": m.floats(rows, width), "x": m.floats(rows, width), "residual": m.floats(rows, width),
        "weight": m.floats(width), "x_bias": x_bias, "mean": m.floats(rows), "rstd": m.floats(rows),
        "dx": m.empty(rows, width), "dresidual": m.empty(rows, width), "dweight": m.empty(width),
        "dbias": m.empty(width), "dx_bias": None if x_bias is None else m.empty(width), **m.drawn(), **THREADS,
    }  # fmt: skip
    return Call(arguments, {"dx", "dresidual", "dweight", "dbias", "dx_bias"})


def sequence_positions(m: Maker) -> Call:
    offsets, n_items = m.offsets(m.size()), m.size(1)
    rows = int(offsets[-1])
    arguments = {
        "items": m.integers(0, n_items, rows), "offsets": offsets, "n_items": n_items,
        "n_positions": int(m.rng.choice([-1, 40])), "positions": np.full(rows, -1, np.int32),
    }  # fmt: skip
    return Call(arguments, {"positions"}, ids={"items": (0, n_items)}, offsets={"offsets": rows})


def _positions(m: Maker, rows: int, count: int) -> Array:
    return m.integers(0, count, rows, dtype=np.int32)


def embed_sequence(m: Maker) -> Call:
    rows, n_items, n_positions, width = m.size(), m.size(1), m.size(1), m.size(1, 200)
    position_weight = m.maybe(m.floats(n_positions, width))
    norm = bool(m.rng.integers(2))
    arguments = {
        "items": m.integers(0, n_items, rows), "positions": _positions(m, rows, n_positions),
        "item_weight": m.floats(n_items, width), "position_weight": position_weight,
        "norm_weight": m.floats(width) if norm else None, "norm_bias": m.floats(width) if norm else None,
        "y": m.empty(rows, width), "mean": m.empty(rows) if norm else None, "rstd": m.empty(rows) if norm else None,
        "eps": 1e-8, **m.drawn(), **THREADS,
    }  # fmt: skip
    ids = {"items": (0, n_items)} | ({} if position_weight is None else {"positions": (0, n_positions)})
    return Call(arguments, {"y", "mean", "rstd"}, ids=ids)


def embed_sequence_norm_backward(m: Maker) -> Call:
    rows, n_items, n_positions, width = m.size(), m.size(1), m.size(1), m.size(1, 200)
    position_weight = m.maybe(m.floats(n_positions, width))
    arguments = {
        "grad": m.floats(rows, width), "items": m.integers(0, n_items, rows),
        "positions": _positions(m, rows, n_positions), "item_weight": m.floats(n_items, width),
        "position_weight": position_weight, "norm_weight": m.floats(width), "mean": m.floats(rows),
        "rstd": m.floats(rows), "de": m.empty(rows, width), "dnorm_weight": m.empty(width),
        "dnorm_bias": m.empty(width), **m.drawn(), **THREADS,
    }  # fmt: skip
    ids = {"items": (0, n_items)} | ({} if position_weight is None else {"positions": (0, n_positions)})
    return Call(arguments, {"de", "dnorm_weight", "dnorm_bias"}, ids=ids)


def embed_sequence_scatter(m: Maker) -> Call:
    offsets, n_items, width = m.offsets(m.size()), m.size(1), m.size(1, 60)
    rows = int(offsets[-1])
    arguments = {
        "de": m.floats(rows, width), "items": m.integers(0, n_items, rows), "offsets": offsets,
        "ditem": m.zeros(n_items, width), "dposition": m.maybe(m.empty(40, width)),
        "padding_idx": m.size(), **THREADS,
    }  # fmt: skip
    return Call(arguments, {"ditem", "dposition"}, ids={"items": (0, n_items)}, offsets={"offsets": rows})


def _attention(m: Maker, last: bool) -> tuple[dict[str, Array], dict[str, Any], int, int]:
    offsets, heads, width = m.offsets(m.size()), m.size(1, 3), m.size(1, 40)
    rows = int(offsets[-1])
    queries = len(offsets) - 1 if last else rows
    joint = m.floats(rows, 3, heads, width)  # as a joint projection gives them
    q = m.floats(queries, heads, width) if last else joint[:, 0]
    settings = {"offsets": offsets, "max_len": 40, **m.drawn(), "scale": 0.3, **THREADS}
    return {"q": q, "k": joint[:, 1], "v": joint[:, 2]}, settings, queries, rows


def _attention_forward(m: Maker, last: bool) -> Call:
    tensors, settings, queries, rows = _attention(m, last)
    _, heads, width = tensors["q"].shape
    arguments = {**tensors, "out": m.empty(queries, heads, width), "lse": m.empty(queries, heads), **settings}
    return Call(arguments, {"out", "lse"}, {"q", "k", "v"}, offsets={"offsets": rows})


def _attention_backward(m: Maker, last: bool) -> Call:
    tensors, settings, queries, rows = _attention(m, last)
    _, heads, width = tensors["q"].shape
    arguments = {
        "grad": m.floats(queries, heads, width), **tensors, "lse": m.floats(queries, heads) + m.kind(9),
        "grad_q": m.empty(queries, heads, width), "grad_k": m.empty(rows, heads, width),
        "grad_v": m.empty(rows, heads, width), **settings,
    }  # fmt: skip
    return Call(arguments, {"grad_q", "grad_k", "grad_v"}, {"q", "k", "v"}, offsets={"offsets": rows})


def causal_attention(m: Maker) -> Call:
    return _attention_forward(m, False)


def causal_attention_backward(m: Maker) -> Call:
    return _attention_backward(m, False)


def last_query_attention(m: Maker) -> Call:
    return _attention_forward(m, True)


def last_query_attention_backward(m: Maker) -> Call:
    return _attention_backward(m, True)


def gru(m: Maker) -> Call:
    offsets, hidden = m.offsets(m.size()), m.size(1, 40)
    rows = int(offsets[-1])
    arguments = {
        "x_gates": m.floats(rows, 3 * hidden), "weight_hh": m.floats(3 * hidden, hidden),
        "bias_hh": m.maybe(m.floats(3 * hidden)), "offsets": offsets, "max_len": 40,
        "h": m.empty(rows, hidden), "saved": m.empty(rows, 4 * hidden), **THREADS,
    }  # fmt: skip
    return Call(arguments, {"h", "saved"}, offsets={"offsets": rows})


def gru_backward(m: Maker) -> Call:
    offsets, hidden = m.offsets(m.size()), m.size(1, 40)
    rows = int(offsets[-1])
    arguments = {
        "grad": m.floats(rows, hidden), "weight_hh": m.floats(3 * hidden, hidden) / m.kind(hidden),
        "offsets": offsets, "h": m.floats(rows, hidden), "saved": np.tanh(m.floats(rows, 4 * hidden)),
        "grad_x": m.empty(rows, 3 * hidden), "grad_hidden": m.empty(rows, 3 * hidden),
        "previous": m.empty(rows, hidden), "carry": m.empty(len(offsets) - 1, hidden), **THREADS,
    }  # fmt: skip
    return Call(arguments, {"grad_x", "grad_hidden", "previous", "carry"}, offsets={"offsets": rows})


def product(m: Maker) -> Call:
    rows, columns, depth = m.size(), m.size(most=200), m.size(most=300)
    b = m.floats(depth, columns).T if m.rng.integers(2) else m.floats(columns, depth)
    arguments = {
        "a": m.floats(rows, depth), "b": b, "bias": m.maybe(m.floats(columns)), "out": m.empty(rows, columns),
        "bfloat16": bool(m.rng.integers(2)), **THREADS,
    }  # fmt: skip
    return Call(arguments, {"out"}, {"b"})


def transposed_product(m: Maker) -> Call:
    rows, columns, depth = m.size(most=200), m.size(most=200), m.size()
    arguments = {"a": m.floats(depth, rows), "b": m.floats(depth, columns), "out": m.empty(rows, columns),
                 "bfloat16": bool(m.rng.integers(2)), **THREADS}  # fmt: skip
    return Call(arguments, {"out"})


def _caser(m: Maker) -> tuple[dict[str, Any], dict[str, Array], int, int]:
    offsets = m.offsets(m.size(1))
    rows, count = int(offsets[-1]), m.size()
    max_len, d, n_h, n_v = m.size(1, 6), m.size(1, 20), m.size(most=5), m.size(most=3)
    sequences = m.integers(0, len(offsets) - 1, count)
    lengths = np.diff(offsets)[sequences]
    stops = offsets[sequences] + (m.rng.random(count) * (lengths + 1)).astype(np.int64)
    index = {"offsets": offsets, "sequences": sequences, "stops": stops}
    weights = {
        "weight_h": m.floats(max_len * (max_len + 1) // 2, n_h, d), "bias_h": m.floats(max_len, n_h),
        "weight_v": m.floats(n_v, max_len), "bias_v": m.floats(n_v), "padding_row": m.floats(d),
    }  # fmt: skip
    return {"x": m.floats(rows, d), **index, **weights}, weights, n_v * d + max_len * n_h, max_len * n_h


def caser_windows(m: Maker) -> Call:
    inputs, _, width, lanes = _caser(m)
    count, rows = len(inputs["stops"]), len(inputs["x"])
    position = np.full((count, lanes), -9, np.int32)
    arguments = {**inputs, "out": m.empty(count, width), "position": position, **THREADS}
    ids = {"sequences": (0, len(inputs["offsets"]) - 1), "stops": (0, rows + 1)}
    return Call(arguments, {"out", "position"}, ids=ids, offsets={"offsets": rows})


def caser_windows_backward(m: Maker) -> Call:
    inputs, weights, width, lanes = _caser(m)
    count, rows, max_len = len(inputs["stops"]), len(inputs["x"]), len(inputs["bias_h"])
    position = m.integers(-1, max_len, count, lanes, dtype=np.int32)
    grads = {"x_grad": m.zeros(*inputs["x"].shape)} | {f"{name}_grad": m.zeros(*w.shape) for name, w in weights.items()}
    arguments = {"grad": m.floats(count, width), **inputs, "position": position, **grads, **THREADS}
    ids = {"sequences": (0, len(inputs["offsets"]) - 1), "stops": (0, rows + 1), "position": (-1, max_len)}
    return Call(arguments, set(grads), ids=ids, offsets={"offsets": rows})


def sampled_loss(m: Maker) -> Call:
    rows, width, items, count = m.size(), m.size(most=40), m.size(1), m.size(most=12)
    shape = (count,) if m.rng.integers(2) else (rows, count)
    name = str(m.rng.choice(["bpr", "bce", "gbce", "sampled_softmax"]))
    arguments = {
        "h": m.floats(rows, width), "item_weight": m.floats(items, width), "targets": m.integers(0, items, rows),
        "negatives": m.integers(0, items, *shape), "loss": name,
        "log_q": m.floats(*shape) if name == "sampled_softmax" else None, "beta": 0.5, "losses": m.empty(rows),
        "grad_h": m.empty(rows, width), "grad_scores": m.zeros(rows, count + 1), **THREADS,
    }  # fmt: skip
    ids = {"targets": (0, items), "negatives": (0, items)}
    return Call(arguments, {"losses", "grad_h", "grad_scores"}, ids=ids)


def item_gradient(m: Maker) -> Call:
    rows, columns, width, items = m.size(), m.size(most=12), m.size(most=40), m.size(1)
    arguments = {
        "ids": m.integers(0, items, rows, columns), "coefficients": m.floats(rows, columns),
        "source": m.floats(rows, width), "padding_idx": m.size() - 1, "out": m.empty(items, width), **THREADS,
    }  # fmt: skip
    return Call(arguments, {"out"}, ids={"ids": (0, items)})


def cross_entropy(m: Maker) -> Call:
    rows, width, classes = m.size(), m.size(1, 40), m.size(1, 300)
    bias = m.maybe(m.floats(classes))
    trains = bool(m.rng.integers(2))
    arguments = {
        "h": m.floats(rows, width), "weight": m.floats(classes, width), "bias": bias,
        "targets": m.integers(0, classes, rows), "ignore_index": -100, "softcap": [None, 5.0][m.rng.integers(2)],
        "upstream": m.maybe(m.floats(rows)), "loss": m.empty(rows), "lse": m.empty(rows),
        "dh": m.empty(rows, width) if trains else None, "dweight": m.empty(classes, width) if trains else None,
        "dbias": m.empty(classes) if trains and bias is not None else None, "bfloat16": bool(m.rng.integers(2)),
        **THREADS,
    }  # fmt: skip
    return Call(arguments, {"loss", "lse", "dh", "dweight", "dbias"}, ids={"targets": (0, classes)})


def topk_merge(m: Maker) -> Call:
    rows, columns, k = m.size(), m.size(most=300), m.size(1, 8)
    first_item = m.size()
    n_items = first_item + columns + m.size(1)
    seen_offsets = m.offsets(rows, np.int64)
    best, ids = np.full((rows, k), -np.inf, m.kind), np.full((rows, k), -1)
    arguments = {
        "scores": m.floats(rows, columns), "seen_offsets": seen_offsets,
        "seen_items": m.integers(0, n_items, int(seen_offsets[-1])), "best": best, "ids": ids,
        "first_row": m.size(), "first_item": first_item, "n_items": n_items, **THREADS,
    }  # fmt: skip
    return Call(arguments, {"scores", "best", "ids"}, ids={"seen_items": (0, n_items)})


def topk_sort(m: Maker) -> Call:
    rows, k = m.size(), m.size(most=8)
    return Call({"best": m.floats(rows, k), "ids": m.integers(0, 99, rows, k), **THREADS}, {"best", "ids"})


def adam_rows(m: Maker) -> Call:
    rows, width, step = m.size(), m.size(most=40), m.size(1)
    touched = m.rng.permutation(rows)[: m.size(most=rows)]
    arguments = {
        "weight": m.floats(rows, width), "exp_avg": m.floats(rows, width), "exp_avg_sq": np.abs(m.floats(rows, width)),
        "last_step": m.integers(0, step, rows), "rows": touched, "grad": m.floats(len(touched), width), "step": step,
        "lr": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "lazy": bool(m.rng.integers(2)), **THREADS,
    }  # fmt: skip
    ids = {"rows": (0, rows), "last_step": (0, step)}
    return Call(arguments, {"weight", "exp_avg", "exp_avg_sq", "last_step"}, ids=ids)


def alias_table(m: Maker) -> Call:
    n = m.size(1)
    shares = m.rng.multinomial(n * 1000, np.full(n, 1 / n)).astype(np.int64)
    mass = shares * (2**32 // 1000)
    mass[0] += n * 2**32 - mass.sum()
    arguments = {"mass": mass, "probability": np.full(n, -1), "alias": np.full(n, -1)}
    return Call(arguments, {"mass", "probability", "alias"}, ids={"mass": (0, n * 2**32 + 1)})


def _table(m: Maker, n_items: int) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    if m.rng.integers(2):
        return {"probability": None, "alias": None}, {}
    table = {"probability": m.integers(0, 2**32 + 1, n_items), "alias": m.integers(0, n_items, n_items)}
    return table, {"probability": (0, 2**32 + 1), "alias": (0, n_items)}


def sample_negatives(m: Maker) -> Call:
    n_users, n_items, count, k = m.size(1), m.size(2), m.size(), m.size(most=6)
    lists = [np.flatnonzero(m.rng.random(n_items) < m.rng.random()) for _ in range(n_users)]
    seen_offsets = np.concatenate(([0], np.cumsum([len(seen) for seen in lists])))
    table, table_ids = _table(m, n_items)
    arguments = {
        "users": m.integers(0, n_users, count), "positives": m.integers(0, n_items, count),
        "seen_offsets": seen_offsets, "seen_items": np.concatenate(lists), "n_items": n_items,
        "seed": m.size(), "step": m.size(), **table, "first": m.size(), "out": np.full((count, k), -1), **THREADS,
    }  # fmt: skip
    return Call(arguments, {"out"}, ids={"users": (0, n_users), "positives": (0, n_items), **table_ids})


def sample_shared_negatives(m: Maker) -> Call:
    n_items = m.size(1)
    table, ids = _table(m, n_items)
    arguments = {"n_items": n_items, "seed": m.size(), "step": m.size(), **table, "out": np.full(m.size(), -1),
                 **THREADS}  # fmt: skip
    return Call(arguments, {"out"}, ids=ids)


def _training(m: Maker) -> tuple[Array, dict[str, Any]]:
    """User offsets, and the arguments that say how windows are cut."""
    offsets = m.offsets(m.size(), np.int64)
    stop = offsets[:-1] + (m.rng.random(len(offsets) - 1) * (np.diff(offsets) + 1)).astype(np.int64)
    max_len = m.size(1, 9)
    return offsets, {
        "offsets": offsets, "stop": stop, "max_len": max_len, "stride": int(m.rng.integers(1, max_len + 1)),
        "per_target": bool(m.rng.integers(2)), "context": bool(m.rng.integers(2)),
    }  # fmt: skip


def count_windows(m: Maker) -> Call:
    offsets, arguments = _training(m)
    return Call(arguments, set(), ids={"stop": (0, int(offsets[-1]) + 1)})


def _windows(arguments: dict[str, Any]) -> dict[str, Array]:
    from fastseq import _C

    count = _C.count_windows(**arguments)
    return {name: np.full(count, -1) for name in ("user", "start", "window_stop", "first_target")}


def pack_windows(m: Maker) -> Call:
    offsets, arguments = _training(m)
    windows = _windows(arguments)
    return Call({**arguments, **windows}, set(windows), ids={"stop": (0, int(offsets[-1]) + 1)})


def gather_windows(m: Maker) -> Call:
    from fastseq import _C

    offsets, shape = _training(m)
    windows = _windows(shape)
    _C.pack_windows(**shape, **windows)
    user, start, stop, first = windows.values()
    order = m.integers(0, len(user), m.size() if len(user) else 0)
    max_len = shape["max_len"]
    events, targets = int((stop - start)[order].sum()), int((stop - first + 1)[order].sum())
    history = int((stop - np.maximum(offsets[user], first - max_len))[order].sum())
    batch = {
        "items": np.full(events, -1), "offsets": np.full(len(order) + 1, -1, np.int32),
        "users": np.full(len(order), -1), "rows": np.full(targets, -1), "targets": np.full(targets, -1),
        "target_sequences": np.full(targets, -1), "l2_items": np.full(history, -1),
        "l2_weights": np.full(history, np.nan, np.float32),
    }  # fmt: skip
    if m.rng.integers(2):
        batch |= {"l2_items": None, "l2_weights": None}
    arguments = {"tape": m.integers(0, 99, int(offsets[-1])), "user_offsets": offsets, "user": user, "start": start,
                 "stop": stop, "first_target": first, "order": order, "max_len": max_len, **batch}  # fmt: skip
    return Call(arguments, set(batch), ids={"order": (0, len(user))})


def build_tape(m: Maker) -> Call:
    n, n_users = m.size(), m.size(1)
    real = bool(m.rng.integers(2))
    times = m.maybe(m.rng.standard_normal(n) if real else m.integers(-5, 5, n))
    arguments = {
        "users": m.integers(0, n_users, n, dtype=np.int32), "items": m.integers(0, 99, n, dtype=np.int32),
        "times": times, "offsets": np.full(n_users + 1, -1), "tape": np.full(n, -1),
        "tape_times": None if times is None else np.full(n, -1, times.dtype), **THREADS,
    }  # fmt: skip
    return Call(arguments, {"offsets", "tape", "tape_times"}, ids={"users": (0, n_users)})


BUILDERS: dict[str, Callable[[Maker], Call]] = {
    build.__name__: build
    for build in (
        dropout, philox, bias_gelu_dropout, bias_gelu_dropout_backward, dropout_add_norm, dropout_add_norm_backward,
        sequence_positions, embed_sequence, embed_sequence_norm_backward, embed_sequence_scatter, causal_attention,
        causal_attention_backward, last_query_attention, last_query_attention_backward, gru, gru_backward, product,
        transposed_product, caser_windows, caser_windows_backward, sampled_loss, item_gradient,
        cross_entropy, topk_merge, topk_sort, adam_rows, alias_table,
        sample_negatives, sample_shared_negatives, count_windows, pack_windows, gather_windows, build_tape,
    )
}  # fmt: skip
