"""Evaluation against a ranking written down in plain Python."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastseq._process import peak_rss_mb, reset_peak_rss
from fastseq.data.baselines import Popularity
from fastseq.data.readers import from_sequences
from fastseq.data.split import Split, leave_k_out, leave_one_out, ratio
from fastseq.data.synthetic import make_long_tail
from fastseq.errors import CheckpointError, ConfigError, DataError
from fastseq.models import MODELS
from fastseq.training.distributed import Ranks
from fastseq.training.evaluation import Scorer, evaluate
from fastseq.training.loop import Trainer
from fastseq.training.metrics import LIST_METRICS, parse_metric, worst_order
from fastseq.training.options import TrainingOptions
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


def by_hand(score: Scorer, split: Split, part: Any, mask_seen: str, events: Any = "all") -> dict[str, float]:
    """Metrics by sorting each user's candidates, ties against the targets."""
    tape, eval_part = split.interactions.items, split.part(part, events)
    sums: dict[str, float] = {}
    lists: dict[int, Counter[int]] = {k: Counter() for k in KS}
    training = [tape[split.interactions.offsets[u] : stop].tolist() for u, stop in enumerate(split.train_stop)]
    events = Counter(item for each in training for item in each)
    owners = Counter(item for each in training for item in set(each))
    known: list[list[list[tuple[int, int]]]] = []
    for row in range(len(eval_part)):
        user = int(eval_part.users[row])
        history = tape[eval_part.history_start[row] : eval_part.history_stop[row]]
        targets = set(tape[eval_part.target_start[row] : eval_part.target_stop[row]].tolist())
        offsets = torch.tensor([0, len(history)], dtype=torch.int32)
        scores = score.score(torch.tensor([user]), torch.from_numpy(history), offsets)[0].tolist()
        trained = tape[eval_part.history_start[row] : split.train_stop[user]]
        hidden = {"pair": set(trained.tolist()), "history": set(history.tolist()), "none": set()}[mask_seen]
        candidates = [item for item in range(len(scores)) if item not in hidden]
        n_targets, targets = len(targets), {item for item in targets if events[item]}  # items without training: misses
        ranked = sorted(candidates, key=lambda item: (-scores[item], item in targets))
        relevance = [item in targets for item in ranked]
        known.append([[(events[item], owners[item]) for item in ranked[:k]] for k in KS])
        for k in KS:
            hits = [r + 1 for r, hit in enumerate(relevance[:k]) if hit]
            ideal = sum(1 / math.log2(r + 1) for r in range(1, min(k, n_targets) + 1))
            values = {
                "HR": float(bool(hits)),
                "NDCG": sum(1 / math.log2(r + 1) for r in hits) / ideal,
                "MRR": 1 / hits[0] if hits else 0.0,
                "Recall": len(hits) / n_targets,
                "Precision": len(hits) / k,
                "F1": 2 * len(hits) / (k + n_targets),
                "MAP": sum(n / r for n, r in enumerate(hits, start=1)) / min(k, n_targets),
                "MAR": sum(n / n_targets for n in range(1, len(hits) + 1)) / min(k, n_targets),
            }
            for name, value in values.items():
                sums[f"{name}@{k}"] = sums.get(f"{name}@{k}", 0.0) + value
            lists[k].update(ranked[:k])
    result = {name: value / len(eval_part) for name, value in sums.items()}
    n, people = split.interactions.n_items, sum(map(bool, training))
    for column, k in enumerate(KS):
        best = [user[column] for user in known]
        surprise = [np.mean([-math.log2(max(x, 1) / people) for _, x in each]) for each in best]
        result[f"ARP@{k}"] = float(np.mean([np.mean([x for x, _ in each]) for each in best]))
        result[f"MeanInvUserFreq@{k}"] = float(np.mean(surprise))
    for k, counts in lists.items():
        total, spread = counts.total(), sorted([0] * (n - len(counts)) + list(counts.values()))
        result |= {
            f"Coverage@{k}": len(counts) / n,
            f"ItemCoverage@{k}": len(counts),
            f"UserCoverage@{k}": len(eval_part),
            f"NumRetrieved@{k}": total / len(eval_part),
            f"Gini@{k}": sum((2 * j - n - 1) * x for j, x in enumerate(spread, 1)) / (n - 1) / (k * len(eval_part)),
            f"ShannonEntropy@{k}": -sum(x / total * math.log(x / total) for x in counts.values()),
        }
    return result


@pytest.mark.parametrize("part", ["validation", "test"])
@pytest.mark.parametrize("how", SPLITS)
@pytest.mark.parametrize("levels", [3, 10**6], ids=["ties", "distinct"])
@pytest.mark.parametrize("mask_seen", ["pair", "history", "none"])
@pytest.mark.parametrize("history", ["all", "training"])
def test_equals_a_brute_force_ranking(part: Any, how: str, levels: int, mask_seen: Any, history: Any) -> None:
    split = SPLITS[how](make_interactions())
    data = split.interactions
    scorer = Table(torch.randint(0, levels, (data.n_users, data.n_items)).float())
    options: dict[str, Any] = {"mask_seen": mask_seen, "history": history, "batch_size": 7}
    evaluation = evaluate(scorer, split, part, ks=KS, per_user=True, **options)
    expected = by_hand(scorer, split, part, mask_seen, history)
    assert evaluation.metrics.keys() == expected.keys()
    for name, value in expected.items():
        if levels > 3 or name.split("@")[0] not in LIST_METRICS:  # which of the tied items are in a list is free
            assert evaluation[name] == pytest.approx(value, abs=1e-12), name
    assert evaluation["NDCG@20"] > 0


def test_equal_scores_for_everything_are_worth_nothing() -> None:
    split = make_split()
    data = split.interactions
    evaluation = evaluate(Table(torch.zeros(data.n_users, data.n_items)), split, ks=(1, 3), mask_seen="none")
    assert {name: value for name, value in evaluation.metrics.items() if value and name[:-2] not in LIST_METRICS} == {}


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

    evaluation = evaluate(model, split, ks=KS, batch_size=5, per_user=True)
    assert model.training
    expected = by_hand(Rows(), split, "test", "pair")
    for name, value in expected.items():
        if not (tied and name.split("@")[0] in LIST_METRICS):
            assert evaluation[name] == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("how", SPLITS)
def test_sampling_every_unseen_item_is_full_ranking(how: str) -> None:
    split = SPLITS[how](make_interactions())
    data = split.interactions
    scorer = Table(torch.randint(0, 9, (data.n_users, data.n_items)).float())
    full = evaluate(scorer, split, ks=KS, mask_seen="history", coverage=False)
    sampled = evaluate(scorer, split, ks=KS, mask_seen="history", protocol="sampled", n_negatives=data.n_items)
    assert sampled.metrics == pytest.approx(full.metrics, abs=1e-12)


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_the_candidates_do_not_depend_on_the_target(protocol: Any) -> None:
    """A target that stands in the training part is left out like every other item there, and counted."""
    data = from_sequences([[0, 1, 2, 0, 3, 1], [0, 1, 2, 4, 3, 5]])
    split, best_first = leave_one_out(data), Table(-torch.arange(6.0).repeat(2, 1))
    how: dict[str, Any] = {"protocol": protocol, "n_negatives": 6, "cold": "rank"}  # item 5 is a target alone
    full = evaluate(best_first, split, ks=(1, 6), coverage=False, **how)
    assert (full.protocol["repeated_targets"], full.protocol["masked_targets"]) == (1, int(protocol == "full"))
    # WarpRec's sampled candidates hold every target, so there user 0's stands first, before 4 and 5.
    assert full["HR@1"] == {"full": 0.0, "sampled": 0.5}[protocol]
    assert full["MRR@6"] == {"full": 1 / 2 / 2, "sampled": (1 + 1 / 2) / 2}[protocol]
    strict = evaluate(best_first, split, ks=(6,), mask_seen="history", **how)
    assert (strict.protocol["masked_targets"], strict["MRR@6"]) == (1, 1.0 / 2)
    nothing = evaluate(best_first, split, ks=(6,), mask_seen="none", cold="rank")
    assert nothing["MRR@6"] == (1 / 2 + 1 / 6) / 2


def test_items_without_training_are_pointed_out() -> None:
    """Items 3, 4 and 5 occur as targets alone; a model that likes them best fills its lists with them."""
    split = leave_one_out(from_sequences([[0, 1, 2, 4], [1, 2, 3, 5], [0, 2, 3, 1]]))
    scorer = Table(torch.arange(6.0).repeat(3, 1))
    with pytest.warns(UserWarning, match=r"100% of all best 2 are items without a training event.*splitter\.cold"):
        protocol = evaluate(scorer, split, ks=(2,)).protocol
    assert protocol["untrained_share"] == 1.0 and protocol["split"]["test_targets_without_training"] == 2
    with pytest.warns(UserWarning, match=r"3 of 6 items have no training event.*Split\.warm"):
        Trainer(make_model(split), split, TrainingOptions(epochs=1, validation_metric=None)).fit()
    warm = evaluate(Popularity(split.warm()), split.warm(), ks=(2,)).protocol
    assert (warm["untrained_share"], warm["users"], warm["split"]["dropped"]) == (0.0, 1, {"validation": 2, "test": 2})


def test_cut_offs_and_negatives_end_with_the_catalogue() -> None:
    split = make_split()
    scorer = Table(torch.randn(split.interactions.n_users, split.interactions.n_items))
    with pytest.warns(UserWarning, match="is 3000000, cut to the 30 items"):
        huge = evaluate(scorer, split, ks=(3_000_000,))
    exact = evaluate(scorer, split, ks=(30,))
    assert huge["NDCG@3000000"] == exact["NDCG@30"] and huge["Recall@3000000"] == exact["Recall@30"]
    with pytest.warns(UserWarning, match="n_negatives is 3000000000, cut to the 30 items"):
        evaluate(scorer, split, protocol="sampled", n_negatives=3_000_000_000)


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
        target = data.items[data.offsets[user + 1] - 1]
        taken = np.append(data.items[data.offsets[user] : split.train_stop[user]], target)
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
    assert (protocol["part"], protocol["ks"], protocol["mask_seen"]) == ("validation", [5, 10], "pair")
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


def test_a_sample_of_users_is_named_and_fixed() -> None:
    """The same users whatever the batches and the ranks, another seed others; as many as there are: all."""
    split = make_split(n_users=60)
    users = split.part("validation").users

    def asked(n: int | None, seed: int = 42, rank: int = 0, size: int = 1, **options: Any) -> tuple[set[int], Any]:
        seen: set[int] = set()

        class Asking(Popularity):
            def score(self, users: Tensor, items: Tensor, offsets: Tensor) -> Tensor:
                seen.update(users.tolist())
                return super().score(users, items, offsets)

        class Alone(Ranks):
            def sum(self, tensor: Tensor) -> Tensor:
                return tensor

        chosen = {"users": n, "seed": seed, "ranks": Alone(rank, size), **options}
        return seen, evaluate(Asking(split), split, "validation", **chosen)

    sample, evaluation = asked(10)
    assert len(sample) == 10 and sample < set(users.tolist())
    assert evaluation.protocol["sample"] == {"users": 10, "of": len(users), "seed": 42}
    assert evaluation.protocol["users"] == evaluation.metrics["UserCoverage@10"] == 10
    small, same = asked(10, batch_size=3)
    assert small == sample and same.metrics == pytest.approx(evaluation.metrics, abs=1e-12)
    assert asked(10, protocol="sampled")[0] == sample != asked(10, seed=43)[0]
    parts = [asked(10, rank=rank, size=3) for rank in range(3)]
    assert set.union(*(seen for seen, _ in parts)) == sample and sum(len(seen) for seen, _ in parts) == 10
    assert sum(part["HR@10"] for _, part in parts) == pytest.approx(evaluation["HR@10"], abs=1e-12)
    for n in (None, len(users), 10**9):
        seen, evaluation = asked(n)
        assert seen == set(users.tolist()) and evaluation.protocol["sample"] is None
    with pytest.raises(ValueError, match="users is 0, expected"):
        asked(0)


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


def test_memory_does_not_grow_with_users_times_items() -> None:
    """128 users and a million items: one byte for each pair would be 128 MB, scores 512 MB."""
    data = make_long_tail(1_000_000, 300, 1_010_000)
    split = leave_one_out(data)
    model = MODELS["SASRec"](small_params("SASRec"), {"n_users": data.n_users, "n_items": data.n_items})
    few = make_long_tail(100, 300, 3_000)
    evaluate(Popularity(leave_one_out(few)), leave_one_out(few))  # imports
    reset_peak_rss()
    before = peak_rss_mb()
    evaluation = evaluate(model, split, ks=(1, 10), batch_size=128)
    assert peak_rss_mb() - before < 100
    assert evaluation.protocol["users"] == 300
