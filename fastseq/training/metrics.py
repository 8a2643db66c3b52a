"""Ranking metrics from short ranked lists."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fastseq.errors import ConfigError, nearest

MaskSeen: TypeAlias = Literal["pair", "history", "none"]
RankingProtocol: TypeAlias = Literal["full", "sampled"]
METRICS = ("HR", "NDCG", "MRR", "Recall", "Precision", "F1", "MAP", "MAR")  # means over users
NOVELTY_METRICS = ("ARP", "MeanInvUserFreq")  # means over users, of their best items, relevant or not
TOGETHER = ("Coverage", "ItemCoverage", "UserCoverage", "NumRetrieved", "Gini", "ShannonEntropy")  # of all lists
LIST_METRICS = (*TOGETHER, *NOVELTY_METRICS)  # of a ranking of the whole catalogue
_ALIASES = {
    "hitrate": "HR",
    "ndcgrendle2020": "NDCG",
    "avgrecpopularity": "ARP",
    "averagepopularity": "ARP",
    "miuf": "MeanInvUserFreq",
    "novelty": "MeanInvUserFreq",
} | {name.lower(): name for name in (*METRICS, *LIST_METRICS)}


def parse_metric(text: str) -> tuple[str, int]:
    """``"nDCG@10"`` → ``("NDCG", 10)``; upper and lower case are the same, HitRate is HR, Novelty MeanInvUserFreq.

    Raises:
        ConfigError: naming the nearest metric, or the form that is expected.
    """
    name, _, cutoff = text.partition("@")
    if not (cutoff.isdecimal() and int(cutoff) > 0):
        raise ConfigError(f"metric {text!r}: expected name@k with k >= 1, such as NDCG@10")
    known = _ALIASES.get(name.strip().lower())
    if known is None:
        near = nearest(name, _ALIASES)
        known_names = ", ".join((*METRICS, *LIST_METRICS))
        hint = f"did you mean {_ALIASES[near]!r}?" if near else f"expected one of {known_names}"
        raise ConfigError(f"unknown metric {name!r}; {hint}")
    return known, int(cutoff)


def worst_order(scores: Tensor, is_target: Tensor) -> Tensor:
    """Which positions of the ranking are targets if every tie goes against them.

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


def ranking_metrics(
    relevant: Tensor, n_targets: Tensor, ks: tuple[int, ...], most_targets: int | None = None
) -> dict[str, Tensor]:
    """Metrics of each user.

    With rel(r) 1 where rank r is a target, else 0, and R the user's number of targets:
    HR@k = 1 if any rel(r ≤ k); Recall@k = Σ rel / R; Precision@k = Σ rel / k; MRR@k = 1 / the first r ≤ k with rel(r),
    else 0; NDCG@k = Σ rel(r) / log2(r + 1) over the same sum for a perfect ranking (Järvelin & Kekäläinen 2002);
    F1@k = 2PR / (P + R) of Precision@k and Recall@k, or 0; MAP@k = Σ rel(r) Precision@r / min(R, k) and
    MAR@k = Σ rel(r) Recall@r / min(R, k), sums over r ≤ k.

    Args:
        relevant: bool [B, C], by rank; ranks beyond C are no targets.
        n_targets: int64 [B], all targets of each user, at least 1.
        ks: cut-offs.
        most_targets: the largest of ``n_targets``; None: looked up.

    Returns:
        ``"NDCG@10"`` and so on → float64 [B].
    """
    most = int(n_targets.max()) if most_targets is None else most_targets
    longest = min(max(ks), max(relevant.shape[1], most))  # beyond it no rank holds a target
    hits = torch.zeros(relevant.shape[0], longest, dtype=torch.float64, device=relevant.device)
    width = min(longest, relevant.shape[1])
    hits[:, :width] = relevant[:, :width].double()
    ranks = torch.arange(1, longest + 1, dtype=torch.float64, device=relevant.device)
    discounts = (ranks + 1).log2().reciprocal()
    ideal = discounts.cumsum(0)
    hits_so_far = hits.cumsum(1)
    gain = (hits * discounts).cumsum(1)
    first = torch.where(hits_so_far == 1, hits / ranks, 0.0).cumsum(1)
    precise = (hits * hits_so_far / ranks).cumsum(1)
    recalled = (hits * hits_so_far / n_targets.unsqueeze(1)).cumsum(1)
    result = {}
    for k in ks:
        last = min(k, longest) - 1
        result[f"HR@{k}"] = (hits_so_far[:, last] > 0).double()
        reachable = n_targets.clamp(max=k)
        result[f"NDCG@{k}"] = gain[:, last] / ideal[reachable - 1]
        result[f"MRR@{k}"] = first[:, last]
        recall, precision = hits_so_far[:, last] / n_targets, hits_so_far[:, last] / k
        result[f"Recall@{k}"] = recall
        result[f"Precision@{k}"] = precision
        result[f"F1@{k}"] = (2 * precision * recall / (precision + recall)).nan_to_num(0.0)
        result[f"MAP@{k}"] = precise[:, last] / reachable
        result[f"MAR@{k}"] = recalled[:, last] / reachable
    return result


def novelty_metrics(items: Tensor, counts: Tensor, n_users: int, ks: tuple[int, ...]) -> dict[str, Tensor]:
    """How well known each user's best items are, by RecTools' definitions; of an empty list 0.

    ARP@k is the mean number of training events of the list's items (average recommendation popularity, Yin et al.
    2012). MeanInvUserFreq@k is their mean self-information −log2(users with the item / all users) (Zhou et al. 2010;
    Castells et al. 2011), users counted in the training part; an item that nobody has counts as if one user had it.

    Args:
        items: int64 [B, C], best first; −1, which only −1 follows, where there are fewer.
        counts: int32 [2, n_items], training events and users of each item.
        n_users: with a training event.
        ks: cut-offs, increasing.

    Returns:
        ``"ARP@10"`` and so on → float64 [B].
    """
    best = items[:, : ks[-1]]
    known = counts[:, best.clamp(min=0)].double()
    values = torch.stack([known[0], -(known[1].clamp(min=1) / n_users).log2()])
    sums = values.masked_fill(best < 0, 0.0).cumsum(2)
    lengths = (best >= 0).cumsum(1).clamp(min=1)
    result = {}
    for name, so_far in zip(NOVELTY_METRICS, sums, strict=True):
        for k in ks:
            last = min(k, best.shape[1]) - 1
            result[f"{name}@{k}"] = so_far[:, last] / lengths[:, last]
    return result


def list_metrics(counts: Tensor, n_users: int, k: int) -> dict[str, float]:
    """Metrics of all users' best k items together, by WarpRec's formulas but for Coverage.

    ItemCoverage is the number of items in some list, Coverage its share of the catalogue, UserCoverage the number of
    users, NumRetrieved the mean length of a list; Gini and ShannonEntropy (natural logarithm) say how evenly the items
    are spread over the lists.

    Args:
        counts: int64 [n_items], in how many lists each item is.
        n_users: lists.
        k: cut-off.
    """
    n_items, listed = len(counts), counts[counts > 0].double().sort().values
    shares, positions = listed / listed.sum(), torch.arange(n_items - len(listed) + 1, n_items + 1)
    gini = ((2 * positions - n_items - 1) * listed).sum() / (n_users * k * max(1, n_items - 1))
    entropy = -(shares * shares.log()).sum()
    values = (len(listed) / n_items, len(listed), n_users, float(listed.sum() / n_users), float(gini), float(entropy))
    return {f"{name}@{k}": float(value) for name, value in zip(TOGETHER, values, strict=True)}
