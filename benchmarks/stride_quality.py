"""Ranking quality of shared windows beside per-target training, with paired seeds: one JSON line a run.

    python benchmarks/stride_quality.py --data ml-100k.inter --out FILE                                  # every run
    python benchmarks/stride_quality.py --data ml-100k.inter --out FILE --models SASRec --batches 50 25
    python benchmarks/stride_quality.py --data ml-100k.inter --out FILE --batches L --precision bf16  # fp32's pairs

Runs of the same model and seed start from the same weights and differ only in the batches: a window stride, or one
sequence per target. After every --every epochs both held-out parts are ranked: leave-one-out, the whole catalogue,
seen items left out. Runs that the file already holds are left out; Ctrl-C keeps what the current run has reached.

Each run records the seconds of training, evaluations left out, by two clocks: on the wall, right on a quiet machine,
and the process's CPU time, which what else runs distorts little. benchmarks/quality_report.py makes tables and figure.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import date
from pathlib import Path
from typing import Any

from fastseq._process import own_process

COMMON = {"embedding_size": 64, "reg_weight": 0.0, "weight_decay": 0.0, "learning_rate": 1e-3, "batch_size": 512}
PARAMS: dict[str, dict[str, Any]] = {
    "SASRec": {"n_layers": 2, "n_heads": 1, "inner_size": 64, "dropout_prob": 0.2, "attn_dropout_prob": 0.2}
    | {"max_seq_len": 50},
    "GRU4Rec": {"hidden_size": 64, "num_layers": 1, "dropout_prob": 0.2, "max_seq_len": 50},
    "Caser": {"n_h": 8, "n_v": 4, "dropout_prob": 0.3, "max_seq_len": 20},
}
PER_TARGET = "per target"
# Epochs of shared windows, which are cheap, and of batches where every target has a sequence of its own.
EPOCHS = {"SASRec": (40, 10), "GRU4Rec": (40, 10), "Caser": (10, 10)}


def finished(path: Path) -> dict[tuple[Any, ...], int]:
    """Epochs of every run that the file holds."""
    lines = path.read_text().splitlines() if path.exists() else []
    runs = [json.loads(line) for line in lines if line.strip()]
    return {
        (r["model"], r["batches"], r["seed"], r.get("precision", "fp32")): r["epochs"]
        for r in runs
        if r["kind"] == "run"
    }


def append(path: Path, record: dict[str, Any]) -> None:
    """One more line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def train(
    name: str, batches: int | str, seed: int, split: Any, epochs: int, every: int, precision: Any
) -> dict[str, Any]:
    """Trains one model.

    Returns:
        The record of the run: per ranked epoch the cumulated seconds of training and the scores of both parts.
    """
    from fastseq.models import MODELS
    from fastseq.training import Progress, Trainer, TrainingOptions, evaluate

    data = split.interactions
    stride = None if batches == PER_TARGET else batches
    params = COMMON | PARAMS[name] | {"neg_samples": 1, "epochs": epochs, "window_stride": stride}
    model = MODELS[name](params, {"n_users": data.n_users, "n_items": data.n_items}, seed=seed)
    curve: dict[str, list[float]] = {key: [] for key in ("epoch", "loss", "cpu_seconds", "wall_seconds")}
    clocks = {"cpu_seconds": time.process_time, "wall_seconds": time.perf_counter}
    spent = dict.fromkeys(clocks, 0.0)
    since: dict[str, float] = {}

    def ranked(progress: Progress) -> None:
        """Called after every epoch. The time of the evaluations does not count."""
        for key, clock in clocks.items():
            spent[key] += clock() - since[key]
        if progress.epoch % every == 0 or progress.epoch == epochs:
            curve["epoch"].append(progress.epoch)
            curve["loss"].append(round(progress.loss, 5))
            for key in clocks:
                curve[key].append(round(spent[key], 2))
            for part in ("validation", "test"):
                for metric, value in evaluate(model, split, part, coverage=False).metrics.items():
                    if metric in ("HR@10", "NDCG@10"):
                        curve.setdefault(f"{part} {metric}", []).append(round(value, 5))
        since.update({key: clock() for key, clock in clocks.items()})

    options = TrainingOptions(
        seed=seed,
        precision=precision,
        validation_metric=None,
        per_target=batches == PER_TARGET,
        progress_every_seconds=float("inf"),  # only after epochs
    )
    trainer = Trainer(model, split, options, on_progress=ranked)
    since.update({key: clock() for key, clock in clocks.items()})
    result = trainer.fit()
    return {
        "kind": "run",
        "model": name,
        "batches": batches,
        "seed": seed,
        "precision": precision,
        "epochs": curve["epoch"][-1] if curve["epoch"] else 0,
        "stopped": result.stopped,
        "curve": curve,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="interactions in any format fastseq reads")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; runs it holds are not repeated")
    parser.add_argument("--models", nargs="+", default=list(PARAMS), choices=list(PARAMS))
    parser.add_argument("--batches", nargs="+", help="strides, or 'L', 'per-target'; default: L, L/2, 1 and per-target")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, help=f"default, shared and single sequences: {EPOCHS}")
    parser.add_argument("--every", type=int, default=2, help="epochs between rankings")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--threads", type=int, help="default: torch's")
    chosen = parser.parse_args()
    own_process()
    import torch

    from fastseq.data import leave_one_out, read_interactions
    from fastseq.training.throughput import versions

    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    split = leave_one_out(read_interactions(chosen.data))
    about = {"data": chosen.data.name, "threads": torch.get_num_threads(), "date": date.today().isoformat()}
    about |= {"versions": versions()}
    settings: list[tuple[str, int | str]] = []
    for name in chosen.models:
        longest = PARAMS[name]["max_seq_len"]
        wanted = chosen.batches or [longest, longest // 2, 1, "per-target"]
        known = {"per-target": PER_TARGET, "L": longest}
        settings += [(name, known.get(str(b)) or int(b)) for b in wanted]
    for seed in chosen.seeds:
        for name, batches in settings:
            epochs = chosen.epochs or EPOCHS[name][batches in (1, PER_TARGET)]
            if finished(chosen.out).get((name, batches, seed, chosen.precision), 0) >= epochs:
                continue
            record = train(name, batches, seed, split, epochs, chosen.every, chosen.precision)
            if record["epochs"]:
                append(chosen.out, record | about)
            print(name, batches, seed, record["stopped"], record["epochs"], flush=True)
            if record["stopped"] == "interrupted":
                return


if __name__ == "__main__":
    main()
