"""One training step of every op in tiny sizes: what compute-sanitizer watches.

python -m tests.gpu.small [--only gru ...] [--device cuda|cpu] [--dtypes float32 bfloat16]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

from benchmarks.ops.case import BFLOAT16, FLOAT32
from benchmarks.ops.check import Prepared
from benchmarks.ops.suite import FILES, tiny


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FILES, default=[])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--dtypes", nargs="+", default=[FLOAT32, BFLOAT16])
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device is cuda, but PyTorch {torch.__version__} sees no GPU: take --device cpu")
    torch.manual_seed(0)
    for case in tiny(device, options.only):
        for dtype in options.dtypes:
            Prepared(case, "fastseq", dtype).once()
            print(case.op, case.shape, dtype, flush=True)
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
