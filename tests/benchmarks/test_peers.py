"""benchmarks/peers.py with a stand-in for the peer's environment: its arguments, rounds, curves and ratios."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import losses, measure, peers, quality, speed_figure

# In the place of the peer's interpreter: answers as peer_worker.py would, from what it is given.
PEER = """#!{python}
import json, sys
from pathlib import Path
import numpy as np
folder = Path(sys.argv[2])
job, split = json.loads((folder / "job.json").read_text()), np.load(folder / "split.npz")
print("log line")
if "test_users" not in split:
    print(json.dumps({"targets_per_s": 2.0}))
    sys.exit()
for epoch in range(1, job["epochs"] + 1):
    scores = {}
    for part in ("validation", "test"):
        table = np.zeros((len(split[part + "_users"]), int(split["n_items"])), np.float32)
        following = split["items"][split[part + "_stop"]]  # the target itself
        table[np.arange(len(table)), following] = epoch - 1
        scores[part] = table
    np.savez(folder / f"{epoch}.npz", **scores)
    print(json.dumps({"epoch": epoch, "cpu_seconds": 2.0, "wall_seconds": 1.5}), flush=True)
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.txt"
    path.write_text("".join(f"{user} {(user + 3 * n) % 17}\n" for user in range(1, 12) for n in range(6)))
    return path


@pytest.fixture
def args(data: Path, tmp_path: Path) -> argparse.Namespace:
    peer = tmp_path / "peer"
    peer.write_text(PEER.replace("{python}", sys.executable))
    peer.chmod(0o755)
    return argparse.Namespace(
        peer="rectools", peer_python=str(peer), model="SASRec", data=data, max_len=5, rounds=2, seconds=1.0,
        variants=["fp32", "per-target"], epochs=None, peer_batch_size=None, peer_batches=2, peer_every=1, out=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("rectools --data nofile", "--data is nofile, which is no file"),
        ("rectools --data FILE --model Caser", "RecTools has SASRec alone"),
        ("rectools --data FILE --rounds 0", "--rounds is 0, expected 1 or more"),
        ("rectools --data FILE --out x.jsonl", "--epochs and --out go together"),
        ("warprec --data FILE --epochs 1", "--epochs and --out go together"),
        ("warprec --data FILE --peer-python /none", "`make peers` makes it"),
    ],
)
def test_arguments_are_refused(
    arguments: str, message: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = arguments.replace("FILE", str(data)).split()
    monkeypatch.setattr(sys, "argv", ["peers", "--peer-python", sys.executable, "--max-len", "5", "--peer", *words])
    with pytest.raises(SystemExit):
        peers.arguments()
    assert message in capsys.readouterr().err


def test_rounds_in_turn_give_ratios(args: argparse.Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def train_throughput(*command: Any) -> dict[str, Any]:
        calls.append(command)
        return {"targets_per_s": 4.0 * len(calls), "batch_size": 64, "stride": 5, "peak_rss_mb": 100.0 * len(calls)}

    monkeypatch.setattr(peers, "train_throughput", train_throughput)
    figures = peers.compare(args)
    assert figures["peer"] == {"name": "rectools", "median": 2.0, "min": 2.0, "max": 2.0, "batch_size": 256}
    first, second = figures["fastseq"]["fp32"], figures["fastseq"]["per-target"]
    assert first["ratio"] == {"median": 4.0, "min": 2.0, "max": 6.0} and first["peak_rss_mb"] == 300.0
    assert second["ratio"]["median"] == 6.0 and "--per-target" in calls[1] and "--precision" in calls[2]


@pytest.mark.parametrize(("asked", "used"), [(None, 12), (7, 7)])
def test_a_curve_ranks_what_the_peer_scored(args: argparse.Namespace, asked: int | None, used: int) -> None:
    """Equal scores rank the target last, the target's own score first; seconds add up."""
    args.epochs, args.peer_batch_size = 2, asked
    record = peers.curve(args)
    assert record["batch_size"] == f"{used} sequences"
    points = record["curve"]
    assert (points["epoch"], points["cpu_seconds"], points["wall_seconds"]) == ([1, 2], [2.0, 4.0], [1.5, 3.0])
    assert points["test NDCG@10"][0] < 1.0 and points["test NDCG@10"][1] == points["validation HR@10"][1] == 1.0


def test_a_peer_that_fails_says_why(args: argparse.Namespace) -> None:
    Path(args.peer_python).write_text(f"#!{sys.executable}\nprint('before')\nraise ValueError('no such loss')\n")
    with pytest.raises(SystemExit, match=r"failed, exit status 1:\nbefore\n(.|\n)*ValueError: no such loss"):
        peers.compare(args)


@pytest.mark.slow
def test_fastseq_runs_in_a_process_of_its_own(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(data.parent)
    figures = measure.train_throughput("GRU4Rec", Path("data.txt"), 5, "--seconds", 0.1, "--warmup", 0)
    assert figures["targets_per_s"] > 0 and figures["config"]["max_seq_len"] == 5


@pytest.mark.slow
def test_the_worker_reads_what_peers_writes(args: argparse.Namespace, tmp_path: Path) -> None:
    """Its file imports nothing of fastseq, and its padding keeps the last known items."""
    code = "import sys, peer_worker; print([m for m in sys.modules if m.startswith(('fastseq', 'benchmarks'))])"
    folder = Path(peers.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env={})
    assert done.stdout.strip() == "[]", done.stderr
    from benchmarks.peer_worker import Job, last_items

    split = peers.leave_one_out(peers.read_interactions(args.data))
    with peers.job(args, split, params={"max_seq_len": 3}, epochs=1) as (_, folder):
        job: Any = Job(folder)
    assert job.model == "SASRec" and len(job.histories) == 11 and [len(h) for h in job.histories] == [4] * 11
    histories, users = job.parts["test"]
    assert len(histories[0]) == 5 and users.tolist() == list(range(11))
    x, lengths = last_items([np.array([1, 2, 3, 4]), np.array([0])], np.array([0, 5, 6, 0, 7]), 2)
    assert x.tolist() == [[6, 7], [0, 0]] and lengths.tolist() == [2, 1]
    assert last_items([np.array([1])], np.array([0, 5]), 2, left=True)[0].tolist() == [[0, 5]]


@pytest.mark.slow
def test_quality_runs_are_resumed_and_reported(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "runs.jsonl"
    command = ["quality", "train", "--data", data, "--out", out, "--models", "GRU4Rec", "--seeds", 1, "--epochs", 2]
    for batches in (["L", "per-target"], ["L", "per-target"], ["L"]):
        precision = ["--precision", "bf16"] if batches == ["L"] else []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [*map(str, command), "--batches", *batches, *precision])
            quality.main()
    runs = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(run["batches"], run["precision"]) for run in runs] == [
        (50, "fp32"), ("per target", "fp32"), (50, "bf16"),
    ]  # fmt: skip
    curve = runs[0]["curve"] | {"cpu_seconds": [1.0, 3.0]}
    measure.append(out, {"kind": "peer", "peer": "recbole", "model": "GRU4Rec", "curve": curve})
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["quality", "report", str(out), "--figure", str(tmp_path / "figure.png")])
        quality.main()
    text = capsys.readouterr().out
    assert "| stride 50  | 1 " in text and "- stride 50 minus per target, NDCG@10 at 2 epochs" in text
    assert "| GRU4Rec, stride 50 | 1     | 2 " in text and "| RecBole 1.2.1, GRU4Rec | 1.50 " in text
    assert (tmp_path / "figure.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_study_of_losses_is_resumed_and_reported(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each setting has a process of its own; a second call adds what the file lacks alone."""
    out = tmp_path / "losses.jsonl"
    command = [*map(str, ["losses", "train", "--data", data, "--out", out, "--epochs", 2]), "--losses"]
    monkeypatch.setattr(losses, "SETTINGS", [("cross_entropy", "per_target", 0), ("bce", "shared", 16)])
    for chosen in (["bce"], ["bce", "cross_entropy"]):
        monkeypatch.setattr(sys, "argv", [*command, *chosen])
        losses.main()
    runs = [json.loads(line) for line in out.read_text().splitlines()]
    assert [losses.setting_of(run) for run in runs] == losses.SETTINGS[::-1]
    assert all(0 <= run["test NDCG@10"] <= 1 and run["peak_mb"] >= run["peak_mb_before"] > 0 for run in runs)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["losses", "report", str(out), "--figure", str(tmp_path / "figure.png")])
    losses.main()
    text = capsys.readouterr().out
    assert text.index("| cross_entropy ") < text.index("| bce, 16 shared ")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_the_figure_of_speed_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the results that are kept; without arguments the usage is shown."""
    monkeypatch.setattr(sys, "argv", ["speed_figure"])
    with pytest.raises(SystemExit):
        speed_figure.main()
    results, target = measure.ROOT / "benchmarks" / "results" / "peers_2026-11-29.jsonl", tmp_path / "speed.png"
    monkeypatch.setattr(sys, "argv", ["speed_figure", str(results), str(target)])
    speed_figure.main()
    assert target.stat().st_size > 1000
