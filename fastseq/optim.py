"""Adam for models with large embedding tables: a step costs the rows that it touches."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, ParamSpec, TypeVar, cast

import torch
from torch import Tensor
from torch.optim.adam import adam

from .ops.adam_rows import adam_rows, begin_step, check_betas, end_step, new_history, restart

P = ParamSpec("P")
R = TypeVar("R")
ROOM = 1024  # steps that a new history has room for
BLOCK = 65536  # rows that are read at a time, with their moments


@dataclass(frozen=True)
class RowGradient:
    """The gradient of some rows of a table, in buffers of a fixed size.

    Attributes:
        rows: int64 [R], ascending and distinct as far as they are valid; None: all.
        grad: [R, d], of the table's dtype.
        count: int64 [1], how many are valid, from the first; None: all.
    """

    rows: Tensor | None
    grad: Tensor
    count: Tensor | None = None


def _alone(method: Callable[P, R]) -> Callable[P, R]:
    """One thread at a time: readers may ask while another thread trains. Nothing in it is compiled."""

    @functools.wraps(method)
    def alone(*arguments: P.args, **options: P.kwargs) -> R:
        with cast(Any, arguments[0])._lock, torch.no_grad():
            return method(*arguments, **options)

    return cast("Callable[P, R]", torch._disable_dynamo(alone))


class RowAdam(torch.optim.Optimizer):
    """torch.optim.Adam that walks no table: rows without a gradient wait, and make up for what they missed when needed.

    A parameter [V, d] with a sparse COO gradient (one sparse dimension, as torch.optim.SparseAdam takes it, or a
    RowGradient) is updated by rows. It ends up where torch.optim.Adam on the dense gradient would bring it, to the
    accuracy of ``fastseq.ops.adam_rows``, whichever learning rates its steps have. Until then its rows lie where their
    last gradient has left them:

    - before rows are read for training, call ``catch_up`` with them. ``step`` does so for the rows of its gradient;
    - ``flush`` brings the whole table up to date in place; ``current`` reads up-to-date rows and changes nothing.

    What ``current`` gives is bit for bit what ``flush`` would write. But to catch up in two parts rounds otherwise than
    at once. So, for runs that can be repeated bit for bit, call ``catch_up`` and ``flush`` only where the run fixes it
    (before each step, at the end of an epoch), and ``current`` at any other time.

    Other parameters are updated by PyTorch's fused Adam. One that had sparse gradients may have a dense one: it touches
    every row. One without a gradient is skipped at that step, as in PyTorch.

    State of a table: ``exp_avg``, ``exp_avg_sq`` [V, d]; ``last_step`` int32 [V], the step that a row is up to date
    with, 0 where it never had a gradient; ``history``, 64 bytes a step since the last ``flush`` (it grows by doubling,
    from 88 KB by default), and ``clock``. ``state_dict`` keeps them as they lie: training goes on bit for bit.

    Args:
        params: parameters or groups of them, as of any optimizer.
        lr, eps: as torch.optim.Adam; a number, or a tensor with one element for CUDA graphs.
        betas: as torch.optim.Adam; tables need betas[0] < sqrt(betas[1]). They and eps may not change for a table.
        weight_decay: as torch.optim.Adam; 0 in a group with tables: decay touches every row.

    Raises:
        ValueError: for settings out of range, and at a step for a gradient that does not fit.

    Source: Kingma & Ba, "Adam", ICLR 2015; docs/scale.md, "RowAdam".
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        for name, value in (("lr", lr), ("eps", eps), ("weight_decay", weight_decay)):
            if not float(value) >= 0.0:
                raise ValueError(f"{name} is {value}, expected at least 0")
        if not all(0.0 <= beta < 1.0 for beta in betas):
            raise ValueError(f"betas is {betas}, expected two numbers, at least 0 and below 1")
        settings = dict(lr=lr, betas=tuple(betas), eps=eps, weight_decay=weight_decay, fused=True, capturable=False)
        super().__init__(params, settings)
        self._forget()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def _forget(self) -> None:
        """What is known of the histories without a look at the device."""
        self._lock = threading.RLock()
        self._reserved = ROOM
        self._room: dict[Tensor, int] = {}  # steps that a history has room for
        self._fixed: dict[Tensor, dict[str, Any]] = {}  # the betas and eps that its sums were made with

    @_alone
    def step(self, closure: Callable[[], Any] | None = None, rows: Mapping[Tensor, RowGradient] | None = None) -> Any:
        """One step for every parameter with a gradient: ``.grad``, or by rows in ``rows``, which goes first.

        With ``rows`` (of fixed sizes) the step can be captured in a CUDA graph: call ``reserve`` before, and pass
        learning rates as tensors.

        Args:
            closure: evaluates the model and returns the loss, which is returned.
            rows: gradients by parameter.

        Raises:
            ValueError: for a gradient that does not fit.
        """
        if unknown := set(rows or ()) - {each for group in self.param_groups for each in group["params"]}:
            shapes = ", ".join(str(list(each.shape)) for each in unknown)
            raise ValueError(f"rows has parameters that are not this optimizer's, of shape {shapes}")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            dense: list[Tensor] = []
            for parameter in group["params"]:
                grad = parameter.grad
                if rows is not None and parameter in rows:
                    self._step_rows(group, parameter, rows[parameter])
                elif grad is None:
                    continue
                elif grad.layout == torch.sparse_coo and grad.sparse_dim() == 1:
                    grad = grad.coalesce()
                    self._step_rows(group, parameter, RowGradient(grad.indices()[0], grad.values()))
                elif grad.layout != torch.strided:
                    raise ValueError(
                        f"a gradient is {grad.layout}, expected dense or sparse COO with 1 sparse dimension"
                    )
                elif "clock" in self.state[parameter]:
                    self._step_rows(group, parameter, RowGradient(None, grad))
                else:
                    dense.append(parameter)
            self._step_dense(group, dense)
        return loss

    @_alone
    def catch_up(self, parameter: Tensor, rows: Tensor, count: Tensor | None = None) -> None:
        """Brings rows up to date with the last step, weights and moments, in place. Costs nothing where they are.

        Args:
            parameter: one of this optimizer's; without steps by rows nothing is done.
            rows: int64 [R], ascending and distinct.
            count: int64 [1], how many of them are valid, from the first; None: all.
        """
        if table := self._table(parameter):
            adam_rows(parameter, *table.state, rows, None, count, **table.settings)

    @_alone
    def flush(self, parameter: Tensor | None = None) -> None:
        """Brings all rows of a table, or of all tables, up to date in place, in one pass, and clears the history."""
        for each in self.state if parameter is None else [parameter]:
            if table := self._table(each):
                adam_rows(each, *table.state, **table.settings)
                self._room[each] = restart(*table.state[3:], table.settings["betas"])

    @_alone
    def current(self, parameter: Tensor, rows: Tensor | slice | None = None) -> Tensor:
        """Up-to-date rows as a new tensor; table, moments and history stay as they are.

        Args:
            parameter: one of this optimizer's.
            rows: int64 [R] in any order, or a slice; None: the whole table, block by block.

        Returns:
            [R, d], bit for bit what ``flush`` would leave there.
        """
        if rows is None:
            result = torch.empty_like(parameter, memory_format=torch.contiguous_format)
            for start in range(0, parameter.shape[0], BLOCK):
                result[start : start + BLOCK] = self.current(parameter, slice(start, start + BLOCK))
            return result
        table = self._table(parameter)
        if table is None:
            return parameter.detach()[rows].clone()
        weight, first, second, last_step = (x[rows].clone() for x in (parameter.detach(), *table.state[:3]))
        adam_rows(weight, first, second, last_step, *table.state[3:], **table.settings)
        return weight

    def reserve(self, steps: int) -> None:
        """Makes room in every history for ``steps`` more, which a captured step cannot do. Waits for the device."""
        self._reserved = max(ROOM, steps)
        for parameter, state in self.state.items():
            if "clock" in state:
                used, history = int(state["clock"].sum()) + 1, state["history"]
                if history.shape[0] < used + steps:
                    state["history"] = history.new_zeros(used + steps, history.shape[1])
                    state["history"][:used] = history[:used]
                self._room[parameter] = state["history"].shape[0] - used

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of any optimizer; the state of torch.optim.Adam too, whose tables then go on by rows."""
        kept = [entries for entries in state_dict["state"].values() if entries]
        if any("max_exp_avg_sq" in x or "exp_avg" not in x or not {"step", "clock"} & x.keys() for x in kept) or any(
            group.get("maximize") or group.get("decoupled_weight_decay") for group in state_dict["param_groups"]
        ):
            raise ValueError(
                "state_dict is neither of RowAdam nor of torch.optim.Adam without amsgrad, maximize and "
                "decoupled_weight_decay"
            )
        super().load_state_dict(state_dict)
        ours = chain.from_iterable(group["params"] for group in self.param_groups)
        theirs = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
        for parameter, number in zip(ours, theirs, strict=True):
            given = state_dict["state"].get(number, {})
            for key in _STATE[2:] if "clock" in given else ():  # PyTorch has cast them to the type of the parameter
                self.state[parameter][key] = given[key].to(parameter.device, copy=True)

    def _table(self, parameter: Tensor) -> _Table | None:
        """A parameter that has had steps by rows.

        Raises:
            ValueError: if betas or eps have changed since.
        """
        state: dict[str, Any] = self.state.get(parameter, {})
        if "clock" not in state:
            return None
        group = next(group for group in self.param_groups if any(parameter is each for each in group["params"]))
        settings = {"betas": tuple(group["betas"]), "eps": group["eps"]}
        fixed = self._fixed.setdefault(parameter, settings)
        if settings != fixed:
            raise ValueError(f"betas and eps of a table may not change: they are {settings}, but were {fixed}")
        first, second, last_step, history, clock = (state[key] for key in _STATE)
        return _Table((first, second, last_step, history, clock), settings)

    def _step_rows(self, group: dict[str, Any], parameter: Tensor, given: RowGradient) -> None:
        if group["weight_decay"] != 0.0:
            raise ValueError(
                f"weight_decay is {group['weight_decay']} for a parameter with a sparse gradient: decay touches every "
                "row; put it into a group with weight_decay=0, or give it dense gradients from the first step on"
            )
        table = self._table(parameter) or self._new_table(group, parameter)
        captured = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if not captured:
            if parameter not in self._room:  # loaded
                self.reserve(1)
            if self._room[parameter] < 1:
                self.reserve(max(self._reserved, table.state[3].shape[0]))
            table = self._table(parameter) or table  # its history may be another
        history, clock = table.state[3:]
        betas = table.settings["betas"]
        begin_step(history, clock, group["lr"], betas)
        try:
            adam_rows(parameter, *table.state, given.rows, given.grad, given.count, **table.settings)
        except BaseException:  # the step has not begun
            clock[:1] -= 1
            raise
        end_step(history, clock, betas)
        if not captured:
            self._room[parameter] -= 1

    def _new_table(self, group: dict[str, Any], parameter: Tensor) -> _Table:
        """A parameter at its first step by rows; after steps by PyTorch's Adam, which moved every row, too."""
        if parameter.dim() != 2 or parameter.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"a parameter with a sparse gradient is {parameter.dtype} {list(parameter.shape)}, expected float32 or "
                "float64 [V, d]"
            )
        check_betas(group["betas"])
        state = self.state[parameter]
        done = int(state.pop("step", 0))
        if "exp_avg" not in state:
            state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
            state["exp_avg_sq"] = torch.zeros_like(state["exp_avg"])
        state["last_step"] = torch.full(parameter.shape[:1], done, dtype=torch.int32, device=parameter.device)
        history, clock = new_history(tuple(group["betas"]), self._reserved, parameter.device, done)
        state.update(history=history, clock=clock)
        self._room[parameter] = self._reserved
        table = self._table(parameter)
        assert table is not None
        return table

    def _step_dense(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """PyTorch's fused Adam."""
        if not parameters:
            return
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        firsts, seconds, steps = (
            [self.state[parameter][key] for parameter in parameters] for key in ("exp_avg", "exp_avg_sq", "step")
        )
        adam(
            parameters, [cast(Tensor, parameter.grad) for parameter in parameters], firsts, seconds, [], steps,
            fused=True, capturable=group["capturable"], amsgrad=False, maximize=False, lr=group["lr"],
            beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"], weight_decay=group["weight_decay"],
        )  # fmt: skip


class _Table(NamedTuple):
    """The arguments of ``adam_rows`` after the weight, before the rows, and its settings."""

    state: tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
    settings: dict[str, Any]


_STATE = ("exp_avg", "exp_avg_sq", "last_step", "history", "clock")
