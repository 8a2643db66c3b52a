"""Recommendations as a table, in blocks and into files, beside plain ``recommend``: rows a second, and memory.

    python -m benchmarks.recommend_table --users 20000,80000
    python -m benchmarks.recommend_table --users 1000000 --only parquet --rounds 1

Generated histories of 10 events, GRU4Rec of width 32, untrained: what the table costs shows beside a quick model. Each
figure is the median of the rounds with its extremes; what is compared takes turns within a round. ``recommend`` gets
its histories as lists, which were made before. Memory is the peak above what the process had before. Prints a JSON line
for each number of users.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fastseq._process import own_process

own_process()

from benchmarks.measure import ratios, seconds, spread  # noqa: E402
from fastseq import Catalogue, GRU4Rec, Recommendations, recommendations  # noqa: E402
from fastseq._process import peak_rss_mb, reset_peak_rss, rss  # noqa: E402
from fastseq.data import make_long_tail  # noqa: E402
from fastseq.data.tables import WRITERS  # noqa: E402
from fastseq.training.throughput import versions  # noqa: E402

K, LENGTH = 10, 10
PARAMS = {"embedding_size": 32, "hidden_size": 32, "num_layers": 1, "dropout_prob": 0.2, "weight_decay": 0.0}
PARAMS |= {"learning_rate": 0.001, "epochs": 1, "neg_samples": 1, "max_seq_len": 20}


def drained(table: Recommendations) -> int:
    """Rows of the table, which are made and dropped."""
    return sum(len(block.user) for block in table)


def measure(users: int, items: int, rounds: int, only: list[str]) -> dict[str, Any]:
    data = make_long_tail(items, users, LENGTH * users)
    model = GRU4Rec(PARAMS, {"n_users": users, "n_items": items})
    model.catalogue = Catalogue(data.item_ids, data.user_ids)
    table = recommendations(model, data, K)
    times: dict[str, list[float]] = {name: [] for name in only}
    memory: dict[str, list[float]] = {name: [] for name in only}
    with tempfile.TemporaryDirectory() as folder:
        calls: dict[str, Callable[[], Any]] = {"blocks": partial(drained, table)}
        for extension in WRITERS:
            target = Path(folder) / f"table{extension}"
            calls[extension[1:]] = partial(table.write, target, overwrite=True)
        if "recommend" in only:
            histories = [data.history(user) for user in data.user_ids.decode(range(users))]
            calls["recommend"] = partial(model.recommend, histories, K)
        recommendations(model, data, K, users=list(range(600))).write(Path(folder) / "warm.parquet")
        for _ in range(rounds):
            for name in only:
                before = rss() / 1e6
                reset_peak_rss()
                times[name].append(seconds(calls[name]))
                memory[name].append(peak_rss_mb() - before)
    rows = users * K  # of so many items nobody has seen all but k
    result: dict[str, Any] = {"users": users, "items": items, "rows": rows}
    for name in only:
        result[name] = {
            "rows_per_second": spread([rows / each for each in times[name]], 0),
            "memory_mb": spread(memory[name], 1),
        }
        if "recommend" in times:
            result[name]["speed_to_recommend"] = ratios(times["recommend"], times[name])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", default="20000,80000", help="numbers, by comma")
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="recommend,blocks,csv,parquet,jsonl", help="what to measure, by comma")
    args = parser.parse_args()
    for users in map(int, args.users.split(",")):
        print(json.dumps(measure(users, args.items, args.rounds, args.only.split(",")) | {"versions": versions()}))


if __name__ == "__main__":
    main()
