"""Every op beside its rivals, each checked against the reference before it is timed.

    python -m benchmarks.ops                                 # cuda where there is one: Triton; else C++ on few shapes
    python -m benchmarks.ops --only gru --against eager      # torch.compile takes most of the time
    python -m benchmarks.ops --device cuda --budget 75 --json > FILE.json
    python -m benchmarks.ops FILE.json --plot ops.png        # what was measured before

fastseq alone is needed; --plot needs matplotlib. Ctrl-C reports what was measured until then. Exit status 1 if an op is
wrong or nothing was measured.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("FASTSEQ_STRICT", "1")

from fastseq._process import own_process

own_process()  # before torch

import torch  # noqa: E402

from .case import OURS  # noqa: E402
from .report import document, markdown, plot, read  # noqa: E402
from .run import Result, machine, run  # noqa: E402
from .suite import FILES, rivals  # noqa: E402


def show(results: Sequence[Result], about: Mapping[str, Any], options: argparse.Namespace) -> bool:
    """Prints and draws; whether there is a time of any op of fastseq: a run without one proves nothing."""
    measured = any(result.implementation == OURS and result.median is not None for result in results)
    print(json.dumps(document(results, about)) if options.json else markdown(results, about))
    if options.plot is not None and measured:
        plot(results, options.plot, about)
    return measured


def measurement(device: torch.device, options: argparse.Namespace) -> int:
    """Measures and shows; the exit status."""
    results: list[Result] = []
    status = 0
    settings = {name: getattr(options, name) for name in ("only", "against", "seconds", "budget")}
    try:
        for result in run(device, **settings):
            results.append(result)
    except KeyboardInterrupt:
        print("interrupted: what was measured before is shown", file=sys.stderr)
        status = 130
    if not show(results, machine(device), options):
        not_drawn = "" if options.plot is None else f": {options.plot} is not drawn"
        print(f"nothing was measured{not_drawn}", file=sys.stderr)
        status = status or 1
    return status or int(any(result.failed for result in results))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.ops", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE.json", help="show these, measure nothing")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: cuda where there is one")
    parser.add_argument("--only", nargs="+", action="extend", choices=FILES, default=[], help="ops, by their files")
    parser.add_argument("--against", nargs="+", action="extend", default=[], help="rivals by name; default: all")
    parser.add_argument("--seconds", type=float, default=0.3, help="rounds of each measurement, in time")
    parser.add_argument("--budget", type=float, help="start no case after so many seconds")
    parser.add_argument("--json", action="store_true", help="everything, in seconds and bytes")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the times into this .png, .svg or .pdf")
    options = parser.parse_args(arguments)
    device, path = options.device or ("cuda" if torch.cuda.is_available() else "cpu"), options.plot
    if path is not None and (path.suffix not in (".png", ".svg", ".pdf") or not path.absolute().parent.is_dir()):
        parser.error(f"--plot is {path}, expected a .png, .svg or .pdf in a folder that exists")
    if path is not None and len(options.files) > 1:
        parser.error(f"--plot draws one file, not {len(options.files)}")
    try:
        for file in options.files:
            show(*read(file), options)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    if options.files:
        return 0
    if device == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device is cuda, but PyTorch {torch.__version__} sees no GPU: take --device cpu")
    known = list(dict.fromkeys(name for names in rivals(device, options.only).values() for name in names))
    for name in set(options.against) - set(known):
        parser.error(f"--against is {name!r}, expected one of {', '.join(known)}")
    return measurement(torch.device(device), options)


if __name__ == "__main__":
    sys.exit(main())
