"""benchmarks/gpu_check.sh without a GPU: its arguments, how it goes on, reports and ends, with stand-ins for tools."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu_check
from benchmarks.ops.report import document
from benchmarks.ops.run import Result

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
STAGES = [
    "machine", "build", "first", "parity", "gpu_tests", "op_tests", "memcheck", "speed", "speed_large", "peer", "ops",
    "fit", "speed_types", "cross_entropy", "peer_compiled", "racecheck", "ops_compiled",
]  # fmt: skip

# What gpu_check.sh asks of its interpreter, answered without a GPU. MISSING is a module that is not there.
PYTHON = """#!/bin/bash
case "$*" in
  *"find_spec('$MISSING')"*) exit 1 ;;
  *"print(max"* | *"gpu_check summary"*) exec "{python}" "$@" ;;
  *"-m pytest"*tests/ops*) echo "=== 1 failed, 2 passed in 0.10s ==="; exit 1 ;;
  *"-m pytest"*) echo "${GPU_TESTS:-3 passed in 0.20s}" ;;
  *"gpu_check parity"*)
    echo "ValueError: \\"quoted\\" \\\\ words"
    if [[ ${HANG:-} ]]; then trap "echo its last words; exit 130" INT; sleep 60 & wait; fi ;;
  *benchmarks.ops*) cat "{ops}" ;;
esac
"""
SANITIZER = """#!/bin/bash
echo "========= ERROR SUMMARY: 0 errors"
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    tools, ops = tmp_path / "tools", tmp_path / "ops.json"
    tools.mkdir()
    medians = {"fastseq": 0.002, "eager": 0.005, "nested": 0.004, "flex": None}
    rows = [Result("gru", "[2, 3]", "forward", "float32", "cuda", name, median) for name, median in medians.items()]
    ops.write_text(json.dumps(document(rows, {})))
    for name, text in (("python", PYTHON), ("compute-sanitizer", SANITIZER)):
        (tools / name).write_text(text.replace("{python}", sys.executable).replace("{ops}", str(ops)))
        (tools / name).chmod(0o755)
    return os.environ | {
        "PYTHON": str(tools / "python"),
        "PATH": f"{tools}:{os.environ['PATH']}",
        "MISSING": "nothing",
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
    }


def check(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def verdicts(out: Path) -> dict[str, str]:
    facts = [json.loads(line) for line in (out / "facts.jsonl").read_text().splitlines()]
    return {fact["stage"]: fact["verdict"] for fact in facts if "verdict" in fact}


def test_arguments(environment: dict[str, str], tmp_path: Path) -> None:
    assert check(environment, "--list").stdout.split() == STAGES
    shown = check(environment, "--help").stdout
    assert "--out DIR" in shown and "Exit status" in shown and "set -uo" not in shown
    for arguments, message in (
        (["--only", "slow"], "--only is 'slow', expected one of: machine build"),
        (["--out"], "--out needs a folder"),
        (["--device", "tpu"], "--device is 'tpu', expected cuda or cpu"),
        (["--data", "/none.txt"], "the data is '/none.txt', which is no file"),
        (["--fast"], "'--fast' is no option"),
    ):
        done = check(environment, *arguments)
        assert done.returncode == 2 and message in done.stderr
    lines = [line for line in check(environment, "--dry-run").stdout.splitlines() if ": " in line]
    assert [line.split()[0].rstrip(":") for line in lines] == STAGES
    assert "tests/gpu" in lines[4] and "inductor" in lines[4] and "--tool racecheck" in lines[15]
    assert "triton or segments or test_kernels" in lines[5]
    one = check(environment, "--dry-run", "--only", "ops_compiled", "--device", "cpu", "--out", tmp_path / "out").stdout
    assert one.splitlines()[1:] == ["ops_compiled: skipped, needs a GPU"] and not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_is_said_at_once(environment: dict[str, str]) -> None:
    done = check(environment | {"PYTHON": sys.executable})
    assert done.returncode == 2 and "PyTorch sees no GPU" in done.stderr and "==" not in done.stdout


@pytest.mark.slow
def test_a_stage_that_fails_does_not_stop_the_others(environment: dict[str, str], tmp_path: Path) -> None:
    """And of what lies there the last run's files alone are removed."""
    out, logs = tmp_path / "out", tmp_path / "logs"
    environment["LOGS"] = str(logs)
    for folder, name in ((out, "data.json"), (out, "ops.json"), (logs, "notes.log"), (logs, "gpu_tests.log")):
        folder.mkdir(exist_ok=True)
        (folder / name).write_text("before")
    done = check(environment, "--out", out)
    assert done.returncode == 1, done.stderr
    ended = verdicts(out)
    assert sorted(ended) == sorted(STAGES)
    others = {name: verdict for name, verdict in ended.items() if verdict != "passed"}
    assert others == {"build": "skipped", "op_tests": "failed"}
    summary = (out / "summary.txt").read_text()
    assert "FAILED op_tests: verdict failed" in summary and "1 failed, 2 passed in 0.10s" in summary
    assert "ops.json, worst ratios: gru 2.00× of 1" in summary and summary in done.stdout
    assert (out / "data.json").read_text() == (logs / "notes.log").read_text() == "before"
    assert "before" not in (out / "ops.json").read_text() + (logs / "gpu_tests.log").read_text()


@pytest.mark.slow
def test_a_stage_that_takes_too_long_says_its_last_words(environment: dict[str, str], tmp_path: Path) -> None:
    """Also in the background, where the shell would have it ignore the signal."""
    environment |= {"HANG": "1", "STAGE_SECONDS": "0.02"}
    done = check(environment, "--out", tmp_path / "out", "--only", "parity")
    assert done.returncode == 1 and verdicts(tmp_path / "out") == {"parity": "timeout"}
    logs = ["tar", "xzOf", str(tmp_path / "out" / "logs.tgz"), "./parity.log"]
    assert subprocess.run(logs, capture_output=True, text=True).stdout.endswith("its last words\n")
    assert "FAILED parity: verdict timeout, seconds" in done.stdout and "ValueError: quoted  words" in done.stdout


@pytest.mark.slow
def test_tests_that_all_skip_prove_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    only = ("--out", tmp_path / "out", "--only", "gpu_tests")
    done = check(environment | {"GPU_TESTS": "231 skipped in 1.32s"}, *only)
    assert done.returncode == 1 and "gpu_tests: failed" in done.stdout and "nothing ran: 231 skipped" in done.stdout
    some = check(environment | {"GPU_TESTS": "9 passed, 1 skipped in 1s"}, *only)
    assert some.returncode == 0, some.stdout + some.stderr


@pytest.mark.slow
def test_what_is_missing_is_named_and_the_rest_runs(environment: dict[str, str], tmp_path: Path) -> None:
    tools, out = tmp_path / "tools", tmp_path / "out"
    (tools / "compute-sanitizer").unlink()
    # Nothing else may be on PATH: a machine with a CUDA toolkit has the tool there.
    needed = "bash cut dirname env flock grep gzip mkdir realpath rm sed tail tar tee timeout tr"
    for name in needed.split():
        (tools / name).symlink_to(shutil.which(name) or name)
    (tools / "ls").write_text("#!/bin/bash\nexit 2\n")
    (tools / "ls").chmod(0o755)
    only = ("--only", "gpu_tests", "--only", "memcheck", "--only", "first")
    done = check(environment | {"PATH": str(tools), "MISSING": "hypothesis"}, "--out", out, *only)
    assert done.returncode == 1, done.stdout + done.stderr
    assert verdicts(out) == {"gpu_tests": "missing", "memcheck": "missing", "first": "passed"}
    assert "compute-sanitizer is neither on PATH nor in a CUDA toolkit" in done.stdout
    assert "gpu_tests: missing, 0 s" in done.stdout and "hypothesis (pip install hypothesis)" in done.stdout


def test_a_measurement_that_fails_is_a_fact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "facts.jsonl"

    def broken(model: str) -> dict[str, Any]:
        raise RuntimeError("no such\nkernel")

    def speed(model: str) -> dict[str, Any]:
        return {"targets_per_s": 12, "top": [1]}

    assert not gpu_check.measure(broken, path, {"model": "Caser"})
    assert gpu_check.measure(speed, path, {"model": "SASRec"})
    first, second = [json.loads(line) for line in path.read_text().splitlines()]
    assert first["failed"] == "RuntimeError: no such\nkernel" and "test_gpu_check.py" in first["at"]
    assert second["model"] == "SASRec" and second["targets_per_s"] == 12
    capsys.readouterr()
    assert not gpu_check.summary(path)
    text = capsys.readouterr().out
    assert "FAILED broken Caser: failed RuntimeError" in text and "speed SASRec: targets_per_s 12, took_s" in text


def test_facts_become_a_file_and_a_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The section of an earlier run is replaced, and nothing else."""
    facts, document = tmp_path / "facts.jsonl", tmp_path / "results.md"
    about = {"device": "NVIDIA H200", "cores": 16, "python": "3.12", "torch": "2.11", "triton": "3.6", "fastseq": "1"}
    step = {"stage": "speed", "model": "Caser", "batch": 2048, "precision": "fp32", "execution": "graph", "loss": "bpr"}
    lines = [
        {"stage": "machine", "date": "2030-01-02", **about},
        step | {"targets_per_s": 1234567, "ms_step": 0.5},
        step | {"execution": "eager", "failed": "RuntimeError: no"},
        {"stage": "speed", "verdict": "failed", "seconds": 3, "note": "1 failed"},
    ]
    facts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    document.write_text("# Results\n\n## On a GPU\n\nold\n\n## Later\n\nkept\n")
    monkeypatch.setattr(gpu_check, "RESULTS", tmp_path)
    monkeypatch.setattr(gpu_check, "DOCUMENT", document)
    for _ in range(2):
        gpu_check.publish(facts)
        text = document.read_text()
        assert "1,234,567" in text and "RuntimeError: no" in text and "- speed: failed, 3 s. 1 failed" in text
        assert text.startswith("# Results\n\n## On a GPU\n\n2030-01-02, NVIDIA H200, 16 cores; python 3.12")
        assert text.endswith("\n\n## Later\n\nkept\n") and "old" not in text and text.count("## On a GPU") == 1
    assert (tmp_path / "gpu_nvidia_h200_2030-01-02.jsonl").read_text() == facts.read_text()


def test_ml_1m_is_read_in_both_forms(tmp_path: Path) -> None:
    (tmp_path / "ml-1m.txt").write_text("5 6 7\n6 8\n")
    (tmp_path / "pairs.txt").write_text("1 5\n1 6\n2 6\n1 7\n2 8\n")
    for name in ("ml-1m.txt", "pairs.txt"):
        data = gpu_check.ml_1m(tmp_path / name)
        assert data.item_ids.decode(data.items) == [5, 6, 7, 6, 8] and data.offsets.tolist() == [0, 3, 5]
    drawn = gpu_check.ml_1m(None)
    assert (drawn.n_users, drawn.n_items) == (6040, 3416) and 5e5 < drawn.n_events < 2e6


@pytest.mark.slow
def test_stages_of_whole_models_run_on_the_cpu() -> None:
    """Two sides of one device agree to the last bit, and a run cut off by a signal goes on to the same weights."""
    same = gpu_check.parity("GRU4Rec", "fp32", "bpr", "eager", "cpu")
    assert same["ok"] and same["max_loss_difference"] == same["gradient_error"] == 0.0
    assert same["steps"] > 10 and same["losses"][1] < same["losses"][0]
    fitted = gpu_check.fit("GRU4Rec", "cpu")
    assert fitted["ok"] and fitted["stopped"][0] == "interrupted"
    rng = np.random.default_rng(0)
    data = gpu_check.build_interactions(np.repeat(np.arange(60), 20), rng.integers(0, 40, 1200))
    assert gpu_check.steps("negatives", "cpu")["cases"][0] == "sample_negatives uniform, 5 targets, 2 each"
    assert gpu_check.steps("attention", "cpu")["dtypes"] == ["float32", "bfloat16"]
    ours = gpu_check.speed("Caser", 64, "bf16", "eager", "cpu", data, 0.05, "cross_entropy")
    plain = gpu_check.peer("SASRec", 400, "fp32", "eager", "cpu", data, 0.05)
    assert ours["steps"] >= 1 and ours["targets_per_s"] > 0 < plain["targets_per_s"]
