"""Gated recurrent unit: a program carries 16 sequences from their first event to their last.

The state stays in registers and, where it fits, the recurrent weight on the chip (registers and shared memory), so a
step reads the input gates of its 16 events and writes their state and gates. The next step's input gates are loaded
while this step multiplies. Sequences are taken in the order of their lengths, so that those of a program end
together.

Where the weight does not fit, or float32 products are asked for without the matrix unit (which makes every thread
hold a part of the weight too large for its registers), the weight is read again at every step, chunk by chunk, from
the cache; the operand that multiplies it comes back from the output just written.

Above ``WIDEST`` hidden units a step is one torch.mm over all sequences and one element-wise kernel: such a weight
fits no single multiprocessor, so one that streamed it would wait for the cache, whereas a matrix product spreads it
over all.

The backward pass walks from the last event to the first with the gates that the forward pass saved. It writes the
gradient of both kinds of gates and the states before, and one matrix product makes the weight's gradient of them. No
sum crosses programs, so results do not depend on how sequences are grouped. ``max_len`` bounds nothing up to
``WIDEST``: lengths are read from ``offsets`` on the device.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .elementary import sigmoid, tanh
from .products import float32_precision, operand, shared_memory, summed
from .segments import longest_first
from .sizes import cdiv, next_power_of_2

SEQUENCES = 16  # rows of the smallest tile of a matrix instruction: the most programs, hence the shortest chain
WIDEST = 128
CHUNK = 32  # rows of the weight read at once where it is not resident; half of it in exact float32
STEP_ROWS, STEP_COLUMNS = 8, 128  # of the element-wise step above WIDEST: 8 elements a thread


def _constants(x: Tensor, hidden: int) -> dict[str, Any]:
    """Constants of _forward and _backward for gates of the type of ``x``; the weight is resident where CHUNK is WIDTH.

    ptxas, for 128 units: bfloat16 and tf32 fit with 8 warps and no spill; 4 warps need nearly every register, 16 leave
    too few. Resident float32 weights without the matrix unit spill 4 to 20 KB there, and at 64 units with 4 warps 1 KB;
    streamed 32 rows at a time they still spill on sm_100, 16 do not. AMD's chips, with 64 KB, spill from 64 units on.
    """
    width = max(16, next_power_of_2(hidden))
    size, precision, shared = x.element_size(), float32_precision(), shared_memory(x)
    # The weight passes through shared memory beside an operand and its result.
    fits = (3 * width + 2 * SEQUENCES) * width * size <= shared
    exact = size == 4 and precision == "ieee"
    resident = fits and (width <= 64 or not exact) and (width <= 32 or shared > 64 << 10)
    return {
        "HIDDEN": hidden,
        "WIDTH": width,
        "SEQUENCES": SEQUENCES,
        "PRECISION": precision,
        "CHUNK": width if resident else CHUNK // 2 if exact else CHUNK,
        "num_warps": 8 if width >= 64 and shared > 64 << 10 else 4,
        "num_stages": 1 if resident else 2,  # the loads of a step are fetched ahead by hand
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
def _weight(weight, gate: tl.constexpr, inputs, outputs, HIDDEN: tl.constexpr):
    """Part of one gate's weight: what it takes from units ``inputs`` to units ``outputs`` (one a row, one a column)."""
    address = weight + (gate * HIDDEN + outputs) * HIDDEN + inputs
    return tl.load(address, mask=(inputs < HIDDEN) & (outputs < HIDDEN), other=0.0)


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
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, SEQUENCES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first, length = _sequences(offsets, order, sequences, SEQUENCES)
    kind = x.dtype.element_ty
    unit = tl.arange(0, WIDTH)[None, :]
    inside = unit < HIDDEN
    inputs = tl.arange(0, CHUNK)
    start = tl.zeros_like(length)  # a scalar condition is no part of a mask for Triton 3.9's interpreter
    if CHUNK == WIDTH:
        w_r = _weight(weight, 0, inputs[:, None], unit, HIDDEN).to(kind)
        w_z = _weight(weight, 1, inputs[:, None], unit, HIDDEN).to(kind)
        w_n = _weight(weight, 2, inputs[:, None], unit, HIDDEN).to(kind)
    if bias is not None:
        b_r = tl.load(bias + unit, mask=inside, other=0.0).to(tl.float32)
        b_z = tl.load(bias + HIDDEN + unit, mask=inside, other=0.0).to(tl.float32)
        b_n = tl.load(bias + 2 * HIDDEN + unit, mask=inside, other=0.0).to(tl.float32)

    state = tl.zeros((SEQUENCES, WIDTH), tl.float32)
    active = (length > 0) & inside
    gates = x + first * (3 * HIDDEN) + unit
    x_r, x_z, x_n = _load_gates(gates, active, HIDDEN)
    for t in range(0, tl.max(tl.max(length, 1), 0)):
        later = (length > t + 1) & inside
        gates += 3 * HIDDEN
        later_r, later_z, later_n = _load_gates(gates, later, HIDDEN)

        row = first + t
        if CHUNK == WIDTH:
            before = state.to(kind)
            a_r = tl.dot(before, w_r, input_precision=PRECISION)
            a_z = tl.dot(before, w_z, input_precision=PRECISION)
            a_n = tl.dot(before, w_n, input_precision=PRECISION)
        else:
            a_r = tl.zeros((SEQUENCES, WIDTH), tl.float32)
            a_z = tl.zeros((SEQUENCES, WIDTH), tl.float32)
            a_n = tl.zeros((SEQUENCES, WIDTH), tl.float32)
            for chunk in range(0, WIDTH, CHUNK):
                some = chunk + inputs
                known = (length > t) & (t > start) & (some < HIDDEN)[None, :]
                before = tl.load(h + (row - 1) * HIDDEN + some[None, :], mask=known, other=0.0)
                v_r = _weight(weight, 0, some[:, None], unit, HIDDEN).to(kind)
                a_r = tl.dot(before, v_r, a_r, input_precision=PRECISION)
                v_z = _weight(weight, 1, some[:, None], unit, HIDDEN).to(kind)
                a_z = tl.dot(before, v_z, a_z, input_precision=PRECISION)
                v_n = _weight(weight, 2, some[:, None], unit, HIDDEN).to(kind)
                a_n = tl.dot(before, v_n, a_n, input_precision=PRECISION)
        if bias is not None:
            a_r += b_r
            a_z += b_z
            a_n += b_n
        r, z, n, state = _cell(x_r, x_z, x_n, a_r, a_z, a_n, state)
        tl.store(h + row * HIDDEN + unit, state.to(kind), mask=active)
        address = saved + row * (4 * HIDDEN) + unit
        _store_gates(address, r, z, n, active, HIDDEN)
        tl.store(address + 3 * HIDDEN, a_n.to(kind), mask=active)
        if CHUNK != WIDTH:
            tl.debug_barrier()  # the next step's product reads this state, written by other threads
        x_r, x_z, x_n, active = later_r, later_z, later_n, later


@triton.jit(do_not_specialize=["sequences"])
def _backward(
    grad, weight, offsets, order, h, saved, d_x, d_hidden, previous, sequences,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, SEQUENCES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    first, length = _sequences(offsets, order, sequences, SEQUENCES)
    kind = d_x.dtype.element_ty
    unit = tl.arange(0, WIDTH)[None, :]
    inside = unit < HIDDEN
    outputs = tl.arange(0, CHUNK)
    start = tl.zeros_like(length)
    if CHUNK == WIDTH:
        w_r = _weight(weight, 0, unit, outputs[:, None], HIDDEN).to(kind)
        w_z = _weight(weight, 1, unit, outputs[:, None], HIDDEN).to(kind)
        w_n = _weight(weight, 2, unit, outputs[:, None], HIDDEN).to(kind)
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
        carry = total * z
        tl.store(previous + row * HIDDEN + unit, before, mask=active)
        _store_gates(d_x + row * (3 * HIDDEN) + unit, d_r, d_z, d_n, active, HIDDEN)
        _store_gates(d_hidden + row * (3 * HIDDEN) + unit, d_r, d_z, d_a, active, HIDDEN)
        if CHUNK == WIDTH:
            carry = tl.dot(d_r.to(kind), w_r, carry, input_precision=PRECISION)
            carry = tl.dot(d_z.to(kind), w_z, carry, input_precision=PRECISION)
            carry = tl.dot(d_a.to(kind), w_n, carry, input_precision=PRECISION)
        else:
            tl.debug_barrier()  # the product reads what other threads have just written
            for chunk in range(0, WIDTH, CHUNK):
                some = chunk + outputs
                known = (length > t) & (some < HIDDEN)[None, :]
                written = d_hidden + row * (3 * HIDDEN) + some[None, :]
                e_r = tl.load(written, mask=known, other=0.0)
                v_r = _weight(weight, 0, unit, some[:, None], HIDDEN).to(kind)
                carry = tl.dot(e_r, v_r, carry, input_precision=PRECISION)
                e_z = tl.load(written + HIDDEN, mask=known, other=0.0)
                v_z = _weight(weight, 1, unit, some[:, None], HIDDEN).to(kind)
                carry = tl.dot(e_z, v_z, carry, input_precision=PRECISION)
                e_a = tl.load(written + 2 * HIDDEN, mask=known, other=0.0)
                v_n = _weight(weight, 2, unit, some[:, None], HIDDEN).to(kind)
                carry = tl.dot(e_a, v_n, carry, input_precision=PRECISION)
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


def _order(offsets: Tensor) -> Tensor | None:
    """The sequences by length, longest first; None where one program takes them all."""
    if offsets.shape[0] - 1 <= SEQUENCES:
        return None
    return longest_first(offsets)


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
        _forward[cdiv(sequences, SEQUENCES),](
            x, weight, bias, offsets, _order(offsets), h, saved, sequences, **_constants(x, hidden)
        )
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
        _backward[cdiv(sequences, SEQUENCES),](
            grad, weight, offsets, _order(offsets), h, saved, d_x, d_hidden, previous, sequences,
            **_constants(h, hidden),
        )  # fmt: skip
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
