"""Bytes that really go over the wire in a training step of several processes on one machine.

    python -m benchmarks.wire --items 1000000 --d 64        # two processes over gloo, SASRec, bpr, 1 negative

All processes run in a network namespace of their own (no rights needed, Linux), so that its loopback counts what they
send each other and nothing else: rows, dense gradients and flags, with the headers of TCP and IP and acknowledgements.
Prints one JSON line: bytes a step and process, those of the rows that a process touches (ids and gradients), the ratio.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fastseq._process import own_process

own_process()

import torch  # noqa: E402

from fastseq.data.split import Split  # noqa: E402
from fastseq.data.synthetic import make_long_tail  # noqa: E402
from fastseq.models import MODELS  # noqa: E402
from fastseq.training import rows  # noqa: E402
from fastseq.training.loop import Trainer, TrainingOptions  # noqa: E402
from fastseq.training.throughput import reference_params, versions  # noqa: E402

WARMUP = 3  # steps before the count


def sent() -> int:
    """Bytes that the loopback of this namespace has carried."""
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return next(int(line.split()[9]) for line in lines if line.split()[0] == "lo:")


class Counted(Trainer):
    """Takes ``steps`` steps; the first process prints what they sent."""

    steps_counted: int
    touched: list[int]

    def _step(self, work: Any) -> None:
        super()._step(work)
        if self.state.step == WARMUP:
            self.ranks.wait()
            self.before = sent()
            self.touched.clear()
        elif self.state.step == WARMUP + self.steps_counted:
            self.ranks.wait()
            width = self.model.item_embedding.weight.shape[1]
            steps, processes = self.steps_counted, self.ranks.world_size
            sizes = self.ranks.sum(torch.tensor(sum(self.touched))).item()
            on_wire = (sent() - self.before) / steps / processes
            of_rows = sizes * (width * 4 + 8) / steps / processes
            if self.ranks.is_first:
                told = {
                    "items": self.model.n_items,
                    "d": width,
                    "processes": processes,
                    "targets_a_batch": self.model.batch_size,
                    "rows_a_process": round(sizes / steps / processes),
                    "bytes_of_touched_rows": round(of_rows),
                    "bytes_sent": round(on_wire),
                    "ratio": round(on_wire / of_rows, 3),
                    "table_bytes": self.model.item_embedding.weight.nbytes,
                    **versions(),
                }
                print(json.dumps(told), flush=True)
            self.ranks.wait()
            self.ranks.leave()
            os._exit(0)


def train(rank: int, args: argparse.Namespace) -> None:
    """One process of the training."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(args.processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "lo"}
    torch.set_num_threads(1)
    data = make_long_tail(args.items, n_events=max(args.events, args.items))
    split = Split(data, data.offsets[1:], data.offsets[1:])
    params = reference_params("SASRec", 50) | {"embedding_size": args.d, "batch_size": args.batch_size}
    model = MODELS["SASRec"](params, {"n_users": data.n_users, "n_items": data.n_items})
    trainer = Counted(model, split, TrainingOptions(updates="rows", validation_metric=None))
    trainer.steps_counted, trainer.touched = args.steps, []
    of_all = rows._Touched.of_all

    def counted(self: Any, ranks: Any) -> Any:
        trainer.touched.append(self.ids.shape[0])
        return of_all(self, ranks)

    rows._Touched.of_all = counted  # type: ignore[method-assign]
    trainer.fit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=1_500_000)
    parser.add_argument("--d", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.inside:
        inside = 'ip link set lo up && exec "$0" -m benchmarks.wire --inside "$@"'
        sys.exit(subprocess.call(["unshare", "-rn", "sh", "-c", inside, sys.executable, *sys.argv[1:]]))
    context = multiprocessing.get_context("fork")  # nothing runs here yet
    processes = [context.Process(target=train, args=(rank, args)) for rank in range(args.processes)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in processes))


if __name__ == "__main__":
    main()
