"""Runs a model's flows on the phantom device and prints what they did.

    python -m tests.phantom.record GUARD MODEL [--raise] [--no-compile]

A process of its own: Triton chooses between interpreter and compiler once, and the device patches PyTorch.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

os.environ |= {"TRITON_INTERPRET": "0", "FASTSEQ_STRICT": "1"}
ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)  # before PyTorch asks for the hooks of a CUDA build

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.ops.compile_report import compile_launch  # noqa: E402
from fastseq import ops  # noqa: E402
from fastseq.data import loader  # noqa: E402
from fastseq.data.readers import from_sequences  # noqa: E402
from fastseq.data.split import leave_one_out  # noqa: E402
from fastseq.models import MODELS, base, jagged  # noqa: E402
from fastseq.ops import _dispatch  # noqa: E402
from fastseq.training import Callback, Progress, Trainer, TrainingOptions, evaluate  # noqa: E402
from fastseq.training.steps import StaticSteps  # noqa: E402
from fastseq.training.throughput import reference_params  # noqa: E402

from .device import STATE, Record, device  # noqa: E402

LENGTHS = {"SASRec": 200, "GRU4Rec": 50, "Caser": 20}
BATCH = 2048
PRECISIONS = ("fp32", "tf32", "bf16")

_RANDOM = np.random.default_rng(0)
# Some are longer than a window.
DATA = from_sequences([_RANDOM.integers(1000, size=n) for n in _RANDOM.integers(20, 500, size=60)])
SPLIT = leave_one_out(DATA)


def model(name: str, place: str = "cuda:0", **changes: Any) -> Any:
    params = reference_params(name, LENGTHS[name], batch_size=BATCH, **changes)
    return MODELS[name](params, {"n_users": DATA.n_users, "n_items": DATA.n_items}).to(place)


class Listener(Callback):
    """Wants the loss of every step, for which no step may wait."""

    def on_steps(self, progress: Progress) -> None:
        raise AssertionError("nothing is read inside a step")


def trainer(
    name: str, precision: str, place: str = "cuda:0", execution: str = "eager", updates: str = "dense", **changes: Any
) -> Trainer:
    options: dict[str, Any] = {"precision": precision, "execution": execution, "updates": updates}
    made = Trainer(model(name, place, **changes), SPLIT, TrainingOptions(epochs=1, **options), callbacks=[Listener()])
    made.loader.prefetch = 0  # modes belong to a thread
    made.model.train()
    return made


def training_step(name: str, precision: str) -> Callable[[], None]:
    """The second step: the optimizer has its state."""
    made = trainer(name, precision)
    batches = made.loader.batches(0)
    made._step(next(batches))
    return lambda: made._step(next(batches))


def static_step(name: str, precision: str, updates: str = "dense") -> Callable[[], None]:
    """The step that a graph records, called twice, with two batches; the first of an epoch came before."""
    made = trainer(name, precision, execution="graph", updates=updates)
    steps = made.steps
    assert isinstance(steps, StaticSteps), made._why_eager()
    steps.recording = False  # nothing records here
    works = steps.of_epoch(0, 0)
    steps.take(next(works))
    kept = dict(made.model.named_parameters()) | dict(made.model.named_buffers())
    for i, state in enumerate(made.optimizer.state.values()):
        kept |= {f"optimizer {i} {key}": x for key, x in state.items()}
    kept |= {key: x for key, x in vars(steps).items() if isinstance(x, Tensor)}
    epoch = steps._epoch
    assert epoch is not None
    kept |= {f"epoch {i}": x for i, x in enumerate(epoch._tensors)}
    kept |= {f"data {i}": x for i, x in enumerate(epoch.data.tensors)}
    STATE.kept = {x.untyped_storage()._cdata: key for key, x in kept.items()}

    def both() -> None:
        for _ in range(2):
            for group in made.optimizer.param_groups:  # as a schedule does
                group["lr"] *= 0.5
            steps.take(next(works))

    return both


def pinned_step(name: str, precision: str) -> Callable[[], None]:
    """Likewise, where the data are too large to lie on the device."""
    share, loader.RESIDENT_SHARE = loader.RESIDENT_SHARE, 0.0
    try:
        return training_step(name, precision)
    finally:
        loader.RESIDENT_SHARE = share


def evaluation(name: str, precision: str) -> Callable[[], None]:
    made = model(name)
    return lambda: evaluate(made, SPLIT, "test", batch_size=20)


def recommending(name: str, precision: str) -> Callable[[], None]:
    made = model(name)
    users = range(8)
    histories = [DATA.items[DATA.offsets[u] : DATA.offsets[u + 1]].tolist() for u in users]
    return lambda: made.recommend(histories, 5, users=list(users) if made.needs_user else None)


def padded_step(name: str, precision: str) -> Callable[[], None]:
    """WarpRec's batch: padded histories, on the device already."""
    made, size, width = model(name).train(), 512, LENGTHS[name]
    fields = [torch.randint(0, DATA.n_items, shape) for shape in ((size, width), (size,), (size, made.neg_samples))]
    fields.insert(1, torch.full((size,), width))
    if made.needs_user:
        fields.insert(0, torch.randint(0, DATA.n_users, (size,)))
    batch: list[Tensor] = [x.to("cuda:0") for x in fields]
    known, read = [size * width, width, 0], jagged.look
    # No numbers come from the device: the look is recorded, and these are what it would have seen.
    base.look = lambda checked, *numbers: (read(checked, *numbers), known[: len(numbers)])[1]

    def step() -> None:
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
            loss = made.training_step(batch, 0)
        loss.backward()

    return step


def on_the_second_device(name: str, precision: str) -> Callable[[], None]:
    """A training step on cuda:1 while cuda:0 is the current device."""
    made = trainer(name, precision, "cuda:1")
    batches = made.loader.batches(0)
    return lambda: made._step(next(batches))


FLOWS = {
    "training_step": training_step,
    "static_step": static_step,
    "rows_step": partial(static_step, updates="rows"),
    "pinned_step": pinned_step,
    "evaluate": evaluation,
    "recommend": recommending,
    "padded_step": padded_step,
    "second_device": on_the_second_device,
}


def _mixed(x: Tensor) -> None:
    _ = x + torch.ones(8, 16)


def _rng_on_the_host(x: Tensor) -> None:
    ops.dropout(x, 0.3, ops.make_rng(1, 2))


def _look(x: Tensor) -> None:
    if bool((x > 0).all()):
        x[x > 0].sum().item()


def _other_type(x: Tensor) -> None:
    import fastseq.kernels.dropout as kernels

    right = kernels.dropout
    kernels.dropout = lambda *arguments: right(*arguments).double()  # type: ignore[assignment]
    _dispatch._served.clear()
    try:
        ops.dropout(x, 0.3, ops.make_rng(1, 2, "cuda:0"))
    finally:
        kernels.dropout = right
        _dispatch._served.clear()


def _strided(x: Tensor) -> None:
    import fastseq.kernels.dropout as kernels

    kernels._dropout[(1,)](x.t(), x, x, 8, 16, 5, 1.0, 0, ROWS=8, COLUMNS=16)


# Faults that the device must notice.
CONTROLS = {
    "tensors on two devices": _mixed,
    "rng on the host": _rng_on_the_host,
    "looks at data": _look,
    "an output of another type": _other_type,
    "strides that a kernel does not read": _strided,
}


def facts(record: Record) -> dict[str, Any]:
    return {
        "operations": record.operations,
        "launches": [launch["kernel"] for launch in record.launches],
        "aten": dict(record.aten),
        "copies": list(record.copies),
        "syncs": list(record.syncs),
        "errors": list(record.errors),
        "products": sorted(
            record.products | {x for y in record.launches for x in y["constants"].values() if x in ("ieee", "tf32")}
        ),
        "operands": {op: sorted(kinds) for op, kinds in record.operands.items()},
        "casts": dict(record.casts),
        "on_host": dict(record.on_host),
    }


def flows(name: str, start: Callable[[], Record], sources: dict[str, dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    for flow, prepare in FLOWS.items():
        for precision in PRECISIONS[:1] if flow in ("second_device", "pinned_step", "rows_step") else PRECISIONS:
            trains = flow in (
                "training_step",
                "static_step",
                "rows_step",
            )  # by their own option, the others by PyTorch's setting
            torch.set_float32_matmul_precision("high" if precision == "tf32" and not trains else "highest")
            run = prepare(name, precision)
            record = start()
            try:
                run()
            except Exception as error:
                record.errors.append(f"{type(error).__name__}: {str(error).splitlines()[0]}")
                if "--raise" in sys.argv:
                    raise
            for launch in record.launches:
                sources.setdefault(launch["key"], launch | {"dtype": precision, "case": f"{flow}, {precision}"})
            result = facts(record)
            if flow in ("static_step", "rows_step"):
                described = [(x["kernel"], x["grid"], x["arguments"], x["key"]) for x in record.launches]
                middle = len(described) // 2
                result["steps"] = [described[:middle], described[middle:]]
            yield f"{flow}, {precision}", result


def compiled(launch: dict[str, Any]) -> list[str]:
    """What is wrong with the machine code of a launch."""
    file, kernel = launch["kernel"].rsplit(".", 1)
    kept = {name: launch[name] for name in ("signature", "constants", "attributes", "num_warps", "num_stages", "case")}
    dtype = "float32" if launch["dtype"] == "fp32" else launch["dtype"]
    row = compile_launch({**kept, "file": file, "kernel": kernel, "architecture": "sm_90", "dtype": dtype})
    return [f"{launch['kernel']} in {launch['case']}: {fault}" for fault in row["faults"]]


def controls(start: Callable[[], Record]) -> Iterator[tuple[str, Any]]:
    for name, fault in CONTROLS.items():
        x = torch.randn(8, 16).to("cuda:0")
        record = start()
        try:
            fault(x)
        except (RuntimeError, ValueError) as error:
            record.errors.append(str(error))
        yield name, facts(record)


def main(name: str) -> None:
    sources: dict[str, dict[str, Any]] = {}
    with device() as start:
        result = dict(controls(start) if name == "controls" else flows(name, start, sources))
    if "--no-compile" not in sys.argv:
        with ThreadPoolExecutor(1) as pool:
            result["faults"] = [fault for faults in pool.map(compiled, sources.values()) for fault in faults]
    result["sources"] = len(sources)
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[2])
