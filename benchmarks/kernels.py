"""The kernel benchmarks as one JSON document, without the command line's packages: what gpu_check.sh measures.

    python benchmarks/kernels.py --device cuda --budget 75 > FILE.json

`fastseq bench kernels` is the same with a table and a plot. Interrupted, it prints what was measured until then.
Exit status 1 if an op is wrong or nothing was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("FASTSEQ_STRICT", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fastseq._process import own_process

own_process()  # before torch

import torch  # noqa: E402

from benchmarks.ops.report import document  # noqa: E402
from benchmarks.ops.run import collect, machine, measured, run  # noqa: E402
from benchmarks.ops.suite import FILES, check_names  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", choices=FILES, default=[])
    parser.add_argument("--against", nargs="+", default=[], help="rivals by name; default: all")
    parser.add_argument("--seconds", type=float, default=0.3, help="rounds of each measurement, in time")
    parser.add_argument("--budget", type=float, help="start no case after so many seconds")
    chosen = parser.parse_args(arguments)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device is cuda, but PyTorch {torch.__version__} sees no GPU: take --device cpu")
    device = torch.device(chosen.device)
    try:
        check_names(device, chosen.only, chosen.against)
    except ValueError as error:
        parser.error(f"--{error}")
    results, interrupted = collect(
        run(
            device,
            only=chosen.only,
            against=chosen.against,
            seconds=chosen.seconds,
            budget=chosen.budget,
            on_start=lambda spec, dtype: print(f"{spec.op}, {dtype}", file=sys.stderr, flush=True),
        )
    )
    print(json.dumps(document(results, machine(device))))
    if interrupted:
        return 130
    if not measured(results):
        print("nothing was measured", file=sys.stderr)
        return 1
    return int(any(r.failed for r in results))


if __name__ == "__main__":
    sys.exit(main())
