"""Counts the machine instructions of the Triton kernels' launches on an H100, without a GPU.

    python -m benchmarks.ops.machine_code [--only gru ...] [--dtype float32 ...] [--write]

A reference case of benchmarks/ops takes one training step twice. On meta tensors its launches are recorded and compiled
for sm_90; the disassembly names the source line of every instruction, so each loop of the machine code is known by its
line in the source. On CPU tensors the same launches run in Triton's interpreter, which counts how often each line runs.
The products of the two, summed, are the instructions that warps issue. Inside a loop a branch counts as taken. A
product of PyTorch counts as its FLOPs at the best rate of the kernels' own products, ``RATES``.

``--write`` keeps the counts in benchmarks/results/machine_code.json and the tables in docs/kernels.md. A test compiles
the launches anew, takes how often lines run from that file, and fails where instructions have grown.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ..measure import ROOT
from ..measure import table as markdown
from . import suite
from .case import BFLOAT16, BOTH, FLOAT32, FORWARD, INT64, OURS, TF32, Case, Spec
from .chips import ARCHITECTURES
from .compile_report import META, Launch, _Driver, _Wrappers, cuda_resources

RESULTS = ROOT / "benchmarks" / "results" / "machine_code.json"
DOCUMENT = ROOT / "docs" / "kernels.md"
GROWTH = 1.05
# Instructions a second that 132 multiprocessors of an H100 issue: four of them a cycle at 1.755 GHz.
ISSUED = 132 * 4 * 1.755e9
ARCHITECTURE = "sm_90"
DTYPES = (FLOAT32, TF32, BFLOAT16)
# FLOPs of an instruction in the best of the kernels' own products: what a product of PyTorch is counted at.
RATES = {FLOAT32: 55.0, TF32: 1066.0, BFLOAT16: 2582.0}
# Which cases a training step consists of, and how many of each: 2,048 targets of ml-1m, the reference configurations.
_LAYERS = {"transformer_layer, batch ml-1m L=200": 2, "embed_sequence, model SASRec, batch ml-1m L=200": 1}
_BPR = {"sampled_loss, loss bpr, data ml-1m, count 1, shared False, rows 2048": 1}
STEPS = {
    "SASRec, L = 200": _LAYERS | _BPR,
    "SASRec, L = 200, cross-entropy": _LAYERS | {"linear_cross_entropy, data ml-1m, rows 2048": 1},
    "GRU4Rec, L = 50": {
        "embed_sequence, model GRU4Rec, batch ml-1m L=50": 1, "gru_sampled_loss, batch ml-1m L=50": 1,
    },
    "Caser, L = 20": {"caser_windows, length 20, kind shared, targets 2048": 1, "dropout, length 20, rows 2048": 1}
    | _BPR,
}  # fmt: skip
# Cases beside those: single ops, the other reference batch, evaluation, negatives.
MORE = (
    "causal_attention, batch ml-1m L=200",
    "causal_attention, batch beauty L=50",
    "last_query_attention, batch 256 users, ml-1m L=200",
    "gru, batch ml-1m L=50",
    "dropout_add_norm, rows 2048",
    "bias_gelu_dropout, rows 2048",
    "topk, data ml-1m, users 256, length 160",
    "sample_negatives, k 1, rows 2048",
    "gather_windows, name ml-1m L=200, targets 2048",
)
# Public kernels in Triton for the same, counted where they are installed. They have no dropout.
RIVALS = {"linear_cross_entropy": ("liger",), "causal_attention": ("fla",)}
# Classes of instructions by their opcodes; what is in none is integer arithmetic, a move or a conversion.
_CLASSES = {
    "FMA": "FFMA",
    "float": "FMUL|FADD|FSET|FSETP|FMNMX|FSEL|FCHK|HFMA2|HADD2|HMUL2|HSETP2",
    "matrix": "HMMA|HGMMA|IMMA",
    "special": "MUFU",
    "global": "LDG|STG|LD|ST|LDGSTS|UTMALDG|UTMASTG",
    "shared": "LDS|LDSM|STS|STSM|LDL|STL",
    "wait": "BAR|WARPSYNC|BSYNC|BSSY|DEPBAR|LDGDEPBAR|WARPGROUP|SYNCS|BRA|EXIT|NOP",
    "shuffle": "SHFL|REDUX",
}
KINDS = (*_CLASSES, "integer")


def reference_cases(only: list[str], dtypes: list[str], rivals: bool = False) -> Iterator[tuple[str, str, Spec, str]]:
    """(words, type, spec, implementation) of the cases above."""
    wanted = dict.fromkeys((*(words for step in STEPS.values() for words in step), *MORE))
    found = {f"{spec.op}, {spec.words}": spec for spec in suite.specs("cuda", only)}
    for words in wanted:
        if words in found:
            spec = found[words]
            for dtype in spec.dtypes:
                if dtype in (*dtypes, INT64):
                    yield words, dtype, spec, OURS
            for name in RIVALS.get(spec.op, ()) if rivals else ():
                if name in built(spec, META, name).functions:
                    yield from ((words, dtype, spec, name) for dtype in spec.dtypes if dtype in dtypes)


def built(spec: Spec, device: torch.device, name: str) -> Case:
    return spec.build(device) if name == OURS else spec.make(device, **spec.arguments, triton=True)


def take_step(spec: Spec, device: torch.device, half: torch.dtype, dtype: str, name: str) -> None:
    """One training step, or one call where there are no gradients, with every op served by its Triton wrapper."""
    torch.manual_seed(0)
    case = built(spec, device, name)
    kind = half if dtype == BFLOAT16 else torch.float32
    leaves = [x.to(kind) if x.is_floating_point() else x for x in case.leaves]
    torch.set_float32_matmul_precision("high" if dtype == TF32 else "highest")
    with _Wrappers():
        if case.upstream is None:
            case.functions[name](0.0, *leaves)
            return
        output = case.functions[name](case.dropout_p, *(x.requires_grad_(x.is_floating_point()) for x in leaves))
        output.backward(case.upstream.to(output.dtype).expand_as(output))


# What is launched, and what comes of it for the machine.


class _Products(TorchDispatchMode):
    """Counts the FLOPs of PyTorch's matrix products."""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._schema.name.split("::")[1] in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"):
            a, b = [x for x in args if isinstance(x, Tensor)][-2:]
            self.flops += 2 * a.numel() * b.shape[-1]
        return func(*args, **(kwargs or {}))


def record(only: list[str], dtypes: list[str], rivals: bool = False) -> list[dict[str, Any]]:
    """The launches of every case in their order, and the FLOPs of its products in PyTorch."""
    import triton
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    import fastseq.kernels  # noqa: F401

    launches: list[Launch] = []
    grids: list[tuple[int, ...]] = []

    def take(*, key: str, fn: Any, compile: dict[str, Any], **_: Any) -> bool:
        kept = {name: compile[name] for name in ("signature", "constants", "num_warps", "num_stages")}
        launches.append({"module": fn.module, "kernel": fn.name, **kept, "attributes": compile["configs"][0]})
        return True  # neither compile nor launch

    run = JITFunction.run

    def noted(self: Any, *arguments: Any, grid: Any, **options: Any) -> Any:
        bound = dict(zip((x.name for x in self.params), arguments, strict=False)) | options
        grids.append((*(grid(bound) if callable(grid) else grid), 1, 1)[:3])
        return run(self, *arguments, grid=grid, **options)

    cases = list(reference_cases(only, dtypes, rivals))  # imports rivals, which look at the driver
    driver.set_active(_Driver(ARCHITECTURE))
    triton.knobs.runtime.jit_cache_hook, JITFunction.run = take, noted
    results = []
    for words, dtype, spec, name in cases:
        launches.clear()
        grids.clear()
        with _Products() as products:
            take_step(spec, META if name == OURS else torch.device("cpu"), torch.bfloat16, dtype, name)
        made = [launch | {"grid": grid} for launch, grid in zip(launches, grids, strict=True)]
        about = {"case": words, "dtype": dtype, "implementation": name}
        results.append(about | {"launches": made, "product_flops": products.flops})
    return results


def compiled(launch: Launch) -> dict[str, Any]:
    """Registers, shared memory, and the instructions by place: (line of their loop or of themselves, class) → number.

    Runs in a worker process.
    """
    import triton
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(launch["module"]), launch["kernel"])
    while not isinstance(kernel, triton.JITFunction):
        kernel = kernel.fn  # of triton.heuristics
    code = triton.compile(
        ASTSource(kernel, launch["signature"], launch["constants"], launch["attributes"]),
        target=_Driver(ARCHITECTURE).get_current_target(),
        options={name: launch[name] for name in ("num_warps", "num_stages")},
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", "-g", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    constants = {kernel.arg_names[path[0]]: value for path, value in launch["constants"].items()}
    row = {"constants": constants, "warps": launch["num_warps"], "shared": code.metadata.shared}
    return row | {"registers": cuda_resources(code.asm)["registers"], "parts": parts(text)}


_INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:\{\s*)?(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*)")
_LINE = re.compile(r'\s*//## File "([^"]+)", line (\d+)')
_LABEL = re.compile(r"(\.L_x_\d+):")


def parts(text: str) -> list[dict[str, Any]]:
    """A disassembly by loops: what is outside of all, then every loop without those inside it, as they come.

    Each has ``place``, FILE:LINE of the branch that closes it in the source ("" outside), ``classes``, the number of
    instructions of each class, and ``lines``, the number of each line, outside of loops alone.
    """
    instructions: list[tuple[str, str, str]] = []  # opcode, operands, line
    labels: dict[str, int] = {}
    line = ""
    for text_line in text.splitlines():
        if found := _LINE.match(text_line):
            line = f"{Path(found[1]).name}:{found[2]}"  # Triton's cache may have it from another checkout
        elif found := _LABEL.match(text_line):
            labels[found[1]] = len(instructions)
        elif (found := _INSTRUCTION.match(text_line)) and found[1] != "NOP":
            instructions.append((found[1], found[2], line))
    # Where a warp has come apart (BRA.DIV), shuffles take a detour behind the program's end, which no warp of these
    # kernels takes: to the branch that leads back.
    detours = {labels[found[0]] for opcode, operands, _ in instructions
               if opcode == "BRA.DIV" and (found := re.search(r"\.L_x_\d+", operands))}  # fmt: skip
    left_out: set[int] = set()
    for first in detours:
        stop = next(i for i in range(first, len(instructions)) if instructions[i][0] == "BRA")
        left_out.update(range(first, stop + 1))
    around: list[tuple[int, int, str]] = [(len(instructions) + 1, -1, "")] * len(instructions)
    for i, (opcode, operands, line) in enumerate(instructions):
        target = re.search(r"\.L_x_\d+", operands)
        if opcode.startswith("BRA") and i not in left_out and target and labels.get(target[0], i + 1) < i:
            first = labels[target[0]]
            around[first : i + 1] = [min(loop, (i - first, first, line)) for loop in around[first : i + 1]]
    split: dict[int, dict[str, Any]] = {-1: {"place": "", "classes": Counter(), "lines": Counter()}}
    for i, ((opcode, _, line), (_, first, place)) in enumerate(zip(instructions, around, strict=True)):
        if i in left_out:
            continue
        part = split.setdefault(first, {"place": place, "classes": Counter()})
        part["classes"][class_of(opcode)] += 1
        if first < 0:
            part["lines"][line] += 1
    return list(split.values())


@cache
def class_of(opcode: str) -> str:
    base = opcode.split(".")[0]
    return next((name for name, pattern in _CLASSES.items() if re.fullmatch(pattern, base)), "integer")


# How often lines run, in the interpreter.

# How many programs of a launch run, spread evenly, and count for all; most of the segments' end at once. What others
# would have written is 0: an address within bounds, but no order of entries.
SAMPLE = {"segments": 1024, "attention": 64, "gru": 4}
OTHERS = 16
WHOLE = ("_place", "_scale")


def zeroed(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *arguments, **settings: make(*arguments, **settings).zero_()


def count_lines(only: list[str], dtypes: list[str]) -> list[dict[str, Any]]:
    """The launches of every case in their order, each with how often every line of the kernels' files ran."""
    from triton.runtime import interpreter

    launches: list[dict[str, Any]] = []
    call, set_size = interpreter.GridExecutor.__call__, interpreter.interpreter_builder.set_grid_dim

    def counted(self: Any, *arguments: Any, **settings: Any) -> Any:
        lines: Counter[str] = Counter()
        fn, named = self.fn, dict(zip(self.arg_names, arguments, strict=False)) | settings
        grid = (*(self.grid(named) if callable(self.grid) else self.grid), 1, 1)[:3]
        programs, file = math.prod(grid), Path(fn.__code__.co_filename).stem
        size = programs if fn.__name__ in WHOLE else min(programs, SAMPLE.get(file, OTHERS))
        chosen = {int(programs * (i * 0.6180339887 % 1.0)) for i in range(size)}
        if size == programs:
            chosen = set(range(programs))
        numbers = iter(range(programs))

        def trace(frame: Any, event: str, _: Any) -> Any:
            if (frame.f_globals.get("__name__") or "").startswith(("triton", "numpy")):
                return None
            if event == "line":
                lines[f"{frame.f_code.co_filename}:{frame.f_lineno}"] += 1
            return trace

        def program(**bound: Any) -> None:
            if next(numbers) in chosen:
                sys.settrace(trace)
                fn(**bound)
                sys.settrace(None)

        def start(*size: int) -> None:  # the arguments are bound by then
            self.fn = program
            set_size(*size)

        interpreter.interpreter_builder.set_grid_dim = start
        call(self, *arguments, **settings)
        share = programs / max(len(chosen), 1)
        launches.append({"kernel": fn.__name__, "grid": grid, "lines": {k: n * share for k, n in lines.items()}})

    interpreter.GridExecutor.__call__ = counted
    for place, name in ((torch, "empty"), (torch, "empty_like"), (Tensor, "new_empty")):
        setattr(place, name, zeroed(getattr(place, name)))
    results = []
    for words, dtype, spec, name in reference_cases(only, dtypes, rivals=True):
        launches.clear()
        take_step(spec, torch.device("cpu"), torch.float16, dtype, name)  # bfloat16 would be widened here
        results.append({"case": words, "dtype": dtype, "launches": list(launches)})
    return results


# Both together.


@cache
def loops(path: str) -> list[tuple[int, int, range]]:
    """(first line, last line, lines of the first statement) of the loops of a source file, the inner ones last."""
    found = [node for node in ast.walk(ast.parse(Path(path).read_text())) if isinstance(node, ast.For | ast.While)]
    return sorted(
        ((x.lineno, x.end_lineno or 0, range(x.body[0].lineno, (x.body[0].end_lineno or 0) + 1)) for x in found),
        key=lambda loop: loop[0] - loop[1],
    )


def trips(place: str, lines: dict[str, float], paths: dict[str, str]) -> float:
    """How often the loop around ``place`` went round, in all programs."""
    file, line = place.split(":")
    if file not in paths:  # no program of the sample has called it
        return 0.0
    around = [loop for loop in loops(paths[file]) if loop[0] <= int(line) <= loop[1]]
    if not around:
        raise RuntimeError(f"{place} closes a loop of the machine code and is in none of the source")
    return max(lines.get(f"{file}:{number}", 0.0) for number in around[-1][2])


def share_of(part: dict[str, Any], parts: list[dict[str, Any]]) -> float:
    """Of the rounds of a loop of the source, how many a loop of the machine code makes: all, or its part of them where
    a function is inlined twice. Where the compiler has unrolled a loop, the one that makes several rounds at a time
    makes all, and the one for the rest none."""
    sizes = [other["classes"].total() for other in parts if other["place"] == part["place"]]
    rounds = [round(size / min(sizes)) for size in sizes]
    mine = round(part["classes"].total() / min(sizes))
    return 1.0 / (mine * rounds.count(max(rounds))) if mine == max(rounds) else 0.0


def joined(launch: dict[str, Any], lines: dict[str, float]) -> dict[str, Any]:
    """A row of the results: what a launch is, and the instructions its warps issue."""
    paths = {Path(path).name: path for path, _ in (line.rsplit(":", 1) for line in lines)}
    lines = {Path(line).name: number for line, number in lines.items()}
    programs, warps = math.prod(launch["grid"]), launch["warps"]
    rows = []
    for part in launch["parts"]:
        if part["place"]:
            times = trips(part["place"], lines, paths) * share_of(part, launch["parts"])
        else:  # a line of which nothing is known runs as often as those before it: it belongs to PyTorch's or Triton's
            share, total = 1.0, 0.0
            for line, number in part["lines"].items():
                if line in lines:
                    share = min(1.0, lines[line] / programs)
                total += share * number
            times = programs * total / max(part["lines"].total(), 1)
        rows.append({"place": part["place"], "classes": dict(part["classes"]), "warps": round(times * warps, 1)})
    kept = {name: launch[name] for name in ("kernel", "grid", "registers", "shared")}
    kept["file"] = launch["module"].rpartition(".")[2]
    return kept | {"num_warps": warps, "parts": rows}


def instructions(row: dict[str, Any]) -> Counter[str]:
    """Instructions of all warps of a launch by class."""
    counts: Counter[str] = Counter()
    for part in row["parts"]:
        for name, number in part["classes"].items():
            counts[name] += number * part["warps"]
    return counts


def measure(only: list[str], dtypes: list[str]) -> list[dict[str, Any]]:
    """The rows of every case.

    Raises:
        RuntimeError: if the interpreter launched anything else than is compiled.
    """
    settings = ["--lines", *dtypes, *(["--only", *only] if only else [])]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks.ops.machine_code", *settings]
    interpreted = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    cases = with_code(record(only, dtypes, rivals=True), 1)
    ran = json.loads(interpreted.communicate()[0])
    results = []
    for case, other in zip(cases, ran, strict=True):
        named = [[(x["kernel"], list(x["grid"])) for x in y["launches"]] for y in (case, other)]
        if named[0] != named[1]:
            raise RuntimeError(f"{case['case']}, {case['dtype']}: compiled {named[0]}, interpreted {named[1]}")
        rows = [joined(x, y["lines"]) for x, y in zip(case["launches"], other["launches"], strict=True)]
        kept = ("case", "dtype", "implementation", "product_flops")
        results.append({name: case[name] for name in kept} | {"launches": rows})
    return results


def roof(spec: Spec, dtype: str) -> tuple[float, str]:
    """Microseconds below which no H100 takes the step of a case, and what binds it."""
    case = spec.build(META)
    seconds, binds = ARCHITECTURES[ARCHITECTURE].roof(*case.work(BOTH if case.upstream is not None else FORWARD, dtype))
    return 1e6 * seconds, binds


def by_step(results: list[dict[str, Any]]) -> str:
    """The table of training steps."""
    found = {(row["case"], row["dtype"]): row for row in results if row["implementation"] == OURS}
    lines = []
    for step, cases in STEPS.items():
        for dtype in DTYPES:
            rows = [(found.get((case, dtype)) or found.get((case, FLOAT32)), n) for case, n in cases.items()]
            if any(row is None for row, _ in rows):
                continue
            ours = sum(n * sum(instructions(x).total() for x in row["launches"]) for row, n in rows if row)
            library = sum(n * row["product_flops"] / RATES[dtype] for row, n in rows if row)
            lines.append([step, dtype, *(f"{x / 1e6:.2f}" for x in (ours, library, ours + library))])
    return markdown(["training step", "type", "kernels, M", "PyTorch's products, M", "sum, M"], lines)


def by_case(results: list[dict[str, Any]]) -> str:
    """The table of cases: all their launches together."""
    specs = {words: spec for words, _, spec, _ in reference_cases([], list(DTYPES))}
    lines = []
    for row in results:
        counts: Counter[str] = Counter()
        for launch in row["launches"]:
            counts.update(instructions(launch))
        least, binds = roof(specs[row["case"]], row["dtype"])
        library = row["product_flops"] / RATES.get(row["dtype"], 1.0)
        issue = (counts.total() + library) / ISSUED / 1e-6
        figures = [f"{x / 1e6:.2f}" for x in (counts.total(), library)] + [f"{issue:.1f}", f"{least:.1f}, {binds}"]
        lines.append([row["case"], row["dtype"], row["implementation"], len(row["launches"]), *figures, mix(counts)])
    header = [
        "case",
        "type",
        "whose",
        "launches",
        "instructions, M",
        "PyTorch's products, M",
        "issue, µs",
        "roof, µs",
        "mix, %",
    ]
    return markdown(header, lines)


def mix(counts: Counter[str]) -> str:
    """Shares of the classes, from 2% on."""
    shares = ((name, 100 * counts[name] / max(counts.total(), 1)) for name in KINDS)
    return ", ".join(f"{name} {share:.0f}" for name, share in shares if share >= 2)


def by_launch(results: list[dict[str, Any]]) -> str:
    """The table of launches."""
    lines = []
    for row in results:
        for launch in row["launches"]:
            counts = instructions(launch)
            warps = launch["num_warps"]
            programs = min(65536 // (32 * warps * max(launch["registers"], 1)), 64 // warps, 32)
            programs = min(programs, (228 << 10) // (launch["shared"] + 1024))
            figures = ["×".join(str(x) for x in launch["grid"]), warps, launch["registers"]]
            figures += [
                f"{launch['shared'] / 1024:.1f}",
                f"{programs * warps / 64:.0%}",
                f"{counts.total() / 1e6:.3f}",
                mix(counts),
            ]
            lines.append([row["case"], row["dtype"], f"{launch['file']}.{launch['kernel']}", *figures])
    header = ["case", "type", "kernel", "grid", "warps", "registers", "shared KB", "occupancy", "instructions, M", "%"]
    return markdown(header, lines)


def grown(kept: list[dict[str, Any]], cases: list[dict[str, Any]]) -> list[str]:
    """What has changed since the counts were kept: cases that now issue more than ``GROWTH`` times as many
    instructions, loops running as often as then; and launches of which that cannot be said.

    Args:
        kept: rows of ``measure``.
        cases: those of ``record``, each launch with ``compiled``'s row besides.
    """
    before = {(row["case"], row["dtype"]): row["launches"] for row in kept if row["implementation"] == OURS}
    faults = []
    for case in cases:
        words, then, now = (
            f"{case['case']}, {case['dtype']}",
            before.get((case["case"], case["dtype"])),
            case["launches"],
        )
        if then is None:
            continue  # not counted yet
        if [(x["kernel"], list(x["grid"]), len(x["parts"])) for x in now] != [
            (x["kernel"], x["grid"], len(x["parts"])) for x in then
        ]:
            faults.append(f"{words}: other launches or loops than were counted")
            continue
        counts = [sum(instructions(launch).total() for launch in then), 0.0]
        for old, new in zip(then, now, strict=True):
            for part, other in zip(old["parts"], new["parts"], strict=True):
                counts[1] += part["warps"] / old["num_warps"] * new["warps"] * sum(other["classes"].values())
        if counts[1] > GROWTH * counts[0]:
            faults.append(f"{words}: {counts[0] / 1e6:.3f} M instructions, now {counts[1] / 1e6:.3f} M")
    return faults


def with_code(cases: list[dict[str, Any]], workers: int) -> list[dict[str, Any]]:
    """The cases with every launch compiled."""
    flat = [launch for case in cases for launch in case["launches"]]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        codes = iter(list(pool.map(compiled, flat)))
    return [case | {"launches": [launch | next(codes) for launch in case["launches"]]} for case in cases]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=suite.FILES, default=[], help="files of benchmarks/ops")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--check", action="store_true", help="compile, and compare with what is kept")
    parser.add_argument("--write", action="store_true", help="keep the counts, and the tables in docs/kernels.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the counts here")
    parser.add_argument("--lines", nargs="+", help=argparse.SUPPRESS)  # the process of the interpreter
    arguments = parser.parse_args()
    if arguments.lines:
        print(json.dumps(count_lines(arguments.only, arguments.lines)))
        return 0
    os.environ["TRITON_INTERPRET"] = "0"
    kept: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"triton": "", "cases": []}
    version = metadata.version("triton")
    if arguments.check:
        if kept["triton"] != version:
            print(f"counted with Triton {kept['triton']}, this is {version}: not compared")
            return 0
        faults = grown(kept["cases"], with_code(record(arguments.only, arguments.dtype), min(2, os.cpu_count() or 1)))
        if faults:
            faults.append("count anew, and look at the difference: python -m benchmarks.ops.machine_code --write")
        print("\n".join(faults) or "no case issues more instructions than were counted")
        return int(bool(faults))
    results = measure(arguments.only, arguments.dtype)
    if arguments.json:
        arguments.json.write_text(json.dumps(results))
    if arguments.write:
        rows = [*(kept["cases"] if kept["triton"] == version else []), *results]
        known = {(row["case"], row["dtype"], row["implementation"]): row for row in rows}
        order = [(words, dtype) for words, dtype, _, _ in reference_cases([], list(DTYPES))]
        names = (OURS, *(name for names in RIVALS.values() for name in names))
        results = [known[*key, name] for key in order for name in names if (*key, name) in known]
        text = ",\n".join(json.dumps(row) for row in results)
        RESULTS.write_text(f'{{"triton": "{version}", "cases": [\n{text}\n]}}\n')
        text = DOCUMENT.read_text()
        for mark, table in (("steps", by_step(results)), ("cases", by_case(results))):
            start, stop = (f"<!-- {mark}: {word} -->\n" for word in ("made by benchmarks.ops.machine_code", "end"))
            text = text[: text.index(start) + len(start)] + f"\n{table}\n\n" + text[text.index(stop) :]
        DOCUMENT.write_text(text)
    print(by_step(results), by_case(results), by_launch(results), sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
