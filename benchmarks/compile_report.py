"""Compiles every shipped kernel configuration ahead of time, without a GPU, and checks what came out.

    python benchmarks/compile_report.py [--seed-shapes] [--arch sm_90 ...] [--only gru ...] [--json | --markdown]

One row per configuration and architecture: registers a thread, spilled bytes, shared memory, matrix instructions, and
the roof of the shape: the time below which no kernel can be on that chip, from the bytes that must move and the FLOPs
that must be done. Nothing is run or timed. The exit status is 1 if a row spills, needs more shared memory than the
architecture has, lacks a matrix instruction where one is expected, or does not compile. What is compiled is listed in
kernels/compiled/ (docs/kernels.md). A row is cached by the
source of its kernel and what that calls, its arguments and Triton's version.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # before any kernel is defined
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.ops.chips import ARCHITECTURES

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path.stem for path in (ROOT / "kernels" / "compiled").glob("*.py") if path.stem != "__init__")
VERSIONS = {"cuda": 1, "hip": 2}  # of a row: part of the cache's key


def entries() -> Iterator[tuple[str, int, Any]]:
    """(file, index, Compiled) of every launch listed in kernels/compiled/."""
    import fastseq.kernels.compiled

    for info in sorted(pkgutil.iter_modules(fastseq.kernels.compiled.__path__), key=lambda info: info.name):
        module = importlib.import_module(f"fastseq.kernels.compiled.{info.name}")
        for index, entry in enumerate(module.COMPILED):
            yield info.name, index, entry


def source(entry: Any) -> Any:
    """The entry as Triton's launcher would specialise it."""
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    missing = {p.name for p in entry.kernel.params} ^ set(entry.arguments)
    if missing:
        raise ValueError(f"{entry.kernel.__name__}: arguments of the entry and of the kernel differ in {missing}")
    for place, parameter in enumerate(entry.kernel.params):
        value = entry.arguments[parameter.name]
        special = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (special and isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(place,)] = value
            continue
        if isinstance(value, str):
            signature[parameter.name] = value
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        elif isinstance(value, bool):
            signature[parameter.name] = "u1"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        aligned = isinstance(value, str) or (isinstance(value, int) and value % 16 == 0)
        if special and aligned and not parameter.do_not_specialize_on_alignment:
            attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(entry.kernel, signature, constants, attributes)


def key_of(built: Any, name: str, options: dict[str, int]) -> str:
    """What a cached row depends on: sources, arguments, compiler. Not where in its file a kernel stands."""
    import triton

    for module in [module for name, module in sys.modules.items() if name.startswith("fastseq.kernels")]:
        for value in vars(module).values():
            if isinstance(value, triton.JITFunction):
                value.starting_line_number = 1
    key = json.dumps([VERSIONS[ARCHITECTURES[name].backend], triton.__version__, name, built.hash(), options])
    return hashlib.sha256(key.encode()).hexdigest()


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack a thread, where spills go: for Triton 3.4, which does not pass ptxas's log on."""
    import triton

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing about registers and stack: {said.strip()!r}")
    return int(found[1]), int(found[2])


def cuda_row(compiled: Any, log: str) -> dict[str, Any]:
    ptx = compiled.asm["ptx"]
    found = re.search(r"Used (\d+) registers", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if found is None or spills is None:
        registers, spilled = resources(compiled.asm["cubin"])
    else:
        registers, spilled = int(found[1]), int(spills[1]) + int(spills[2])
    matrix = sorted(set(re.findall(r"\b(wgmma|tcgen05\.mma|mma)\.", ptx)) - ({"mma"} if "wgmma" in ptx else set()))
    return {
        "registers": registers,
        "spilled_bytes": spilled,
        "matrix": matrix,
        "shared_bytes": compiled.metadata.shared,
    }


def hip_row(compiled: Any) -> dict[str, Any]:
    assembly = compiled.asm["amdgcn"]

    def last(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s+(\d+)", assembly)[-1])

    return {
        "registers": last("vgpr_count"),
        "spilled_bytes": 4 * last("vgpr_spill_count"),  # scalar registers spill to lanes of vector ones, not to memory
        "matrix": ["mfma"] if "v_mfma" in assembly else [],
        "shared_bytes": compiled.metadata.shared,
    }


def compile_row(file: str, index: int, name: str, cache: str) -> dict[str, Any]:
    """One row of the table; runs in a worker process."""
    import triton
    from triton.backends.compiler import GPUTarget

    entry = importlib.import_module(f"fastseq.kernels.compiled.{file}").COMPILED[index]
    architecture = ARCHITECTURES[name]
    row = {"file": file, "kernel": entry.kernel.__name__, "shape": entry.shape, "architecture": name}
    row |= {"num_warps": entry.num_warps, "bytes": entry.bytes, "flops": entry.flops, "expected": entry.matrix}
    roof, bound = architecture.roof(entry.bytes, entry.flops, entry.matrix)
    row |= {"roof_us": 1e6 * roof, "bound": bound}
    try:
        built = source(entry)
        options = {"num_warps": entry.num_warps}
        if entry.num_stages is not None:
            options["num_stages"] = entry.num_stages
        path = Path(cache) / f"{key_of(built, name, options)}.json"
        if path.exists():
            return row | json.loads(path.read_text())
        triton.knobs.compilation.always_compile = True  # a cached binary has no log
        triton.knobs.nvidia.dump_ptxas_log = True
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            compiled = triton.compile(
                built, target=GPUTarget(architecture.backend, architecture.number, architecture.warp), options=options
            )
        result = cuda_row(compiled, log.getvalue()) if architecture.backend == "cuda" else hip_row(compiled)
    except Exception as error:  # whatever the compiler raises is the row's verdict
        return row | {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error) else ''}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(result))
    temporary.replace(path)
    return row | result


def faults(row: dict[str, Any]) -> list[str]:
    """Why a row fails the check."""
    if "error" in row:
        return [row["error"]]
    limit = ARCHITECTURES[row["architecture"]].shared_limit
    found = []
    if row["spilled_bytes"]:
        found.append(f"spills {row['spilled_bytes']} bytes")
    if row["shared_bytes"] > limit:
        found.append(f"shared memory over the limit of {limit >> 10} KB")
    if row["expected"] and not row["matrix"]:
        found.append(f"no matrix instruction, expected {row['expected']}")
    return found


def report(rows: list[dict[str, Any]]) -> str:
    header = ["kernel", "shape", "arch", "warps", "regs", "spills", "shared KB", "matrix", "roof µs", "verdict"]
    lines = [header]
    for row in rows:
        measured = ["-"] * 4
        if "error" not in row:
            shared = f"{row['shared_bytes'] / 1024:.1f}"
            measured = [str(row["registers"]), str(row["spilled_bytes"]), shared, " ".join(row["matrix"]) or "-"]
        roof = f"{row['roof_us']:.2f} {row['bound']}"
        place = [f"{row['file']}.{row['kernel']}", row["shape"], row["architecture"], str(row["num_warps"])]
        lines.append([*place, *measured, roof, "; ".join(row["faults"]) or "ok"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(header) - 1)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]) for line in lines
    )


def sources() -> list[str]:
    """What the table was made of, a line for each file of kernels/.

    Of the text, since Triton's own keys hold its version: another one must not make the table stale.
    """
    files = sorted((ROOT / "kernels").rglob("*.py"))
    return [f"- `{path.relative_to(ROOT)}` {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}" for path in files]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table of docs/kernels_compiled.md: a line for each launch, its architectures side by side."""
    import triton

    names = [name for name in ARCHITECTURES if any(row["architecture"] == name for row in rows)]
    chips = [f"{ARCHITECTURES[name].chip} ({name})" for name in names]
    header = ["kernel", "launch", *chips, "products", "roof"]
    lines = [header, ["---"] * len(header)]
    launches: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        launches.setdefault((f"{row['file']} `{row['kernel']}`", row["shape"]), {})[row["architecture"]] = row
    for place, found in launches.items():
        cells, products = [], []
        for name in names:
            row = found.get(name)
            if row is None or "error" in row:
                cells.append("-" if row is None else "refused")
                continue
            cell = f"{row['registers']} / {row['shared_bytes'] / 1024:.3g}"
            cells.append("; ".join([cell, *row["faults"]]))
            products += row["matrix"] or ["FMA" if row["flops"] else "none"]
        reference = found.get("sm_90") or next(iter(found.values()))
        roof = f"{reference['roof_us']:.2f} µs, {reference['bound']}"
        lines.append([*place, *cells, ", ".join(dict.fromkeys(products)), roof])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    bad = sum(bool(row["faults"]) for row in rows)
    listed = "\n".join(sources())
    spills = "no row spills" if not bad else "faults are named"
    return f"""# Every launch, compiled

Written by `python benchmarks/compile_report.py --markdown` with Triton {triton.__version__}:
{len(rows)} compilations, {bad} with a fault. Registers a thread / KB of shared memory a program; {spills}.
Roof: the time below which the H100 (or the only chip of the line) cannot be, from bytes and FLOPs alone.
Nothing here is measured. [kernels.md](kernels.md) says how the list is made.

{table}

Of these sources (SHA-256, its first 16 digits):

{listed}"""


def positive(text: str) -> int:
    """A number of processes."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected 1 or more")
    return number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", choices=tuple(ARCHITECTURES), default=list(ARCHITECTURES))
    parser.add_argument("--seed-shapes", action="store_true", help="only what the seed configurations launch")
    parser.add_argument("--only", nargs="+", choices=FILES, metavar="FILE", help="kernel files, for example gru")
    parser.add_argument("--processes", type=positive, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "fastseq" / "compile_report")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="one JSON list instead of the table")
    output.add_argument("--markdown", action="store_true", help="docs/kernels_compiled.md instead of the table")
    chosen = parser.parse_args()
    if chosen.markdown and (chosen.only or chosen.seed_shapes or set(chosen.arch) != set(ARCHITECTURES)):
        parser.error("--markdown is the whole table: it takes no --arch, --seed-shapes or --only")
    try:
        import triton  # noqa: F401
    except ImportError:
        parser.exit(2, f"{parser.prog}: Triton is not installed: pip install 'fastseq-rec[triton]'\n")
    jobs = [
        (file, index, name, str(chosen.cache))
        for file, index, entry in entries()
        for name in chosen.arch
        if (entry.seed or not chosen.seed_shapes)
        and (not chosen.only or file in chosen.only)
        and (not entry.only or name in entry.only)
    ]
    if not jobs:
        parser.error("no launch is left: --only, --seed-shapes and --arch rule out all of them")
    # Fresh processes: Triton's compiler and fork do not mix with torch's threads.
    with ProcessPoolExecutor(chosen.processes, multiprocessing.get_context("spawn")) as pool:
        rows = list(pool.map(compile_row, *zip(*jobs, strict=True)))
    failed = False
    for row in rows:
        row["faults"] = faults(row)
        refused = row["architecture"] == "gfx942" and "error" in row  # AMD's chips where Triton accepts the kernel
        failed |= bool(row["faults"]) and not refused
    print(json.dumps(rows, indent=1) if chosen.json else markdown(rows) if chosen.markdown else report(rows))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
