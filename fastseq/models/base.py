"""What the three models share: WarpRec's constructor, the entry for padded batches, losses, scores."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..data.batch import JaggedBatch
from ..errors import ConfigError, check_integer
from ..ops.sampled_loss import IGNORED, needs_log_q
from ..optim import RowAdam
from . import hyperparameters
from .initialisation import init_weights, parameter_groups, seed_draws, seeded
from .jagged import (
    Ids,
    as_ids,
    check_padded,
    fill_empty,
    last_rows,
    look,
    numbered,
    offsets_of,
    padded_positions,
    trailing_lengths,
)
from .losses import row_counts, sum_of_squares, summed_loss
from .recommend import Catalogue, ItemCodes, recommend
from .shards import Lookup, ShardedEmbedding, Shards


class SequentialRecommender(nn.Module, ABC):
    """A model that scores every item as the next one of a history.

    A subclass annotates its hyperparameters (those with a class-level value may be left out), builds its modules
    in ``__init__``, calls ``self.apply(self._init_weights)`` at the end, and defines ``encode``.

    Args:
        params: hyperparameters. Besides those of WarpRec, every model takes ``loss``, ``negatives``,
            ``negative_distribution``, ``negative_alpha``, ``gbce_t``, ``window_stride`` and ``initializer_range``
            (hyperparameters.py).
        info: ``n_users`` and ``n_items``, both at least 1.
        shards: the part of the item and user tables that this process holds; None, or one part of one: they are whole.
            Of several, the model can be trained, evaluated and asked for recommendations by all processes together;
            ``forward``, ``predict`` and ``training_step`` need whole tables.
        seed: the same seed gives the parameters that WarpRec has for it. PyTorch draws them from generators of the
            model's own: the global ones, numpy's and Python's too, are neither seeded nor used. Also the seed of
            ``rng``.
        args, kwargs: accepted and ignored, since WarpRec passes its data sets here.

    Attributes:
        rng: int64 [2], (seed, step), not in the state_dict. Every dropout reads it in training mode, after which
            the step advances by one; a trainer that wants to resume sets it before each step with ``set_rng``.
        catalogue: raw ids for ``recommend``; None: indices are the ids.

    Raises:
        ValueError: naming the key of ``params`` or ``info`` that is missing, unknown, out of range or contradictory.
    """

    needs_user: bool = False  # whether scoring reads the user's id
    needs_context: ClassVar[bool] = False  # every target of a window needs all its max_seq_len events in the pass
    own_options: ClassVar[tuple[str, ...]] = ()  # of hyperparameters.OBJECTIVE, those that are one model's
    reads_length: ClassVar[bool] = True  # False: a padded row ends where its trailing padding begins

    item_embedding: nn.Embedding
    user_embedding: nn.Embedding
    rng: Tensor

    # Hyperparameters that all three have.
    embedding_size: int
    max_seq_len: int
    neg_samples: int
    reg_weight: float
    weight_decay: float
    learning_rate: float
    batch_size: int
    epochs: int
    negatives: str
    negative_distribution: str
    negative_alpha: float
    gbce_t: float
    window_stride: int | None
    initializer_range: float | None
    output_activation: str
    user_vectors: bool

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = seeded(cls.__init__)  # type: ignore[method-assign]

    def __init__(
        self, params: dict, info: dict, *args: Any, seed: int = 42, shards: Shards | None = None, **kwargs: Any
    ) -> None:
        super().__init__()
        self.shards = None if shards is None or shards.world_size == 1 else shards
        self.init_params(params)
        check_integer("seed", seed, -(2**63))
        self.seed = seed
        seed_draws(self, seed)
        self.info = info
        self.n_users = _catalogue_size(info, "n_users")
        self.n_items = _catalogue_size(info, "n_items")
        self.catalogue: Catalogue | None = None
        self.register_buffer("rng", ops.make_rng(seed), persistent=False)
        self._rng_is_held = False
        # The optimizer that rows of the tables wait for (training/rows.py); None: they lie where they should.
        self.waiting_rows: RowAdam | None = None
        self.item_codes: ItemCodes | None = None  # of keep_item_codes
        self.register_state_dict_post_hook(_with_waiting_rows)
        self.register_load_state_dict_pre_hook(_settled)

    @classmethod
    def hyperparameter_names(cls) -> list[str]:
        """WarpRec's hyperparameters of this model: the annotations of the nearest class that has any."""
        for klass in cls.__mro__:
            if klass is SequentialRecommender:
                break
            names = [
                name
                for name, hint in inspect.get_annotations(klass).items()
                if not name.isupper() and not str(hint).startswith(("ClassVar", "typing.ClassVar"))
            ]
            if names:
                return names
        return []

    @classmethod
    def check_params(cls, params: Mapping[str, Any]) -> dict[str, Any]:
        """Every hyperparameter with its value, defaults filled in; builds nothing.

        Raises:
            ConfigError: naming the key that is missing, unknown, out of range or contradicts another.
        """
        names = cls.hyperparameter_names()
        defaults = {name: getattr(cls, name) for name in names if hasattr(cls, name)}
        values = hyperparameters.resolve(cls.__name__, names, defaults, params)
        for key, owner in hyperparameters.OWNERS.items():
            if values[key] != hyperparameters.OBJECTIVE[key] and key not in cls.own_options:
                raise ConfigError(f"{cls.__name__}: {key} is {values[key]!r}, but the key is {owner}'s: leave it out")
        return values

    def init_params(self, params: Mapping[str, Any]) -> None:
        """Sets each checked hyperparameter as an attribute of its name (``loss`` as ``loss_name``)."""
        values = self.check_params(params)
        self.loss_name: str = values.pop("loss")
        for name, value in values.items():
            setattr(self, name, value)

    def get_params(self) -> dict[str, Any]:
        """The hyperparameters: all of WarpRec's, and of the others those that are not WarpRec's behaviour."""
        params = {name: getattr(self, name) for name in self.hyperparameter_names()}
        usual = "bpr" if self.neg_samples > 0 else "cross_entropy"
        if self.loss_name != usual:
            params["loss"] = self.loss_name
        for name, default in hyperparameters.OBJECTIVE.items():
            if name != "loss" and getattr(self, name) != default:
                params[name] = getattr(self, name)
        return params

    def _init_weights(self, module: nn.Module) -> None:
        init_weights(module, self.initializer_range)

    def set_rng(self, seed: int, step: int) -> None:
        """The dropout masks of the next training forward are those of (seed, step)."""
        self.rng, self._rng_is_held = ops.make_rng(seed, step, self.rng.device), False

    def hold_rng(self, rng: Tensor) -> None:
        """The dropout masks are those of ``rng``, int64 [2] on the model's device, from now on: who holds it sets it
        before each step, and no forward advances it. ``set_rng`` ends that."""
        self.rng, self._rng_is_held = rng, True

    def _take_rng(self) -> Tensor:
        """``rng`` for this forward. In training mode the step then advances, in a new tensor: backward needs this."""
        rng = self.rng
        if self.training and not self._rng_is_held:
            following = rng.clone()
            following[1] += 1
            self.rng = following
        return rng

    def caught_up(self) -> dict[str, Tensor]:
        """The "item" and "user" table up to date, copies of those of which rows wait for the optimizer: none, unless a
        training has been broken off or is under way."""
        if self.waiting_rows is None:
            return {}
        return {name: self.waiting_rows.current(table) for name, table in self.tables().items()}

    def settle(self) -> None:
        """Brings the tables up to date in place, if rows of them wait: before other weights come or another optimizer,
        or another type or device."""
        if self.waiting_rows is not None:
            self.waiting_rows.flush()
            self.waiting_rows = None

    def _apply(self, *arguments: Any, **options: Any) -> Any:
        self.settle()
        return super()._apply(*arguments, **options)

    def raw_state(self) -> dict[str, Tensor]:
        """The tensors of the state_dict as they lie, whatever their rows wait for."""
        tensors: dict[str, Tensor] = dict(self.named_parameters())
        for prefix, module in self.named_modules():
            for name, buffer in module._buffers.items():
                if buffer is not None and name not in module._non_persistent_buffers_set:
                    tensors[f"{prefix}.{name}" if prefix else name] = buffer
        return tensors

    def _rate(self, p: float) -> float:
        """Dropout rate ``p`` in training mode, else 0."""
        return p if self.training else 0.0

    def _divided(self, rows: int, padding: int | None = None) -> nn.Embedding:
        """A table, or this process's part of it."""
        if self.shards is None:
            return nn.Embedding(rows, self.embedding_size, padding_idx=padding)
        return ShardedEmbedding(rows, self.embedding_size, padding, self.shards)

    # What a model computes.

    def _item_rows(self, batch: JaggedBatch) -> Tensor:
        """The item vectors that ``batch`` numbers, padding the last: the whole table, or the rows that it touches."""
        return self.table("item") if batch.item_rows is None else batch.item_rows

    def _user_rows(self, batch: JaggedBatch) -> Tensor:
        """Likewise the user vectors."""
        return self.table("user") if batch.user_rows is None else batch.user_rows

    def tables(self) -> dict[str, Tensor]:
        """The "item" table as it lies, and the "user" table of a model that reads one."""
        items = {"item": self.item_embedding.weight}
        return items | {"user": self.user_embedding.weight} if self.needs_user else items

    def table(self, name: str) -> Tensor:
        """One of them as training would have it: a copy, without a gradient, while rows of it wait."""
        if self.shards is not None:
            raise ConfigError(
                f"the {name} table is divided over {self.shards.world_size} processes: train, evaluate and recommend "
                "can read it, all processes together; for all else load the run's checkpoint in one process"
            )
        weight = self.tables()[name]
        return weight if self.waiting_rows is None else self.waiting_rows.current(weight)

    @abstractmethod
    def encode(self, batch: JaggedBatch) -> Tensor:
        """The output at every counted row of ``batch``: [N, d]."""

    def encode_last(
        self,
        items: Tensor,
        offsets: Tensor,
        users: Tensor | None = None,
        max_len: int | None = None,
        some_empty: bool = True,
    ) -> Tensor:
        """The output after each history: [B, d].

        Args:
            items: int64 [T], jagged; an empty history stands for one padding row.
            offsets: int32 [B + 1].
            users: int64 [B], for models that need them (−1: a user the model does not know).
            max_len: at least the longest history's length; None: looked up.
            some_empty: False: no history is empty, and none is looked for. With ``max_len`` a GPU is then not waited
                for.

        Raises:
            ValueError: if the model needs users and gets none.
        """
        if self.needs_user and users is None:
            raise ValueError(f"{type(self).__name__}.encode_last needs users [B], got None")
        if some_empty:
            items, offsets = fill_empty(items, offsets, self.n_items)
        return self.encode(self._fetched(self._last_batch(items, offsets, users, max_len)))

    def _fetched(self, batch: JaggedBatch) -> JaggedBatch:
        """``batch`` in numbers of its own rows, which it holds, where the tables are divided. All processes."""
        if self.shards is None:
            return batch
        ids, places = numbered({"items": batch.items, "targets": batch.targets}, self.n_items)
        batch = replace(batch, item_rows=self._fetch("item", ids), **places)  # type: ignore[arg-type]
        if self.needs_user:
            users = batch.users_of_targets
            ids, places = numbered({"target_users": users.clamp(min=0)}, None)
            rows = self._fetch("user", ids)
            if bool((users < 0).any()):  # the same users in all processes: only recommend knows such
                rows = torch.cat([rows, self.shards.mean(self._part("user"), self.n_users)])
                places["target_users"] = torch.where(users < 0, ids.shape[0], places["target_users"])
            batch = replace(batch, user_rows=rows, **places)  # type: ignore[arg-type]
        return batch

    def _fetch(self, name: str, ids: Tensor) -> Tensor:
        """Rows of a divided table. All processes."""
        assert self.shards is not None
        return Lookup(self.shards, ids).fetch(self._part(name))

    def _part(self, name: str) -> Tensor:
        """This process's rows of a table, up to date."""
        weight = self.tables()[name].detach()
        return weight if self.waiting_rows is None else self.waiting_rows.current(weight)

    def best(
        self,
        h: Tensor,
        k: int,
        seen_offsets: Tensor | None,
        seen_items: Tensor | None,
        seen_sorted: bool = False,
        codes: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``ops.topk`` of the catalogue for outputs ``h`` [B, d]; where tables are divided, of the same ``h`` in all
        processes, and by all of them, without codes."""
        if self.shards is not None:
            return self.shards.topk(h, self._part("item"), self.n_items, k, seen_offsets, seen_items)
        weight = self.table("item")[:-1]
        seen: Any = {"seen_offsets": seen_offsets, "seen_items": seen_items, "seen_sorted": seen_sorted}
        return ops.topk(h.to(weight.dtype), weight, k, **seen, codes=codes)

    def _last_batch(self, items: Tensor, offsets: Tensor, users: Tensor | None, max_len: int | None) -> JaggedBatch:
        """Sequences, none of them empty, of which the last row counts."""
        size = offsets.shape[0] - 1
        if max_len is None:
            max_len = int(offsets.diff().max()) if size else 0
        return JaggedBatch(
            items=items,
            offsets=offsets,
            users=torch.zeros(size, dtype=torch.int64, device=items.device) if users is None else users,
            max_len=max(max_len, min(1, size)),
            rows=last_rows(offsets),
            targets=items.new_full((size,), self.n_items),
            target_sequences=torch.arange(size, device=items.device),
            last_only=True,
        )

    # The entry for WarpRec's padded batches.

    def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
        """The output after each history.

        Args:
            item_seq: int64 [B, W], each row left-aligned and right-padded with id n_items.
            item_seq_len: int64 [B], events in each row; 0: an empty history, which is one padding row.

        Returns:
            [B, d].

        Raises:
            ValueError: naming row, column and value of an id or length that is out of range.
        """
        return self.encode(self._unpad(item_seq, item_seq_len, None))

    def _unpad(self, item_seq: Tensor, lengths: Tensor | None, users: Tensor | None, *more: Ids) -> JaggedBatch:
        """The jagged batch of a padded one; ``more`` ids are checked with its own."""
        item_seq, lengths, checked = check_padded(item_seq, lengths, self.n_items)
        if not self.reads_length or lengths is None:
            lengths = trailing_lengths(item_seq, self.n_items)
        if users is not None:
            users = as_ids(users, "users")
            checked.append(("users", users, self.n_users))
        (size, width), lengths = item_seq.shape, lengths.clamp(min=1)
        total, hidden = lengths.sum(), self._hidden(item_seq, lengths)
        numbers = [total, lengths.amax() if size else total, *([] if hidden is None else [hidden.any().long()])]
        n_events, longest, *some_hidden = look([*checked, *more], *numbers)
        offsets = offsets_of(lengths)
        positions = padded_positions(lengths, offsets, width, n_events)
        batch = self._last_batch(item_seq.reshape(-1)[positions], offsets, users, longest)
        if hidden is not None and some_hidden[0]:
            batch.hidden = hidden.reshape(-1)[positions]
        return batch

    def _hidden(self, item_seq: Tensor, lengths: Tensor) -> Tensor | None:
        """Which events [B, W] inside the histories attention must not see; None: this model sees all."""
        return None

    def training_step(self, batch: Sequence[Tensor], batch_idx: int = 0) -> Tensor:
        """The loss of one of WarpRec's batches.

        Args:
            batch: ``(seq [B, L], len [B], pos [B])``, then ``neg [B, K]`` (shared negatives: ``[S]``) unless the
                loss is cross-entropy; preceded by ``user [B]`` for a model that needs users.
            batch_idx: not used.

        Raises:
            ValueError: if the batch has another shape, or holds an id that is out of range.
        """
        return self.loss(self.jagged(batch))

    def jagged(self, batch: Sequence[Tensor]) -> JaggedBatch:
        """What ``loss`` takes, of what ``training_step`` takes."""
        names = ["user"] * type(self).needs_user + ["seq", "len", "pos"] + ["neg"] * (self.neg_samples > 0)
        if len(batch) != len(names):
            raise ValueError(
                f"{type(self).__name__} with neg_samples {self.neg_samples} takes batches of ({', '.join(names)}), "
                f"got {len(batch)} tensors"
            )
        fields = dict(zip(names, batch, strict=True))
        size = fields["seq"].shape[:1]
        targets, negatives = as_ids(fields["pos"], "positives"), None
        if targets.shape != size:
            raise ValueError(f"positives have shape {list(targets.shape)}, expected {list(size)}")
        checked: list[Ids] = [("positives", targets, self.n_items + 1)]
        if "neg" in fields:
            negatives = self._as_negatives(fields["neg"], targets.shape[0])
            checked.append(("negatives", negatives, self.n_items + 1))
        jagged = self._unpad(fields["seq"], fields["len"], fields.get("user"), *checked)
        jagged.targets, jagged.negatives = targets, negatives
        if negatives is not None and needs_log_q(self.loss_name):
            jagged.log_q = self._uniform_log_q(negatives)
        jagged.l2_items = fields["seq"].long().reshape(-1)
        return jagged

    def _as_negatives(self, negatives: Tensor, size: int) -> Tensor:
        shared = self.negatives == "shared"
        if negatives.dim() != (1 if shared else 2) or (not shared and negatives.shape[0] != size):
            expected = "[S]" if shared else f"[{size}, K]"
            raise ValueError(f"negatives have shape {list(negatives.shape)}, expected {expected}")
        return as_ids(negatives, "negatives")

    def _uniform_log_q(self, negatives: Tensor) -> Tensor:
        if self.negative_distribution != "uniform":
            raise ValueError(
                f"loss {self.loss_name!r} with negative_distribution {self.negative_distribution!r} needs the "
                "negatives' probabilities, which WarpRec's batches do not carry: use loss(batch) with log_q set"
            )
        return -torch.full(negatives.shape, float(self.n_items), device=negatives.device).log()

    # The objective.

    def loss(self, batch: JaggedBatch) -> Tensor:
        """Main loss, averaged over targets (and negatives), plus the L2 term: a scalar.

        The sum over this rank's targets is divided by ``batch.n_targets_global`` where that is set, so that ranks add
        up to the loss of the whole step.

        The L2 term is reg_weight · ½ Σ‖e‖² / targets over the embeddings of every target's history (padded to
        max_seq_len), the targets, the negatives (a shared set once) and, where they are read, the users. The padding
        row counts in its value and gets no gradient.

        Raises:
            ValueError: if ``batch`` lacks negatives or L2 rows that the hyperparameters call for.
        """
        name = type(self).__name__
        if self.loss_name != "cross_entropy" and batch.negatives is None:
            raise ValueError(f"{name}: loss {self.loss_name!r} needs batch.negatives, which is None")
        number = max(1, batch.n_targets_global or batch.n_targets)
        if batch.divisor is None and self.reg_weight == 0.0:
            return self._main_loss(batch, number)
        total = self._main_loss(batch, 1)
        if self.reg_weight > 0.0:
            if batch.l2_items is None:
                raise ValueError(f"{name}: reg_weight is {self.reg_weight} and needs batch.l2_items, which is None")
            total = total + 0.5 * self.reg_weight * self._l2_sum(batch, batch.l2_items).to(total.dtype)
        return total / (number if batch.divisor is None else batch.divisor)

    @property
    def _beta(self) -> float:
        """The weight of gBCE's positive term; 1 for other losses."""
        return ops.gbce_beta(self.neg_samples, self.n_items, self.gbce_t) if self.loss_name == "gbce" else 1.0

    def _main_loss(self, batch: JaggedBatch, divisor: int) -> Tensor:
        return summed_loss(
            self.encode(batch),
            self._item_rows(batch),
            batch.targets,
            batch.negatives,
            batch.log_q,
            loss=self.loss_name,
            beta=self._beta,
            divisor=divisor,
        )

    def _l2_sum(self, batch: JaggedBatch, history: Tensor) -> Tensor:
        """Σ‖e‖² over every embedding the batch uses."""
        counted = None if batch.divisor is None else batch.targets != IGNORED
        items: list[tuple[Tensor, Tensor | None]] = [(history, batch.l2_weights), (batch.targets, counted)]
        rows, share = self._item_rows(batch), self._negatives_share(batch)
        if batch.negatives is not None and share == 1.0:
            each = None
            if counted is not None and batch.negatives.dim() == 2:
                each = counted[:, None].expand_as(batch.negatives)
            items.append((batch.negatives, each))
        counts = row_counts(rows, items)
        if batch.negatives is not None and share != 1.0:  # a fraction is no term of a sum that has no order on a GPU
            counts += share * row_counts(rows, [(batch.negatives, None)])
        counts[-1] += batch.l2_padding
        total = sum_of_squares(rows, counts, rows.shape[0] - 1)
        if self.needs_user:
            users = self._user_rows(batch)
            total = total + sum_of_squares(users, row_counts(users, [(batch.users_of_targets, counted)]))
        return total

    @staticmethod
    def _negatives_share(batch: JaggedBatch) -> float:
        """How often each negative counts in the L2 term: once. Of a set that ranks share, each counts its part."""
        shared = batch.negatives is not None and batch.negatives.dim() == 1
        return batch.n_targets / batch.n_targets_global if shared and batch.n_targets_global else 1.0

    def parameter_groups(self) -> list[dict[str, Any]]:
        """WarpRec's optimizer groups: weight decay on Linear, Conv, recurrent and positional weights only; one group
        where there is no weight decay."""
        return parameter_groups(self, self.weight_decay)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam with coupled weight decay over WarpRec's groups, fused where torch can."""
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in self.parameters())
        return torch.optim.Adam(self.parameter_groups(), lr=self.learning_rate, fused=fused)

    # Scores.

    def predict(
        self, user_seq: Tensor, seq_len: Tensor, *args: Any, item_indices: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        """Scores of items as the next one. Dropout and gradients follow the modes that are set, as in any module.

        Args:
            user_seq: int64 [B, W], right-padded with n_items. SASRec takes no history longer than max_seq_len.
            seq_len: int64 [B], 0 … W; 0 ranks from an empty history.
            item_indices: int64 [B, S], 0 … n_items; None: the whole catalogue.
            args, kwargs: accepted and ignored.

        Returns:
            A new tensor, [B, n_items] or [B, S]: float32 (float64 for a float64 model), under autocast too, since
            half precision makes ties.

        Raises:
            ValueError: naming the argument, row, column and value that is out of range or missing.
        """
        return self._predict(None, user_seq, seq_len, item_indices)

    def _predict(
        self, users: Tensor | None, sequences: Tensor, lengths: Tensor | None, item_indices: Tensor | None
    ) -> Tensor:
        needed = {"user_indices [B]": users if self.needs_user else True, "user_seq [B, W]": sequences}
        needed["seq_len [B]"] = lengths if self.reads_length else True
        for argument, value in needed.items():
            if value is None:
                raise ValueError(f"{type(self).__name__}.predict needs {argument}, got None")
        checked = [] if item_indices is None else [self._asked_items(item_indices)]
        return self.score_checked(self.encode(self._unpad(sequences, lengths, users, *checked)), item_indices)

    def score(self, h: Tensor, item_indices: Tensor | None = None) -> Tensor:
        """Dot products of ``h`` [B, d] with the catalogue [B, n_items], or with ``item_indices`` [B, S] of it."""
        if item_indices is not None:
            look([self._asked_items(item_indices)])
        return self._score(h, item_indices)

    def score_checked(self, h: Tensor, item_indices: Tensor | None = None) -> Tensor:
        """``score`` of items known to be in the catalogue, without a look at them; a subclass's own is called."""
        score = self._score if type(self).score is SequentialRecommender.score else self.score
        return score(h, item_indices)

    def _asked_items(self, item_indices: Tensor) -> Ids:
        return "item_indices", as_ids(item_indices, "item_indices"), self.n_items + 1

    def _score(self, h: Tensor, item_indices: Tensor | None) -> Tensor:
        with torch.autocast(h.device.type, enabled=False):
            weight = self.table("item")
            dtype = torch.promote_types(weight.dtype, torch.float32)
            h = h.to(dtype)
            if item_indices is None:
                return h @ weight[:-1].to(dtype).T
            if item_indices.dim() != 2 or item_indices.shape[0] != h.shape[0]:
                raise ValueError(f"item_indices has shape {list(item_indices.shape)}, expected [{h.shape[0]}, S]")
            return _products(h, F.embedding(item_indices.long(), weight, self.n_items))

    def scores_of(self, h: Tensor, items: Tensor) -> Tensor:
        """Dot products of ``h`` [B, d] with ``items`` [B, S], where tables are divided. All processes."""
        ids, places = numbered({"items": items}, None)
        return _products(h, F.embedding(places["items"], self._fetch("item", ids)))

    recommend = recommend

    def keep_item_codes(self, keep: bool = True) -> None:
        """Whether ``recommend``, on a CPU, keeps 8-bit codes of a float32 item table for calls of up to 8 histories.

        They change no bit of an answer. Such a call then reads a quarter of the table and what may be among the best of
        it: ranking one history takes half the time at 50,000 items of 128 columns, a third and less at more. They take
        a quarter of the table's memory beside it, are made by the next such call, and made anew by the next one after
        the table has changed. What PyTorch does not know of is not seen: after edits through ``weight.data``, a numpy
        view or shared memory call this again.
        """
        self.item_codes = ItemCodes() if keep else None


def _products(h: Tensor, rows: Tensor) -> Tensor:
    """h [B, d] times rows [B, S, d]: [B, S]."""
    return torch.einsum("be,bse->bs", h, rows.to(h.dtype))


def _settled(model: nn.Module, *_: Any) -> None:
    """Before other weights come."""
    assert isinstance(model, SequentialRecommender)
    model.settle()


def _with_waiting_rows(model: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Puts the tables of the model as dense training would have them into its state_dict."""
    assert isinstance(model, SequentialRecommender)
    for name, table in model.caught_up().items():
        state[f"{prefix}{name}_embedding.weight"] = table


def _catalogue_size(info: Mapping[str, Any], key: str) -> int:
    return check_integer(f"info[{key!r}]", info.get(key), 1)
