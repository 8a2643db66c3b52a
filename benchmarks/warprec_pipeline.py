"""WarpRec's own `train` pipeline with its model and with fastseq's, in turn: seconds from start to end, all included.

    .venv-warprec/bin/python benchmarks/warprec_pipeline.py --data ml-100k.inter --model SASRec --epochs 1

Each run is a fresh process: imports, reading, splitting, Ray, training, validation, test, writing. "train" is what
WarpRec itself reports for the training epochs alone. Sides: warprec; exact (fastseq, WarpRec's own batches); windows
(fastseq, window_stride = max_seq_len). Prints one JSON line a run, and the ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from fastseq.bench import SEED_CONFIGURATIONS


def configuration(chosen: argparse.Namespace, side: str) -> dict[str, Any]:
    """A `train` configuration of the seed's model."""
    params = SEED_CONFIGURATIONS[chosen.model] | {
        "learning_rate": 0.001,
        "reg_weight": 0.0,
        "batch_size": chosen.batch_size,
        "max_seq_len": chosen.max_len,
        "epochs": chosen.epochs,
    }
    if side == "windows":
        params["window_stride"] = chosen.max_len
    general: dict[str, Any] = {"ray_address": "local"}
    if side != "warprec":
        import fastseq.warprec

        general["custom_modules"] = [str(fastseq.warprec.custom_module())]
    one_out = {"strategy": "temporal_leave_k_out", "k": 1}
    return {
        "reader": {
            "loading_strategy": "dataset",
            "data_type": "transaction",
            "reading_method": "local",
            "rating_type": "explicit",
            "local_path": str(chosen.data.resolve()),
            "labels": {
                "user_id_label": "user_id:token",
                "item_id_label": "item_id:token",
                "rating_label": "rating:float",
                "timestamp_label": "timestamp:float",
            },
            "dtypes": {"timestamp_type": "float64"},
        },
        "writer": {"dataset_name": "data", "writing_method": "local", "local_experiment_path": "runs"},
        "splitter": {"test_splitting": one_out, "validation_splitting": one_out},
        "models": {chosen.model: params},
        "evaluation": {"top_k": [10], "metrics": ["nDCG"], "validation_metric": "nDCG@10"},
        "general": general,
    }


def run(chosen: argparse.Namespace, side: str) -> dict[str, Any]:
    """One pipeline in a process and folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(yaml.safe_dump(configuration(chosen, side), sort_keys=False))
        start = time.perf_counter()
        command = [sys.executable, "-m", "warprec.run", "-c", path.name, "-p", "train"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{side} failed:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        results = [json.loads(line) for found in Path(folder).rglob("result.json") for line in found.open()]
        if not results:
            raise SystemExit(f"{side} reported no epoch:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return {
            "side": side,
            "model": chosen.model,
            "epochs": chosen.epochs,
            "max_len": chosen.max_len,
            "total_s": round(seconds, 1),
            "train_s": round(sum(result["epoch_train_s"] for result in results), 2),
            "nDCG@10": results[-1]["nDCG@10"],
        }


def main() -> None:
    """Rounds of all sides in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a RecBole .inter file with ratings and timestamps")
    parser.add_argument("--model", choices=sorted(SEED_CONFIGURATIONS), default="SASRec")
    parser.add_argument("--max-len", type=int, default=50)
    parser.add_argument("--batch-size", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--sides", nargs="+", default=["windows", "exact", "warprec"])
    chosen = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(chosen.rounds):
        for side in chosen.sides:
            found.setdefault(side, []).append(run(chosen, side))
            print(json.dumps(found[side][-1]), flush=True)
    if "warprec" in found:
        for key in ("total_s", "train_s"):
            theirs = statistics.median(result[key] for result in found["warprec"])
            for side in chosen.sides:
                if side != "warprec":
                    ours = statistics.median(result[key] for result in found[side])
                    print(
                        f"{chosen.model} {side}: {key} {ours:g} against {theirs:g}, {theirs / ours:.1f} times as fast"
                    )


if __name__ == "__main__":
    main()
