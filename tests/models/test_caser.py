"""What Caser alone does, its windows among it; tests/models/test_exactness.py has what all models do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import fastseq
from fastseq import Caser, GRU4Rec
from fastseq.data import leave_one_out, make_demo
from fastseq.data.batch import JaggedBatch
from fastseq.errors import CheckpointError, ConfigError, DataError
from fastseq.models.jagged import offsets_of
from fastseq.training import Trainer, TrainingOptions, evaluate, save_warprec
from tests.ops.compare import relative_error

from . import exactness
from .exactness import INFO, N_ITEMS

PARAMS = exactness.PARAMS["Caser"]


@pytest.mark.parametrize(("events", "stride"), [(2, 9), (5, 4), (10, 9), (10, 1), (11, 1), (31, 1), (31, 9), (40, 4)])
def test_shared_windows_equal_per_target_histories(events: int, stride: int) -> None:
    """Any history, any stride: outputs, loss with L2 term, gradients. Windows carry L − 1 events of context."""
    model, plain = exactness.pair("Caser")
    length = model.max_seq_len
    history, user = torch.randint(0, N_ITEMS, (events,)), 4
    shared, (padded, sizes, targets, negatives) = exactness.shared_batch(history, length, stride, PARAMS["neg_samples"])
    firsts = list(range(1, events, stride))
    starts = [max(0, first - length) for first in firsts]
    ends = [min(first + stride, events) - 1 for first in firsts]
    offsets = offsets_of(torch.tensor([end - start for start, end in zip(starts, ends, strict=True)]))
    windows = [(number, target) for number, first in enumerate(firsts) for target in range(first, ends[number] + 1)]
    batch = JaggedBatch(
        items=torch.cat([history[start:end] for start, end in zip(starts, ends, strict=True)]),
        offsets=offsets,
        users=torch.full((len(firsts),), user),
        max_len=int(offsets.diff().max()),
        rows=torch.tensor([int(offsets[number]) + target - 1 - starts[number] for number, target in windows]),
        targets=targets,
        target_sequences=torch.tensor([number for number, _ in windows]),
        negatives=negatives,
        l2_items=shared.l2_items,
        l2_weights=shared.l2_weights,
        l2_padding=shared.l2_padding,
        n_targets_global=len(targets),
    )
    users = torch.full((len(targets),), user)
    assert relative_error(model.encode(batch), plain(users, padded)) < 1e-10
    expected = plain.loss((users, padded, sizes, targets, negatives))
    exactness.assert_same_loss(model, model.loss(batch), plain, expected)


def test_several_weights_at_once() -> None:
    """By torch.func, as in ensembles."""
    model, _ = exactness.pair("Caser")
    users, (sequences, _) = torch.tensor([0, 6, 2]), exactness.histories(9, [9, 4, 1])
    weights = {name: torch.stack([x, 2 * x]).detach() for name, x in model.named_parameters()}

    def outputs(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        result: torch.Tensor = torch.func.functional_call(model, weights, (users, sequences))
        return result

    expected = [outputs({name: x[i] for name, x in weights.items()}) for i in range(2)]
    torch.testing.assert_close(torch.func.vmap(outputs)(weights), torch.stack(expected))


@pytest.mark.parametrize("width", [1, 4, 9])
def test_a_narrow_batch_is_padded_to_the_full_window(width: int) -> None:
    """Evaluation pads to the longest history of the batch only."""
    model, plain = exactness.pair("Caser")
    users = torch.tensor([0, 6, 2])
    sequences, lengths = exactness.histories(width, [0, width, width // 2])
    h = plain(users, sequences)
    table = plain.item_embedding.weight
    assert relative_error(model.predict(users, sequences, lengths), h @ table[:-1].T) < 1e-10
    items = torch.randint(0, N_ITEMS + 1, (3, 5))
    scores = model.predict(user_indices=users, user_seq=sequences, seq_len=lengths, item_indices=items)
    assert relative_error(scores, torch.einsum("be,bse->bs", h, table[items])) < 1e-10


def test_of_an_over_long_history_the_last_events_count() -> None:
    model, plain = exactness.pair("Caser")
    items = torch.randint(0, N_ITEMS, (14,))
    h = model.encode_last(items, offsets_of(torch.tensor([14])), torch.tensor([5]))
    assert relative_error(h, plain(torch.tensor([5]), items[None, -9:])) < 1e-10


def test_an_unknown_user_is_refused_or_takes_the_mean_vector() -> None:
    model, plain = exactness.pair("Caser")
    model.eval()
    history = [3, 1, 4, 1, 5]
    items, offsets = torch.tensor(history), torch.tensor([0, 5], dtype=torch.int32)
    with torch.no_grad():
        plain.user_embedding.weight[2] = plain.user_embedding.weight.mean(dim=0)
    expected = plain(torch.tensor([2]), items[None])
    assert relative_error(model.encode_last(items, offsets, torch.tensor([-1])), expected) < 1e-10
    with pytest.raises(DataError, match=r"user 99 \(history 0\) is unknown"):
        model.recommend([history], 3, users=[99])
    best = model.recommend([history], 3, users=[99], unknown_users="mean")[0]
    scores = (expected @ plain.item_embedding.weight[:-1].T)[0]
    scores[items] = -torch.inf
    assert best.items == scores.topk(3).indices.tolist()
    assert model.recommend({2: history}, 3) == {2: model.recommend([history], 3, users=[2])[0]}
    with pytest.raises(DataError, match=r"user '2' is a string, and the known id is 2, an integer"):
        model.recommend([history], 3, users=["2"], unknown_users="mean")
    with pytest.raises(ValueError, match="users has id 7"):
        model.predict(torch.tensor([7]), items[None], torch.tensor([5]))
    with pytest.raises(ValueError, match=r"Caser.predict needs user_indices \[B\], got None"):
        model.predict(None, items[None])


def test_without_any_filter_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_h and n_v are both 0"):
        Caser({**PARAMS, "n_h": 0, "n_v": 0}, INFO)


def test_the_last_relu_can_be_left_out() -> None:
    """The output is then what the ReLU would take; the other models have no such key."""
    usual, linear = (Caser({**PARAMS, "output_activation": name}, INFO).eval() for name in ("relu", "none"))
    users, (sequences, _) = torch.tensor([0, 6, 2]), exactness.histories(9, [9, 4, 1])
    output = linear(users, sequences)
    assert (output < 0).any() and output.relu().equal(usual(users, sequences))
    assert linear.get_params()["output_activation"] == "none" and "output_activation" not in usual.get_params()
    with pytest.raises(ConfigError, match="GRU4Rec: output_activation is 'none', but the key is Caser's"):
        GRU4Rec({**exactness.PARAMS["GRU4Rec"], "output_activation": "none"}, INFO)


def test_a_start_from_which_the_last_relu_sets_is_refused() -> None:
    small = {**PARAMS, "initializer_range": 0.02}
    with pytest.raises(ConfigError, match=r"initializer_range is 0.02.*output_activation to none or user_vectors"):
        Caser(small, INFO)
    for mended in ({"output_activation": "none"}, {"user_vectors": False}, {"initializer_range": 0.1}):
        Caser({**small, **mended}, INFO)


def test_without_user_vectors_it_scores_any_history(tmp_path: Path) -> None:
    """The output is that of a model whose last layer does not weigh the user; WarpRec's batches have users all the
    same, and none is looked at."""
    alone, usual = (Caser({**PARAMS, "user_vectors": flag, "reg_weight": 0.0}, INFO).eval() for flag in (False, True))
    assert not any("user" in name for name in alone.state_dict())
    weights = alone.state_dict()
    weights["fc2.weight"] = torch.cat([weights["fc2.weight"], torch.zeros_like(weights["fc2.weight"])], dim=1)
    usual.load_state_dict(weights | {"user_embedding.weight": usual.user_embedding.weight})
    users, (sequences, lengths) = torch.tensor([0, 6, 2]), exactness.histories(9, [9, 4, 1])
    assert relative_error(alone(users, sequences), usual(users, sequences)) < 1e-6
    assert relative_error(alone.predict(users, sequences), usual.predict(users, sequences)) < 1e-6
    assert alone.recommend([[1, 2], []], k=3)[0] == alone.recommend([[1, 2]], k=3)[0]
    targets, negatives = torch.tensor([3, 5, 7]), torch.randint(0, N_ITEMS, (3, PARAMS["neg_samples"]))
    batch = (users, sequences, lengths, targets, negatives)
    assert alone.training_step(batch, 0).isclose(usual.training_step(batch, 0), rtol=1e-6)
    with pytest.raises(CheckpointError, match="user_vectors is False, which WarpRec's Caser does not know"):
        save_warprec(tmp_path / "model.pth", alone)
    with pytest.raises(ConfigError, match="user_vectors is 1, expected true or false"):
        Caser({**PARAMS, "user_vectors": 1}, INFO)


def test_without_user_vectors_it_trains_and_comes_back(tmp_path: Path) -> None:
    split = leave_one_out(make_demo())
    data = split.interactions
    info = {"n_users": data.n_users, "n_items": data.n_items}
    model = Caser({**PARAMS, "user_vectors": False, "batch_size": 512}, info)
    Trainer(model, split, TrainingOptions(epochs=1), tmp_path / "run").fit()
    score = evaluate(model, split, "test").metrics["NDCG@10"]
    again = fastseq.load(tmp_path / "run")
    assert not again.user_vectors and evaluate(again, split, "test").metrics["NDCG@10"] == score
