"""Ranking metrics from short ranked lists."""

from __future__ import annotations

import torch
from torch import Tensor

from fastseq.errors import ConfigError, nearest

METRICS = ("HR", "NDCG", "MRR", "Recall", "Precision")
COVERAGE = "Coverage"
_ALIASES = {"hitrate": "HR", "itemcoverage": COVERAGE} | {name.lower(): name for name in (*METRICS, COVERAGE)}


def parse_metric(text: str) -> tuple[str, int]:
    """``"nDCG@10"`` → ``("NDCG", 10)``; upper and lower case are the same, HitRate is HR.

    Raises:
        ConfigError: naming the nearest metric, or the form that is expected.
    """
    name, _, cutoff = text.partition("@")
    if not (cutoff.isdecimal() and int(cutoff) > 0):
        raise ConfigError(f"metric {text!r}: expected name@k with k >= 1, such as NDCG@10")
    known = _ALIASES.get(name.strip().lower())
    if known is None:
        near = nearest(name, _ALIASES)
        hint = f"did you mean {_ALIASES[near]!r}?" if near else f"expected one of {', '.join((*METRICS, COVERAGE))}"
        raise ConfigError(f"unknown metric {name!r}; {hint}")
    return known, int(cutoff)


def worst_order(scores: Tensor, is_target: Tensor) -> Tensor:
    """Which places of the ranking are targets if every tie goes against them.

    Args:
        scores: [B, C], of the candidates, in any order.
        is_target: bool [B, C].

    Returns:
        bool [B, C]: entry r − 1 says whether rank r is a target. Sorted by falling score, and among equal scores the
        targets last: every item that ties with a target ranks above it.
    """
    order = is_target.to(torch.uint8).argsort(dim=1, stable=True)
    by_score = scores.gather(1, order).argsort(dim=1, descending=True, stable=True)
    return is_target.gather(1, order.gather(1, by_score))


def ranking_metrics(relevant: Tensor, n_targets: Tensor, ks: tuple[int, ...]) -> dict[str, Tensor]:
    """Metrics of each user.

    With rel(r) 1 where rank r is a target, else 0, and R the user's number of targets:
    HR@k = 1 if any rel(r ≤ k); Recall@k = Σ rel / R; Precision@k = Σ rel / k; MRR@k = 1 / the first r ≤ k with rel(r),
    else 0; NDCG@k = Σ rel(r) / log2(r + 1) over the same sum for a perfect ranking (Järvelin & Kekäläinen 2002).

    Args:
        relevant: bool [B, C], by rank; ranks beyond C are no targets.
        n_targets: int64 [B], all targets of each user, at least 1.
        ks: cut-offs.

    Returns:
        ``"NDCG@10"`` and so on → float64 [B].
    """
    longest = max(ks)
    hits = torch.zeros(relevant.shape[0], longest, dtype=torch.float64, device=relevant.device)
    width = min(longest, relevant.shape[1])
    hits[:, :width] = relevant[:, :width].double()
    ranks = torch.arange(1, longest + 1, dtype=torch.float64, device=relevant.device)
    discounts = (ranks + 1).log2().reciprocal()
    ideal = discounts.cumsum(0)
    hits_so_far = hits.cumsum(1)
    gain = (hits * discounts).cumsum(1)
    first = torch.where(hits_so_far == 1, hits / ranks, 0.0).cumsum(1)
    result = {}
    for k in ks:
        result[f"HR@{k}"] = (hits_so_far[:, k - 1] > 0).double()
        result[f"NDCG@{k}"] = gain[:, k - 1] / ideal[n_targets.clamp(max=k) - 1]
        result[f"MRR@{k}"] = first[:, k - 1]
        result[f"Recall@{k}"] = hits_so_far[:, k - 1] / n_targets
        result[f"Precision@{k}"] = hits_so_far[:, k - 1] / k
    return result
