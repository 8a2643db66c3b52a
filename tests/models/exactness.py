"""The models against their plain re-statement: forward, loss, every gradient, twenty optimizer steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastseq.data.batch import JaggedBatch
from fastseq.models import MODELS
from fastseq.models.base import SequentialRecommender
from fastseq.models.jagged import offsets_of
from tests.ops.compare import assert_as_accurate, relative_error

from .restatement import PLAIN, Plain
from .small import required_params

N_ITEMS = 23
INFO = {"n_users": 7, "n_items": N_ITEMS}
COMMON = {"weight_decay": 0.01, "reg_weight": 0.03, "neg_samples": 2, "max_seq_len": 9}
OWN: dict[str, dict[str, Any]] = {
    "SASRec": {"embedding_size": 24, "n_layers": 2, "n_heads": 3, "inner_size": 40},
    "GRU4Rec": {"embedding_size": 12, "hidden_size": 20},
    "Caser": {"embedding_size": 12, "n_h": 3},
}
PARAMS = {name: required_params(name, learning_rate=0.01, **COMMON, **own) for name, own in OWN.items()}


def histories(max_len: int, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Padded histories [B, max_len] of the given lengths; of a longer one, its last max_len events."""
    sequences = torch.full((len(lengths), max_len), N_ITEMS)
    for row, length in enumerate(lengths):
        events = torch.randint(0, N_ITEMS, (length,))[-max_len:]
        sequences[row, : len(events)] = events
    return sequences, torch.tensor(lengths).clamp(max=max_len)


def padded_batch(max_len: int, negatives: int, lengths: list[int] | None = None) -> tuple[Tensor, ...]:
    """WarpRec's tuple: empty, length-1, exactly-L, over-L and ordinary histories; positives; negatives ≠ positives."""
    lengths = lengths if lengths is not None else [0, 1, max_len, max_len + 3, 2, max_len - 1, 3]
    sequences, stops = histories(max_len, lengths)
    positives = torch.randint(0, N_ITEMS, (len(lengths),))
    if negatives == 0:
        return sequences, stops, positives
    shift = torch.randint(1, N_ITEMS, (len(lengths), negatives))
    return sequences, stops, positives, (positives[:, None] + shift) % N_ITEMS


def batch_of(model: SequentialRecommender, lengths: list[int] | None = None) -> tuple[Tensor, ...]:
    """``padded_batch`` as the model takes it: one that knows users has them first."""
    batch = padded_batch(model.max_seq_len, model.neg_samples, lengths)
    return (torch.randint(0, model.n_users, (len(batch[0]),)), *batch) if model.needs_user else batch


def pair(
    name: str, padding_row: str = "non-zero", info: dict[str, int] = INFO, **changes: Any
) -> tuple[SequentialRecommender, Plain]:
    """Both models in float64 with the same, not too small, parameters; ``changes`` of PARAMS."""
    params = {**PARAMS[name], **changes}
    model = MODELS[name](params, info, seed=3).double()
    torch.manual_seed(3)  # a construction leaves it alone, and the tolerances were set for these numbers
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "bias" in key or "norm" in key:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        if padding_row == "non-zero":
            model.item_embedding.weight[model.n_items] = torch.randn(params["embedding_size"])
    plain = PLAIN[name](params, info).double()
    plain.load_state_dict(model.state_dict(), strict=True)
    return model, plain


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter's gradient, zeros where there is none."""
    named = module.named_parameters()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in named}


def assert_same_loss(model: SequentialRecommender, loss: Tensor, plain: Plain, expected: Tensor) -> None:
    """Losses in float64 and all their gradients within 1e-10."""
    assert relative_error(loss, expected) < 1e-10
    loss.backward()
    expected.backward()
    ours = gradients(model)
    for name, reference in gradients(plain).items():
        error = (ours[name] - reference).norm() / max(1e-3, float(reference.norm()))
        assert error < 1e-10, f"gradient of {name}: {error:.2g}"


def assert_equal_in_float64(model: SequentialRecommender, plain: Plain) -> None:
    """Forward, loss and gradients within 1e-10, then twenty Adam steps on changing batches."""
    batch = batch_of(model)
    assert relative_error(model(*batch[:2]), plain(*batch[:2])) < 1e-10
    assert_same_loss(model, model.training_step(batch, 0), plain, plain.loss(batch))

    optimizer, plain_optimizer = model.configure_optimizers(), plain.optimizer()
    for _ in range(20):
        batch = batch_of(model)
        for step, module, total in (
            (optimizer, model, model.training_step(batch, 0)),
            (plain_optimizer, plain, plain.loss(batch)),
        ):
            module.zero_grad()
            total.backward()
            step.step()
    for name, parameter in plain.state_dict().items():
        value = model.state_dict()[name]
        if name.endswith("in_proj_bias"):
            # A bias on every key moves no softmax: its gradient is zero but for rounding, which Adam scales up by 1e8.
            assert (value.chunk(3)[1] - parameter.chunk(3)[1]).abs().max() < 1e-8
            value, parameter = (torch.cat((x.chunk(3)[0], x.chunk(3)[2])) for x in (value, parameter))
        error = relative_error(value, parameter)
        assert error < 1e-10, f"{name} after 20 steps: {error:.2g}"


def assert_accurate_in_float32(model: SequentialRecommender, plain: Plain) -> None:
    """Forward, loss and gradients err at most as the rule of fastseq/ops allows, against plain PyTorch."""
    batch = batch_of(model, [0, 1, 5, 9, 3, 14, 7, 2] * 4)
    results = {}
    state = {name: value.float().double() for name, value in model.state_dict().items() if value.is_floating_point()}
    for name, module, dtype in (
        ("reference", plain, torch.float64),
        ("pytorch", plain, torch.float32),
        ("model", model, torch.float32),
    ):
        module.load_state_dict(state, strict=False)
        module.to(dtype).zero_grad()
        loss = module.training_step(batch, 0)
        loss.backward()
        results[name] = {"forward": module(*batch[:2]).detach(), "loss": loss.detach(), **gradients(module)}
    for name, reference in results["reference"].items():
        factor = 2 if name in ("forward", "loss") else 3
        assert_as_accurate(results["model"][name], results["pytorch"][name], reference, factor, name)


def assert_accurate_after_steps(model: SequentialRecommender, plain: Plain, batches: list[tuple[Tensor, ...]]) -> None:
    """Parameters after one float32 optimizer step a batch, judged as gradients are, against plain PyTorch."""
    state = {k: v.float().double() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    results = {}
    for name, module, dtype in (
        ("reference", plain, torch.float64),
        ("pytorch", plain, torch.float32),
        ("model", model, torch.float32),
    ):
        module.to(torch.float64).load_state_dict(state)
        module.to(dtype)
        optimizer = module.configure_optimizers()
        for batch in batches:
            module.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()
        results[name] = {key: parameter.detach().clone() for key, parameter in module.named_parameters()}
    for name, reference in results["reference"].items():
        values = [results["model"][name], results["pytorch"][name], reference]
        if name.endswith("in_proj_bias"):  # the keys' part is noise: see assert_equal_in_float64
            values = [torch.cat((x.chunk(3)[0], x.chunk(3)[2])) for x in values]
        assert_as_accurate(*values, 3, f"{name} after {len(batches)} steps")


def shared_batch(history: Tensor, max_len: int, stride: int, negatives: int) -> tuple[JaggedBatch, tuple[Tensor, ...]]:
    """One history's windows at ``stride``, and WarpRec's per-target batch with the same targets in the same order.

    Windows end where a multiple of ``stride`` (from max_len) targets is reached; each counts the targets that none
    before it did, and starts max_len events before its end.
    """
    events = len(history)
    stops, stop = [], min(max_len, events - 1)
    while True:
        stops.append(stop)
        if stop == events - 1:
            break
        stop = min(stop + stride, events - 1)
    items: list[Tensor] = []
    rows: list[int] = []
    lengths: list[int] = []
    counted: list[int] = []
    sequences_of: list[int] = []
    first = 1
    for number, stop in enumerate(stops):  # inputs start … stop − 1, the target of input j is event j + 1
        start = max(0, stop - max_len)
        base = sum(lengths)
        for target in range(first, stop + 1):
            rows.append(base + target - 1 - start)
            counted.append(target)
            sequences_of.append(number)
        items.append(history[start:stop])
        lengths.append(stop - start)
        first = stop + 1
    targets = history[counted]
    padded = torch.full((len(counted), max_len), N_ITEMS)
    sizes = torch.tensor([min(t, max_len) for t in counted])
    for row, target in enumerate(counted):
        padded[row, : sizes[row]] = history[max(0, target - max_len) : target]
    drawn = (targets[:, None] + torch.randint(1, N_ITEMS, (len(counted), negatives))) % N_ITEMS
    weights = torch.zeros(events)
    for target in counted:
        weights[max(0, target - max_len) : target] += 1
    batch = JaggedBatch(
        items=torch.cat(items),
        offsets=offsets_of(torch.tensor(lengths)),
        users=torch.zeros(len(lengths), dtype=torch.int64),
        max_len=max(lengths),
        rows=torch.tensor(rows),
        targets=targets,
        target_sequences=torch.tensor(sequences_of),
        negatives=drawn,
        l2_items=history,
        l2_weights=weights,
        l2_padding=int((max_len - sizes).sum()),
        n_targets_global=len(counted),
    )
    return batch, (padded, sizes, targets, drawn)
