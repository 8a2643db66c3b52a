"""Throughput and latency of `recommend` for one model: one JSON line.

python benchmarks/predict_throughput.py --model SASRec --data FILE --max-len 50 --json
python benchmarks/predict_throughput.py --model SASRec --data FILE --max-len 50 --batch-size 1 --json
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
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=512, help="histories of one call; 1 measures latency")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", action="store_true", help="one JSON line")
    chosen = parser.parse_args()
    own_process()
    from fastseq.errors import ConfigError, DataError
    from fastseq.training.throughput import predict_throughput

    try:
        figures = predict_throughput(
            chosen.model, chosen.data, chosen.max_len, k=chosen.k, batch_size=chosen.batch_size, seconds=chosen.seconds
        )
    except (ConfigError, DataError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(json.dumps(figures, indent=None if chosen.json else 2))


if __name__ == "__main__":
    main()
