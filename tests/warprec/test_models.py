"""fastseq's adapters beside WarpRec's own classes: parameters, scores, losses, optimizer steps, checkpoints."""

from __future__ import annotations

import copy
import inspect
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.warprec.real import INFO, N_ITEMS, N_USERS, PARAMS, adapters, originals, pair, sessions

from warprec.errors import CheckpointError  # isort: skip

MODELS = pytest.mark.parametrize("name", list(PARAMS))


def shaken(theirs: Any, ours: Any) -> tuple[Any, Any]:
    """Both with the same weights, none of them what the initialisation gave, the padding row neither."""
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs.eval(), ours.eval()


def histories(width: int = 7) -> dict[str, torch.Tensor]:
    """Padded histories of every length, the empty one among them, as WarpRec's evaluation passes them."""
    lengths = torch.tensor([0, 1, 3, width, width - 1, 2])
    sequences = torch.randint(0, N_ITEMS, (len(lengths), width))
    sequences[torch.arange(width) >= lengths[:, None]] = N_ITEMS
    users = torch.randint(0, N_USERS, (len(lengths),))
    return {"user_indices": users, "user_seq": sequences, "seq_len": lengths}


@MODELS
def test_same_seed_same_parameters_under_the_same_names(name: str) -> None:
    theirs, ours = pair(name, seed=11)
    expected, state = theirs.state_dict(), ours.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert [key for key, _ in ours.named_parameters()] == [key for key, _ in theirs.named_parameters()]
    assert (ours.name, ours.get_params(), ours.name_param) == (theirs.name, theirs.get_params(), theirs.name_param)
    after = []  # whoever draws next from the global generators draws the same
    for package in (originals, adapters):
        getattr(package, name)(PARAMS[name], INFO, seed=11)
        after.append((torch.rand(2).tolist(), np.random.rand(), random.random()))
    assert after[0] == after[1]


@MODELS
@pytest.mark.parametrize("width", [1, 4, 7])
def test_same_weights_same_scores(name: str, width: int) -> None:
    theirs, ours = shaken(*pair(name))
    batch = histories(width)
    batch["seq_len"] = batch["seq_len"].clamp(max=width)
    candidates = torch.randint(0, N_ITEMS + 1, (6, 9))
    with torch.inference_mode():
        for extra in ({}, {"item_indices": candidates}):
            scores = ours.predict(**batch, **extra, contexts=None)
            assert (scores - theirs.predict(**batch, **extra)).abs().max() < 1e-6
            assert scores.dtype == torch.float32
            scores[:, 0] = -torch.inf  # WarpRec writes into it


@MODELS
def test_padding_ids_anywhere_have_warprecs_scores(name: str) -> None:
    """Where WarpRec's are numbers: in inference mode PyTorch's fast path gives NaN to a row that begins with padding.
    There ours are what WarpRec's are with gradients."""
    theirs, ours = shaken(*pair(name))
    sequences = torch.randint(0, N_ITEMS + 1, (64, 7))
    sequences[torch.rand(64, 7) < 0.5] = N_ITEMS
    batch = {"user_indices": torch.randint(0, N_USERS, (64,)), "user_seq": sequences, "seq_len": torch.arange(64) % 8}
    scores = ours.predict(**batch)
    assert (scores - theirs.predict(**batch)).abs().max() < 1e-6
    with torch.inference_mode():
        assert (ours.predict(**batch) - scores).abs().max() < 1e-6
        expected = theirs.predict(**batch)
    numbers = expected.isfinite()
    assert numbers.any() and (scores - expected)[numbers].abs().max() < 1e-6


@MODELS
def test_attributes_that_only_warprecs_models_have_are_documented(name: str) -> None:
    theirs, ours = pair(name)
    page = (Path(__file__).parents[2] / "docs" / "warprec.md").read_text()
    assert all(f"`{attribute}`" in page for attribute in set(dir(theirs)) - set(dir(ours)))


@MODELS
def test_predict_takes_its_arguments_by_position_as_warprecs_does(name: str) -> None:
    theirs, ours = shaken(*pair(name))
    parameters = [list(inspect.signature(model.predict).parameters) for model in (theirs, ours, ours._core)]
    assert parameters[0] == parameters[1] == parameters[2]
    arguments = [histories()[key] for key in parameters[0][:2]]
    with torch.inference_mode():
        assert (ours.predict(*arguments) - theirs.predict(*arguments)).abs().max() < 1e-6
    # WarpRec serves sessions without a user where the flag says so, and its tests read the source for it.
    reads = "user_indices" in inspect.getsource(type(ours).predict).split('"""')[-1]
    assert ours.needs_user == ours._core.needs_user == theirs.needs_user == reads


@MODELS
@pytest.mark.parametrize("negatives", [0, 1, 3])
def test_the_same_trace_of_losses_over_warprecs_own_batches(name: str, negatives: int) -> None:
    theirs, ours = pair(name, neg_samples=negatives)
    data, traces = sessions(), []
    for model in (theirs, ours):
        model.double().train()
        loader = model.get_dataloader(None, data, num_workers=0, pin_memory=False, persistent_workers=False, seed=3)
        optimizer, trace = model.configure_optimizers(), []
        for _ in range(3):
            for batch in loader:
                optimizer.zero_grad()
                loss = model.training_step(batch, 0)
                loss.backward()
                optimizer.step()
                trace.append(loss.item())
        traces.append(torch.tensor(trace))
    assert len(traces[0]) > 10
    assert torch.allclose(traces[1], traces[0], rtol=1e-9, atol=0)


@MODELS
def test_the_same_optimizer_groups_and_one_fused_adam(name: str) -> None:
    theirs, ours = pair(name)
    groups = []
    for model in (theirs, ours):
        names = {id(parameter): key for key, parameter in model.named_parameters()}
        optimizer = model.configure_optimizers()
        groups.append(
            [([names[id(p)] for p in g["params"]], g["weight_decay"], g["lr"]) for g in optimizer.param_groups]
        )
    assert groups[0] == groups[1]
    assert all(group["fused"] for group in optimizer.param_groups)


def test_an_optimizer_of_the_users_choice_is_left_as_it_is() -> None:
    _, ours = pair("GRU4Rec")
    ours._optimizer_name, ours._optimizer_kwargs = "SGD", {"momentum": 0.5}
    assert isinstance(ours.configure_optimizers(), torch.optim.SGD)


@MODELS
def test_checkpoints_go_both_ways(name: str, tmp_path: Path) -> None:
    theirs, ours = shaken(*pair(name))
    for model in (theirs, ours):  # an attribute would be saved, and a function cannot be
        del model.log
    batch = histories()
    for source, kind in ((theirs, getattr(adapters, name)), (ours, getattr(originals, name))):
        torch.save(source.get_state(), tmp_path / "model.pth")
        loaded = kind.from_checkpoint(torch.load(tmp_path / "model.pth", weights_only=False)).eval()
        with torch.inference_mode():
            assert (loaded.predict(**batch) - theirs.predict(**batch)).abs().max() < 1e-6
    # Nothing in ours but tensors and builtins.
    saved = torch.load(tmp_path / "model.pth", weights_only=True)
    assert saved["name"] == name and saved["params"] == theirs.get_params()
    assert saved["artifacts"].keys() <= theirs._learned_artifacts().keys()


@MODELS
def test_a_checkpoint_of_another_catalogue_is_refused(name: str) -> None:
    ours = getattr(adapters, name)(PARAMS[name], INFO)
    state = ours.get_state()
    state["info"] = {"n_users": N_USERS, "n_items": N_ITEMS + 1}
    with pytest.raises(CheckpointError, match=f"{N_ITEMS} items and this data has {N_ITEMS + 1}"):
        getattr(adapters, name).from_checkpoint(state)


def test_a_checkpoint_of_other_users_is_refused_where_users_matter() -> None:
    state = adapters.Caser(PARAMS["Caser"], INFO).get_state()
    state["info"] = {"n_users": N_USERS + 2, "n_items": N_ITEMS}
    with pytest.raises(CheckpointError, match=f"{N_USERS} users and this data has {N_USERS + 2}"):
        adapters.Caser.from_checkpoint(state)


@MODELS
def test_copies_and_moves_keep_adapter_and_core_one(name: str) -> None:
    _, ours = pair(name)
    del ours.log
    for copied in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        with torch.no_grad():
            next(copied.parameters()).fill_(1.0)
        assert torch.equal(next(copied._core.parameters()), next(copied.parameters()))
        assert not torch.equal(next(copied.parameters()), next(ours.parameters()))
    ours.double().eval()
    assert {p.dtype for p in ours._core.parameters()} == {torch.float64}
    assert not ours._core.training and ours.train()._core.training


@MODELS
def test_a_run_paused_before_this_was_a_package_finds_its_class(name: str) -> None:
    """WarpRec's tuner.pkl names the model's class by module and name."""
    assert pickle.loads(f"cfastseq.warprec\n{name}\n.".encode()) is getattr(adapters, name)


def test_set_keys_are_in_the_parameters_and_unset_ones_are_not() -> None:
    _, ours = pair("SASRec", window_stride=3, loss="gbce", precision="bf16")
    assert {"window_stride": 3, "loss": "gbce", "precision": "bf16"}.items() <= ours.get_params().items()
    assert ours._core.window_stride == 3 and ours._core.loss_name == "gbce"
    assert pair("SASRec")[1].get_params() == PARAMS["SASRec"]


@MODELS
def test_shared_windows_count_every_target_once_an_epoch(name: str) -> None:
    data = sessions()
    _, ours = pair(name, window_stride=4, batch_size=32)
    loader = ours.get_dataloader(None, data, num_workers=2, persistent_workers=True, seed=3)
    assert loader.num_workers == 0
    expected = sorted(data._flat_items[data._valid_sample_indices].tolist())
    epochs = [[item.batch.targets for item in loader] for _ in range(2)]
    for batches in epochs:
        assert len(batches) == len(loader) == -(-len(expected) // 32)
        assert sorted(torch.cat(batches).tolist()) == expected
    assert not all(torch.equal(a, b) for a, b in zip(*epochs, strict=True))


@MODELS
def test_shared_windows_of_stride_1_have_the_loss_of_warprecs_batches(name: str) -> None:
    data = sessions()
    theirs, ours = pair(name, window_stride=1, neg_samples=0, batch_size=10_000)
    shaken(theirs.double(), ours.double())
    (batch,) = theirs.get_dataloader(None, data, num_workers=0)
    (item,) = ours.get_dataloader(None, data)
    assert torch.allclose(ours.training_step(item, 0), theirs.training_step(batch, 0), rtol=1e-10)


def test_bf16_is_what_the_user_asked_for() -> None:
    data, losses = sessions(), {}
    for precision in ("fp32", "bf16"):
        _, ours = pair("SASRec", window_stride=7, precision=precision)
        item = next(iter(ours.get_dataloader(None, data)))
        losses[precision] = ours.training_step(item, 0).item()
    assert losses["fp32"] != losses["bf16"]
    assert losses["fp32"] == pytest.approx(losses["bf16"], rel=0.02)


def test_an_impossible_value_is_refused_by_name() -> None:
    for change, words in (
        ({"precision": "fp16"}, "precision is 'fp16'"),
        ({"loss": "hinge"}, "loss is 'hinge'"),
        ({"window_stride": 9}, "window_stride is 9"),
        ({"loss": "cross_entropy"}, "neg_samples is 2"),
    ):
        with pytest.raises(ValueError, match=words):
            adapters.SASRec({**PARAMS["SASRec"], **change}, INFO)
