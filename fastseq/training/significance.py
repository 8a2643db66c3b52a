"""What a score is worth: confidence intervals over users, and paired tests between runs.

Users are the sample: an interval says how far a mean would move with other users of the same kind, not with another
seed of training. Resampling is seeded, so every answer can be had again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastseq.errors import DataError

from .metrics import NOVELTY_METRICS, parse_metric

Float64Array: TypeAlias = NDArray[np.float64]
LEVEL = 95  # per cent
Z = 1.959963984540054  # the normal distribution's quantile for it
RESAMPLES = 1_000
PERMUTATIONS = 9_999
BOOTSTRAP_USERS = 20_000  # beyond it a mean is as good as normal, and resampling takes seconds
AT_ONCE = 1 << 20  # numbers of a resampling that are in memory together
HOW = (
    f"{LEVEL}% over users: Wilson's score interval of shares (HR), else percentiles of {RESAMPLES:,} bootstrap "
    f"resamples, of more than {BOOTSTRAP_USERS:,} users the normal approximation"
)
SAME = ("part", "users", "sample", "ranking", "candidates", "mask_seen", "history", "seed", "cold_targets")


@dataclass(frozen=True, eq=False)
class UserValues:
    """Metrics of each user.

    Attributes:
        users: int64 [n], increasing, indices into the data's ``user_ids``.
        names: of the metrics, such as ``"NDCG@10"``.
        values: float [n, len(names)].
        protocol: how they were measured; see ``Evaluation``.
    """

    users: NDArray[np.int64]
    names: tuple[str, ...]
    values: NDArray[Any]
    protocol: dict[str, Any]

    def __getitem__(self, metric: str) -> NDArray[Any]:
        return self.values[:, self.names.index(metric)]


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The score interval of a proportion (Wilson 1927), which keeps its level for rare hits too and none at all (Brown,
    Cai & DasGupta 2001)."""
    share, spread = hits / n, Z * Z / n
    half = Z * ((share * (1 - share) + spread / 4) / n) ** 0.5
    middle = share + spread / 2
    # No hit, or nothing else, ends exactly at 0 or 1.
    low, high = (middle - half) / (1 + spread), (middle + half) / (1 + spread)
    return (0.0 if hits == 0 else low), (1.0 if hits == n else high)


def resampled_means(values: Float64Array, n: int, seed: int) -> Float64Array:
    """Means over ``n`` users drawn with repeats, ``RESAMPLES`` times (the bootstrap, Efron 1979).

    Args:
        values: [m, M], of the first m of the n users; those of the others are 0.

    Returns:
        [RESAMPLES, M].
    """
    rng, m = np.random.default_rng(seed), len(values)
    # Of n draws among all users so many fall on the first m.
    draws, means = rng.binomial(n, m / n, RESAMPLES), np.empty((RESAMPLES, values.shape[1]))
    size = max(1, AT_ONCE // max(1, m))
    for first in range(0, RESAMPLES, size):
        here = draws[first : first + size]
        cells = np.repeat(np.arange(len(here)) * m, here) + rng.integers(max(1, m), size=here.sum())
        times = np.bincount(cells, minlength=len(here) * m).reshape(len(here), m)
        means[first : first + size] = times.astype(np.float64) @ values / n
    return means


def percentiles(means: Float64Array) -> Float64Array:
    """The interval [2, M] that holds ``LEVEL`` per cent of the resampled means."""
    return np.percentile(means, [50 - LEVEL / 2, 50 + LEVEL / 2], axis=0)


def intervals(values: UserValues, seed: int) -> dict[str, tuple[float, float]]:
    """The confidence interval of each mean over users, as ``HOW`` says."""
    x = np.asarray(values.values, np.float64)
    n = len(x)
    if n <= BOOTSTRAP_USERS:
        low, high = percentiles(resampled_means(x, n, seed))
    else:
        half = Z * x.std(axis=0, ddof=1) / n**0.5
        low, high = x.mean(axis=0) - half, x.mean(axis=0) + half
    found = dict(zip(values.names, zip(low.tolist(), high.tolist(), strict=True), strict=True))
    for name, ones, zeros in zip(
        values.names, (x == 1).sum(axis=0).tolist(), (x == 0).sum(axis=0).tolist(), strict=True
    ):
        # HR; also Recall of one target a user. What is no share may be 1 for all by chance.
        if ones + zeros == n and parse_metric(name)[0] not in NOVELTY_METRICS:
            found[name] = wilson(ones, n)
    return found


def sign_flips(differences: Float64Array, seed: int) -> float:
    """The two-sided p-value of the paired permutation test (Fisher 1935; Smucker, Allan & Carterette 2007).

    If two runs do not differ, each user's difference might as well have the other sign. The p-value is the share of
    ``PERMUTATIONS`` random choices of signs, and the observed one, whose sum is as far from 0 (Phipson & Smyth 2010).
    So it is at least 1 / (PERMUTATIONS + 1).

    Args:
        differences: [m]; users without one may be left out.
    """
    rng, m, total = np.random.default_rng(seed), len(differences), differences.sum()
    # Sums that are equal but for rounding count as equal.
    observed = np.abs(total) - 1e-9 * np.abs(differences).sum()
    as_far, size = 1, max(1, AT_ONCE // max(1, m))
    for first in range(0, PERMUTATIONS, size):
        rows = min(size, PERMUTATIONS - first)
        bits = np.unpackbits(rng.integers(256, size=(rows, -(-m // 8)), dtype=np.uint8), axis=1)[:, :m]
        sums = 2.0 * (bits.astype(np.float64) @ differences) - total
        as_far += int((np.abs(sums) >= observed).sum())
    return as_far / (PERMUTATIONS + 1)


def paired(differences: Float64Array, seed: int) -> tuple[float, float, float]:
    """The interval of a mean difference, and the p-value of there being none.

    Where more than ``BOOTSTRAP_USERS`` differ, by the normal approximation.

    Args:
        differences: [n], of all users.
    """
    n, changed = len(differences), differences[differences != 0]
    if len(changed) <= BOOTSTRAP_USERS:
        low, high = percentiles(resampled_means(changed[:, None], n, seed))[:, 0].tolist()
        return low, high, sign_flips(changed, seed)
    mean, error = float(differences.mean()), float(differences.std(ddof=1)) / n**0.5
    p = math.erfc(abs(mean) / error / 2**0.5) if error else 0.0  # all differ by the same
    return mean - Z * error, mean + Z * error, p


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for as many tests (Holm 1979): below α only where the chance of any false alarm is."""
    order, adjusted, most = np.argsort(np.array(p), kind="stable"), [0.0] * len(p), 0.0
    for rank, index in enumerate(order.tolist()):
        most = max(most, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = most
    return adjusted


def compare(runs: dict[str, UserValues], seed: int = 42) -> dict[str, Any]:
    """Each run against the first, user by user.

    Args:
        runs: by name, at least two, evaluated alike.
        seed: of the resampling.

    Returns:
        Plain values, ready for JSON: "first", "users", "split", "method", and "comparisons": for each other run its
        "run" and "metrics": name → "first" and "run" (means), "difference", "interval", "p" (by Holm's method where
        there are several), and for how many users it is "higher", "lower" and "equal".

    Raises:
        DataError: naming what differs in data, split or protocol, or that no metric is in all.
    """
    (first, base), *others = runs.items()
    for name, other in others:
        if differing := differences(base, other):
            raise DataError(f"{first} and {name} cannot be compared: {'; '.join(differing)}. Evaluate both alike")
    names = [name for name in base.names if all(name in other.names for _, other in others)]
    if not names:
        shown = "; ".join(f"{name} has {', '.join(run.names)}" for name, run in runs.items())
        raise DataError(f"no metric is in all runs: {shown}. Evaluate them with the same cut-offs (-k)")
    n, found = len(base.users), list[dict[str, Any]]()
    columns = [base.names.index(name) for name in names]
    mine = np.asarray(base.values[:, columns], np.float64)
    for name, other in others:
        theirs = np.asarray(other.values[:, [other.names.index(each) for each in names]], np.float64)
        difference = theirs - mine
        metrics = {}
        for j, metric in enumerate(names):
            low, high, p = paired(difference[:, j], seed)
            metrics[metric] = {
                "first": float(mine[:, j].mean()),
                "run": float(theirs[:, j].mean()),
                "difference": float(difference[:, j].mean()),
                "interval": [low, high],
                "p": p,
                "higher": int((difference[:, j] > 0).sum()),
                "lower": int((difference[:, j] < 0).sum()),
                "equal": int((difference[:, j] == 0).sum()),
            }
        found.append({"run": name, "metrics": metrics})
    for metric in names:
        adjusted = holm([each["metrics"][metric]["p"] for each in found])
        for each, value in zip(found, adjusted, strict=True):
            each["metrics"][metric]["p"] = value
    method = (
        f"{LEVEL}% percentiles of {RESAMPLES:,} paired bootstrap resamples of users; two-sided paired permutation test "
        f"of {PERMUTATIONS:,} sign flips (normal where more than {BOOTSTRAP_USERS:,} users differ)"
        f"{', Holm over the runs' if len(found) > 1 else ''}; seed {seed}"
    )
    return {"first": first, "users": n, "split": base.protocol["split"], "method": method, "comparisons": found}


def differences(one: UserValues, other: UserValues) -> list[str]:
    """What keeps two evaluations from being compared user by user, in words."""

    def said(values: UserValues) -> dict[str, Any]:
        split = values.protocol["split"]
        hashes = {f"the {what}": split[key][:12] for what, key in (("data", "data_hash"), ("split", "split_hash"))}
        return hashes | {key: values.protocol.get(key) for key in SAME}

    a, b = said(one), said(other)
    found = [f"{key} is {a[key]!r} and {b[key]!r}" for key in a if a[key] != b[key]]
    return found if found or np.array_equal(one.users, other.users) else ["their users differ"]
