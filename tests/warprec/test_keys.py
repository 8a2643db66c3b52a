"""Every key that WarpRec's configuration knows, at its default, is accepted by ``fastseq train``."""

from __future__ import annotations

from . import real  # skips where WarpRec is not installed

# isort: split

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from warprec.utils.config.config import TrainConfiguration
from warprec.utils.config.model_configuration import RecomModel
from warprec.utils.config.reader_configuration import SplitReading
from warprec.utils.registry import lr_scheduler_registry, optimizer_registry

from fastseq.cli.configuration import parse_config
from fastseq.training.optimizers import OPTIMIZERS, SCHEDULERS


def defaults(schema: type[BaseModel], *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The path and the default of every key of a section and of the sections inside it."""
    for name, field in schema.model_fields.items():
        value = field.get_default(call_default_factory=True)
        if isinstance(value, BaseModel):
            yield from defaults(type(value), *path, name)
        elif value is not PydanticUndefined:
            yield (*path, name), getattr(value, "value", value)


MODEL = ("models", "SASRec")
KEYS = dict([*defaults(TrainConfiguration), *defaults(RecomModel, *MODEL), *defaults(SplitReading, "reader", "split")])


@pytest.mark.parametrize("path", KEYS, ids=".".join)
def test_a_default_of_warprec_is_accepted(path: tuple[str, ...]) -> None:
    tree: dict[str, Any] = {"models": {"SASRec": dict(real.PARAMS["SASRec"])}}
    inner = tree
    for part in path[:-1]:
        inner = inner.setdefault(part, {})
    inner[path[-1]] = KEYS[path]
    parse_config(tree)


def test_every_optimizer_and_scheduler_of_warprec_is_there() -> None:
    """By name; that they are PyTorch's, stepped by epoch, is in tests/training/test_optimizers.py."""
    for registry, names in ((optimizer_registry, OPTIMIZERS), (lr_scheduler_registry, SCHEDULERS)):
        assert {name.upper() for name in names} == {name.upper() for name in registry.list_registered()}
