"""Seconds and peak memory of reading a CSV of integers (user, item, timestamp) to a ready tape.

    python benchmarks/read_csv.py [--rows 20000000] [--users 138000] [--items 27000] [--order shuffled|by-user|by-time]

The file is generated (seeded) in a temporary folder and read once in a fresh process, whose peak resident memory
includes the interpreter and its libraries. Prints one JSON line; cpu_seconds, the processor time of all threads, says
whether the machine was busy with something else.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

READ = """
import json, resource, sys, time
from fastseq.data.readers import read_interactions
import_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
begin, cpu = time.perf_counter(), time.process_time()
data = read_interactions(sys.argv[1])
seconds, cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu
peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"users": data.n_users, "items": data.n_items, "events": data.n_events, "seconds": round(seconds, 2),
                  "cpu_seconds": round(cpu_seconds, 2), "peak_rss_mb": round(peak_mb),
                  "import_rss_mb": round(import_mb)}))
"""


def write_csv(path: Path, rows: int, users: int, items: int, order: str) -> None:
    """``rows`` lines under a header, in pieces that bound memory."""
    rng = np.random.default_rng(0)
    with open(path, "w") as file:
        file.write("user_id,item_id,timestamp\n")
        for start in range(0, rows, 1_000_000):
            n = min(1_000_000, rows - start)
            columns = np.empty((n, 3), np.int64)
            if order == "by-user":
                columns[:, 0] = (start + np.arange(n)) * users // rows
            else:
                columns[:, 0] = rng.integers(users, size=n)
            columns[:, 1] = (items * rng.random(n) ** 3).astype(np.int64)
            if order == "by-time":
                columns[:, 2] = 1_000_000_000 + start + np.arange(n)
            else:
                columns[:, 2] = rng.integers(1_000_000_000, 1_600_000_000, size=n)
            file.writelines(f"{user},{item},{time}\n" for user, item, time in columns.tolist())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--users", type=int, default=138_000)
    parser.add_argument("--items", type=int, default=27_000)
    parser.add_argument("--order", choices=["shuffled", "by-user", "by-time"], default="shuffled")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.csv"
        write_csv(path, args.rows, args.users, args.items, args.order)
        size = path.stat().st_size
        run = subprocess.run([sys.executable, "-c", READ, str(path)], check=True, capture_output=True, text=True)
    columns = args.rows * 3 * 8
    result = {"rows": args.rows, "order": args.order, "file_mb": round(size / 2**20), **json.loads(run.stdout)}
    result |= {"bytes_of_columns": columns, "ratio": round(result["peak_rss_mb"] * 2**20 / columns, 2)}
    print(json.dumps(result | {"cpus": os.cpu_count()}))


if __name__ == "__main__":
    main()
