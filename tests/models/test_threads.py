"""Training gives the same weights, to the bit, on 1, 2 and 8 threads, beside others in threads, and after a fork."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from torch import Tensor

from fastseq.models import MODELS, SASRec
from fastseq.training import Trainer, TrainingOptions
from fastseq.training.throughput import REFERENCE_CONFIGURATIONS
from tests import run_python
from tests.models.small import required_params
from tests.ops.backends import check_same_on_threads
from tests.training.tiny import make_model, make_split

CASES: dict[str, dict[str, Any]] = {
    "SASRec": {"n_heads": 2, "inner_size": 24, "dropout_prob": 0.2, "attn_dropout_prob": 0.2},
    "SASRec, full softmax": {"n_heads": 2, "inner_size": 24, "loss": "cross_entropy", "neg_samples": 0},
    "GRU4Rec": {"hidden_size": 24, "dropout_prob": 0.2},
    "Caser": {"n_h": 3, "n_v": 2, "dropout_prob": 0.2, "max_seq_len": 5},
}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_threads_change_no_weight(case: str, precision: str) -> None:
    split = make_split(n_users=60)
    name = case.split(",")[0]
    small = {"embedding_size": 16, "max_seq_len": 20, "batch_size": 256, "reg_weight": 0.0}
    params = {**REFERENCE_CONFIGURATIONS[name], **small, **CASES[case]}
    info = {"n_users": split.interactions.n_users, "n_items": split.interactions.n_items}
    options = TrainingOptions(epochs=2, precision=precision, validation_metric=None)  # type: ignore[arg-type]

    def weights() -> dict[str, Tensor]:
        model = MODELS[name](params, info, seed=3)
        Trainer(model, split, options).fit()
        return model.state_dict()

    check_same_on_threads(weights)


def at_once(function: Callable[[], Any], times: int = 4) -> list[Any]:
    """What ``function`` gives in as many threads, which start together."""
    barrier = Barrier(times)

    def run() -> Any:
        barrier.wait()
        return function()

    with ThreadPoolExecutor(times) as pool:
        return [future.result() for future in [pool.submit(run) for _ in range(times)]]


def test_trainings_in_threads_do_not_disturb_each_other() -> None:
    split = make_split()

    def train() -> tuple[dict[str, Tensor], dict[str, Any]]:
        torch.rand(1)  # of the global generator, as somebody else's code would
        model = make_model(split, dropout_prob=0.3)
        Trainer(model, split, TrainingOptions(epochs=2)).fit()
        return model.state_dict(), model.recommend([[1, 2], []], 3)

    weights, best = train()
    for other, recommended in at_once(train):
        assert recommended == best and all(torch.equal(other[name], value) for name, value in weights.items())


def test_construction_leaves_the_global_generators_alone() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    split = make_split()
    make_model(split)
    with torch.device("meta"):
        assert make_model(split).inner.weight.is_meta
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == states[1:]


def test_a_subclass_may_choose_its_seed_and_hold_other_models() -> None:
    class Named(Protocol): ...

    class Seven(SASRec, Named):
        def __init__(self, params: dict, info: dict, *args: Any, seed: int = 7, **kwargs: Any) -> None:
            super().__init__(params, info, *args, seed=seed, **kwargs)
            self.own = torch.rand(3)
            self.other = SASRec(params, info, seed=3)
            self.last = torch.rand(3)

    params, info = required_params("SASRec"), {"n_users": 3, "n_items": 9}
    model, state = Seven(params, info), torch.get_rng_state()
    for ours, seed in ((model, 7), (model.other, 3)):
        want = SASRec(params, info, seed=seed).state_dict()
        assert all(torch.equal(ours.state_dict()[name], value) for name, value in want.items())
    assert not torch.equal(model.item_embedding.weight, model.other.item_embedding.weight)
    again = Seven(params, info)
    assert torch.equal(again.own, model.own) and torch.equal(again.last, model.last)
    assert not torch.equal(model.own, model.last) and torch.equal(torch.get_rng_state(), state)


def test_a_replaced_method_is_switched_with_its_model_and_back() -> None:
    model = make_model(make_split(), dropout_prob=0.5)
    model.own = torch.nn.Dropout(0.5)
    model.inner.eval()
    modes = [part.training for part in model.modules()]
    original, seen = model.encode_last, set()

    def encode_last(*args: Any) -> Tensor:
        seen.update(part.training for part in model.modules())
        return original(*args)

    model.encode_last = encode_last  # type: ignore[method-assign]
    model.recommend([[1, 2]], 3)
    assert seen == {False} and [part.training for part in model.modules()] == modes


def test_a_model_that_trains_recommends_in_threads_as_in_evaluation() -> None:
    model = make_model(make_split(), dropout_prob=0.5).eval()
    model.add_module("own", torch.nn.Dropout(0.5))  # a subclass may have PyTorch's
    histories = [[1, 2, 3], [4], []]
    expected = model.recommend(histories, 5)
    modes: set[bool] = set()
    model.train().register_buffer("seen", torch.zeros(1))
    for answers in at_once(lambda: [(modes.add(model.training), model.recommend(histories, 5))[1] for _ in range(20)]):
        assert all(answer == expected for answer in answers)
    assert modes == {True} and model.own.training


FORK = """
import os, sys, torch
from fastseq.training import Trainer, TrainingOptions
from fastseq import SASRec
from tests.models.small import required_params
from tests.training.tiny import make_split
torch.set_num_threads(2)
split = make_split(n_users=60)
info = {"n_users": split.interactions.n_users, "n_items": split.interactions.n_items}
def train():
    model = SASRec(required_params("SASRec", neg_samples=1, dropout_prob=0.3), info)
    Trainer(model, split, TrainingOptions(epochs=1)).fit()
    return model.recommend([[1, 2, 3]] * 200, 5), torch.rand(600, 600).mm(torch.rand(600, 600)).isfinite().all()
expected, _ = train()
child = os.fork()
if child == 0:
    best, finite = train()
    os._exit(0 if best == expected and finite and torch.get_num_threads() == 1 else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or torch.get_num_threads() != 2)
"""


def test_a_forked_child_trains_and_recommends_after_its_parent_did() -> None:
    run_python("-c", FORK)
