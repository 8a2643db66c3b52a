"""Published rows: the list, the data they accept, and a small stand-in from the command to its table."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fastseq.cli import experiment, reproduce
from fastseq.cli.configuration import load_config
from fastseq.data.readers import read_interactions
from fastseq.models import MODELS
from fastseq.training import RunFolder, Trainer
from tests.models.small import small_params

from .test_commands import answer, here, refusal

ROOT = Path(__file__).resolve().parents[2]
ROWS = reproduce.table()[1]


def test_every_row_has_a_configuration_of_its_protocol() -> None:
    files = {path.stem: path for path in (ROOT / "examples" / "reproduce").iterdir()}
    assert files.keys() == ROWS.keys()
    for name, path in files.items():
        config = load_config(path)
        row, (entry,) = ROWS[name], config.models
        assert MODELS[entry.name].check_params(entry.params) and config.unused == []
        assert str(config.reader.local_path) == row.data.files[0]
        assert config.splitter.cold == "keep" and config.splitter.test_splitting.k == 1
        assert config.evaluation.mask_seen == ("none" if "ranked too" in row.protocol else "history")
        assert {"HR", "NDCG", "system", "source"} == set(row.published[0])


def test_the_rows_are_listed(tmp_path: Path) -> None:
    code, out, _ = here("reproduce", folder=tmp_path)
    lines = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and len(lines) == 1 + sum(len(row.published) for row in ROWS.values())
    assert (
        lines[1][0] == "s3_beauty_sasrec" and "22,363 / 12,101" in lines[1][1] and lines[1][4:6] == ["0.0921", "0.0531"]
    )
    listed = answer("reproduce", folder=tmp_path)
    assert listed[0]["published"][0]["HR@10"] == 0.0921 and listed[0]["data"]["items"] == 12_101
    assert load_config(Path(listed[0]["config"])).models[0].name == "SASRec"
    assert "s3_beauty_sasrec" in refusal("reproduce", "s3_beauty_sasre", folder=tmp_path)


def write_sequences(path: Path, users: int = 60, items: int = 25, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    path.write_text("".join(f"{u} {' '.join(map(str, rng.integers(1, items + 1, 9)))}\n" for u in range(1, users + 1)))


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of one row for a small file, and one for a file that is not there."""
    folder = tmp_path / "published"
    folder.mkdir()
    write_sequences(tmp_path / "small.txt")
    data = read_interactions(tmp_path / "small.txt", format="user_sequences")
    sizes: dict[str, Any] = {"users": data.n_users, "items": data.n_items, "events": data.n_events}
    sizes |= {"hash": data.data_hash}
    sets = {
        "small": {**sizes, "title": "Small", "files": ["small.txt"], "origin": "the small place"},
        "other": {**sizes, "users": 7, "title": "Other", "files": ["other.txt"], "origin": "the other place"},
    }
    scores = {"HR": 0.25, "NDCG": 0.125, "system": "GRU4Rec", "source": "a paper"}
    rows = {f"{name}_row": {"data": name, "protocol": "in words", "published": [scores]} for name in sets}
    folder.with_suffix(".yaml").write_text(yaml.safe_dump({"data": sets, "rows": rows}))
    for name in sets:
        tree = {
            "reader": {"local_path": f"{name}.txt", "file_format": "user_sequences"},
            "models": {"GRU4Rec": small_params("GRU4Rec", epochs=2)},
        }
        (folder / f"{name}_row.yaml").write_text(yaml.safe_dump(tree))
    monkeypatch.setattr(reproduce, "FOLDER", folder)
    return tmp_path


def test_a_row_end_to_end(small: Path) -> None:
    said = answer("reproduce", "--all", "--seeds", "2", folder=small)
    assert "the other place" in said["left_out"]["other_row"]
    (report,) = said["rows"]
    first, second = report["runs"]
    assert [first["seed"], second["seed"]] == [1, 2] and first["epochs"] == 2 and report["reached"]["seeds"] == 2
    mean = (first["HR@10"] + second["HR@10"]) / 2
    assert report["reached"]["mean"]["HR@10"] == pytest.approx(mean)
    assert report["reached"]["spread"]["HR@10"] == pytest.approx(abs(first["HR@10"] - second["HR@10"]) / 2**0.5)
    assert report["published"][0]["difference"]["HR@10"] == pytest.approx(mean - 0.25)
    assert report["published"][0]["relative"]["HR@10"] == pytest.approx(mean / 0.25 - 1)
    assert report["seconds"] == pytest.approx(first["seconds"] + second["seconds"]) and first["seconds"] > 0

    # Again: nothing is trained anew, a third seed is added, and `fastseq train` makes the same run.
    best = RunFolder.existing(small / first["run"]).best_path
    before = best.stat().st_mtime_ns
    code, out, err = here("reproduce", "small_row", "--seeds", "3", "--data", small / "small.txt", folder=small)
    assert code == 0, err
    header, cells = (line.split("\t") for line in out.splitlines())
    assert dict(zip(header, cells, strict=True))["HR@10"] == "0.2500" and cells[0] == "small_row"
    assert best.stat().st_mtime_ns == before
    config = yaml.safe_load((small / "published" / "small_row.yaml").read_text())
    config["models"]["GRU4Rec"]["optimization"] = {"properties": {"seed": 2}}
    (small / "mine.yaml").write_text(yaml.safe_dump(config))
    metrics = answer("train", "mine.yaml", folder=small)["runs"][0]["evaluation"]["metrics"]
    assert metrics["HR@10"] == second["HR@10"] and metrics["NDCG@10"] == second["NDCG@10"]
    code, _, err = here("reproduce", "small_row", "--overwrite", folder=small)
    assert code == 0 and best.stat().st_mtime_ns > before, err


def test_the_wrong_data_is_refused(small: Path) -> None:
    table = yaml.safe_load((small / "published.yaml").read_text())
    table["data"]["small"]["users"] = 7
    table["data"]["other"]["users"] = 60
    (small / "published.yaml").write_text(yaml.safe_dump(table))
    said = refusal("reproduce", "small_row", folder=small)
    assert "small.txt is Other: 60 users" in said and "small_row needs Small: 7 users" in said
    write_sequences(small / "small.txt", users=9)
    assert "small.txt, read as user_sequences, has 9 users" in refusal("reproduce", "small_row", folder=small)
    (small / "small.txt").write_text("")
    said = refusal("reproduce", "small_row", folder=small)
    assert "the file is empty" in said and "get the small place" in said


def test_a_variant_in_another_format_is_named(small: Path) -> None:
    table = yaml.safe_load((small / "published.yaml").read_text())
    table["data"]["other"] |= {"users": 2, "items": 3, "events": 4}
    (small / "published.yaml").write_text(yaml.safe_dump(table))
    (small / "small.txt").write_text(
        "user_id:token\titem_id:token\ttimestamp:float\n1\t5\t1\n1\t6\t2\n2\t5\t1\n2\t7\t2\n"
    )
    assert "small.txt is Other: 2 users, 3 items, 4 events" in refusal("reproduce", "small_row", folder=small)


def test_other_ids_with_the_same_counts_are_refused(small: Path) -> None:
    lines = (small / "small.txt").read_text().splitlines()
    (small / "small.txt").write_text("".join(f"{line.replace(' ', ' 9')}\n" for line in lines))
    said = refusal("reproduce", "small_row", folder=small)
    assert "has the counts of Small, but other ids or another order" in said and "--allow-changed-data" in said
    (report,) = answer("reproduce", "small_row", "--allow-changed-data", folder=small)["rows"]
    assert "other ids or another order" in report["changed_data"]
    code, _, err = here("reproduce", "small_row", "--allow-changed-data", folder=small)
    assert code == 0 and "small_row: small.txt has the counts of Small, but other ids or another order" in err


def test_it_says_what_it_goes_for(small: Path) -> None:
    code, _, err = here("reproduce", "small_row", folder=small)
    assert code == 0 and "small_row: Small; in words" in err and str(small / "published" / "small_row.yaml") in err
    assert "published HR@10 0.2500, NDCG@10 0.1250: GRU4Rec, a paper" in err
    (report,) = answer("reproduce", "small_row", folder=small)["rows"]
    assert "changed_data" not in report


def set_row(small: Path, name: str, **params: Any) -> None:
    path = small / "published" / f"{name}.yaml"
    tree = yaml.safe_load(path.read_text())
    tree["models"]["GRU4Rec"] |= params
    path.write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize("params", [{"epochs": 1}, {"epochs": 3}, {"early_stopping": {"patience": 1}}], ids=str)
def test_runs_of_another_configuration_are_no_score_of_this_one(small: Path, params: dict[str, Any]) -> None:
    """Resuming takes other epochs and patience; what was trained with those is not what the row says."""
    first = answer("reproduce", "small_row", folder=small)["rows"][0]["runs"][0]
    set_row(small, "small_row", **params)
    said = refusal("reproduce", "small_row", "--seeds", "2", folder=small)
    assert first["run"] in said and ("patience is" if "early_stopping" in params else "epochs is") in said
    assert "--overwrite" in said and "--out" in said
    assert not (small / "runs" / "reproduce" / "small_row" / "seed-2").exists()  # before anything is trained
    assert answer("reproduce", "small_row", "--overwrite", folder=small)["rows"]


def test_one_refused_row_does_not_keep_the_others(small: Path) -> None:
    table = yaml.safe_load((small / "published.yaml").read_text())
    table["data"]["other"] = table["data"]["small"]
    (small / "published.yaml").write_text(yaml.safe_dump(table))
    set_row(small, "other_row", epochs=1)
    folder = Path(answer("reproduce", "other_row", folder=small)["rows"][0]["runs"][0]["run"])
    for path in (small / folder / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    said = answer("reproduce", "--all", folder=small)
    assert [report["name"] for report in said["rows"]] == ["small_row"]
    assert "not a whole safetensors file" in said["left_out"]["other_row"]
    assert "not a whole safetensors file" in refusal("reproduce", "other_row", folder=small)


@pytest.mark.parametrize("place", ["training", "test"])
def test_an_interrupted_seed_says_how_to_go_on(small: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """reproduce has no --resume; what is finished is answered."""
    score, finish = experiment.score, Trainer._finish_epoch

    def scored(config: Any, entry: Any, *arguments: Any, **options: Any) -> Any:
        if place == "test" and entry is not None and entry.optimization.properties.seed == 2:
            raise KeyboardInterrupt
        return score(config, entry, *arguments, **options)

    def finished(trainer: Trainer) -> None:
        finish(trainer)
        if place == "training" and trainer.options.seed == 2:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(experiment, "score", scored)
    monkeypatch.setattr(Trainer, "_finish_epoch", finished)
    code, out, err = here("reproduce", "small_row", "--seeds", "3", "--json", folder=small)
    assert code == 130 and "the same command goes on" in err and "--resume" not in err
    assert json.loads(out)["rows"][0]["reached"]["seeds"] == 1
    code, out, err = here("reproduce", "small_row", "--seeds", "2", "--overwrite", folder=small)
    assert code == 130 and "the same command without --overwrite goes on" in err and out.count("\n") == 2
    monkeypatch.undo()
    monkeypatch.setattr(reproduce, "FOLDER", small / "published")
    assert answer("reproduce", "small_row", "--seeds", "3", folder=small)["rows"][0]["reached"]["seeds"] == 3


def test_a_missing_file_says_where_it_comes_from(small: Path) -> None:
    said = refusal("reproduce", "other_row", folder=small)
    assert "no other.txt in" in said and "get the other place" in said and "--data" in said
    assert "nowhere does not exist" in refusal("reproduce", "other_row", "--data", "nowhere", folder=small)
    assert "give one of them" in refusal("reproduce", "other_row", "--all", folder=small)
    (small / "small.txt").unlink()
    assert "no row can be run" in refusal("reproduce", "--all", folder=small)


@pytest.mark.parametrize("name", sorted(reproduce.table()[0]))
def test_the_counts_are_those_of_the_real_files(name: str) -> None:
    wanted = reproduce.table()[0][name]
    path = ROOT.parent / "shared" / "data" / wanted.files[0]
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    data = read_interactions(path)  # the format is guessed, user ids in front included
    assert wanted.matches(data) and data.data_hash == wanted.hash
