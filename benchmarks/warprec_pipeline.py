"""WarpRec's own pipelines with its model and with fastseq's, in turn: seconds from start to end, and NDCG@10.

    .venv-warprec/bin/python -m benchmarks.warprec_pipeline --data ml-100k.inter --model SASRec
    .venv-warprec/bin/python -m benchmarks.warprec_pipeline --data ml-100k.inter --model SASRec --pipeline design \\
        --sides windows exact --seeds 1 2 3
    .venv-warprec/bin/python -m benchmarks.warprec_pipeline --data ml-100k.inter --model GRU4Rec --pipeline design \\
        --sides warprec exact --threads 1 --epochs 2 --set max_seq_len=20 batch_size=8192 embedding_size=64 \\
        hidden_size=128 dropout_prob=0.1 weight_decay=0 neg_samples=1     # WarpRec's paper configuration

Each run is a fresh process: imports, reading, splitting, Ray, training, validation, test, writing. Sides: warprec;
exact (fastseq, WarpRec's own batches); windows (fastseq, window_stride = max_seq_len). fastseq comes in as a custom
module, or with --install by fastseq.warprec.install() before WarpRec starts. Prints one JSON line a run, then medians
over the seeds beside WarpRec's, and the range of NDCG@10. processor_s and memory_gb are sums over all processes of a
run, Ray's among them, sampled every second: the memory is the largest sum of their proportional set sizes.

`train` also says where its time went, by WarpRec's own time report: train_s, the training epochs alone, and floor_s,
all the rest. No model can make the pipeline faster than that. `design` trains without Ray and search: for NDCG@10 of
many seeds, and for training_processor_s, processor seconds from the split to the end of training. Ray's workers get no
lower priority than other processes, on any side; on an idle machine that changes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import yaml

from benchmarks.measure import output, seconds
from fastseq.training.throughput import REFERENCE_CONFIGURATIONS

SIDES = ["windows", "exact", "warprec"]
MAX_LEN, BATCH_SIZE = 50, 2048
MARK = "FASTSEQ_PIPELINE_RUN"  # in the environment of a run's processes
INSTALLED = """
import fastseq.warprec, runpy
fastseq.warprec.install()
runpy.run_module("warprec.run", run_name="__main__")
"""
TRAINING = "Best Trial Train-Only Time (s)"  # in WarpRec's time report
# Writes the test's metrics, which `design` only prints.
CALLBACK = """
import json, time
from warprec.utils.callback import WarpRecCallback

class Keep(WarpRecCallback):
    def on_dataset_creation(self, *args, **kwargs):
        self.start = time.process_time()

    def on_training_complete(self, *args, **kwargs):
        self.training = time.process_time() - self.start

    def on_evaluation_complete(self, model, params, results, *args, **kwargs):
        metrics = {f"{name}@{k}": float(value.nanmean()) for k, row in results.items() for name, value in row.items()}
        metrics["training_processor_s"] = self.training
        with open("metrics.json", "w") as file:
            json.dump(metrics, file)
"""


def configuration(args: argparse.Namespace, side: str, seed: int) -> dict[str, Any]:
    """A configuration of the reference model, for either pipeline: that of the tests, with other models."""
    from tests.warprec import real  # needs WarpRec

    params = REFERENCE_CONFIGURATIONS[args.model] | {
        "learning_rate": 0.001,
        "reg_weight": 0.0,
        "batch_size": BATCH_SIZE,
        "max_seq_len": MAX_LEN,
        "optimization": {"properties": {"seed": seed}},
    }
    params |= {key: yaml.safe_load(value) for key, _, value in (change.partition("=") for change in args.set)}
    if args.epochs is not None:
        params["epochs"] = args.epochs
    if side == "windows":
        params["window_stride"] = params["max_seq_len"]
    general: dict[str, Any] = {"ray_address": "local"}
    if args.pipeline == "design":
        general = {"callback": {"callback_path": "keep.py", "callback_name": "Keep"}}
    if side != "warprec" and not args.install:
        import fastseq.warprec

        general["custom_modules"] = [str(fastseq.warprec.custom_module())]
    return real.configuration(args.data.resolve(), {args.model: params}, []) | {"general": general}


def run(args: argparse.Namespace, side: str, seed: int) -> dict[str, Any]:
    """One pipeline in a process and folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.yaml").write_text(yaml.safe_dump(configuration(args, side, seed), sort_keys=False))
        (folder / "keep.py").write_text(CALLBACK)
        start = ["-c", INSTALLED] if args.install and side != "warprec" else ["-m", "warprec.run"]
        command = [sys.executable, *start, "-c", "config.yaml", "-p", args.pipeline]
        waiting = {"RAY_worker_niceness": "0", "RAY_health_check_failure_threshold": "1000", MARK: name}
        if args.threads is not None:
            waiting["OMP_NUM_THREADS"] = str(args.threads)
        with Consumption(name) as consumed:
            total = seconds(lambda: list(output(command, folder, **waiting)))
        figures = {"side": side, "model": args.model, "seed": seed, "total_s": round(total, 1)}
        figures |= {
            "processor_s": round(sum(consumed.seconds.values()), 1),
            "memory_gb": round(consumed.memory / 1e9, 2),
        }
        if args.pipeline == "design":
            return figures | json.loads((folder / "metrics.json").read_text())
        training = float(table(folder, "Time_Report")[TRAINING])
        figures |= {"train_s": round(training, 2), "floor_s": round(total - training, 1)}
        return figures | {"nDCG@10": float(table(folder, "Overall_Results")["nDCG"])}


class Consumption(threading.Thread):
    """While this context lasts, what the processes consume whose environment has ``MARK`` as ``mark`` (Linux).

    Attributes:
        seconds: processor seconds, user and system, by process.
        memory: bytes, the largest sum so far.
    """

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self.mark = f"{MARK}={mark}".encode()
        self.seconds: dict[str, float] = {}
        self.memory = 0
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(1):
            memory = 0
            for process in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):  # it ended, or is another user's
                    if self.mark not in (process / "environ").read_bytes().split(b"\0"):
                        continue
                    user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
                    self.seconds[process.name] = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
                    memory += 1024 * int((process / "smaps_rollup").read_text().partition("Pss:")[2].split()[0])
            self.memory = max(self.memory, memory)

    def __enter__(self) -> Consumption:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()


def table(folder: Path, kind: str) -> dict[str, str]:
    """The one row of a table that WarpRec wrote, by column."""
    (path,) = folder.rglob(f"{kind}_*.tsv")
    header, row = (line.split("\t") for line in path.read_text().splitlines())
    return dict(zip(header, row, strict=True))


def main() -> None:
    """Seeds of all sides in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a RecBole .inter file with ratings and timestamps")
    parser.add_argument("--model", choices=sorted(REFERENCE_CONFIGURATIONS), default="SASRec")
    parser.add_argument("--pipeline", choices=("train", "design"), default="train")
    parser.add_argument("--epochs", type=int, help="default: the reference configuration's")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes of hyper-parameters")
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own choice")
    parser.add_argument("--install", action="store_true", help="fastseq.warprec.install() in place of custom_modules")
    parser.add_argument("--seeds", nargs="+", type=int, default=[42])
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    args = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in args.sides}
    for seed in args.seeds:
        for side in args.sides:
            runs[side].append(run(args, side, seed))
            print(json.dumps(runs[side][-1]), flush=True)
    medians = {
        side: {key: statistics.median(r[key] for r in results) for key in results[0] if key.endswith(("_s", "_gb"))}
        for side, results in runs.items()
    }
    for side, times in medians.items():
        ranked = sorted(result["nDCG@10"] for result in runs[side])
        text = f"{args.model} {side}: nDCG@10 {statistics.mean(ranked):.4f} ({ranked[0]:.4f} to {ranked[-1]:.4f})"
        for key, ours in times.items():
            text += f", {key} {ours:.1f}"
            if "warprec" in medians and side != "warprec":
                # With no training at all, a pipeline would take its floor: no model can be faster than that.
                other = "total_s" if key == "floor_s" else key
                theirs = medians["warprec"][other]
                text += f" against {other} {theirs:.1f}, {theirs / ours:.2f} times ours"
        print(text)


if __name__ == "__main__":
    main()
