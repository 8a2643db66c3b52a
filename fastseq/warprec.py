"""fastseq's models as WarpRec's own: its base classes around the core models, and the registries that name them.

    import fastseq.warprec
    fastseq.warprec.install()

makes every WarpRec pipeline of this process, and of the Ray workers it starts, build fastseq's SASRec, GRU4Rec and
Caser. ``python -m fastseq.warprec`` prints the file to name under ``general.custom_modules`` instead.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ._process import SPIN_COUNT, wait_briefly
from .data.ids import IdMap
from .data.interactions import Interactions
from .data.loader import Loader
from .data.negatives import NegativeSampler
from .data.stream import BatchStream, StreamItem
from .models import Caser as CaserCore
from .models import GRU4Rec as GRU4RecCore
from .models import SASRec as SASRecCore
from .models import SequentialRecommender
from .training.checkpoint import is_builtin

TESTED = "2.2.8"  # the WarpRec that all of this was tested with
_OLDEST, _TOO_NEW = (2, 2, 8), (2, 3)
_REMEDY = f"pip install 'fastseq-rec[warprec]' installs {TESTED}, the version fastseq is tested with (Python >= 3.12)"


def check_version() -> None:
    """Checks that a WarpRec is installed whose insides are those that this module was written for.

    Raises:
        ImportError: naming the version found, the one that was tested, and the command that installs it.
    """
    try:
        found = version("warprec")
    except PackageNotFoundError:
        raise ImportError(f"fastseq.warprec needs WarpRec, which is not installed: {_REMEDY}") from None
    release = re.match(r"[\d.]*", found.split("+")[0])  # 2.2.8rc1 and 2.2.8+local are of 2.2.8
    numbers = tuple(int(part) for part in release[0].split(".") if part)[:3] if release else ()
    if numbers < _OLDEST or numbers >= _TOO_NEW:
        age = "old" if numbers < _OLDEST else "new"
        raise ImportError(f"WarpRec {found} is installed, which is too {age} for this fastseq: {_REMEDY}")


try:
    check_version()
except ImportError as error:
    if __name__ == "__main__":  # a command answers in one line
        sys.exit(str(error))
    raise

import warprec.recommenders  # noqa: E402 - fills the registry of models
import warprec.utils.config  # noqa: E402, F401 - fills the registry of parameters
from warprec.errors import CheckpointError, RegistryError  # noqa: E402
from warprec.recommenders.base_recommender import (  # noqa: E402
    IterativeRecommender,
    SequentialRecommenderUtils,
)
from warprec.utils.registry import model_registry, params_registry  # noqa: E402

from . import warprec_params  # noqa: E402

# What makes a module know its tensors. An adapter and its core share them: one set of tensors, WarpRec's names.
_REGISTRIES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class Adapter(IterativeRecommender, SequentialRecommenderUtils):
    """A WarpRec model that computes with a fastseq core model.

    A subclass annotates its hyper-parameters (WarpRec reads the annotations of the nearest class that has any) and
    names its ``core``. Constructor, attributes, ``state_dict``, optimizer groups, batches and scores are WarpRec's.

    Args:
        params: hyper-parameters; others are left out, as WarpRec does.
        info: ``n_users`` and ``n_items``.
        seed: the same seed gives WarpRec's initial ``state_dict``, bit for bit.
        args, kwargs: data sets and options of WarpRec's, not needed.

    Raises:
        ValueError: naming the hyper-parameter that is missing, out of range or contradicts another.
    """

    core: ClassVar[type[SequentialRecommender]]

    def __init__(self, params: dict, info: dict, *args: Any, seed: int = 42, **kwargs: Any) -> None:
        super().__init__(params, info, *args, seed=seed, **kwargs)
        names = self.hyperparameter_names()
        known = {name: params[name] for name in names if name in params}
        core = self.core(warprec_params.core_params(known), info, seed=seed)
        for name in names:  # also those that fastseq lets be left out
            if name not in known and hasattr(core, name) and name not in ("window_stride", "loss"):
                setattr(self, name, getattr(core, name))
        if self.precision not in (None, *warprec_params.PRECISIONS):
            raise ValueError(
                f"{self.name}: precision is {self.precision!r}, expected {' or '.join(warprec_params.PRECISIONS)}"
            )
        # As an attribute it would be a second owner of every tensor, under other names.
        object.__setattr__(self, "_held", core)
        for registry in _REGISTRIES:
            self.__dict__[registry] = core.__dict__[registry]

    @property
    def _core(self) -> SequentialRecommender:
        """The core model, in this module's mode: after a validation Lightning sets ``training`` itself, without
        ``train``, in the adapter and the modules it finds."""
        core: SequentialRecommender = self.__dict__["_held"]
        core.training = self.training
        return core

    # What WarpRec calls.

    def get_dataloader(self, interactions: Any, sessions: Any, **kwargs: Any) -> DataLoader:
        """WarpRec's own loader of one target a row, or with ``window_stride`` one of shared windows.

        Args:
            interactions: not read.
            sessions: WarpRec's Sessions: the training events.
            kwargs: options of the loader; with ``window_stride`` only ``seed`` is read: batches come ready-made from
                this process, so there is nothing for workers to do.
        """
        if self.window_stride is not None:
            return self._window_loader(sessions, kwargs.get("seed", 42))  # left out: as WarpRec
        user = {"include_user_id": True} if self.needs_user else {}
        return sessions.get_sequential_dataloader(
            max_seq_len=self.max_seq_len,
            neg_samples=self.neg_samples,
            batch_size=self.batch_size,
            **user,
            **kwargs,
        )

    def _window_loader(self, sessions: Any, seed: int) -> DataLoader:
        sessions._keep_in_memory()
        sessions._require_valid_targets()
        names = sorted(sessions._umap, key=sessions._umap.__getitem__)
        data = Interactions(
            items=sessions._flat_items,
            offsets=sessions._user_offsets,
            user_ids=IdMap.from_sorted([str(name) for name in names]),
            item_ids=IdMap.from_sorted([""] * sessions._niid),
        )
        core, sampler = self._core, None
        if self.neg_samples > 0:
            sampler = NegativeSampler(data, self.neg_samples, with_log_q=core.loss_name == "sampled_softmax")
            sampler.check_drawable()

        def build(rank: int, world_size: int) -> Loader:
            return Loader(
                data,
                batch_size=self.batch_size * world_size,  # WarpRec's is what each rank trains on
                max_len=self.max_seq_len,
                window_stride=self.window_stride,
                seed=seed,
                sampler=sampler,
                context=core.needs_context,
                l2=self.reg_weight > 0,
                rank=rank,
                world_size=world_size,
                prefetch=0,  # WarpRec forks workers for its evaluation: no thread may be under way then
            )

        generator = torch.Generator()
        generator.manual_seed(seed)
        return DataLoader(BatchStream(build, seed), batch_size=None, generator=generator)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of one batch of either loader: WarpRec's tuple of tensors, or a ``StreamItem``."""
        core, trainer, ranks = self._core, self._trainer, 1
        if trainer is not None:  # else the core counts its steps itself
            # Of the step alone, so that a resumed run draws the masks of one that was never interrupted.
            ranks = trainer.world_size
            core.set_rng(self.seed, trainer.global_step * ranks + trainer.global_rank)
        with torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext():
            if isinstance(batch, StreamItem):
                # A rank's loss is its share of the mean over all targets: shares add up, but DDP averages gradients.
                loss = core.loss(batch.batch) * ranks
                size = {"batch_size": batch.batch.n_targets}
            else:
                loss, size = core.training_step(batch, batch_idx), {}
        self.log("loss", loss, prog_bar=True, on_step=False, on_epoch=True, **size)
        return loss

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The output after each history, [B, d]; see the core model."""
        return self._core(*args, **kwargs)

    def predict(
        self,
        user_indices: Tensor | None = None,
        user_seq: Tensor | None = None,
        seq_len: Tensor | None = None,
        *args: Any,
        item_indices: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Scores [B, n_items], or [B, S] of ``item_indices``: float32, and the caller's to change."""
        return self._core.predict(user_indices, user_seq, seq_len, item_indices=item_indices)

    def configure_optimizers(self) -> Any:
        """WarpRec's optimizer and schedule; its Adam and AdamW in one fused pass over each group."""
        configured = super().configure_optimizers()
        optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        if isinstance(optimizer, torch.optim.Adam):
            for group in optimizer.param_groups:  # WarpRec's wrapper passes no such option on
                group["fused"] = True
        return configured

    # What a checkpoint holds.

    def get_params(self) -> dict[str, Any]:
        """WarpRec's hyper-parameters, and of fastseq's those that are set: names of runs stay what they were."""
        added = warprec_params.FastKeys.model_fields.keys() - warprec_params.RecomModel.model_fields.keys()
        return {key: value for key, value in super().get_params().items() if value is not None or key not in added}

    def _learned_artifacts(self) -> dict[str, Any]:
        return {name: value for name, value in super()._learned_artifacts().items() if is_builtin(value)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads weights, WarpRec's or fastseq's: the names are the same.

        Raises:
            CheckpointError: if they belong to another number of items or users.
        """
        for table, here in (("item", self.n_items), ("user", self.n_users)):
            weight = state_dict.get(f"{table}_embedding.weight")
            there = None if weight is None else weight.shape[0] - (table == "item")
            if there is not None and there != here:
                raise CheckpointError(
                    f"{self.name}: the checkpoint has {there} {table}s and this data has {here}: it was trained on "
                    f"another catalogue. Load it with the data (and filters and split) it was trained on, or train anew"
                )
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


class SASRec(Adapter):
    """WarpRec's SASRec, computed by ``fastseq.SASRec``."""

    core: ClassVar[type[SequentialRecommender]] = SASRecCore

    embedding_size: int
    n_layers: int
    n_heads: int
    inner_size: int
    dropout_prob: float
    attn_dropout_prob: float
    reg_weight: float
    weight_decay: float
    batch_size: int
    epochs: int
    learning_rate: float
    neg_samples: int
    max_seq_len: int
    window_stride: int | None = None
    loss: str | None = None
    precision: str | None = None


class GRU4Rec(Adapter):
    """WarpRec's GRU4Rec, computed by ``fastseq.GRU4Rec``."""

    core: ClassVar[type[SequentialRecommender]] = GRU4RecCore

    embedding_size: int
    hidden_size: int
    num_layers: int
    dropout_prob: float
    reg_weight: float
    weight_decay: float
    batch_size: int
    epochs: int
    learning_rate: float
    neg_samples: int
    max_seq_len: int
    window_stride: int | None = None
    loss: str | None = None
    precision: str | None = None


class Caser(Adapter):
    """WarpRec's Caser, computed by ``fastseq.Caser``."""

    core: ClassVar[type[SequentialRecommender]] = CaserCore
    needs_user = True

    embedding_size: int
    n_h: int
    n_v: int
    dropout_prob: float
    reg_weight: float
    weight_decay: float
    batch_size: int
    epochs: int
    learning_rate: float
    neg_samples: int
    max_seq_len: int
    window_stride: int | None = None
    loss: str | None = None
    precision: str | None = None


class FastSASRec(SASRec):
    """SASRec under a name of its own, beside WarpRec's."""


class FastGRU4Rec(GRU4Rec):
    """GRU4Rec under a name of its own, beside WarpRec's."""


class FastCaser(Caser):
    """Caser under a name of its own, beside WarpRec's."""


_REPLACING: tuple[type[Adapter], ...] = (SASRec, GRU4Rec, Caser)
_BESIDE: tuple[type[Adapter], ...] = (FastSASRec, FastGRU4Rec, FastCaser)
# What was replaced, by registry and key, and whether install has set GOMP_SPINCOUNT. importlib.reload keeps both: the
# registries keep fastseq's models over it.
_originals: dict[tuple[int, str], type] = globals().get("_originals", {})
_spin_count_is_ours: bool = globals().get("_spin_count_is_ours", False)
_RAY_HOOK = "RAY_RUNTIME_ENV_HOOK"  # names a function through which ray.init passes its runtime environment
_OUR_HOOK = f"{__name__}.ray_runtime_env"
_WORKER_HOOK = "worker_process_setup_hook"  # in that environment: what every worker calls first


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
    entries = [(model_registry, model) for model in models]
    entries += [(params_registry, getattr(warprec_params, model.__name__)) for model in models]
    for registry, ours in entries:
        present = registry._registry.get(ours.__name__.upper())
        if present is not None and not _is_ours(present) and (as_new_names or not _is_warprecs(present)):
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
        key = ours.__name__.upper()
        present = registry._registry.get(key)
        if present is not None and not _is_ours(present):
            _originals[id(registry), key] = present
        registry._registry[key] = ours
        registry._spelled[key] = ours.__name__
    # A Ray that this process starts hands it on to its workers. There a trial's threads spin on cores that Ray's own
    # processes need: measured beside other work, an epoch took 2 to 11 times the CPU time.
    global _spin_count_is_ours
    _spin_count_is_ours |= wait_briefly()
    hook = os.environ.setdefault(_RAY_HOOK, _OUR_HOOK)
    if hook != _OUR_HOOK:
        _warn_of_workers(f"the environment's {_RAY_HOOK} is {hook}")


def uninstall() -> None:
    """Gives WarpRec its own models back, and takes the new names away. What others have registered since stays."""
    for registry in (model_registry, params_registry):
        for model in (*_REPLACING, *_BESIDE):
            key = model.__name__.upper()
            if _is_ours(registry._registry.get(key)):
                original = _originals.pop((id(registry), key), None)
                if original is None:
                    del registry._registry[key], registry._spelled[key]
                else:
                    registry._registry[key] = original
    global _spin_count_is_ours
    if _spin_count_is_ours and os.environ.get("GOMP_SPINCOUNT") == SPIN_COUNT:
        del os.environ["GOMP_SPINCOUNT"]
    _spin_count_is_ours = False
    if os.environ.get(_RAY_HOOK) == _OUR_HOOK:
        del os.environ[_RAY_HOOK]


def _is_ours(entry: type | None) -> bool:
    return entry is not None and entry.__module__ in (__name__, warprec_params.__name__)


def _is_warprecs(entry: type) -> bool:
    return entry.__module__.partition(".")[0] == "warprec"


def ray_runtime_env(runtime_env: Mapping[str, Any] | None) -> dict[str, Any]:
    """Ray's runtime environment with the line that makes its workers install what is installed here.

    A hook of the user's stays, with a warning: nothing then reaches the workers.
    """
    given = dict(runtime_env or {})
    if _WORKER_HOOK in given:
        _warn_of_workers(f"Ray's runtime environment has a {_WORKER_HOOK} of its own, {given[_WORKER_HOOK]}")
        return given
    replaced, beside = (
        _is_ours(model_registry._registry.get(models[0].__name__.upper())) for models in (_REPLACING, _BESIDE)
    )
    hook = _install_both if replaced and beside else _install_beside if beside else install
    return {**given, _WORKER_HOOK: f"{__name__}.{hook.__name__}"}


def _install_beside() -> None:
    install(as_new_names=True)


def _install_both() -> None:
    install()
    install(as_new_names=True)


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


if __name__ == "__main__":
    if sys.argv[1:] not in ([], ["--new-names"]):  # a typo must not print the other file
        sys.exit(f"usage: python -m fastseq.warprec [--new-names]; got {' '.join(sys.argv[1:])}")
    print(custom_module(as_new_names="--new-names" in sys.argv))
