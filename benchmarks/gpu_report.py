"""What gpu_check.sh found, as JSON and Markdown with the machine's name, and as a short table.

python benchmarks/gpu_report.py --work build/gpu_check --out benchmarks/results

Exit status 1 if a stage failed, ran out of time or lacked something, or if none passed; 2, and nothing is written, if
no GPU was measured and none is here. Needs nothing but the standard library and torch.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def stages_of(text: str) -> list[dict[str, Any]]:
    """Rows of stages.tsv: name, verdict, seconds, note."""
    rows = [line.split("\t") for line in text.splitlines()]
    return [{"stage": name, "verdict": verdict, "seconds": int(s), "note": note} for name, verdict, s, note in rows]


def kernels_of(path: Path) -> dict[str, Any] | None:
    """What `fastseq bench kernels --json` wrote; None where it was stopped before it could."""
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError):
        return None
    return found


def per_op(results: list[dict[str, Any]]) -> list[tuple[str, int, float | None, float | None]]:
    """(op, rows measured, worst ratio to the best other, median share of the roof)."""
    groups: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for r in results:
        if r["median"] is not None:
            groups.setdefault((r["op"], r["shape"], r["dtype"], r["direction"]), {})[r["implementation"]] = r
    found: dict[str, list[tuple[float | None, float | None]]] = {}
    for (op, *_), timed in groups.items():
        ours = timed.pop("fastseq", None)
        if ours is not None:
            best = min((r["median"] for r in timed.values()), default=None)
            found.setdefault(op, []).append((best and best / ours["median"], ours["fraction"]))
    lines = []
    for op, pairs in found.items():
        ratios, shares = ([x for x in column if x is not None] for column in zip(*pairs, strict=True))
        lines.append((op, len(pairs), min(ratios, default=None), statistics.median(shares) if shares else None))
    return lines


def short(stages: list[dict[str, Any]], kernels: dict[str, Any] | None, machine: dict[str, Any]) -> str:
    """The table that ends a run."""
    lines = [f"{machine['device']}, driver {machine.get('driver', 'unknown')}, torch {machine['torch']}, "
             f"triton {machine.get('triton', 'none')}, {machine['date']}"]  # fmt: skip
    lines += [f"{s['stage']:<10} {s['verdict']:<8} {s['seconds']:>4} s  {s['note']}".rstrip() for s in stages]
    if kernels is not None:
        lines.append(f"{'op':<24} {'rows':>4} {'worst ratio':>12} {'of the roof':>12}")
        for op, count, ratio, share in per_op(kernels["results"]):
            worst = "–" if ratio is None else f"{ratio:.2f}×"
            lines.append(f"{op:<24} {count:>4} {worst:>12} {'–' if share is None else f'{share:.0%}':>12}")
    return "\n".join(lines)


def markdown(stages: list[dict[str, Any]], kernels: dict[str, Any] | None, machine: dict[str, Any]) -> str:
    lines = ["# Checks on a GPU", "", ", ".join(f"{key} {value}" for key, value in machine.items()), ""]
    lines += ["| stage | verdict | seconds | |", "|---|---|---|---|"]
    lines += [f"| {s['stage']} | {s['verdict']} | {s['seconds']} | {s['note']} |" for s in stages]
    if kernels is None:
        return "\n".join([*lines, "", "Kernels: not measured in this run.", ""])
    from benchmarks.ops import report
    from benchmarks.ops.run import Result

    results = [Result(**{k: v for k, v in r.items() if k != "fraction"}) for r in kernels["results"]]
    return "\n".join([*lines, "", report.markdown(results, kernels["machine"])])


def machine_here() -> dict[str, Any]:
    import torch

    from benchmarks.ops.run import machine

    return machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def passed(stages: list[dict[str, Any]]) -> bool:
    """Whether the run proves anything: a stage passed and none did anything else."""
    return bool(stages) and all(s["verdict"] == "passed" for s in stages)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder with stages.tsv and kernels.json")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    chosen = parser.parse_args()
    stages, kernels = stages_of((chosen.work / "stages.tsv").read_text()), kernels_of(chosen.work / "kernels.json")
    machine = kernels["machine"] if kernels is not None else machine_here()
    if machine["device"] == "CPU":
        parser.error("PyTorch sees no GPU, and kernels.json is of none: nothing to report")
    chosen.out.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^A-Za-z0-9]+", "-", str(machine["device"])).strip("-").lower()
    moment = str(machine["date"])[:19].replace(
        ":", ""
    )  # with the time: a later run of some stages is a report of its own
    path = chosen.out / f"gpu_{name}_{moment}.json"
    path.write_text(json.dumps({"machine": machine, "stages": stages, "kernels": kernels}, indent=1) + "\n")
    path.with_suffix(".md").write_text(markdown(stages, kernels, machine))
    print(f"\n{path}\n{short(stages, kernels, machine)}")
    return int(not passed(stages))


if __name__ == "__main__":
    sys.exit(main())
