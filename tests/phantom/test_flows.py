"""What a training step, an evaluation, a recommendation and WarpRec's step do on a GPU, without one (device.py).

The limits are a ratchet: who needs fewer operations lowers them, and nobody raises them without a reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Facts = Callable[[str], dict[str, Any]]
PRECISIONS = ("fp32", "tf32", "bf16")
# Most device operations in float32 and under bf16, host-to-device copies, waits for the device.
LIMITS = {
    ("SASRec", "training_step"): (62, 82, 0, 0),
    ("GRU4Rec", "training_step"): (30, 33, 0, 0),
    ("Caser", "training_step"): (44, 56, 0, 0),
    ("SASRec", "static_step"): (134, 174, 0, 0),  # of two steps, each with its own learning rate
    ("GRU4Rec", "static_step"): (72, 78, 0, 0),
    ("Caser", "static_step"): (98, 122, 0, 0),
    ("SASRec", "padded_step"): (127, 151, 0, 1),
    ("GRU4Rec", "padded_step"): (62, 65, 0, 1),
    ("Caser", "padded_step"): (87, 99, 0, 1),  # 512 histories that share no row: tap products in three parts
    ("SASRec", "evaluate"): (339, 339, 3, 1),  # of three batches of users, metrics included
    ("GRU4Rec", "evaluate"): (293, 293, 3, 1),
    ("Caser", "evaluate"): (326, 326, 3, 1),
    ("SASRec", "recommend"): (48, 48, 1, 1),
    ("GRU4Rec", "recommend"): (33, 33, 1, 1),
    ("Caser", "recommend"): (43, 43, 1, 1),
}
each = pytest.mark.parametrize(("model", "flow"), LIMITS)


@each
@pytest.mark.parametrize("precision", PRECISIONS)
def test_flow(facts_of: Facts, model: str, flow: str, precision: str) -> None:
    facts = facts_of(model)[f"{flow}, {precision}"]
    exact, half, copies, syncs = LIMITS[model, flow]
    assert not facts["errors"], "\n".join(facts["errors"])
    assert len(facts["syncs"]) <= syncs, "\n".join(facts["syncs"])
    assert len(facts["copies"]) <= copies, "\n".join(facts["copies"])
    limit = half if precision == "bf16" else exact
    assert facts["operations"] <= limit, f"{facts['launches']}, {facts['aten']}, casts {facts['casts']}"


@pytest.mark.parametrize("model", ("SASRec", "GRU4Rec", "Caser"))
def test_bf16_reaches_the_kernels(facts_of: Facts, model: str) -> None:
    """Activations are bfloat16, parameters and statistics float32; only weights of dense layers are cast, and their
    gradients."""
    facts = facts_of(model)["training_step, bf16"]
    for op, kinds in facts["operands"].items():
        if op == "embed_sequence":  # a table, and its rows come out in bfloat16
            assert kinds == ["float32"]
        elif kinds:  # the ops that make batches have integers alone
            assert "bfloat16" in kinds, op
        if "attention" in op and not op.endswith("_backward"):
            assert kinds == ["bfloat16"]
    places = ["ops/linear.py", "kernels/products.py", "ops/_dispatch.py", "ops/_lane.py", "models/caser.py"]
    places += ["gru_sampled_loss.py", "descend"]
    for cast in facts["casts"]:
        assert any(place in cast for place in places), cast


@pytest.mark.parametrize("model", ("SASRec", "GRU4Rec", "Caser"))
def test_tf32_is_the_option_of_a_training(facts_of: Facts, model: str) -> None:
    for precision, products in (("fp32", "ieee"), ("tf32", "tf32")):
        for flow in ("training_step", "static_step"):
            assert facts_of(model)[f"{flow}, {precision}"]["products"] == [products], flow


@pytest.mark.parametrize("model", ("SASRec", "GRU4Rec", "Caser"))
def test_a_batch_is_made_on_the_device_or_comes_in_one_asynchronous_copy(facts_of: Facts, model: str) -> None:
    resident, pinned = (facts_of(model)[f"{flow}, fp32"] for flow in ("training_step", "pinned_step"))
    assert not resident["copies"] and {"windows._gather", "negatives._uniform"} <= set(resident["launches"])
    assert not pinned["syncs"] and not pinned["errors"], (pinned["syncs"], pinned["errors"])
    assert len(pinned["copies"]) == 1 and pinned["copies"][0].startswith("async"), pinned["copies"]


@pytest.mark.parametrize("model", ("SASRec", "GRU4Rec", "Caser"))
@pytest.mark.parametrize("precision", PRECISIONS)
def test_what_a_graph_records_is_the_same_for_every_batch(facts_of: Facts, model: str, precision: str) -> None:
    """Kernels, grids, numbers, and memory that outlives a step; and nothing is made on the host."""
    facts = facts_of(model)[f"static_step, {precision}"]
    first, second = facts["steps"]
    assert first and first == second, [pair for pair in zip(first, second, strict=False) if pair[0] != pair[1]]
    assert not facts["on_host"], facts["on_host"]
    named = {name for _, _, arguments, _ in first for name, x in arguments.items() if "temporary" not in x}
    assert {"place", "tape", "order", "item_weight"} <= named, named


@pytest.mark.parametrize(("model", "limit"), [("SASRec", 240), ("GRU4Rec", 178), ("Caser", 294)])
def test_a_step_by_rows_is_recorded_too(facts_of: Facts, model: str, limit: int) -> None:
    """Of two steps: nothing waits, whichever ids a batch has, and rows are caught up and moved by one kernel each."""
    facts = facts_of(model)["rows_step, fp32"]
    assert not facts["errors"], "\n".join(facts["errors"])
    assert not (facts["syncs"] or facts["copies"] or facts["on_host"]), facts
    first, second = facts["steps"]
    assert first and first == second
    assert facts["launches"].count("adam_rows._update") == (8 if model == "Caser" else 4)
    assert facts["operations"] <= limit, f"{facts['launches']}, {facts['aten']}"


@pytest.mark.parametrize("model", ("SASRec", "GRU4Rec", "Caser"))
def test_a_step_on_another_device_than_the_current_one(facts_of: Facts, model: str) -> None:
    facts = facts_of(model)["second_device, fp32"]
    assert facts["launches"] and not facts["errors"], "\n".join(facts["errors"])


@pytest.mark.parametrize("model", ("SASRec", "GRU4Rec", "Caser"))
def test_every_launch_compiles_for_an_h200_without_spills(facts_of: Facts, model: str) -> None:
    facts = facts_of(model)
    assert facts["sources"] > 20 and not facts["faults"], "\n".join(facts["faults"])


def test_planted_faults_are_noticed(facts_of: Facts) -> None:
    facts = facts_of("controls")
    for name, words in (
        ("tensors on two devices", "device"),
        ("rng on the host", "rng is on cpu"),
        ("an output of another type", "the wrapper gives"),
        ("strides that a kernel does not read", "x has strides (1, 16)"),
    ):
        assert any(words in error for error in facts[name]["errors"]), (name, facts[name]["errors"])
    assert len(facts["looks at data"]["syncs"]) == 3, facts["looks at data"]["syncs"]
