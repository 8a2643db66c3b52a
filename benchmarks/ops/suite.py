"""The cases of every op, and the order in which they are measured."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType

import torch

from .case import OURS, Case, Spec

FILES = (
    "attention", "gru", "gru_sampled_loss", "caser_windows", "transformer_layer", "cross_entropy", "sampled_loss",
    "topk", "embed_sequence", "dropout_add_norm", "bias_gelu_dropout", "dropout", "negatives", "windows", "adam_rows",
    "linear",
)  # fmt: skip


def modules(only: Sequence[str] = ()) -> list[ModuleType]:
    """The files of the ops, all or those named."""
    return [importlib.import_module(f"{__package__}.{name}") for name in FILES if not only or name in only]


def specs(device: str, only: Sequence[str] = ()) -> list[Spec]:
    """What is measured on "cpu" or "cuda", op after op: the reference configurations first, the large shapes last."""
    return [spec for module in modules(only) for cases in module.CASES for spec in cases.specs(device)]


def tiny(device: torch.device, only: Sequence[str] = ()) -> list[Case]:
    """Every op in sizes that Triton's interpreter, or compute-sanitizer, runs in a moment; none that a GPU lacks."""
    families = [cases for module in modules(only) for cases in module.CASES if cases.cuda or device.type == "cpu"]
    return [cases.make(device, *size) for cases in families for size in cases.tiny]


def rivals(device: str, only: Sequence[str] = ()) -> dict[str, list[str]]:
    """What each op is measured beside on "cpu" or "cuda", installed or not; found without a GPU."""
    cases = tiny(torch.device("cpu" if device == "cpu" else "meta"), only)
    return {case.op: [name for name in case.implementations if name != OURS] for case in cases}


def by_importance(cases: Sequence[Spec]) -> list[tuple[Spec, str]]:
    """(spec, type), so that a run that is cut short has something of every op: first shapes and types first."""
    ranks: dict[str, int] = {}
    order = []
    for spec in cases:
        rank = ranks[spec.op] = ranks.get(spec.op, -1) + 1
        order += [(rank + i, spec, dtype) for i, dtype in enumerate(spec.dtypes)]
    return [(spec, dtype) for _, spec, dtype in sorted(order, key=lambda entry: entry[0])]
