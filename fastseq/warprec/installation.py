"""fastseq's models in WarpRec's registries: of this process, and of the Ray workers that it starts."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import warprec.utils.config  # noqa: F401 - fills the registry of parameters
from warprec.errors import RegistryError
from warprec.recommenders import sequential_recommender  # with its package, fills the registry of models
from warprec.utils.config.recommender_model_config import sequential_model_config
from warprec.utils.registry import model_registry, optimizer_registry, params_registry

from .. import _warprec_worker, optim
from .._process import SPIN_COUNT, wait_briefly
from ..optim import RowAdam
from . import adapters, parameters
from .adapters import Adapter, Caser, FastCaser, FastGRU4Rec, FastSASRec, GRU4Rec, SASRec

_REPLACING: tuple[type[Adapter], ...] = (SASRec, GRU4Rec, Caser)
_BESIDE: tuple[type[Adapter], ...] = (FastSASRec, FastGRU4Rec, FastCaser)
_RAY_HOOK = "RAY_RUNTIME_ENV_HOOK"  # names a function through which ray.init passes its runtime environment
_OUR_HOOK = f"{__package__}.ray_runtime_env"
_WORKER_HOOK = "worker_process_setup_hook"  # in that environment: what every worker calls first
_spin_count_is_ours = False  # whether install has set GOMP_SPINCOUNT


def install(*, as_new_names: bool = False) -> None:
    """Makes WarpRec build fastseq's models, in this process and in the Ray workers that it starts from now on.

    Doing it twice changes nothing. A Ray that already runs keeps its workers as they are; there, name the file that
    ``python -m fastseq.warprec`` prints under ``general.custom_modules``.

    Args:
        as_new_names: register FastSASRec, FastGRU4Rec and FastCaser, and leave WarpRec's models alone.

    Raises:
        RegistryError: if somebody else has replaced one of the models, or taken one of the names. Nothing is changed.
    """
    models = _BESIDE if as_new_names else _REPLACING
    entries: list[tuple[Any, type]] = [(model_registry, model) for model in models]
    entries += [(params_registry, getattr(parameters, model.__name__)) for model in models]
    entries += [(optimizer_registry, RowAdam)]
    for registry, ours in entries:
        present = registry._registry.get(ours.__name__.upper())
        replaces = not as_new_names and registry is not optimizer_registry
        if present is not None and not _is_ours(present) and not (replaces and _is_warprecs(present)):
            raise RegistryError(
                f"{ours.__name__} in WarpRec's {registry.registry_name} registry is already "
                f"{present.__module__}.{present.__qualname__}: fastseq replaces WarpRec's own models only. Leave out "
                "the module that registers it"
                + ("" if as_new_names else ", or use fastseq.warprec.install(as_new_names=True) and FastSASRec, …"),
                registry=registry.registry_name,
                name=ours.__name__,
                available=registry.list_registered(),
            )
    for registry, ours in entries:
        registry._registry[ours.__name__.upper()] = ours
        registry._spelled[ours.__name__.upper()] = ours.__name__
    # A Ray that this process starts hands it on to its workers. There a trial's threads spin on cores that Ray's own
    # processes need: measured beside other work, an epoch took 2 to 11 times the CPU time.
    global _spin_count_is_ours
    _spin_count_is_ours |= wait_briefly()
    hook = os.environ.setdefault(_RAY_HOOK, _OUR_HOOK)
    if hook != _OUR_HOOK:
        _warn_of_workers(f"the environment's {_RAY_HOOK} is {hook}")


def uninstall() -> None:
    """Gives WarpRec its own models back, and takes the new names away. What others have registered since stays."""
    originals = ((model_registry, sequential_recommender), (params_registry, sequential_model_config))
    for registry, module in originals:
        for model in (*_REPLACING, *_BESIDE):
            key = model.__name__.upper()
            if not _is_ours(registry._registry.get(key)):
                continue
            if model in _REPLACING:
                registry._registry[key] = getattr(module, model.__name__)
            else:
                del registry._registry[key], registry._spelled[key]
    if _is_ours(optimizer_registry._registry.get("ROWADAM")):
        del optimizer_registry._registry["ROWADAM"], optimizer_registry._spelled["ROWADAM"]
    global _spin_count_is_ours
    if _spin_count_is_ours and os.environ.get("GOMP_SPINCOUNT") == SPIN_COUNT:
        del os.environ["GOMP_SPINCOUNT"]
    _spin_count_is_ours = False
    if os.environ.get(_RAY_HOOK) == _OUR_HOOK:
        del os.environ[_RAY_HOOK]


def _is_ours(entry: type | None) -> bool:
    return entry is not None and entry.__module__ in (adapters.__name__, parameters.__name__, optim.__name__)


def _is_warprecs(entry: type) -> bool:
    return entry.__module__.partition(".")[0] == "warprec"


def ray_runtime_env(runtime_env: Mapping[str, Any] | None) -> dict[str, Any]:
    """Ray's runtime environment with the line that makes its workers install what is installed here.

    A hook of the user's stays, with a warning: nothing then reaches the workers.
    """
    environment = dict(runtime_env or {})
    if _WORKER_HOOK in environment:
        _warn_of_workers(f"Ray's runtime environment has a {_WORKER_HOOK} of its own, {environment[_WORKER_HOOK]}")
        return environment
    replaced, beside = (
        _is_ours(model_registry._registry.get(models[0].__name__.upper())) for models in (_REPLACING, _BESIDE)
    )
    hook = "both" if replaced and beside else "beside" if beside else "replacing"
    return {**environment, _WORKER_HOOK: f"{_warprec_worker.__name__}.{hook}"}


def _warn_of_workers(reason: str) -> None:
    warnings.warn(
        f"fastseq: {reason}, so install() does not reach Ray's workers: unless that hook calls it, or the file that "
        "python -m fastseq.warprec prints is named under general.custom_modules, they train WarpRec's own models",
        RuntimeWarning,
        stacklevel=3,
    )


def custom_module(*, as_new_names: bool = False) -> Path:
    """The file to name under ``general.custom_modules``: it does what ``install`` does, wherever WarpRec imports it."""
    name = "fastseq_warprec_new_names.py" if as_new_names else "fastseq_warprec.py"
    return Path(__file__).with_name("custom_modules") / name
