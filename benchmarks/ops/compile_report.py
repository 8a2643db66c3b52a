"""Compiles what the Triton kernels' wrappers launch, without a GPU, and checks what came out.

    python -m benchmarks.ops.compile_report [--reference-shapes] [--arch sm_90 ...] [--only gru ...] [--json]

The wrappers run over the cases of benchmarks/ops and the calls below on meta tensors, which have a type and a shape and
no memory. Their launches reach Triton, which specialises them as on a GPU and hands them over instead of running them:
nothing is listed by hand. The exit status is 1 if a launch spills registers, needs more shared memory than the
architecture has, multiplies without matrix instructions where they are expected, or does not compile. gfx942 fails only
where Triton accepts the kernel. Nothing is run or timed. Triton's own cache keeps what is compiled.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastseq import ops
from fastseq.ops import _dispatch

from ..measure import table as markdown
from . import suite
from .case import EVENTS
from .chips import ARCHITECTURES

KERNELS = Path(__file__).resolve().parents[2] / "kernels"
META = torch.device("meta")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}  # by the names of the suite; any other is float32

Call = Callable[..., Any]


# One launch of one kernel, as Triton specialises it: its file, kernel and architecture; case (op, shape and type of the
# first call that made it) and dtype (of that call); signature, constants and attributes, arguments of
# triton.compiler.ASTSource; num_warps and num_stages.
Launch = dict[str, Any]


class _Driver:
    """What Triton asks a driver before it compiles for an architecture."""

    def __init__(self, name: str) -> None:
        self.name, self.utils = name, self

    def get_current_device(self) -> str:
        return self.name  # the key of Triton's caches

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        chip = ARCHITECTURES[self.name]
        return GPUTarget(chip.backend, chip.number, chip.warp)

    def get_device_properties(self, index: int) -> dict[str, int]:
        return {"max_shared_mem": ARCHITECTURES[self.name].shared_limit}


class _Wrappers(TorchDispatchMode):
    """Serves every op of fastseq by its Triton wrapper, whatever the device of its tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "fastseq":
            return func(*args, **(kwargs or {}))
        op = func._schema.name.split("::")[1]
        return getattr(importlib.import_module(f"fastseq.kernels.{_dispatch._files[op]}"), op)(*args)


def cases(reference_shapes: bool) -> Iterator[tuple[str, str, Call]]:
    """(words, type, call): the suite's cases in evaluation and in training; and the wider ones."""
    for spec in suite.specs("cuda"):
        case = spec.build(META)
        halves = not reference_shapes and "bfloat16" in spec.dtypes
        for dtype in dict.fromkeys((*spec.dtypes, "float16")) if halves else spec.dtypes:
            kind = DTYPES.get(dtype, torch.float32)
            leaves = [x.to(kind) if x.is_floating_point() else x for x in case.leaves]
            function, words = case.functions["fastseq"], f"{case.op}, {case.shape}"
            yield f"{words}, evaluation", dtype, partial(function, 0.0, *leaves)
            if case.upstream is not None:
                leaves = [x.requires_grad_(x.is_floating_point()) for x in leaves]
                yield f"{words}, training", dtype, partial(function, case.dropout_p, *leaves)
    if not reference_shapes:
        for dtype in ("float32", "tf32", "bfloat16", "float16"):
            for words, call in wider(DTYPES.get(dtype, torch.float32)):
                yield words, dtype, call


def wider(dtype: torch.dtype) -> Iterator[tuple[str, Call]]:
    """Calls of the public ops with odd, narrow and wide rows, biases, every width of a head and long histories."""

    def x(*shape: int, grad: bool = True, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=META, requires_grad=grad)

    def ids(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=META)

    def call(words: str, op: Call, *arguments: Any, **settings: Any) -> tuple[str, Call]:
        return f"{op.__name__}, {words}", partial(op, *arguments, **settings)

    n, users, items, rng = EVENTS, 64, 3417, ids(2)
    offsets, seen = ids(users + 1, dtype=torch.int32), {"seen_offsets": ids(users + 1), "seen_items": ids(160 * users)}
    drop: dict[str, Any] = {"dropout_p": 0.3, "rng": rng}
    for d in (8, 32, 64, 128):
        q, k, v = (x(n, 4, d) for _ in range(3))
        for longest in (16, 32, 64, 128, 200):
            for words, settings in (("", {}), (", dropout", drop)):
                words = f"4 heads of {d}, up to {longest} events{words}"
                yield call(words, ops.causal_attention, q, k, v, offsets, max_len=longest, **settings)
        last = x(users, 4, d)
        yield call(f"4 heads of {d}", ops.last_query_attention, last, k, v, offsets, max_len=200, **drop)
    for hidden, bias in ((24, None), (64, x(192)), (100, x(300)), (256, None)):
        gates, weight = x(n, 3 * hidden), x(3 * hidden, hidden)
        yield call(f"H={hidden}", ops.gru, gates, weight, offsets, bias_hh=bias, max_len=3)
    for width, inner, heads in ((63, 200, 3), (512, 2048, 8)):
        square, vector, wide = x(width, width), x(width), x(inner, width)
        layer: dict[str, Any] = {"in_weight": x(3 * width, width), "in_bias": x(3 * width), "out_weight": square}
        layer |= {"weight1": wide, "bias1": x(inner), "weight2": x(width, inner), "out_bias": vector, "bias2": vector}
        layer |= dict.fromkeys(("norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias"), vector)
        layer |= {"heads": heads, "max_len": 200, **drop}
        words = f"width {width}, inner {inner}"
        yield call(words, ops.transformer_layer, x(n, width), offsets, ids(n // 2), **layer)
    weights = x(15, 2, 24), x(5, 2), x(1, 5), x(1), x(24)
    yield call("L=5, n_h=2, n_v=1, d=24", ops.caser_windows, x(n, 24), offsets, ids(n), ids(n), *weights)
    for width, bias, softcap in ((64, None, None), (128, x(items), 4.0), (256, x(items), None)):
        words, weight = f"width {width}, softcap {softcap}", x(items, width)
        for reduction in ("none", "sum"):
            settings = {"bias": bias, "softcap": softcap, "reduction": reduction}
            yield call(f"{words}, {reduction}", ops.linear_cross_entropy, x(n, width), weight, ids(n), **settings)
    for width, best in ((63, 10), (128, 100), (128, 300)):
        h, weight, bias = (x(*shape, grad=False) for shape in ((users, width), (items, width), (items,)))
        yield call(f"best {best}, width {width}", ops.topk, h, weight, best, bias=bias, **seen)
    for columns in (8, 63, 64, 416, 2048):
        words, rows, vector = f"{columns} columns", x(n, columns), x(columns)
        yield call(words, ops.dropout, rows, 0.3, rng)
        yield call(words, ops.bias_gelu_dropout, rows, vector, **drop)
        yield call(words, ops.dropout_add_norm, rows, rows, vector, vector, **drop)
        yield call(f"{words}, x_bias", ops.dropout_add_norm, rows, rows, vector, vector, x_bias=vector, **drop)
        tables = x(items, columns), x(200, columns), vector, vector
        yield call(words, ops.embed_sequence, ids(n), offsets, *tables, **drop, padding_idx=items - 1)
    for loss, width, count in (("bpr", 63, (n, 3)), ("bce", 512, (n, 3)), ("bpr", 64, (256,)), ("gbce", 63, (n, 64))):
        words, h, weight = f"{loss}, width {width}, negatives {list(count)}", x(n, width), x(items, width)
        yield call(words, ops.sampled_loss, h, weight, ids(n), ids(*count), loss=loss)
    alias = {"probability": ids(items), "alias": ids(items)}
    for each in (1, 2, 64):
        words = f"weighted, {each} each"
        yield call(words, ops.sample_negatives, ids(n), ids(n), **seen, k=each, n_items=items, rng=rng, **alias)
    data, epoch = [ids(users)] * 6, [ids(users)] + [ids(users + 1)] * 3
    sizes = {"n_events": n, "n_sequences": users, "n_targets": n, "n_history": n, "max_len": 50, "padding_idx": items}
    yield call("with the L2 term", ops.gather_windows, *data, *epoch, ids(2), **sizes)
    for width in (63, 512):
        table = [x(items, width, grad=False).float() for _ in range(3)] + [ids(items).int()]
        steps = [torch.empty(n, 8, dtype=torch.float64, device="meta"), ids(2)]
        yield call(f"width {width}, all", ops.adam_rows, *table, *steps)
        yield call(f"width {width}, no step", ops.adam_rows, *table, *steps, ids(500))
        grad = x(500, width, grad=False).float()
        yield call(f"width {width}", ops.adam_rows, *table, *steps, ids(500), grad, ids(1))


def record(architectures: list[str], reference_shapes: bool = False) -> list[Launch]:
    """Every distinct launch of the cases on each architecture.

    Raises:
        RuntimeError: if this process has the kernels of Triton's interpreter: TRITON_INTERPRET=0 chooses the compiler.
    """
    import triton
    from triton.runtime import driver

    import fastseq.kernels  # noqa: F401

    if os.environ.get("TRITON_INTERPRET") == "1":
        raise RuntimeError("TRITON_INTERPRET is 1, expected 0: the interpreter's kernels are not compiled")
    launches: dict[tuple[str, str, str, str], Launch] = {}
    current: dict[str, str] = {}

    def take(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        file = fn.module.removeprefix("fastseq.kernels.")
        kept = {name: compile[name] for name in ("signature", "constants", "num_warps", "num_stages")}
        launch = {"file": file, "kernel": fn.name, **current, **kept, "attributes": compile["configs"][0]}
        launches.setdefault((current["architecture"], file, fn.name, key), launch)
        return True  # neither compile nor launch

    before = torch.get_float32_matmul_precision()
    triton.knobs.runtime.jit_cache_hook = take
    try:
        for name in architectures:
            driver.set_active(_Driver(name))
            for words, dtype, call in cases(reference_shapes):
                current.update(architecture=name, case=f"{words}, {dtype}", dtype=dtype)
                torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
                with _Wrappers():
                    outputs = call()
                    if isinstance(outputs, Tensor) and outputs.requires_grad:
                        outputs.backward(torch.empty_like(outputs))
    finally:
        torch.set_float32_matmul_precision(before)
        triton.knobs.runtime.jit_cache_hook = None
    return list(launches.values())


def compile_launch(launch: Launch) -> dict[str, Any]:
    """One row of the report; runs in a worker process."""
    import triton
    from triton.compiler import ASTSource

    signature, attributes = launch.pop("signature"), launch.pop("attributes")
    row = launch | {"constants": {}, "error": None}
    try:
        kernel = getattr(importlib.import_module(f"fastseq.kernels.{row['file']}"), row["kernel"])
        row["constants"] = {kernel.arg_names[path[0]]: value for path, value in launch["constants"].items()}
        compiled = triton.compile(
            ASTSource(kernel, signature, launch["constants"], attributes),
            target=_Driver(row["architecture"]).get_current_target(),
            options={name: row[name] for name in ("num_warps", "num_stages")},
        )
        row |= {"shared_bytes": compiled.metadata.shared, "products": "tt.dot" in compiled.asm["ttir"]}
        row |= hip_resources(compiled.asm) if "amdgcn" in compiled.asm else cuda_resources(compiled.asm)
    except Exception as error:  # whatever the compiler raises is the row's verdict
        row["error"] = f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error) else ''}"
    return row | {"faults": faults(row)}


def cuda_resources(assembly: dict[str, Any]) -> dict[str, Any]:
    """Registers and bytes of stack a thread, where spills go, and the kinds of matrix instructions."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(assembly["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if match is None:
        raise RuntimeError(f"cuobjdump names no registers and stack: {usage.strip()!r}")
    matrix = sorted(set(re.findall(r"\b(wgmma|tcgen05\.mma|mma)\.", assembly["ptx"])))
    return {"registers": int(match[1]), "spilled_bytes": int(match[2]), "matrix": matrix}


def hip_resources(assembly: dict[str, Any]) -> dict[str, Any]:
    """The same; scalar registers, which spill to lanes of vector ones and not to memory, do not count."""

    def last(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s+(\d+)", assembly["amdgcn"])[-1])

    matrix = ["mfma"] if "v_mfma" in assembly["amdgcn"] else []
    return {"registers": last("vgpr_count"), "spilled_bytes": 4 * last("vgpr_spill_count"), "matrix": matrix}


def faults(row: dict[str, Any]) -> list[str]:
    """Why a row fails the check."""
    if row["error"]:
        return [] if row["architecture"] == "gfx942" else [row["error"]]
    limit = ARCHITECTURES[row["architecture"]].shared_limit
    reasons = []
    if row["spilled_bytes"]:
        reasons.append(f"spills {row['spilled_bytes']} bytes")
    if row["shared_bytes"] > limit:
        reasons.append(f"{row['shared_bytes']} bytes of shared memory, over the limit of {limit}")
    if row["products"] and row["dtype"] != "float32" and not row["matrix"]:
        reasons.append(f"no matrix instruction, expected for {row['dtype']}")
    return reasons


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each kernel and architecture with the largest figures of its launches, and one for each fault."""
    lines = []
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((f"{row['file']}.{row['kernel']}", row["architecture"]), []).append(row)
    for (kernel, name), group in groups.items():
        compiled = [row for row in group if not row["error"]]
        most = [max((row[key] for row in compiled), default=0) for key in ("registers", "spilled_bytes")]
        shared = max((row["shared_bytes"] for row in compiled), default=0)
        matrix = dict.fromkeys(kind for row in compiled for kind in row["matrix"])
        faulty, refused = sum(bool(row["faults"]) for row in group), len(group) - len(compiled)
        verdict = f"{faulty} faulty" if faulty else f"ok, {refused} refused" if refused else "ok"
        figures = [str(len(group)), *map(str, most), f"{shared / 1024:.1f}", " ".join(matrix) or "-"]
        lines.append([kernel, name, *figures, verdict])
    text = [markdown(["kernel", "arch", "launches", "regs", "spilled", "shared KB", "matrix", "verdict"], lines)]
    for row in rows:
        for fault in row["faults"]:
            text.append(f"{row['file']}.{row['kernel']} on {row['architecture']}, {row['case']}: {fault}")
    return "\n".join(text)


def main() -> int:
    files = sorted(path.stem for path in KERNELS.glob("*.py") if "@triton.jit" in path.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=tuple(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--reference-shapes", action="store_true", help="the suite's cases alone")
    parser.add_argument("--only", nargs="+", choices=files, metavar="FILE", help="kernel files, for example gru")
    parser.add_argument("--json", action="store_true", help="every launch, as a JSON list")
    arguments = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "0"  # before any kernel is defined, here and in the workers
    try:
        launches = record(list(dict.fromkeys(arguments.arch)), arguments.reference_shapes)
    except ImportError as error:
        parser.exit(2, f"{parser.prog}: {error}: pip install 'fastseq-rec[triton]'\n")
    launches = [launch for launch in launches if not arguments.only or launch["file"] in arguments.only]
    if not launches:
        parser.error("no launch is left: --only and --reference-shapes rule out all of them")
    # Fresh processes: Triton's compiler and fork do not mix with torch's threads.
    with ProcessPoolExecutor(min(2, os.cpu_count() or 1), multiprocessing.get_context("spawn")) as pool:
        rows = list(pool.map(compile_launch, launches))
    print(json.dumps(rows, indent=1) if arguments.json else table(rows))
    return int(any(row["faults"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
