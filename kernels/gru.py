"""Gated recurrent unit: a program carries one sequence, or a few, from their first event to their last.

The recurrent weight stays on the chip and the state in registers, so a step reads the input gates of its events and
writes their state and gates. The next step's input gates are loaded while this step multiplies. Where there are more
sequences than multiprocessors, they are taken in the order of their lengths, so that those of a program end together.

Exact float32 products need no matrix unit: a thread holds its part of the weight in registers, 192 values of 128 units,
multiplies it with its part of the state and adds; a few lanes then add what they have. So it is for tf32 too while a
program has one or two sequences: the matrix unit would multiply 8 at the least, and wait for shared memory. Otherwise
products are tl.dot, with the weight in shared memory.

Above ``WIDEST`` hidden units a step is one torch.mm over all sequences and one element-wise kernel: such a weight
fits no single multiprocessor, so one that streamed it would wait for the cache, whereas a matrix product spreads it
over all.

The backward pass walks from the last event to the first with the gates that the forward pass saved. It writes the
gradient of both kinds of gates and the states before, and one matrix product makes the weight's gradient of them. No
sum crosses sequences, so results do not depend on how they are grouped, but that with tf32 many sequences round the
products' operands and few do not. ``max_len`` bounds nothing up to ``WIDEST``: lengths are read from ``offsets`` on the
device.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import sigmoid, tanh
from .products import float32_precision, operand, shared_memory, summed
from .products import kind as kind_of
from .segments import longest_first
from .sizes import cdiv, next_power_of_2

WIDEST = 128
MULTIPROCESSORS = 132  # of an H100
STEP_ROWS, STEP_COLUMNS = 8, 128  # of the element-wise step above WIDEST: 8 elements a thread


def _constants(x: Tensor, hidden: int, sequences: int) -> dict[str, Any]:
    """Constants of _forward and _backward for ``sequences`` sequences with gates of the type of ``x``."""
    width, kind, shared = max(32, next_power_of_2(hidden)), kind_of(x), shared_memory(x)
    waves = cdiv(sequences, MULTIPROCESSORS)
    # The weight lies in shared memory, beside operands and results. AMD's chips have 64 KB: no room.
    fits = 64 << 10 < shared >= 3 * (width + 16) * width * x.element_size()
    matrix = fits and (kind == "half" or (kind == "tf32" and waves > 4))
    if not matrix:
        each = 1 if waves == 1 or shared <= 164 << 10 else 2  # two spill on an A100
    else:  # a multiprocessor has room for two programs of half types, for one of tf32
        each = min(next_power_of_2(cdiv(waves, 2)), 8) if kind == "half" else 16
    return {
        "HIDDEN": hidden,
        "WIDTH": width,
        "SEQUENCES": each,
        "PRECISION": float32_precision() if matrix else "fma",
        "num_warps": width // 32 if matrix and each <= 4 else width // 16,
        "num_stages": 1,  # the loads of a step are fetched ahead by hand
    }


@triton.jit
def _cell(x_r, x_z, x_n, a_r, a_z, a_n, state):
    r = sigmoid(x_r.to(tl.float32) + a_r)
    z = sigmoid(x_z.to(tl.float32) + a_z)
    n = tanh(x_n.to(tl.float32) + r * a_n)
    return r, z, n, (1.0 - z) * n + z * state


@triton.jit
def _cell_backward(grad, r, z, n, a_n, before):
    """From the gradient of a state, those of the sums inside r, z and n, and of the recurrent part of n."""
    d_n = grad * (1.0 - z) * (1.0 - n * n)
    d_r = d_n * a_n * r * (1.0 - r)
    d_z = grad * (before - n) * z * (1.0 - z)
    return d_r, d_z, d_n, d_n * r


@triton.jit
def _sequences(offsets, order, sequences, SEQUENCES: tl.constexpr):
    """First rows and lengths of this program's sequences; 0 beyond the last one."""
    sequence = tl.program_id(0) * SEQUENCES + tl.arange(0, SEQUENCES)
    real = sequence < sequences
    if order is not None:
        sequence = tl.load(order + sequence, mask=real, other=0)
    first = tl.load(offsets + sequence, mask=real, other=0)
    last = tl.load(offsets + sequence + 1, mask=real, other=0)
    return first.to(tl.int64)[:, None], (last - first)[:, None]


@triton.jit
def _exchanged(x, SIZE: tl.constexpr):
    """x, flat, through shared memory: each thread gets what the next operation asks of it.

    Without it Triton spreads the layout of one operation's tile to all that is computed from it.
    """
    return tl.gather(tl.reshape(x, (SIZE,)), tl.arange(0, SIZE), 0)


# Without the matrix unit a product takes its weight as [1, k, r, o, LANES]: units in k and LANES are multiplied, those
# in r and o get the sums. Triton deals the axes out to lanes and warps from the right, so LANES lanes share a sum, and
# a thread holds k times r numbers. Unit 4 (LANES (k / 4) + lane) + k % 4 lets a thread read four states at once.


@triton.jit
def _weight(
    weight, gate: tl.constexpr, kind: tl.constexpr, TRANSPOSED: tl.constexpr, LANES: tl.constexpr,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, MATRIX: tl.constexpr,
):  # fmt: skip
    """One gate's weight as _product takes it, from states to sums or, TRANSPOSED, back."""
    row, column = tl.arange(0, WIDTH)[:, None], tl.arange(0, WIDTH)[None, :]
    inside = (row < HIDDEN) & (column < HIDDEN)
    w = tl.load(weight + (gate * HIDDEN + row) * HIDDEN + column, mask=inside, other=0.0).to(kind)
    if TRANSPOSED:
        w = tl.trans(w)
    if MATRIX:
        return w
    else:
        w = tl.reshape(_exchanged(w, WIDTH * WIDTH), (LANES // 2, 2 * WIDTH // LANES, WIDTH // (4 * LANES), LANES, 4))
        w = tl.permute(w, (2, 4, 0, 1, 3))
        return tl.reshape(w, (1, WIDTH // LANES, LANES // 2, 2 * WIDTH // LANES, LANES)).to(tl.float32)


@triton.jit
def _factor(x, kind: tl.constexpr, LANES: tl.constexpr, SEQUENCES: tl.constexpr, WIDTH: tl.constexpr,
            MATRIX: tl.constexpr):  # fmt: skip
    """x [SEQUENCES, WIDTH] as _product takes it."""
    if MATRIX:
        return tl.trans(x.to(kind))
    else:
        x = tl.reshape(_exchanged(x, SEQUENCES * WIDTH), (SEQUENCES, WIDTH // (4 * LANES), LANES, 4))
        return tl.reshape(tl.permute(x, (0, 1, 3, 2)), (SEQUENCES, WIDTH // LANES, 1, 1, LANES))


@triton.jit
def _product(w, x, sums, PRECISION: tl.constexpr):
    """w times x, added to ``sums``: not yet added over lanes, and transposed."""
    if PRECISION != "fma":
        return tl.dot(w, x, sums, input_precision=PRECISION)
    elif sums is None:
        return tl.sum(w * x, 1)
    else:
        return sums + tl.sum(w * x, 1)


@triton.jit
def _result(sums, SEQUENCES: tl.constexpr, WIDTH: tl.constexpr, MATRIX: tl.constexpr):
    """What _product gave, as [SEQUENCES, WIDTH]."""
    sums = _exchanged(tl.trans(sums), SEQUENCES * WIDTH) if MATRIX else tl.sum(sums, 3)
    return tl.reshape(sums, (SEQUENCES, WIDTH))


@triton.jit
def _load_gates(address, mask, HIDDEN: tl.constexpr):
    """r, z and n at ``address`` and 1 and 2 times HIDDEN after it, zero outside of the mask."""
    r = tl.load(address, mask=mask, other=0.0)
    z = tl.load(address + HIDDEN, mask=mask, other=0.0)
    return r, z, tl.load(address + 2 * HIDDEN, mask=mask, other=0.0)


@triton.jit
def _store_gates(address, r, z, n, mask, HIDDEN: tl.constexpr):
    """The converse, in the type of what ``address`` points to."""
    kind = address.dtype.element_ty
    tl.store(address, r.to(kind), mask=mask)
    tl.store(address + HIDDEN, z.to(kind), mask=mask)
    tl.store(address + 2 * HIDDEN, n.to(kind), mask=mask)


@triton.jit(do_not_specialize=["sequences"])
def _forward(
    x, weight, bias, offsets, order, h, saved, sequences,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, SEQUENCES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first, length = _sequences(offsets, order, sequences, SEQUENCES)
    kind: tl.constexpr = x.dtype.element_ty
    MATRIX: tl.constexpr = PRECISION != "fma"
    LANES: tl.constexpr = 4  # fewer would read more of the state, more would exchange more sums
    unit = tl.arange(0, WIDTH)[None, :]
    inside = unit < HIDDEN
    w_r = _weight(weight, 0, kind, False, LANES, HIDDEN, WIDTH, MATRIX)
    w_z = _weight(weight, 1, kind, False, LANES, HIDDEN, WIDTH, MATRIX)
    w_n = _weight(weight, 2, kind, False, LANES, HIDDEN, WIDTH, MATRIX)
    if bias is not None:
        b_r, b_z, b_n = _load_gates(bias + unit, inside, HIDDEN)

    state = tl.zeros((SEQUENCES, WIDTH), tl.float32)
    active = (length > 0) & inside
    gates = x + first * (3 * HIDDEN) + unit
    x_r, x_z, x_n = _load_gates(gates, active, HIDDEN)
    for t in range(0, tl.max(tl.max(length, 1), 0)):
        later = (length > t + 1) & inside
        gates += 3 * HIDDEN
        later_r, later_z, later_n = _load_gates(gates, later, HIDDEN)

        before = _factor(state, kind, LANES, SEQUENCES, WIDTH, MATRIX)
        a_r = _result(_product(w_r, before, None, PRECISION), SEQUENCES, WIDTH, MATRIX)
        a_z = _result(_product(w_z, before, None, PRECISION), SEQUENCES, WIDTH, MATRIX)
        a_n = _result(_product(w_n, before, None, PRECISION), SEQUENCES, WIDTH, MATRIX)
        if bias is not None:
            a_r += b_r.to(tl.float32)
            a_z += b_z.to(tl.float32)
            a_n += b_n.to(tl.float32)
        r, z, n, state = _cell(x_r, x_z, x_n, a_r, a_z, a_n, state)
        row = first + t
        tl.store(h + row * HIDDEN + unit, state.to(kind), mask=active)
        address = saved + row * (4 * HIDDEN) + unit
        _store_gates(address, r, z, n, active, HIDDEN)
        tl.store(address + 3 * HIDDEN, a_n.to(kind), mask=active)
        x_r, x_z, x_n, active = later_r, later_z, later_n, later


@triton.jit(do_not_specialize=["sequences"])
def _backward(
    grad, weight, offsets, order, h, saved, d_x, d_hidden, previous, sequences,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, SEQUENCES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first, length = _sequences(offsets, order, sequences, SEQUENCES)
    kind: tl.constexpr = d_x.dtype.element_ty
    MATRIX: tl.constexpr = PRECISION != "fma"
    LANES: tl.constexpr = 8  # three factors for one sum
    unit = tl.arange(0, WIDTH)[None, :]
    inside = unit < HIDDEN
    start = tl.zeros_like(length)  # a scalar condition is no part of a mask for Triton 3.9's interpreter
    w_r = _weight(weight, 0, kind, True, LANES, HIDDEN, WIDTH, MATRIX)
    w_z = _weight(weight, 1, kind, True, LANES, HIDDEN, WIDTH, MATRIX)
    w_n = _weight(weight, 2, kind, True, LANES, HIDDEN, WIDTH, MATRIX)
    carry = tl.zeros((SEQUENCES, WIDTH), tl.float32)  # gradient of the state, from later events
    longest = tl.max(tl.max(length, 1), 0)
    active = (length >= longest) & inside
    row = first + (longest - 1)
    address = saved + row * (4 * HIDDEN) + unit
    r, z, n = _load_gates(address, active, HIDDEN)
    a_n = tl.load(address + 3 * HIDDEN, mask=active, other=0.0)
    before = tl.load(h + (row - 1) * HIDDEN + unit, mask=active & (length > 1), other=0.0)
    total = tl.load(grad + row * HIDDEN + unit, mask=active, other=0.0)
    for i in range(0, longest):
        t = longest - 1 - i
        # What the event before needs is on its way while this one multiplies.
        early = (length >= t) & (t > start) & inside
        address -= 4 * HIDDEN
        early_r, early_z, early_n = _load_gates(address, early, HIDDEN)
        early_a = tl.load(address + 3 * HIDDEN, mask=early, other=0.0)
        early_before = tl.load(h + (row - 2) * HIDDEN + unit, mask=early & (t > start + 1), other=0.0)
        early_total = tl.load(grad + (row - 1) * HIDDEN + unit, mask=early, other=0.0)

        z = z.to(tl.float32)
        total = total.to(tl.float32) + carry
        d_r, d_z, d_n, d_a = _cell_backward(
            total, r.to(tl.float32), z, n.to(tl.float32), a_n.to(tl.float32), before.to(tl.float32)
        )
        tl.store(previous + row * HIDDEN + unit, before, mask=active)
        _store_gates(d_x + row * (3 * HIDDEN) + unit, d_r, d_z, d_n, active, HIDDEN)
        _store_gates(d_hidden + row * (3 * HIDDEN) + unit, d_r, d_z, d_a, active, HIDDEN)
        sums = _product(w_r, _factor(d_r, kind, LANES, SEQUENCES, WIDTH, MATRIX), None, PRECISION)
        sums = _product(w_z, _factor(d_z, kind, LANES, SEQUENCES, WIDTH, MATRIX), sums, PRECISION)
        sums = _product(w_n, _factor(d_a, kind, LANES, SEQUENCES, WIDTH, MATRIX), sums, PRECISION)
        carry = total * z + _result(sums, SEQUENCES, WIDTH, MATRIX)
        row -= 1
        active, before, total = early, early_before, early_total
        r, z, n, a_n = early_r, early_z, early_n, early_a


@triton.jit
def _step_sequences(offsets, t, sequences, ROWS: tl.constexpr):
    sequence = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    real = sequence < sequences
    first = tl.load(offsets + sequence, mask=real, other=0)
    last = tl.load(offsets + sequence + 1, mask=real, other=0)
    return sequence[:, None], real[:, None], (first.to(tl.int64) + t)[:, None], (last - first > t)[:, None]


@triton.jit(do_not_specialize=["t", "sequences"])
def _step(
    x, a, offsets, state, h, saved, t, sequences, HIDDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Event t of every sequence, from a = weight_hh state + bias_hh, float32 [B, 3H]."""
    sequence, _, row, active = _step_sequences(offsets, t, sequences, ROWS)
    unit = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    active &= unit < HIDDEN
    x_r, x_z, x_n = _load_gates(x + row * (3 * HIDDEN) + unit, active, HIDDEN)
    a_r, a_z, a_n = _load_gates(a + sequence * (3 * HIDDEN) + unit, active, HIDDEN)
    states = state + sequence * HIDDEN + unit
    r, z, n, after = _cell(x_r, x_z, x_n, a_r, a_z, a_n, tl.load(states, mask=active, other=0.0))
    tl.store(states, after, mask=active)
    kind = x.dtype.element_ty
    tl.store(h + row * HIDDEN + unit, after.to(kind), mask=active)
    address = saved + row * (4 * HIDDEN) + unit
    _store_gates(address, r, z, n, active, HIDDEN)
    tl.store(address + 3 * HIDDEN, a_n.to(kind), mask=active)


@triton.jit(do_not_specialize=["t", "sequences"])
def _step_backward(
    grad, offsets, h, saved, carry, d_a, d_x, d_hidden, previous, t, sequences,
    HIDDEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Event t of every sequence: d_a, float32 [B, 3H], is what the weight brings back into carry, float32 [B, H]."""
    sequence, real, row, active = _step_sequences(offsets, t, sequences, ROWS)
    unit = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    real &= unit < HIDDEN
    active &= unit < HIDDEN
    address = saved + row * (4 * HIDDEN) + unit
    r, z, n = _load_gates(address, active, HIDDEN)
    a_n = tl.load(address + 3 * HIDDEN, mask=active, other=0.0)
    before = tl.load(h + (row - 1) * HIDDEN + unit, mask=active & (t > tl.zeros_like(row)), other=0.0)
    carries = carry + sequence * HIDDEN + unit
    total = tl.load(carries, mask=active, other=0.0)
    total += tl.load(grad + row * HIDDEN + unit, mask=active, other=0.0).to(tl.float32)
    z = z.to(tl.float32)
    d_r, d_z, d_n, d_s = _cell_backward(
        total, r.to(tl.float32), z, n.to(tl.float32), a_n.to(tl.float32), before.to(tl.float32)
    )
    tl.store(carries, total * z, mask=real)
    _store_gates(d_a + sequence * (3 * HIDDEN) + unit, d_r, d_z, d_s, real, HIDDEN)
    tl.store(previous + row * HIDDEN + unit, before, mask=active)
    _store_gates(d_x + row * (3 * HIDDEN) + unit, d_r, d_z, d_n, active, HIDDEN)
    _store_gates(d_hidden + row * (3 * HIDDEN) + unit, d_r, d_z, d_s, active, HIDDEN)


def _launch(x: Tensor, hidden: int, offsets: Tensor) -> tuple[int, Tensor | None, dict[str, Any]]:
    """Programs, the sequences by length (longest first; None where they all start at once), constants."""
    sequences = offsets.shape[0] - 1
    constants = _constants(x, hidden, sequences)
    order = None if sequences <= MULTIPROCESSORS else longest_first(offsets)
    return cdiv(sequences, constants["SEQUENCES"]), order, constants


def gru(
    x_gates: Tensor, weight_hh: Tensor, offsets: Tensor, bias_hh: Tensor | None, max_len: int
) -> tuple[Tensor, Tensor]:
    x, kind = operand(x_gates, "x_gates", x_gates.dtype), x_gates.dtype
    weight, offsets = weight_hh.contiguous(), offsets.contiguous()
    bias = None if bias_hh is None else bias_hh.contiguous()
    (rows, _), hidden, sequences = x.shape, weight.shape[1], offsets.shape[0] - 1
    h = torch.empty(rows, hidden, dtype=x.dtype, device=x.device)
    saved = torch.empty(rows, 4 * hidden, dtype=x.dtype, device=x.device)
    if h.numel() == 0:
        return h.to(kind), saved.to(kind)
    if hidden <= WIDEST:
        programs, order, constants = _launch(x, hidden, offsets)
        _forward[programs,](x, weight, bias, offsets, order, h, saved, sequences, **constants)
        return h.to(kind), saved.to(kind)
    wide, shift = weight.float().t(), None if bias is None else bias.float()
    state = torch.zeros(sequences, hidden, dtype=torch.float32, device=x.device)
    grid = (cdiv(sequences, STEP_ROWS), cdiv(hidden, STEP_COLUMNS))
    for t in range(min(max_len, x.shape[0])):
        a = torch.mm(state, wide) if shift is None else torch.addmm(shift, state, wide)
        _step[grid](x, a, offsets, state, h, saved, t, sequences, HIDDEN=hidden, ROWS=STEP_ROWS, COLUMNS=STEP_COLUMNS)
    return h.to(kind), saved.to(kind)


def gru_backward(
    grad: Tensor, x_gates: Tensor, weight_hh: Tensor, offsets: Tensor, bias_hh: Tensor | None, max_len: int,
    h: Tensor, saved: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    grad, h, saved = (operand(a, "h", h.dtype) for a in (grad, h, saved))
    weight, offsets = weight_hh.contiguous(), offsets.contiguous()
    hidden, sequences = weight.shape[1], offsets.shape[0] - 1
    d_x = torch.empty(h.shape[0], 3 * hidden, dtype=h.dtype, device=h.device)
    d_hidden, previous = torch.empty_like(d_x), torch.empty_like(h)
    if h.numel() > 0 and hidden <= WIDEST:
        programs, order, constants = _launch(h, hidden, offsets)
        _backward[programs,](grad, weight, offsets, order, h, saved, d_x, d_hidden, previous, sequences, **constants)
    elif h.numel() > 0:
        wide = weight.float()
        carry = torch.zeros(sequences, hidden, dtype=torch.float32, device=h.device)
        d_a = torch.empty(sequences, 3 * hidden, dtype=torch.float32, device=h.device)
        grid = (cdiv(sequences, STEP_ROWS), cdiv(hidden, STEP_COLUMNS))
        for t in reversed(range(min(max_len, h.shape[0]))):
            _step_backward[grid](
                grad, offsets, h, saved, carry, d_a, d_x, d_hidden, previous, t, sequences,
                HIDDEN=hidden, ROWS=STEP_ROWS, COLUMNS=STEP_COLUMNS,
            )  # fmt: skip
            carry.addmm_(d_a, wide)
    grad_weight = summed(d_hidden.t(), previous, weight.dtype).to(weight.dtype)
    grad_bias = x_gates.new_empty(0) if bias_hh is None else d_hidden.sum(0, dtype=torch.float32).to(weight.dtype)
    return d_x.to(x_gates.dtype), grad_weight, grad_bias
