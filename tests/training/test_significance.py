"""Metrics against other libraries, their intervals, comparisons of runs, and breakdowns."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastseq.data.baselines import Popularity
from fastseq.data.interactions import build_interactions
from fastseq.data.readers import from_sequences
from fastseq.data.split import global_temporal, leave_k_out, leave_one_out
from fastseq.errors import CheckpointError, DataError
from fastseq.training.distributed import Ranks
from fastseq.training.evaluation import evaluate
from fastseq.training.metrics import METRICS, NOVELTY_METRICS, parse_metric
from fastseq.training.run import RunFolder
from fastseq.training.significance import (
    PERMUTATIONS,
    UserValues,
    compare,
    holm,
    intervals,
    paired,
    percentiles,
    resampled_means,
    sign_flips,
    wilson,
)
from tests.data.baselines import Markov

from .test_evaluation import SPLITS, Table
from .tiny import make_interactions, make_model, make_split

# Histories with repeats, several targets and cold ones; scores with ties and without; what RecTools and ranx make of
# the ranking with ties against the targets. For its MAP RecTools divides by all targets, so it is there from k = 3 on.
JUDGED = json.loads((Path(__file__).parent / "judged.json").read_text())


@pytest.mark.parametrize("library", ["rectools", "ranx"])
@pytest.mark.parametrize("case", ["ties", "distinct"])
def test_equals_other_libraries(case: str, library: str) -> None:
    split = leave_k_out(from_sequences(JUDGED["histories"]), JUDGED["held"], validation=False)
    scorer, want = Table(torch.tensor(JUDGED["cases"][case]["scores"]).float()), JUDGED["cases"][case]["answers"]
    with pytest.warns(UserWarning, match="without a training event"):
        mine = evaluate(scorer, split, ks=(1, 3, 10), batch_size=5, cold="rank", per_user=True)
    assert len(want[library]) >= 20 and mine.protocol["cold_targets"]["targets"] == 11
    assert {name: mine.metrics[name] for name in want[library]} == pytest.approx(want[library], rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_models_without_an_answer(protocol: Any) -> None:
    """Equal scores are worth nothing; a constant order scores what its order is worth; NaN is refused by name."""
    split = make_split()
    data, users = split.interactions, split.part("test").users
    how: dict[str, Any] = {"protocol": protocol, "n_negatives": 9, "ks": (1,)}
    model = make_model(split)
    with torch.no_grad():
        model.outer.weight.zero_()
        model.outer.bias.zero_()
    for nothing in (model, Table(torch.full((data.n_users, data.n_items), 7.0))):
        metrics = evaluate(nothing, split, **how).metrics
        assert {metrics[f"{name}@1"] for name in METRICS} == {0.0}
    with torch.no_grad():
        model.outer.bias.copy_(torch.randn(8))
    order = model.score(model.outer.bias.detach()[None])[0, : data.n_items]
    same = evaluate(Table(order.repeat(data.n_users, 1)), split, per_user=True, **how)
    assert evaluate(model, split, per_user=True, **how).metrics == pytest.approx(same.metrics, abs=1e-12)
    if protocol == "full":
        masked = [set(data.items[data.offsets[u] : split.train_stop[u]].tolist()) for u in users]
        best = [next(i for i in order.argsort(descending=True).tolist() if i not in seen) for seen in masked]
        hit = [item == data.items[data.offsets[user + 1] - 1] for item, user in zip(best, users, strict=True)]
        assert same.users is not None and same.users["HR@1"].tolist() == hit
    with pytest.raises(ValueError, match="Table gave NaN scores"):
        evaluate(Table(torch.full((data.n_users, data.n_items), float("nan"))), split, **how)
    for weights in (model.item_embedding.weight, model.outer.weight):
        kept = weights.detach().clone()
        with torch.no_grad():
            weights.fill_(float("nan"))
        with pytest.raises(CheckpointError, match="not finite"):
            evaluate(model, split, **how)
        with torch.no_grad():
            weights.copy_(kept)


@pytest.mark.parametrize("how", SPLITS)
@pytest.mark.parametrize("protocol", ["full", "sampled"])
def test_values_of_users_are_those_whose_mean_is_the_metric(how: str, protocol: Any) -> None:
    """In the order of users, whatever the batches and the number of processes."""
    split = SPLITS[how](make_interactions())
    scorer = Table(torch.rand(split.interactions.n_users, split.interactions.n_items))
    options: dict[str, Any] = {
        "ks": (1, 5),
        "protocol": protocol,
        "n_negatives": 9,
        "per_user": True,
        "by": ("length", "popularity"),
    }
    whole = evaluate(scorer, split, batch_size=64, **options)
    found, part = whole.users, split.part("test")
    assert found is not None and found.users.tolist() == part.users.tolist()
    assert found.names == tuple(whole.intervals) and len(found.names) == 2 * (8 if protocol == "sampled" else 10)
    assert dict(zip(found.names, found.values.mean(0), strict=True)) == pytest.approx(
        {name: whole.metrics[name] for name in found.names}, abs=1e-12
    )
    for name, (low, high) in whole.intervals.items():
        assert low <= whole.metrics[name] <= high
    plain = evaluate(scorer, split, batch_size=64, ks=(1, 5), protocol=protocol, n_negatives=9)
    assert (
        plain.metrics.items() <= whole.metrics.items() and plain.users is None and not plain.intervals and not plain.by
    )
    tree = json.loads(whole.to_json())
    assert tree["by"] == whole.by and "users" not in tree and tree["intervals"]["HR@5"] == list(whole.intervals["HR@5"])

    shares: list[dict[int, Any]] = []

    class One(Ranks):
        """Of three processes that run one after the other, in two rounds: what they give is kept, then summed."""

        def sum(self, tensor: torch.Tensor) -> torch.Tensor:
            return self.all(tensor, lambda parts: torch.stack(parts).sum(0))

        def gather(self, tensor: torch.Tensor) -> list[torch.Tensor]:
            return self.all(tensor, lambda parts: parts)

        def all(self, tensor: torch.Tensor, join: Any) -> Any:
            call = next(self.calls)  # type: ignore[attr-defined]
            if len(shares) <= call:
                shares.append({})
            shares[call][self.rank] = tensor.clone()
            parts = [shares[call].get(rank, tensor) for rank in range(3)]
            return join(parts)

    for _ in range(2):
        for rank in range(3):
            ranks = One(rank, 3)
            object.__setattr__(ranks, "calls", itertools.count())
            divided = evaluate(scorer, split, batch_size=4, ranks=ranks, **options)
    assert divided.users is not None and np.array_equal(divided.users.users, found.users)
    np.testing.assert_allclose(divided.users.values, found.values, rtol=0, atol=1e-12)
    for what, groups in whole.by.items():
        for one, other in zip(groups, divided.by[what], strict=True):
            assert {**one, "metrics": None} == {**other, "metrics": None}
            assert one["metrics"] == pytest.approx(other["metrics"], abs=1e-12)


def test_breakdowns_are_of_groups() -> None:
    """Each group is what an evaluation of it alone gives; quarters and thirds are of users and of training events."""
    split = make_split(n_users=200)
    data, part = split.interactions, split.part("test")
    whole = evaluate(Markov(split), split, ks=(5,), per_user=True, by=("length", "popularity"))
    assert whole.users is not None
    lengths = (split.train_stop - data.offsets[:-1])[part.users]
    groups, users = whole.by["length"], len(part)
    assert sum(group["users"] for group in groups) == users and len(groups) == 4
    for group in groups:
        low, _, high = group["group"].split()[0].partition("–")
        inside = (lengths >= int(low)) & (lengths <= int(high or low))
        assert inside.sum() == group["users"] and abs(group["users"] - users / 4) < users / 8
        assert group["metrics"]["NDCG@5"] == pytest.approx(whole.users["NDCG@5"][inside].mean(), abs=1e-12)
    counts, targets = split.item_counts(), data.items[part.target_start]
    order = np.argsort(-counts, kind="stable")
    share = np.cumsum(counts[order])[np.searchsorted(-counts[order], -counts)] - counts[np.argsort(order)]
    assert share.min() >= 0
    groups = whole.by["popularity"]
    assert [group["group"].split(":")[0] for group in groups] == ["head", "mid", "tail"]
    assert sum(group["users"] for group in groups) == sum(group["targets"] for group in groups) == users
    at = 0
    for group in groups:  # the most popular items first, and none between them
        size = int(group["group"].split()[1])
        items = order[at : at + size]
        inside = np.isin(targets, items)
        assert inside.sum() == group["targets"] and counts[items].sum() > counts.sum() / 5
        assert at == 0 or counts[order[at - 1]] > counts[items[0]]
        assert group["metrics"]["NDCG@5"] == pytest.approx(whole.users["NDCG@5"][inside].mean(), abs=1e-12)
        at += size
    assert at == data.n_items


def test_a_users_targets_are_broken_down_one_by_one() -> None:
    """User 0's targets are one of the head, found first, and one of the tail, found second."""
    split = leave_k_out(from_sequences([[0, 1, 2, 0, 3], [0, 0, 3, 1, 2], [0, 0, 2, 1, 0]]), 2, validation=False)
    scores = torch.tensor([[9.0, 1.0, 2.0, 8.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    head, *_ = evaluate(Table(scores), split, ks=(2,), mask_seen="none", by=["popularity"]).by["popularity"]
    assert head["group"].startswith("head: 1 items of 5 training events") and (head["users"], head["targets"]) == (2, 2)
    assert head["metrics"]["MRR@2"] == 1 / 2 and head["metrics"]["Recall@2"] == 1 / 2
    with pytest.raises(ValueError, match="by has 'age', expected 'length' or 'popularity'"):
        evaluate(Table(scores), split, by=["age"])  # type: ignore[list-item]


def test_cold_targets_and_users_are_counted() -> None:
    """Item 5 is a target alone; user 2 has no event before the test part, user 3 none in training."""
    times = [[1, 2, 3, 9], [1, 2, 3, 9], [9, 10], [5, 9]]
    items = [[0, 1, 2, 5], [1, 2, 0, 1], [0, 1], [2, 0]]
    rows = [(u, i, t) for u in range(4) for i, t in zip(items[u], times[u], strict=True)]
    users, events, when = map(list, zip(*rows, strict=True))
    split = global_temporal(build_interactions(users, events, when), timestamp=8, validation_timestamp=4)
    scorer = Table(torch.tensor([0.0, 1.0, 2.0, 9.0]).repeat(4, 1))
    with pytest.warns(UserWarning, match="without a training event"):
        miss, rank = (evaluate(scorer, split, ks=(1,), cold=how, mask_seen="none") for how in ("miss", "rank"))
    assert (miss["HR@1"], rank["HR@1"]) == (0.0, 1 / 3)
    assert miss.protocol["cold_targets"] == {"targets": 1, "count_as": "misses"}
    assert rank.protocol["cold_targets"] == {"targets": 1, "count_as": "all others"}
    assert miss.protocol["cold_users"] == {"ranked": 1, "left_out": 1, "left_out_targets": 2}
    later = evaluate(scorer, split, ks=(1,), history="training", coverage=False).protocol["cold_users"]
    assert later == {"ranked": 0, "left_out": 2, "left_out_targets": 3}
    sampled = evaluate(scorer, split, protocol="sampled", ks=(1,), n_negatives=1)
    assert sampled["HR@1"] == 0.0
    with pytest.raises(ValueError, match="cold is 'drop', expected 'miss' or 'rank'"):
        evaluate(scorer, split, cold="drop")  # type: ignore[arg-type]


def test_ties_in_time_are_stated() -> None:
    """Of 8 events 4 are tied, none across two users; user 0's test target and user 1's for validation are."""
    data = build_interactions([0, 0, 0, 0, 1, 1, 1, 1], [0, 1, 2, 3] * 2, [1, 5, 6, 6, 6, 7, 7, 9])
    said = leave_one_out(data).describe()
    assert said["tied_events_share"] == 4 / 8
    assert said["test_users_cut_in_ties"] == said["validation_users_cut_in_ties"] == 1
    untimed = leave_one_out(from_sequences([[0, 1, 2, 3]])).describe()
    assert untimed["tied_events_share"] is untimed["test_users_cut_in_ties"] is None


def test_intervals_of_proportions() -> None:
    """Those of scipy 1.12's ``binomtest(hits, n).proportion_ci(0.95, "wilson")``."""
    for hits, n, want in (
        (0, 50, (0.0, 0.07134759913335872)),
        (7, 50, (0.06950833427016292, 0.26186193710585537)),
        (50, 50, (0.9286524008666412, 1.0)),
        (613, 22363, (0.02535116467011706, 0.02963386578601325)),
    ):
        assert wilson(hits, n) == pytest.approx(want, abs=1e-12)


def values(x: Any, name: str = "NDCG@10", **protocol: Any) -> UserValues:
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    said = {"split": {"data_hash": "d" * 64, "split_hash": "s" * 64}, "part": "test", **protocol}
    return UserValues(np.arange(len(x)), (name,), x, said)


def test_intervals_cover_the_mean_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means of 400 users, most without a hit: 95 of 100 intervals hold the true one, by either method."""
    rng, gains, hit = np.random.default_rng(3), 1 / np.log2(np.arange(2, 12)), 0.2
    truth, rounds = hit * gains.mean(), 400
    samples = [(rng.random(400) < hit) * rng.choice(gains, 400) for _ in range(rounds)]
    for most in (400, 0):
        monkeypatch.setattr("fastseq.training.significance.BOOTSTRAP_USERS", most)
        found = [intervals(values(x), seed)["NDCG@10"] for seed, x in enumerate(samples)]
        assert 0.92 < np.mean([low <= truth <= high for low, high in found]) < 0.98


def test_resampling_leaves_out_users_without_a_value() -> None:
    """Of users of whom most have 0 it is that of the others, in distribution, and the same for a seed."""
    rng = np.random.default_rng(0)
    some = rng.random((40, 2))
    whole = np.concatenate([some, np.zeros((360, 2))])
    short, long = resampled_means(some, 400, 5), resampled_means(whole, 400, 5)
    assert np.array_equal(short, resampled_means(some, 400, 5)) and short.shape == long.shape == (1000, 2)
    for means in (short, long):
        assert means.mean(0) == pytest.approx(whole.mean(0), rel=0.03)
        assert means.std(0) == pytest.approx(whole.std(0) / 20, rel=0.1)
    assert (np.diff(percentiles(short), axis=0) > 0).all()


def test_permutations_are_those_of_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against all 2¹² choices; with nothing that differs, p is 1; of many users the normal test agrees."""
    rng = np.random.default_rng(1)
    for shift in (0.0, 0.3, 1.0):
        x = rng.normal(shift, 1, 12)
        signs = np.array(list(itertools.product((-1, 1), repeat=12)))
        exact = (np.abs(signs @ x) >= abs(x.sum()) - 1e-9).mean()
        assert sign_flips(x, 7) == pytest.approx(exact, abs=0.02)
    assert sign_flips(np.ones(30), 7) == 1 / (PERMUTATIONS + 1)
    assert sign_flips(np.zeros(0), 7) == 1.0
    x = rng.normal(0.05, 1, 1000) * (rng.random(1000) < 0.3)
    resampled = paired(x, 7)
    monkeypatch.setattr("fastseq.training.significance.BOOTSTRAP_USERS", 0)
    assert paired(x, 7) == pytest.approx(resampled, abs=0.01)
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_a_difference_that_all_users_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastseq.training.significance.BOOTSTRAP_USERS", 10)
    assert paired(np.full(20, 0.5), 7) == (0.5, 0.5, 0.0)


def test_intervals_of_what_is_no_share() -> None:
    """A list of items that each have one event, or that half of the users have: 1 is no share of anything."""
    for name in NOVELTY_METRICS:
        assert intervals(values(np.ones(50), f"{name}@10"), 7) == {f"{name}@10": (1.0, 1.0)}


def test_runs_are_compared_user_by_user() -> None:
    rng = np.random.default_rng(2)
    a = (rng.random(500) < 0.3).astype(float)
    better = np.where(rng.random(500) < 0.2, 1.0, a)
    answer = compare({"a": values(a), "b": values(better), "c": values(a), "d": values(rng.permutation(a))})
    json.dumps(answer)
    b, c, d = (each["metrics"]["NDCG@10"] for each in answer["comparisons"])
    assert b["difference"] == pytest.approx((better - a).mean()) and 0 < b["interval"][0] < b["difference"]
    assert (b["higher"], b["lower"], b["equal"]) == ((better > a).sum(), 0, (better == a).sum())
    assert b["p"] == pytest.approx(3 / (PERMUTATIONS + 1)) and "Holm" in answer["method"]
    assert (c["difference"], c["interval"], c["p"], c["equal"]) == (0.0, [0.0, 0.0], 1.0, 500)
    assert d["interval"][0] < 0 < d["interval"][1] and d["p"] > 0.05
    assert (
        answer == compare({"a": values(a), "b": values(better), "c": values(a), "d": values(rng.permutation(a))}) or d
    )
    alone = compare({"a": values(a), "b": values(better)})
    assert alone["comparisons"][0]["metrics"]["NDCG@10"]["p"] == pytest.approx(1 / (PERMUTATIONS + 1))


def test_runs_that_were_not_evaluated_alike_are_refused() -> None:
    one = values(np.ones(5))
    other = values(np.ones(5), part="validation", split={"data_hash": "d" * 64, "split_hash": "t" * 64})
    with pytest.raises(
        DataError, match=r"a and b cannot be .*split is 'ssssssssssss' and 'tttt.*part is 'test' and 'val"
    ):
        compare({"a": one, "b": other})
    with pytest.raises(DataError, match="their users differ"):
        compare({"a": one, "b": replace(one, users=np.arange(1, 6))})
    with pytest.raises(DataError, match=r"no metric is in all runs: a has NDCG@10; b has NDCG@5.*-k"):
        compare({"a": one, "b": values(np.ones(5), "NDCG@5")})


def test_values_are_kept_in_the_run_folder(tmp_path: Path) -> None:
    split = make_split()
    run = RunFolder(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no metrics of each user; `fastseq evaluate .*` writes them"):
        run.read_users()
    evaluation = evaluate(Popularity(split), split, per_user=True)
    run.write_evaluation(evaluation)
    assert evaluation.users is not None
    read = run.read_users()
    assert read.names == evaluation.users.names and np.array_equal(read.users, evaluation.users.users)
    assert read.values.dtype == np.float32
    np.testing.assert_allclose(read.values, evaluation.users.values, rtol=1e-6)
    same = compare({"stored": read, "again": read})["comparisons"][0]["metrics"]
    assert all(metric["equal"] == len(read.users) for metric in same.values())
    x, said = evaluation.users.values.copy(), evaluation.users.protocol
    x[3, 1] = np.nan
    for damaged in ({"protocol": {}}, {"protocol": said | {"split": 5}}, {"names": 5}, {"values": x}):
        run.write_users(replace(evaluation.users, **damaged))
        with pytest.raises(CheckpointError, match=r"evaluation_users.safetensors: damaged .*evaluate the run again"):
            run.read_users()
    RunFolder(tmp_path / "run", overwrite=True)
    assert not run.users_path.exists()


def test_names_of_novelty() -> None:
    names = {
        "arp": "ARP",
        "AvgRecPopularity": "ARP",
        "novelty": "MeanInvUserFreq",
        "MeanInvUserFreq": "MeanInvUserFreq",
    }
    assert {parse_metric(f"{name}@5") for name in names} == {(name, 5) for name in NOVELTY_METRICS}


def test_a_user_who_has_seen_everything_has_no_list() -> None:
    split = leave_one_out(from_sequences([[0, 1, 2, 0, 1], [0, 1, 2, 0], [1, 2, 0]]), validation=False)
    found = evaluate(Popularity(split), split, ks=(2,), per_user=True).users
    assert found is not None and found["ARP@2"].tolist() == [0.0, 0.0, 3.0]
