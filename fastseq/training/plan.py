"""What a run will take, said before it: memory by arithmetic, and what that is compared with."""

from __future__ import annotations

import os
import sys
import warnings
import weakref
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastseq._process import available_memory, rss
from fastseq.data.batch import JaggedBatch
from fastseq.data.ids import IdMap, Int64Array
from fastseq.data.split import Split, leave_one_out
from fastseq.data.synthetic import make_long_tail
from fastseq.data.windows import pack_windows
from fastseq.errors import ConfigError
from fastseq.models.base import SequentialRecommender
from fastseq.ops.sampled_loss import needs_log_q

from .evaluation import SCORES_AT_ONCE
from .metrics import METRICS, NOVELTY_METRICS
from .options import TrainingOptions
from .rows import named_rows, why_dense

TOLERANCE = 0.2  # of a plan
LIBRARIES = 30 << 20  # of the process: what libraries load and keep from the first step to the curve's picture
TILE = 16 << 20  # scores of topk on the CPU
PER_USER = 12 * len((*METRICS, *NOVELTY_METRICS))  # bytes of a user's metrics at one cut-off, as kept and as written
WARM_UP, LOOKED_AT = 0.5, 2.5  # seconds of training from which the time of an epoch is foretold
PROBED = 20_000_000  # events of generated data
READING = 100 << 20, 64  # reading data: a block as text and as a frame, and bytes an event


@dataclass(frozen=True, eq=False)
class DataSize:
    """What a plan must know of a split.

    Attributes:
        n_users, n_items, n_events: of all parts.
        validation_users: whom the validation takes.
        held: bytes of what was read.
        offsets, train_stop: as ``Split`` has them.
        histories: int64 [n], events before the targets of those users whom the test takes.
        read: whether the data are in memory already.
    """

    n_users: int
    n_items: int
    n_events: int
    validation_users: int
    held: int
    offsets: Int64Array
    train_stop: Int64Array
    histories: Int64Array
    read: bool

    @classmethod
    def of(cls, split: Split) -> DataSize:
        """That of a split."""
        data, part = split.interactions, split.part("test")
        arrays = [data.items, data.offsets, data.timestamps, data.order, data.ratings]
        held = sum(x.nbytes for x in (*arrays, split.train_stop, split.validation_stop) if x is not None)
        held += _bytes_of(data.user_ids) + _bytes_of(data.item_ids)
        stops, histories = split.train_stop, part.history_stop - part.history_start
        validated = len(split.part("validation"))
        return cls(data.n_users, data.n_items, data.n_events, validated, held, data.offsets, stops, histories, True)

    @classmethod
    def assumed(cls, n_users: int, n_items: int, n_events: int, validation: float, test: float) -> DataSize:
        """That of data with timestamps and integers as ids, whose users have equally many events, of which so many
        (below 1: such a share) are held out.

        Raises:
            ConfigError: for sizes that do not go together.
        """
        if min(n_users, n_items) < 1 or n_events < max(2 * n_users, n_items):
            raise ConfigError(
                f"{n_items} items, {n_users} users, {n_events} events: expected at least 1 item and user, as many "
                "events as items, and twice as many as users"
            )
        offsets = np.arange(n_users + 1) * n_events // n_users
        lengths = np.diff(offsets)
        before = np.maximum(1, np.floor(lengths * (1 - test) if test < 1 else lengths - test).astype(np.int64))
        left = before * (1 - validation) if validation < 1 else before - validation
        train = np.maximum(1, np.floor(left).astype(np.int64))
        held = 16 * n_events + 8 * (4 * n_users + n_items)
        validated = n_users if validation else 0
        return cls(n_users, n_items, n_events, validated, held, offsets, offsets[:-1] + train, before, False)

    def generated(self) -> Split:
        """Data of such sizes, of fewer users where there are more than ``PROBED`` events, each one's last held out."""
        n_events = min(self.n_events, max(PROBED, self.n_items))
        n_users = max(1, self.n_users * n_events // self.n_events)
        return leave_one_out(make_long_tail(self.n_items, n_users, n_events))


def _bytes_of(ids: IdMap) -> int:
    values = ids.values
    if not isinstance(values, list):
        return values.nbytes
    some = values[:: max(1, len(values) // 1000)]
    return int(len(values) * (8 + sum(map(sys.getsizeof, some)) / len(some)))


@dataclass(frozen=True)
class Plan:
    """What one process of a run is expected to take. Memory in bytes, of the process, or of the GPU where that trains.

    Attributes:
        model, device, processes, updates: for what, "rows" or "dense" and why.
        process: what libraries take; 0 on a GPU.
        data: events, ids, windows, and what negatives are drawn by.
        weights: of the model.
        optimizer: its state: two moments with Adam, and with rows the step of each row.
        preparing: at most at a time, before the optimizer has its state: what counts the training events and ranks by
            popularity.
        step: batches, activations and gradients, at most at a time.
        evaluation: the same of one batch of users, how often each item was in a list, and the metrics of each user.
        best: the weights of the best epoch, as they are read back at the end.
        reading: the peak of the process while data are read; 0 where they were.
        available, most: what the process can come to hold now, and with all memory and swap of the machine or the
            container (of a GPU both are all of its memory); its part of it where several are on one machine. None where
            the system does not say.
        targets, users: of an epoch, and of a validation.
        epoch_seconds: training steps of an epoch; None: not known.
        validation_seconds: one validation; None likewise.
    """

    model: str
    device: str
    processes: int
    updates: str
    process: int
    data: int
    weights: int
    optimizer: int
    preparing: int
    step: int
    evaluation: int
    best: int
    reading: int
    available: int | None
    most: int | None
    targets: int
    users: int
    epoch_seconds: float | None = None
    validation_seconds: float | None = None

    @property
    def held(self) -> int:
        """What stays through the run."""
        return self.process + self.data + self.weights + self.optimizer

    @property
    def peak(self) -> int:
        """The most that the run holds at a time."""
        most = self.held + max(self.step, self.evaluation, self.best, self.preparing - self.optimizer)
        return max(most, self.reading)

    @property
    def fits(self) -> bool:
        """Whether it is sure to fit into what there is."""
        return self.available is None or self.peak * (1 + TOLERANCE) <= self.available

    def timed(self, targets_per_second: float, users_per_second: float | None) -> Plan:
        """The same with times by such speeds."""
        validation = users_per_second and self.users / users_per_second
        return replace(self, epoch_seconds=self.targets / targets_per_second, validation_seconds=validation)

    def check(self, change: str, warn: bool = True) -> None:
        """Warns of a run that comes near what is there, in one of its processes; ``change`` says how to take less.

        Raises:
            ConfigError: where it can never fit, with the figures and what to change. What others hold now they may give
                back, so of that there is only a warning.
        """
        if self.available is None or self.most is None or self.fits:
            return
        never = self.held > self.most or self.peak > self.most * (1 + TOLERANCE)
        there = f"{_size(self.most)} are there" if never else f"{_size(self.available)} are there now"
        largest = max(("step", "evaluation", "best"), key=lambda name: getattr(self, name))
        names = ("weights", "optimizer", "data", largest)
        figures = ", ".join(f"{name} {_size(getattr(self, name))}" for name in names)
        text = f"models.{self.model}: the run takes about {_size(self.peak)} ({figures}), and {there}"
        text += f". To take less: {change}"
        if never:
            raise ConfigError(f"{text}. `fastseq plan` shows every part")
        if warn:
            warnings.warn(text, stacklevel=3)

    def rows(self) -> list[tuple[str, str]]:
        """Names and texts, a line each."""
        what = {
            "process": "process", "data": "data", "weights": "weights", "optimizer": "optimizer",
            "preparing": "preparing, before the optimizer", "step": "a step", "evaluation": "evaluation",
            "best": "the best weights, read back", "reading": "reading the data",
        }  # fmt: skip
        lines = [(text, _size(value)) for name, text in what.items() if (value := getattr(self, name))]
        lines.append(("expected peak", _size(self.peak)))
        lines.append(("there is", "not known" if self.available is None else _size(self.available)))
        for name, seconds in (("an epoch", self.epoch_seconds), ("a validation", self.validation_seconds)):
            lines.append((name, "not known" if seconds is None else f"{seconds:,.1f} s"))
        return lines

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self) | {"peak": self.peak}


def _size(number: int) -> str:
    return f"{number / 1e9:,.2f} GB" if number >= 1e9 else f"{number / 1e6:,.0f} MB"


def plan(
    model: SequentialRecommender,
    data: DataSize,
    options: TrainingOptions,
    device: torch.device,
    *,
    processes: int = 1,
    cut_offs: int = 1,
) -> Plan:
    """The memory of a run, by arithmetic: nothing of it is allocated.

    Args:
        model: on the device "meta", where tensors have sizes and no memory; with its part of tables that are divided.
        data: what it is trained on.
        options: how.
        device: where.
        processes: that train together, each on a part of every batch.
        cut_offs: of the test.

    Raises:
        ConfigError: as Trainer.
    """
    on_cpu, there = device.type == "cpu", (data.offsets, data.train_stop, data.histories)
    why = why_dense(model, options, warn=False, device=device)
    model.shards = None  # of divided tables the part that is there has been counted
    optimizer = _optimizer(model, options, by_rows=why is None)  # loads the rest of PyTorch, as training would
    process = rss() + LIBRARIES - (data.held if data.read else sum(x.nbytes for x in there))
    windows = pack_windows(
        data.offsets, data.train_stop, model.max_seq_len, model.window_stride,
        per_target=options.per_target, context=model.needs_context,
    )  # fmt: skip
    n_targets, lengths = int(windows.n_targets.sum()), windows.stop - windows.start
    steps = max(1, min(-(-n_targets // model.batch_size), len(windows)))
    share = steps * processes
    sizes = tuple(-(-int(x) // share) for x in (lengths.sum(), len(windows), n_targets))
    batch, copies = _batch(model, sizes, int(lengths.max(initial=1)), options.per_target)
    step = _step(model, batch, named_rows(model, options.per_target) // processes if why is None else None)
    if processes > 1:  # DistributedDataParallel's buckets
        step += sum(x.nbytes for x in model.parameters()) - sum(
            x.nbytes for x in model.tables().values() if why is None
        )
    users = options.evaluation_batch_size
    most = np.add.reduceat(np.minimum(data.histories, model.max_seq_len), np.arange(0, len(data.histories), users))
    users = min(users, len(data.histories))
    evaluation = _encoding(model, int(most.max()), users) if len(most) else 0
    if options.protocol == "sampled":  # rows of the candidates
        row = model.item_embedding.weight[0].nbytes
        evaluation += users * min(options.n_negatives, data.n_items) * (row + 16)
    else:
        evaluation += (16 * cut_offs + 32) * data.n_items + TILE
    evaluation += PER_USER * cut_offs * len(data.histories)
    weights = sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
    trained = int((data.train_stop - data.offsets[:-1]).sum())
    negatives = 8 * (trained + data.n_users) if model.neg_samples > 0 and model.negatives != "shared" else 0
    popular = 32 * data.n_items if model.negative_distribution == "popularity" else 0
    loading = 48 * len(windows) + negatives + popular + 9 * data.n_items
    start, each = READING
    if on_cpu:
        there_is = available_memory(int(os.environ.get("LOCAL_WORLD_SIZE", processes)))  # that share it
    else:
        there_is = (torch.cuda.mem_get_info(device)[1],) * 2
    return Plan(
        model=type(model).__name__,
        device=str(device),
        processes=processes,
        updates="rows" if why is None else f"dense: {why}",
        process=process if on_cpu else 0,
        data=data.held + loading if on_cpu else 8 * data.n_events + loading,
        weights=weights,
        optimizer=optimizer,
        preparing=max(57 * trained, 8 * min(users * data.n_items, SCORES_AT_ONCE)) if on_cpu else 0,
        step=step + 3 * copies,
        evaluation=evaluation,
        best=weights if on_cpu else 0,
        reading=0 if data.read or not on_cpu else process + start + each * data.n_events,
        available=there_is and there_is[0],
        most=there_is and there_is[1],
        targets=n_targets,
        users=min(options.validation_users or data.validation_users, data.validation_users),
    )


@dataclass
class Foretold:
    """The speed of a run from its first seconds.

    Attributes:
        speed: targets a second from about ``WARM_UP`` to ``LOOKED_AT`` seconds of training; None before.
    """

    speed: float | None = None
    _since: tuple[int, float] | None = None

    def see(self, targets: int, seconds: float) -> None:
        """Takes note of where training is."""
        if self._since is None and seconds >= WARM_UP:
            self._since = targets, seconds
        elif self.speed is None and self._since is not None and seconds - self._since[1] >= LOOKED_AT - WARM_UP:
            self.speed = (targets - self._since[0]) / (seconds - self._since[1])


class _Live(TorchDispatchMode):
    """Counts the bytes of tensors that operations inside it make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._known:
                    self._known.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return result

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _batch(
    model: SequentialRecommender, sizes: tuple[int, ...], longest: int, per_target: bool
) -> tuple[JaggedBatch, int]:
    """A batch of so many events, sequences and targets, and its bytes."""
    n_events, n_sequences, n_targets = sizes
    shape = (model.neg_samples,) if model.negatives == "shared" else (n_targets, model.neg_samples)
    negatives = _empty(*shape) if model.neg_samples > 0 else None
    batch = JaggedBatch(
        items=_empty(n_events),
        offsets=_empty(n_sequences + 1, dtype=torch.int32),
        users=_empty(n_sequences),
        max_len=longest,
        rows=None if n_events == n_targets else _empty(n_targets),
        targets=_empty(n_targets),
        target_sequences=_empty(n_targets),
        negatives=negatives,
        log_q=_empty(*shape, dtype=torch.float32) if needs_log_q(model.loss_name) else None,
        l2_items=_empty(n_events) if model.reg_weight > 0 else None,
        l2_weights=_empty(n_events, dtype=torch.float32) if model.reg_weight > 0 else None,
        n_targets_global=n_targets,
        last_only=per_target,
    )
    return batch, sum(x.nbytes for x in batch._tensors().values())


def _step(model: SequentialRecommender, batch: JaggedBatch, rows: int | None) -> int:
    """Bytes of the activations and gradients of a step, at most at a time; ``rows``: so many are gathered first."""
    with _Live() as live:
        if rows is not None:
            table = model.item_embedding.weight
            batch.item_rows = _empty(min(rows, table.shape[0]), table.shape[1], dtype=table.dtype).requires_grad_()
            if model.needs_user:
                size = min(batch.users.shape[0], model.user_embedding.weight.shape[0]), table.shape[1]
                batch.user_rows = _empty(*size, dtype=table.dtype).requires_grad_()
        model.train().loss(batch).backward()
    for parameter in model.parameters():
        parameter.grad = None
    return live.peak


def _encoding(model: SequentialRecommender, n_events: int, n_users: int) -> int:
    """Bytes of the activations of a batch of users, at most at a time."""
    arguments = _empty(n_events), _empty(n_users + 1, dtype=torch.int32), _empty(n_users)
    with _Live() as live, torch.no_grad():
        model.eval().encode_last(*arguments, min(n_events, model.max_seq_len), False)
    return live.peak


def _optimizer(model: SequentialRecommender, options: TrainingOptions, by_rows: bool) -> int:
    """Bytes of the optimizer's state."""
    tables = list(model.tables().values()) if by_rows else []
    rest = [torch.empty_like(x) for x in model.parameters() if not any(x is table for table in tables)]
    for parameter in rest:
        parameter.grad = torch.empty_like(parameter)
    optimizer = getattr(torch.optim, options.optimizer)(rest, foreach=False, **options.optimizer_params)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values() if isinstance(value, Tensor)]
    # Of tables two moments and the last step of each row.
    return sum(x.nbytes for x in states) + sum(2 * x.nbytes + 4 * x.shape[0] for x in tables)
