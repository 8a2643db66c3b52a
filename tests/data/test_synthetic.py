"""The embedded data set has the structure it promises, and the control has none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastseq.data import synthetic
from fastseq.data.baselines import Popularity
from fastseq.data.interactions import Interactions, build_interactions
from fastseq.data.readers import read_interactions
from fastseq.data.split import Split, leave_one_out
from fastseq.data.synthetic import CLUSTERS, STYLES, Catalogue, make_demo, make_long_tail, write_long_tail
from fastseq.errors import DataError

from .baselines import Markov, shuffled


class Order2:
    """Counts of items after (cluster of the last, style of the one before): what knowing two items can give."""

    def __init__(self, split: Split, seed: int) -> None:
        data = split.interactions
        catalogue = Catalogue.draw(np.random.default_rng(seed), 1_000)
        numbers = np.array([int(str(name).removeprefix("item-")) - 1 for name in data.item_ids.values])
        rank = np.argsort(catalogue.names)[numbers]
        self.cluster, self.style = catalogue.cluster[rank], catalogue.style[rank]
        self.counts = np.zeros((CLUSTERS, STYLES, data.n_items), np.float32)
        inside = np.arange(data.n_events) - np.repeat(data.offsets[:-1], data.lengths) >= 2
        third = np.flatnonzero(inside & (np.arange(data.n_events) < np.repeat(split.train_stop, data.lengths)))
        x = data.items
        np.add.at(self.counts, (self.cluster[x[third - 1]], self.style[x[third - 2]], x[third]), 1)

    def score(self, users: Tensor, items: Tensor, offsets: Tensor) -> Tensor:
        last = items.numpy()[offsets.numpy()[1:] - 1]
        before = items.numpy()[offsets.numpy()[1:] - 2]
        return torch.from_numpy(self.counts[self.cluster[last], self.style[before]])


def ndcg(scorer: Popularity | Markov | Order2, split: Split) -> float:
    """NDCG@10 of the test part, full ranking, seen items filtered, ties against the target."""
    data, part = split.interactions, split.part("test")
    histories = [data.items[a:b] for a, b in zip(part.history_start, part.history_stop, strict=True)]
    offsets = torch.tensor([0, *np.cumsum([len(h) for h in histories])], dtype=torch.int32)
    items = torch.from_numpy(np.concatenate(histories))
    scores = scorer.score(torch.from_numpy(part.users), items, offsets).clone()
    targets = torch.from_numpy(data.items[part.target_start])
    rows = torch.arange(len(part))
    best = scores[rows, targets]
    scores[rows.repeat_interleave(offsets.diff()), items] = -torch.inf
    scores[rows, targets] = -torch.inf
    ranks = (scores >= best[:, None]).sum(1)
    return float(torch.where(ranks < 10, 1 / torch.log2(ranks + 2.0), 0).mean())


@pytest.fixture(scope="module")
def demo() -> Interactions:
    return make_demo()


def test_size_and_ids(demo: Interactions) -> None:
    assert demo.n_users == 3_000 and demo.n_items == 1_000
    assert 80_000 < demo.n_events < 100_000
    assert demo.user_ids.values[0] == "user-0001" and demo.item_ids.values[41] == "item-0042"
    assert demo.timestamps is not None
    rises = np.diff(demo.timestamps) > 0
    rises[demo.offsets[1:-1] - 1] = True
    assert rises.all()


def test_a_function_of_its_seed(demo: Interactions) -> None:
    assert make_demo().data_hash == demo.data_hash
    assert make_demo(seed=1).data_hash != demo.data_hash
    assert make_demo(n_users=50, n_items=40, mean_length=8.0).n_users == 50


@pytest.mark.parametrize("seed", [0, 1])
def test_order_carries_the_signal(seed: int) -> None:
    data = make_demo(seed=seed)
    split = leave_one_out(data)
    popularity, markov, order2 = (ndcg(s, split) for s in (Popularity(split), Markov(split), Order2(split, seed)))
    assert markov > 3 * popularity
    assert order2 > 2.5 * markov
    control = leave_one_out(shuffled(data, seed))
    assert ndcg(Markov(control), control) < 0.5 * markov
    assert ndcg(Order2(control, seed), control) < 0.3 * order2


def test_popularity_is_zipf_and_items_repeat(demo: Interactions) -> None:
    counts: NDArray[np.int64] = np.sort(np.bincount(demo.items))[::-1]
    assert counts[:100].sum() > 0.25 * demo.n_events and counts[0] > 50 * counts[-1]
    distinct = sum(len(np.unique(demo.items[a:b])) for a, b in zip(demo.offsets, demo.offsets[1:], strict=False))
    assert 0.04 < 1 - distinct / demo.n_events < 0.4


def test_shuffled_keeps_all_but_order(demo: Interactions) -> None:
    control = shuffled(demo, 3)
    assert control.data_hash != demo.data_hash
    assert (control.items != demo.items).mean() > 0.8
    for a, b in zip(demo.offsets[:200], demo.offsets[1:], strict=False):
        assert sorted(control.items[a:b]) == sorted(demo.items[a:b])


def test_shuffled_is_uniform() -> None:
    data = build_interactions([u for u in range(4_000) for _ in range(3)], [0, 1, 2] * 4_000)
    firsts = shuffled(data).items.reshape(-1, 3)
    for position in range(3):
        assert np.bincount(firsts[:, position], minlength=3) == pytest.approx(4_000 / 3, abs=130)  # 4.3 sigma


@pytest.mark.parametrize("arguments", [{"n_users": 0}, {"n_items": 5}, {"mean_length": 1.0}, {"mean_length": 1e6}])
def test_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        make_demo(**arguments)  # type: ignore[arg-type]


def test_baselines_count_training_events_only() -> None:
    # user 0: 5 6 5 6 | 7 | 8; user 1: 6 5 7 | 5 | 6 (training | validation | test)
    data = build_interactions([0] * 6 + [1] * 5, [5, 6, 5, 6, 7, 8, 6, 5, 7, 5, 6])
    split = leave_one_out(data)
    histories = torch.tensor([0, 1, 0, 3, 2]), torch.tensor([0, 1, 3, 3, 4, 5], dtype=torch.int32)
    users = torch.zeros(5, dtype=torch.int64)  # histories end with 5, 5, nothing, 8, 7 (as items 0 … 3: 5, 6, 7, 8)
    assert Popularity(split).score(users, *histories).tolist() == [[3.0, 3.0, 1.0, 0.0]] * 5
    base = torch.tensor([3.0, 3.0, 1.0, 0.0]) / 8
    after_5 = base + torch.tensor([0.0, 2.0, 1.0, 0.0])
    want = torch.stack([after_5, after_5, base, base, base])
    torch.testing.assert_close(Markov(split).score(users, *histories), want)
    after_6 = Markov(split).score(users[:1], torch.tensor([1]), torch.tensor([0, 1]))
    torch.testing.assert_close(after_6, (base + torch.tensor([2.0, 0.0, 0.0, 0.0]))[None])


def test_a_long_tail_of_any_size() -> None:
    data = make_long_tail(500, n_users=40, n_events=3_000, seed=1)
    assert (data.n_items, data.n_users, data.n_events) == (500, 40, 3_000)
    assert data.lengths.min() >= 2 and data.offsets[-1] == 3_000
    counts = np.bincount(data.items, minlength=500)
    assert counts.min() >= 1 and np.sort(counts)[-50:].sum() > 3 * np.sort(counts)[:50].sum()
    again = make_long_tail(500, n_users=40, n_events=3_000, seed=1)
    assert np.array_equal(data.items, again.items) and np.array_equal(data.offsets, again.offsets)
    with pytest.raises(ValueError, match=r"n_events=60: expected .* twice as many as users"):
        make_long_tail(10, n_users=40, n_events=60)


def test_a_long_tail_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written block by block it is what is made at once, and what is read again."""
    monkeypatch.setattr(synthetic, "BLOCK", 128)
    write_long_tail(tmp_path / "events.csv", 500, n_users=40, n_events=3_000, seed=1)
    made, read = make_long_tail(500, n_users=40, n_events=3_000, seed=1), read_interactions(tmp_path / "events.csv")
    assert np.array_equal(read.items, made.items) and np.array_equal(read.offsets, made.offsets)
    assert read.item_ids == made.item_ids and read.user_ids == made.user_ids
    with pytest.raises(DataError, match="cannot be written"):
        write_long_tail(tmp_path / "absent" / "events.csv", 500, n_users=40, n_events=3_000)
