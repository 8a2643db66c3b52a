"""Several hosts, by the examples' launch scripts."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from .hosts import TwoHosts, why_none
from .tiny import make_interactions

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = str(ROOT / "examples" / "torchrun.sh")


def write_config(folder: Path, epochs: int) -> str:
    data = make_interactions(n_users=60, n_items=40)
    rows = [f"{u}\t{i}\t{n}" for n, (u, i) in enumerate(zip(data.event_users, data.items, strict=True))]
    (folder / "data.tsv").write_text("\n".join(["user_id\titem_id\ttimestamp", *rows]) + "\n")
    model: dict[str, Any] = {"embedding_size": 16, "n_layers": 1, "n_heads": 2, "inner_size": 32, "max_seq_len": 10}
    model |= {"dropout_prob": 0.0, "attn_dropout_prob": 0.0, "weight_decay": 0.0, "reg_weight": 0.01, "neg_samples": 1}
    model |= {"batch_size": 64, "epochs": epochs, "learning_rate": 0.01}
    config = {
        "reader": {"local_path": str(folder / "data.tsv")},
        "models": {"SASRec": model | {"optimization": {"optimizer": {"name": "Adam", "updates": "rows"}}}},
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    return str(folder / "config.yaml")


@pytest.mark.slow
@pytest.mark.skipif(why_none() is not None, reason=f"no network namespaces here: {why_none()}")
def test_two_hosts_train_as_one_and_neither_outlives_the_other(tmp_path: Path) -> None:
    environment = {"PYTHON": sys.executable, "MASTER": "hosta:29500", "OMP_NUM_THREADS": "1"}
    environment |= {"FASTSEQ_SILENT_SECONDS": "10", "PYTHONPATH": str(ROOT)}
    by_hand = {"WORLD_SIZE": "2", "MASTER_ADDR": "hosta", "MASTER_PORT": "29500"}
    with ExitStack() as stack:
        hosts, running = {}, {}
        for case in ("whole", "killed", "cut"):  # at once: their ports are their own
            (folder := tmp_path / case).mkdir()
            hosts[case] = stack.enter_context(TwoHosts(folder))
            config = write_config(folder, 4 if case == "whole" else 100_000)
            train = ["-m", "fastseq.cli", "train", config, "--out", str(folder / "runs")]
            running[case] = []
            for rank, name in enumerate(("hosta", "hostb")):
                command, settings = ["bash", LAUNCH, *train[3:]], environment
                if case == "cut":  # without torchrun, which waits for long where it is cut off from its store
                    command, settings = [sys.executable, *train], settings | by_hand | {"RANK": str(rank)}
                running[case].append(hosts[case].start(name, command, folder / name, settings))
        alone = [sys.executable, "-m", "fastseq.cli", "train", str(tmp_path / "whole/config.yaml")]
        subprocess.run([*alone, "--out", str(tmp_path / "alone")], check=True, capture_output=True, cwd=ROOT)

        def said(case: str, name: str) -> str:
            return (tmp_path / case / name).read_text()

        for case in ("killed", "cut"):
            metrics = next(iter(tmp_path.glob(f"{case}/runs/**/metrics.jsonl")), None)
            deadline = time.monotonic() + 120
            while metrics is None or not metrics.stat().st_size:
                assert time.monotonic() < deadline and running[case][0].poll() is None, said(case, "hosta")
                time.sleep(0.1)
                metrics = next(iter(tmp_path.glob(f"{case}/runs/**/metrics.jsonl")), None)
        hosts["killed"].kill("hostb")
        hosts["cut"].cut()
        assert [process.wait(120) for process in running["whole"]] == [0, 0], said("whole", "hosta")
        for process, case, name, told in (
            (running["killed"][0], "killed", "hosta", r"no sign of life from rank \d on hostb for \d+ s"),
            (running["cut"][0], "cut", "hosta", r"no sign of life from rank 1 on hostb for \d+ s"),
            (running["cut"][1], "cut", "hostb", "rank 1 on hostb: the store at hosta:29500.*is out of reach"),
        ):
            assert process.wait(60) == 1
            assert re.search(f"^fastseq: {told}", said(case, name), re.MULTILINE), said(case, name)
    one, two = (next(tmp_path.glob(f"{name}/**/best.safetensors")) for name in ("alone", "whole"))
    expected, weights = load_file(one), load_file(two)
    assert weights.keys() == expected.keys()
    for key, tensor in expected.items():
        shown = slice(None)
        if key.endswith("in_proj_bias"):  # that of the keys has no gradient but rounding
            shown = torch.arange(len(tensor)) // (len(tensor) // 3) != 1
        torch.testing.assert_close(weights[key][shown], tensor[shown], rtol=1e-5, atol=1e-6, msg=key)


def test_launch_scripts(tmp_path: Path) -> None:
    """Slurm's tools as far as the script needs them: each host would run the same command."""
    for script in ROOT.glob("examples/*.s*"):
        subprocess.run(["bash", "-n", str(script)], check=True)
    for name, body in (("scontrol", "printf 'first\\nsecond\\n'"), ("srun", 'shift; exec "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "x", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_JOB_ID": "12345"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "echo"}
    command = ["bash", "examples/slurm.sbatch", "config.yaml", "--resume"]
    told = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True).stdout
    expected = (
        "-m torch.distributed.run --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-id 12345 "
        "--rdzv-endpoint first:22345 --rdzv-conf join_timeout=60 -m fastseq.cli train config.yaml --resume"
    )
    assert told.strip() == expected
