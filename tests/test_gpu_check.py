"""benchmarks/gpu_check.sh without a GPU: its arguments, how it goes on, reports and ends, with stand-ins for tools."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_check.sh"
STAGES = ["build", "ops", "gpu", "memcheck", "racecheck", "kernels"]

# What gpu_check.sh asks of its interpreter, answered without a GPU. MISSING is a module that is not there.
PYTHON = """#!/bin/bash
case "$*" in
  *"find_spec('$MISSING')"*) exit 1 ;;
  *gpu_report.py*) exec "{python}" "{gpu}" "$@" ;;
  *"print(max"*) exec "{python}" "$@" ;;
  *pytest*tests/ops*) echo "=== 1 failed, 2 passed in 0.10s ==="; exit 1 ;;
  *pytest*) echo "${GPU_TESTS:-3 passed in 0.20s}" ;;
  *benchmarks.ops*) cat "{kernels}" ;;
esac
"""
GPU = """
import runpy, sys, torch

torch.cuda.is_available = lambda: True
torch.cuda.get_device_name = lambda device: "NVIDIA H200"
torch.cuda.get_device_capability = lambda device: (9, 0)
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
SANITIZER = """#!/bin/bash
if [[ "$*" == *racecheck* ]]; then sleep 30; fi
echo "========= ERROR SUMMARY: 0 errors"
"""


def result(implementation: str, median: float | None, **more: object) -> dict[str, object]:
    row = {"op": "gru", "shape": "[2, 3]", "direction": "forward", "dtype": "float32", "device": "cuda"}
    row |= {"implementation": implementation, "median": median, "q1": median, "q3": median, "fraction": None}
    return row | more


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    tools = tmp_path / "tools"
    tools.mkdir()
    machine = {
        "device": "NVIDIA H200",
        "driver": "580.1",
        "torch": "2.11.0",
        "triton": "3.6.0",
        "date": "2026-11-30T10:20:30+00:00",
    }
    results = [result("fastseq", 0.002, fraction=0.7), result("eager", 0.005), result("compiled", 0.004)]
    kernels = tmp_path / "kernels.json"
    kernels.write_text(json.dumps({"machine": machine, "results": results}))
    for name, text in (("python", PYTHON), ("compute-sanitizer", SANITIZER), ("gpu.py", GPU)):
        for place, value in (("{python}", sys.executable), ("{kernels}", kernels), ("{gpu}", tools / "gpu.py")):
            text = text.replace(place, str(value))
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    return os.environ | {
        "PYTHON": str(tools / "python"),
        "PATH": f"{tools}:{os.environ['PATH']}",
        "WORK": str(tmp_path / "work"),
        "MISSING": "nothing",
        "STAGE_SECONDS": "0.03",
    }


def check(environment: dict[str, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_arguments(environment: dict[str, str]) -> None:
    assert check(environment, "--list").stdout.split() == STAGES
    shown = check(environment, "--help").stdout
    assert "--out DIR" in shown and "Exit status" in shown and "set -uo" not in shown
    for arguments, message in (
        (["--only", "speed"], "--only is 'speed', expected one of: build ops gpu memcheck racecheck kernels"),
        (["--only"], "--only needs a stage"),
        (["--out"], "--out needs a folder"),
        (["--fast"], "'--fast' is no option"),
    ):
        done = check(environment, *arguments)
        assert done.returncode == 2 and message in done.stderr


def test_dry_run_shows_every_stage_and_its_limit(environment: dict[str, str]) -> None:
    environment["STAGE_SECONDS"] = "1"
    lines = check(environment, "--dry-run").stdout.splitlines()
    assert [line.split()[0] for line in lines] == STAGES
    limits = [int(line.split("(")[1].split()[0]) for line in lines]
    assert sum(limits) + 30 < 560, "well within ten minutes"
    assert "tests/gpu/test_gpu.py" in lines[2] and "--tool racecheck" in lines[4]
    assert [line.split()[0] for line in check(environment, "--dry-run", "--only", "gpu").stdout.splitlines()] == ["gpu"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_no_gpu_is_said_at_once(environment: dict[str, str]) -> None:
    done = check(environment | {"PYTHON": sys.executable})
    assert done.returncode == 2 and "PyTorch sees no GPU" in done.stderr and "==" not in done.stdout


def test_a_stage_that_fails_does_not_stop_the_others(environment: dict[str, str], tmp_path: Path) -> None:
    done = check(environment, "--out", tmp_path / "out")
    assert done.returncode == 1, done.stderr
    (path,) = (tmp_path / "out").glob("*.json")
    assert path.name == "gpu_nvidia-h200_2026-11-30T102030.json"
    found = json.loads(path.read_text())
    verdicts = {stage["stage"]: stage["verdict"] for stage in found["stages"]}
    assert list(verdicts) == STAGES
    assert (verdicts["ops"], verdicts["racecheck"]) == ("failed", "timeout")
    assert all(verdicts[name] == "passed" for name in ("build", "gpu", "memcheck", "kernels"))
    assert {s["stage"]: s["note"] for s in found["stages"]}["ops"] == "1 failed, 2 passed in 0.10s"
    last = done.stdout.splitlines()[-9:]
    assert last[0].startswith("NVIDIA H200, driver 580.1, torch 2.11.0, triton 3.6.0")
    assert last[-1].split() == ["gru", "1", "2.00×", "70%"]
    text = path.with_suffix(".md").read_text()
    assert "| gru | [2, 3] | forward | float32 | 2 (2 – 2) ms | compiled 4 (4 – 4) ms | 2.00× |" in text


def test_what_is_missing_is_named_and_the_rest_runs(environment: dict[str, str], tmp_path: Path) -> None:
    done = check(environment | {"MISSING": "hypothesis"}, "--out", tmp_path, "--only", "gpu", "--only", "memcheck")
    assert done.returncode == 1
    assert "gpu: missing, 0 s. not installed: hypothesis (pip install hypothesis)" in done.stdout
    assert "memcheck: passed" in done.stdout and "kernels" not in (tmp_path / "work" / "stages.tsv").read_text()


def test_tests_that_all_skip_prove_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    done = check(environment | {"GPU_TESTS": "231 skipped in 1.32s"}, "--out", tmp_path, "--only", "gpu")
    assert done.returncode == 1 and "gpu: failed" in done.stdout and "nothing ran: 231 skipped" in done.stdout
    some = check(environment | {"GPU_TESTS": "9 passed, 1 skipped in 1s"}, "--out", tmp_path, "--only", "gpu")
    assert some.returncode == 0, some.stdout


def test_all_passed(environment: dict[str, str], tmp_path: Path) -> None:
    done = check(environment, "--out", tmp_path, "--only", "gpu", "--only", "kernels")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_missing_sanitizer_is_no_success(environment: dict[str, str], tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    (tools / "compute-sanitizer").unlink()
    # Nothing else may be on PATH: a machine with a CUDA toolkit has the tool there.
    needed = "bash grep tail tr sed timeout mkdir rm dirname realpath cat head env sleep"
    for name in needed.split():
        (tools / name).symlink_to(shutil.which(name) or name)
    (tools / "ls").write_text("#!/bin/bash\nexit 2\n")
    (tools / "ls").chmod(0o755)
    environment["PATH"] = str(tools)
    done = check(environment, "--out", tmp_path, "--only", "gpu", "--only", "memcheck")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "gpu: passed" in done.stdout
    assert "memcheck: missing, 0 s. compute-sanitizer is neither on PATH nor in a CUDA toolkit" in done.stdout


def test_only_files_of_its_own_are_removed(environment: dict[str, str], tmp_path: Path) -> None:
    work = Path(environment["WORK"])
    work.mkdir()
    for name in ("notes.log", "data.json", "gpu.log", "kernels.json", "stages.tsv"):
        (work / name).write_text("before")
    assert check(environment, "--dry-run").returncode == 0
    assert all((work / name).read_text() == "before" for name in os.listdir(work)) and len(os.listdir(work)) == 5
    check(environment, "--out", tmp_path / "out", "--only", "gpu")
    assert (work / "notes.log").read_text() == (work / "data.json").read_text() == "before"
    assert not (work / "kernels.json").exists() and "before" not in (work / "gpu.log").read_text()


def report(work: Path, out: Path, stages: str, machine: dict[str, str]) -> subprocess.CompletedProcess[str]:
    work.mkdir(exist_ok=True)
    (work / "stages.tsv").write_text(stages)
    (work / "kernels.json").write_text(json.dumps({"machine": machine, "results": []}))
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_report.py"), "--work", str(work), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_report_needs_a_gpu_and_something_that_passed(tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "out"
    about = {"device": "NVIDIA H200", "torch": "2.11.0", "date": "2026-11-30T10:20:30+00:00"}
    passed = "gpu\tpassed\t3\t3 passed\n"
    done = report(work, out, passed, about | {"device": "CPU"})
    assert done.returncode == 2 and "sees no GPU" in done.stderr and not out.exists()
    assert report(work, out, passed, about).returncode == 0
    later = report(work, out, passed + "ops\tmissing\t0\t\n", about | {"date": "2026-11-30T11:00:00+00:00"})
    assert later.returncode == 1 and len(list(out.glob("*.json"))) == 2
    for stages in ("", "gpu\tskipped\t0\t\n"):
        assert report(work, out, stages, about).returncode == 1
