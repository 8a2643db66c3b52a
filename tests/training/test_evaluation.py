"""Evaluation against a ranking written down in plain Python."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastseq.data.baselines import Popularity
from fastseq.data.readers import from_sequences
from fastseq.data.split import Split, leave_k_out, leave_one_out, ratio
from fastseq.errors import CheckpointError, ConfigError, DataError
from fastseq.models import MODELS
from fastseq.training import Trainer
from fastseq.training.evaluation import Scorer, evaluate
from fastseq.training.metrics import parse_metric, worst_order
from tests.data.baselines import Markov
from tests.models.small import small_params

from .tiny import make_interactions, make_model, make_split

KS = (1, 5, 20)
SPLITS: dict[str, Callable[..., Split]] = {
    "one": leave_one_out,
    "three": lambda data: leave_k_out(data, 3),
    "ratio": lambda data: ratio(data, test=0.4, validation=0.2),
}


class Table:
    """Scores looked up per user."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def score(self, users: Tensor, items: Tensor, offsets: Tensor) -> Tensor:
        return self.table[users]


def by_hand(score: Scorer, split: Split, part: Any, filter_seen: bool) -> dict[str, float]:
    """Metrics by sorting each user's candidates, ties against the targets."""
    tape, eval_part = split.interactions.items, split.part(part)
    sums: dict[str, float] = {}
    covered: dict[int, set[int]] = {k: set() for k in KS}
    for row in range(len(eval_part)):
        user = int(eval_part.users[row])
        history = tape[eval_part.history_start[row] : eval_part.history_stop[row]]
        targets = set(tape[eval_part.target_start[row] : eval_part.target_stop[row]].tolist())
        offsets = torch.tensor([0, len(history)], dtype=torch.int32)
        scores = score.score(torch.tensor([user]), torch.from_numpy(history), offsets)[0].tolist()
        hidden = set(history.tolist()) - targets if filter_seen else set()
        candidates = [item for item in range(len(scores)) if item not in hidden]
        ranked = sorted(candidates, key=lambda item: (-scores[item], item in targets))
        relevance = [item in targets for item in ranked]
        for k in KS:
            hits = [r + 1 for r, hit in enumerate(relevance[:k]) if hit]
            ideal = sum(1 / math.log2(r + 1) for r in range(1, min(k, len(targets)) + 1))
            values = {
                "HR": float(bool(hits)),
                "NDCG": sum(1 / math.log2(r + 1) for r in hits) / ideal,
                "MRR": 1 / hits[0] if hits else 0.0,
                "Recall": len(hits) / len(targets),
                "Precision": len(hits) / k,
            }
            for name, value in values.items():
                sums[f"{name}@{k}"] = sums.get(f"{name}@{k}", 0.0) + value
            covered[k] |= set(ranked[:k])
    result = {name: value / len(eval_part) for name, value in sums.items()}
    return result | {f"Coverage@{k}": len(items) / split.interactions.n_items for k, items in covered.items()}


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("how", SPLITS)
@pytest.mark.parametrize("levels", [3, 10**6], ids=["ties", "distinct"])
@pytest.mark.parametrize("filter_seen", [True, False])
def test_equals_a_brute_force_ranking(part: Any, how: str, levels: int, filter_seen: bool) -> None:
    split = SPLITS[how](make_interactions())
    data = split.interactions
    scorer = Table(torch.randint(0, levels, (data.n_users, data.n_items)).float())
    evaluation = evaluate(scorer, split, part, ks=KS, filter_seen=filter_seen, batch_size=7)
    expected = by_hand(scorer, split, part, filter_seen)
    assert evaluation.metrics.keys() == expected.keys()
    for name, value in expected.items():
        if levels > 3 or not name.startswith("Coverage"):  # which of the tied items are in a list is free
            assert evaluation[name] == pytest.approx(value, abs=1e-12), name
    assert evaluation["NDCG@20"] > 0


def test_equal_scores_for_everything_are_worth_nothing() -> None:
    split = make_split()
    data = split.interactions
    evaluation = evaluate(Table(torch.zeros(data.n_users, data.n_items)), split, ks=(1, 3), filter_seen=False)
    assert {name: value for name, value in evaluation.metrics.items() if value and "Coverage" not in name} == {}


def test_ties_put_targets_last() -> None:
    scores = torch.tensor([[1.0, 2.0, 1.0, 0.0, 1.0]])
    targets = torch.tensor([[True, False, False, True, True]])
    assert worst_order(scores, targets).tolist() == [[False, False, True, True, True]]


@pytest.mark.parametrize("how", SPLITS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_models_ranking_equals_that_of_its_scores(how: str, tied: bool) -> None:
    """``topk`` on hidden states gives what ranking the full rows of scores gives, dropout off."""
    split = SPLITS[how](make_interactions())
    model = make_model(split, dropout_prob=0.5).double()
    if tied:  # coarse numbers, whose products are exact and often equal
        encode = model.encode
        model.encode = lambda batch: (encode(batch) * 2).round()  # type: ignore[method-assign]
        with torch.no_grad():
            model.item_embedding.weight.mul_(2).round_()
    model.train()

    class Rows:
        def score(self, users: Tensor, items: Tensor, offsets: Tensor) -> Tensor:
            with torch.no_grad():
                model.eval()
                rows = model.score(model.encode_last(items, offsets, users))
                model.train()
                return rows

    evaluation = evaluate(model, split, ks=KS, batch_size=5)
    assert model.training
    expected = by_hand(Rows(), split, "test", True)
    for name, value in expected.items():
        if not (tied and name.startswith("Coverage")):
            assert evaluation[name] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("how", SPLITS)
def test_sampling_every_unseen_item_is_full_ranking(how: str) -> None:
    split = SPLITS[how](make_interactions())
    data = split.interactions
    scorer = Table(torch.randint(0, 9, (data.n_users, data.n_items)).float())
    full = evaluate(scorer, split, ks=KS, coverage=False)
    sampled = evaluate(scorer, split, ks=KS, protocol="sampled", n_negatives=data.n_items)
    assert sampled.metrics == pytest.approx(full.metrics, abs=1e-12)


def test_sampled_negatives_are_unseen_uniform_and_reproducible() -> None:
    split = make_split(n_users=30, n_items=30, longest=12)
    data, eval_part = split.interactions, split.part("test")

    counts = np.zeros((data.n_users, data.n_items), np.int64)
    repeats = 200
    from fastseq.training import evaluation

    seen_by_metrics: list[Tensor] = []
    original = evaluation._sampled_candidates

    def record(users: Any, *arguments: Any) -> Tensor:
        candidates = original(users, *arguments)
        seen_by_metrics.append(candidates)
        for row, user in enumerate(users.users.tolist()):
            np.add.at(counts[user], candidates[row, 1:][candidates[row, 1:] >= 0].numpy(), 1)
        return candidates

    scorer = Table(torch.randn(data.n_users, data.n_items))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "_sampled_candidates", record)
        for seed in range(repeats):
            evaluate(scorer, split, protocol="sampled", n_negatives=5, seed=seed)
    for row, user in enumerate(eval_part.users.tolist()):
        taken = data.items[data.offsets[user] : data.offsets[user + 1]]
        unseen = np.setdiff1d(np.arange(data.n_items), taken)
        assert counts[user, taken].sum() == 0, "a seen item or the target was drawn"
        if len(unseen) > 5:
            expected = repeats * 5 / len(unseen)
            chi2 = ((counts[user, unseen] - expected) ** 2 / expected).sum()
            assert chi2 < len(unseen) + 6 * math.sqrt(2 * len(unseen)), f"user {row}: chi-square {chi2}"
    for candidates in seen_by_metrics[:3]:
        for row in candidates:
            kept = row[row >= 0]
            assert len(kept.unique()) == len(kept), "drawn twice"
    options: dict[str, Any] = {"protocol": "sampled", "n_negatives": 5, "seed": 3}
    one = evaluate(scorer, split, batch_size=1, **options).metrics
    assert one == pytest.approx(evaluate(scorer, split, batch_size=64, **options).metrics, abs=1e-12)
    assert one != evaluate(scorer, split, protocol="sampled", n_negatives=5, seed=4).metrics


def test_baselines_are_scorers_and_structure_shows() -> None:
    split = make_split(n_users=200)
    popularity, markov = (evaluate(kind(split), split)["ndcg@10"] for kind in (Popularity, Markov))
    assert markov > 1.5 * popularity > 0


def test_the_protocol_is_complete_and_json() -> None:
    split = make_split()
    evaluation = evaluate(Popularity(split), split, "validation", ks=(10, 5))
    tree = json.loads(evaluation.to_json())
    assert tree["metrics"] == evaluation.metrics
    protocol = tree["protocol"]
    assert protocol["split"]["data_hash"] == split.interactions.data_hash
    assert (protocol["part"], protocol["ks"], protocol["filter_seen"]) == ("validation", [5, 10], True)
    assert "pessimistic" in protocol["ties"] and "whole catalogue" in protocol["candidates"]
    assert protocol["versions"].keys() == {"fastseq", "torch", "python"}
    sampled = evaluate(Popularity(split), split, protocol="sampled", n_negatives=7, seed=5).protocol
    assert "7 items drawn uniformly" in sampled["candidates"] and sampled["seed"] == 5


def test_a_model_of_another_catalogue_is_refused() -> None:
    """Of equal size, so that every index means something; Caser reads users, the others do not."""

    def data(user: str, item: str, users: int = 9) -> Split:
        return leave_one_out(
            from_sequences({f"{user}{u}": [f"{item}{(u + i) % 9}" for i in range(6)] for u in range(users)})
        )

    own, split = data("u", "a"), data("u", "a")
    models = {}
    for name in MODELS:
        models[name] = MODELS[name](small_params(name), {"n_users": 9, "n_items": 9})
        Trainer(models[name], own)
        evaluate(models[name], split)
    for model in models.values():
        for call in (evaluate, Trainer):
            with pytest.raises(DataError, match="other items: number 0 is 'a0' in the model and 'b0' in the data"):
                call(model, data("u", "b"))  # type: ignore[operator]
    assert evaluate(models["SASRec"], data("v", "a", users=8))
    with pytest.raises(DataError, match="other users: number 0 is 'u0' in the model and 'v0'"):
        evaluate(models["Caser"], data("v", "a"))
    with pytest.raises(DataError, match="built for 9 users, the data has 8"):
        evaluate(models["Caser"], data("u", "a", users=8))


def test_bad_input_is_named() -> None:
    split = make_split()
    with pytest.raises(ValueError, match="cut-off of ks is 0"):
        evaluate(Popularity(split), split, ks=(0,))
    with pytest.raises(DataError, match="validation part has no user"):
        evaluate(Popularity(split), leave_one_out(split.interactions, validation=False), "validation")
    with pytest.raises(DataError, match="built for 30 items, the data has 12"):
        evaluate(make_model(split), make_split(n_items=12))
    model = make_model(split)
    with torch.no_grad():
        model.outer.bias[0] = float("nan")
    with pytest.raises(CheckpointError, match="not finite"):
        evaluate(model, split)
    with pytest.raises(ConfigError, match="did you mean 'NDCG'"):
        parse_metric("ndgc@10")
    with pytest.raises(ConfigError, match="expected name@k"):
        parse_metric("NDCG")
    assert parse_metric("HitRate@7") == ("HR", 7)
