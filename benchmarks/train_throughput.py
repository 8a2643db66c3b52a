"""Training throughput of one model: one JSON line.

    python benchmarks/train_throughput.py --model SASRec --data FILE --max-len 200 --json

The loop measured is that of `fastseq train`: loader, sampling, forward, backward, optimizer, in the seed's
configuration with all its dropouts, reg_weight 0; fp32 and stride max_len unless named.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from fastseq._process import own_process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, choices=("SASRec", "GRU4Rec", "Caser"))
    parser.add_argument("--data", type=Path, help="interactions in any format fastseq reads; default: the demo data")
    parser.add_argument("--max-len", type=int, help="default: 200, Caser 20")
    parser.add_argument("--stride", type=int, help="window stride; default: max-len")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--loss", choices=("bpr", "bce", "gbce", "sampled_softmax", "cross_entropy"))
    parser.add_argument("--batch-size", type=int, default=2048, help="targets of one optimizer step")
    parser.add_argument("--per-target", action="store_true", help="WarpRec's own batches: one sequence per target")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds of a first run, not counted; 0 for memory")
    parser.add_argument("--json", action="store_true", help="one JSON line")
    chosen = parser.parse_args()
    own_process()
    from fastseq.errors import ConfigError, DataError
    from fastseq.training.throughput import train_throughput

    try:
        figures = train_throughput(
            chosen.model,
            chosen.data,
            chosen.max_len,
            chosen.stride,
            batch_size=chosen.batch_size,
            loss=chosen.loss,
            precision=chosen.precision,
            per_target=chosen.per_target,
            seconds=chosen.seconds,
            warmup_seconds=chosen.warmup,
        )
    except (ConfigError, DataError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(json.dumps(figures, indent=None if chosen.json else 2))


if __name__ == "__main__":
    main()
