"""WarpRec's base classes around the core models."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from warprec.errors import CheckpointError, ConfigurationError
from warprec.recommenders.base_recommender import IterativeRecommender, SequentialRecommenderUtils

from .._process import keep_freed_memory
from ..data.ids import IdMap
from ..data.interactions import Interactions
from ..data.loader import Loader
from ..data.negatives import NegativeSampler
from ..models import Caser as CaserCore
from ..models import GRU4Rec as GRU4RecCore
from ..models import SASRec as SASRecCore
from ..models import SequentialRecommender
from ..ops.sampled_loss import needs_log_q
from ..optim import RowAdam
from ..training.checkpoint import is_builtin
from ..training.distributed import Ranks
from ..training.options import PRECISIONS, TrainingOptions
from ..training.precision import products, say_if_fp32
from ..training.rows import TouchedRows, not_served
from .parameters import KEYS, core_params
from .stream import BatchStream, StreamItem

# What makes a module know its tensors. An adapter and its core share them: one set of tensors, WarpRec's names.
_REGISTRIES = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")


class Adapter(IterativeRecommender, SequentialRecommenderUtils):
    """A WarpRec model that computes with a fastseq core model.

    A subclass names its ``core``. Its hyper-parameters are the core's, which are WarpRec's, and fastseq's keys.
    Constructor, attributes, ``state_dict``, optimizer groups, batches and scores are WarpRec's.

    Args:
        params: hyper-parameters; others are left out, as WarpRec does.
        info: ``n_users`` and ``n_items``.
        seed: the same seed gives WarpRec's initial ``state_dict``, bit for bit.
        args, kwargs: data sets and options of WarpRec's, not needed.

    Raises:
        ValueError: naming the hyper-parameter that is missing, out of range or contradicts another.
    """

    core: ClassVar[type[SequentialRecommender]]
    window_stride: int | None = None
    loss: str | None = None
    precision: str | None = None

    def __init__(self, params: dict, info: dict, *args: Any, seed: int = 42, **kwargs: Any) -> None:
        super().__init__(params, info, *args, seed=seed, **kwargs)
        names = self.hyperparameter_names()
        known = {name: params[name] for name in names if name in params}
        # Not core(...), which draws from generators of its own: WarpRec draws from the global ones, seeded above.
        core = self.core.__new__(self.core)
        self.core.__init__.__wrapped__(core, core_params(known), info, seed=seed)  # type: ignore[attr-defined]
        for name in names:  # also those that fastseq lets be left out
            if name not in known and hasattr(core, name) and name not in ("window_stride", "loss"):
                setattr(self, name, getattr(core, name))
        if self.precision not in (None, *PRECISIONS):
            raise ValueError(f"{self.name}: precision is {self.precision!r}, expected {', '.join(PRECISIONS)}")
        # As an attribute it would be a second owner of every tensor, under other names.
        object.__setattr__(self, "_held", core)
        for registry in _REGISTRIES:
            self.__dict__[registry] = core.__dict__[registry]
        object.__setattr__(self, "_rows", None)  # with RowAdam: what is trained by rows
        self.register_state_dict_post_hook(_with_waiting_rows)

    @classmethod
    def hyperparameter_names(cls) -> list[str]:
        """WarpRec's of this model in its order, then fastseq's."""
        return [*cls.core.hyperparameter_names(), *KEYS]

    @property
    def _core(self) -> SequentialRecommender:
        """The core model, in this module's mode: after a validation Lightning sets ``training`` itself, without
        ``train``, in the adapter and the modules it finds."""
        core: SequentialRecommender = self.__dict__["_held"]
        core.training = self.training
        return core

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        if "_held" in self.__dict__:
            self._core.settle()  # before another type or device
        return super()._apply(*arguments, **options)

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
            sampler = NegativeSampler(data, self.neg_samples, with_log_q=needs_log_q(core.loss_name))
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
        rounded = torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        with products(self.precision, self.device), rounded:
            streamed = isinstance(batch, StreamItem)
            jagged = batch.batch if streamed else core.jagged(batch)
            if self._rows is not None:
                core.waiting_rows = self._rows.optimizer
                jagged = self._rows.gather(jagged)
            # A rank's loss is its share of the mean over all targets: shares add up, but DDP averages gradients.
            loss = core.loss(jagged) * (ranks if streamed else 1)
            size = {"batch_size": jagged.n_targets} if streamed else {}
        self.log("loss", loss, prog_bar=True, on_step=False, on_epoch=True, **size)
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Lightning's backward, in the precision of the step."""
        with products(self.precision, self.device):
            super().backward(loss, *args, **kwargs)
        if self._rows is not None:
            self._rows.hand_over()

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's clipping, which knows no sparse gradients: of tables those of the rows that were touched."""
        if self._rows is None:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_val is not None and gradient_clip_val > 0:
            grads = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            values = [grad.coalesce()._values() if grad.is_sparse else grad for grad in grads]
            if gradient_clip_algorithm == "value":
                for each in values:
                    each.clamp_(-gradient_clip_val, gradient_clip_val)
            else:
                norm = torch.nn.utils.get_total_norm(values)
                for each in values:
                    each.mul_((gradient_clip_val / (norm + 1e-6)).clamp(max=1.0))

    def on_validation_start(self) -> None:
        """What is evaluated or saved has its rows up to date, in place, at points that the run fixes."""
        self._core.settle()

    on_train_epoch_end = on_train_end = on_validation_start

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The weights in it are up to date; this makes the optimizer's state that goes with them."""
        super().on_save_checkpoint(checkpoint)
        self._core.settle()

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The output after each history, [B, d]; see the core model."""
        return self._core(*args, **kwargs)

    def predict(
        self, user_seq: Tensor, seq_len: Tensor, *args: Any, item_indices: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Scores [B, n_items], or [B, S] of ``item_indices``: float32, and the caller's to change."""
        return self._core.predict(user_seq, seq_len, item_indices=item_indices)

    def configure_optimizers(self) -> Any:
        """WarpRec's optimizer and schedule; its Adam and AdamW in one fused pass over each group.

        With this a training starts, so that freed memory is kept from now on: faulting the tensors of a large batch in
        again cost GRU4Rec 0.7 of 1.5 s a step.
        """
        keep_freed_memory(1 << 30)
        say_if_fp32(self.precision, self.device)
        configured = super().configure_optimizers()
        optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
        if isinstance(optimizer, torch.optim.Adam):
            for group in optimizer.param_groups:  # WarpRec's wrapper passes no such option on
                group["fused"] = True
        self._core.settle()
        object.__setattr__(self, "_rows", self._touched_rows(optimizer) if isinstance(optimizer, RowAdam) else None)
        return configured

    def _touched_rows(self, optimizer: RowAdam) -> TouchedRows | None:
        """What is trained by rows; None: whole tables, which RowAdam moves too.

        Raises:
            ConfigurationError: with several devices, whose gradients Lightning averages as whole tables.
        """
        core, trainer = self._core, self._trainer
        if trainer is not None and trainer.world_size > 1:
            raise ConfigurationError(
                f"{self.name}: optimizer RowAdam trains on one device inside WarpRec, this is one of "
                f"{trainer.world_size}: use Adam, or fastseq train, whose processes exchange rows"
            )
        if why := next(not_served(core, TrainingOptions()), None):
            raise ConfigurationError(f"{self.name}: optimizer RowAdam, but {why}: use Adam")
        if core.loss_name == "cross_entropy":
            warnings.warn(
                f"{self.name}: cross_entropy gives every item a gradient: RowAdam moves whole tables", stacklevel=2
            )
            return None
        return TouchedRows(core, optimizer, False, Ranks())

    # What a checkpoint holds.

    def get_params(self) -> dict[str, Any]:
        """WarpRec's hyper-parameters, and of fastseq's those that are set: names of runs stay what they were."""
        return {key: value for key, value in super().get_params().items() if value is not None or key not in KEYS}

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
        self._core.settle()
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def _with_waiting_rows(adapter: torch.nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Puts the tables as they would be without RowAdam's waiting rows into a state_dict."""
    assert isinstance(adapter, Adapter)
    for name, table in adapter._core.caught_up().items():
        state[f"{prefix}{name}_embedding.weight"] = table


class SASRec(Adapter):
    """WarpRec's SASRec, computed by ``fastseq.SASRec``."""

    core = SASRecCore


class GRU4Rec(Adapter):
    """WarpRec's GRU4Rec, computed by ``fastseq.GRU4Rec``."""

    core = GRU4RecCore


class Caser(Adapter):
    """WarpRec's Caser, computed by ``fastseq.Caser``."""

    core = CaserCore
    needs_user = True

    def predict(  # type: ignore[override] # WarpRec's own differ so
        self, user_indices: Tensor, user_seq: Tensor, *args: Any, item_indices: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Scores [B, n_items], or [B, S] of ``item_indices``: float32, and the caller's to change."""
        return self._core.predict(user_indices, user_seq, item_indices=item_indices)


class FastSASRec(SASRec):
    """SASRec under a name of its own, beside WarpRec's."""


class FastGRU4Rec(GRU4Rec):
    """GRU4Rec under a name of its own, beside WarpRec's."""


class FastCaser(Caser):
    """Caser under a name of its own, beside WarpRec's."""
