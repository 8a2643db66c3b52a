"""The embedded data set is worth a demonstration: order carries what the models learn, and they learn it."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from fastseq.cli.configuration import load_config
from fastseq.cli.experiment import build_model
from fastseq.data import Interactions, Popularity, leave_one_out, make_demo
from fastseq.training import Trainer, TrainingOptions, evaluate
from tests.data.baselines import Markov, shuffled

DEMO = Path(__file__).resolve().parents[2] / "examples" / "demo.yaml"
# Of the 15 to 20 of the demonstration: as many as it takes to pass the baselines clearly.
EPOCHS = {"Caser": 8, "GRU4Rec": 6, "SASRec": 6}
MODELS = {entry.name: entry for entry in load_config(DEMO).models}


@functools.cache
def demo() -> Interactions:
    return make_demo()


@functools.cache
def baselines() -> dict[str, float]:
    split = leave_one_out(demo())
    return {kind.__name__: evaluate(kind(split), split)["NDCG@10"] for kind in (Popularity, Markov)}


def trained_score(name: str, data: Interactions) -> float:
    """NDCG@10 on the test part after some epochs of the demonstration's own training."""
    split = leave_one_out(data)
    model = build_model(MODELS[name], data)
    Trainer(model, split, TrainingOptions(epochs=EPOCHS[name], validation_metric=None)).fit()
    return evaluate(model, split)["NDCG@10"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EPOCHS)
def test_models_learn_the_order_of_the_demo_data(name: str) -> None:
    base = baselines()
    score = trained_score(name, demo())
    assert score >= 2 * base["Popularity"]
    if name != "Caser":
        assert score > base["Markov"]
    control = trained_score(name, shuffled(demo(), seed=1))
    assert control - base["Popularity"] < 0.5 * (score - base["Popularity"]), "the gain does not come from the order"
