"""What a look at the data finds: each finding in data made for it, by hand counts, and none in sound data."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastseq.data import checks
from fastseq.data.checks import check_interactions, check_lengths
from fastseq.data.findings import DataReport
from fastseq.data.id_checks import check_ids
from fastseq.data.ids import IdMap
from fastseq.data.interactions import Interactions, build_interactions
from fastseq.data.readers import from_sequences, read_interactions
from fastseq.data.split import Split, global_temporal, leave_one_out
from fastseq.data.strategies import warprec_split
from fastseq.data.synthetic import make_long_tail
from fastseq.data.windows import pack_windows
from fastseq.errors import ConfigError

CODES = ("duplicates", "repeats", "ties")


def sound() -> Interactions:
    """40 users with 6 of 20 items each, at different times."""
    rows = [(u, (u + 3 * step) % 20, 1_700_000_000 + 100 * step + u) for u in range(40) for step in range(6)]
    return build_interactions(*map(list, zip(*rows, strict=True)))


def codes(report: DataReport) -> list[str]:
    return [finding.code for finding in report.findings]


def test_sound_data_have_figures_and_no_finding() -> None:
    report = check_interactions(sound(), 50, leave_one_out(sound()))
    assert report.findings == ()
    assert (report.users, report.items, report.events) == (40, 20, 240) and report.density == 240 / 800
    assert report.lengths == {"mean": 6.0} | dict.fromkeys(("min", "5%", "25%", "50%", "75%", "95%", "99%", "max"), 6.0)
    assert report.histogram == ((1, 1, 0), (2, 2, 0), (3, 4, 0), (5, 8, 40))
    assert report.tied_share == report.beyond == 0 and report.max_seq_len == 50
    assert report.split is not None and report.split["train_events"] == 160 and report.split["test_targets"] == 40
    assert json.loads(json.dumps(report.to_dict()))["histogram"][3] == {"from": 5, "to": 8, "users": 40}
    with pytest.raises(KeyError):
        report["ties"]


def test_the_histogram_has_every_user_once() -> None:
    report = check_interactions(from_sequences([list(range(n)) for n in (1, 1, 2, 3, 4, 5, 8, 9, 16, 17)]))
    assert report.histogram == ((1, 1, 2), (2, 2, 1), (3, 4, 2), (5, 8, 2), (9, 16, 2), (17, 32, 1))
    assert check_interactions(from_sequences([[1, 2]])).histogram == ((1, 1, 0), (2, 2, 1))


def test_duplicates_and_repeats_are_told_apart() -> None:
    rows = [("a", 1, 5), ("a", 2, 5), ("a", 1, 5), ("a", 1, 6), ("a", 2, 9), ("b", 1, 5), ("b", 1, 5), ("b", 3, 7)]
    report = check_interactions(build_interactions(*map(list, zip(*rows, strict=True))))
    twice, again = report["duplicates"], report["repeats"]
    assert twice.count == 2 and twice.share == 2 / 8 and twice.severity == "warning"
    assert twice.examples == ({"user": "a", "item": 1, "time": 5}, {"user": "b", "item": 1, "time": 5})
    assert again.count == 2 and "1 of them right after it" in again.what  # 1 at 6; 2 at 9 has another between
    assert {"user": "a", "item": 1, "time": 6} in again.examples
    assert report.density == 4 / (2 * 3)
    untimed = check_interactions(build_interactions(["a", "a", "a"], [1, 1, 2]))
    assert untimed["repeats"].count == 1 and "time" not in untimed["repeats"].examples[0]
    assert not {"duplicates", "ties"} & set(codes(untimed)) and untimed.tied_share is None


@pytest.mark.parametrize("block", [1, 7, 1 << 20])
def test_counts_do_not_depend_on_blocks(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Against a plain count, event by event."""
    monkeypatch.setattr(checks, "BLOCK", block)
    draw = random.Random(1)
    rows = [(draw.randrange(30), draw.randrange(12), draw.randrange(40)) for _ in range(900)]
    rows += [(99, 50, 30), (99, 51, 31)]  # a user and items that come late
    data = build_interactions(*map(list, zip(*rows, strict=True)))
    duplicates = len(rows) - len(set(rows))
    repeats = len(set(rows)) - len({row[:2] for row in rows})
    moments = Counter((user, time) for user, _, time in rows)
    report = check_interactions(data)
    assert [report[code].count for code in CODES] == [duplicates, repeats, sum(n for n in moments.values() if n > 1)]
    first, second = report["ties"].examples
    assert (first["user"], first["time"]) == (second["user"], second["time"])
    for code in CODES[:2]:
        for example in report[code].examples:
            assert sum(row[:2] == (example["user"], example["item"]) for row in rows) > 1
    split = warprec_split(data, {"strategy": "timestamp_slicing", "timestamp": 5}, cold="keep")
    late = [row for row in rows if row[2] >= 5]
    early = {row[1] for row in rows if row[2] < 5}
    cold = sum(row[1] not in early for row in late)
    assert check_interactions(data, split=split)["cold_targets"].count == cold > 1
    users = {row[0] for row in rows} - {row[0] for row in rows if row[2] < 5}
    assert check_interactions(data, split=split)["cold_users"].count == len(users) > 0


def test_ties_that_decide_what_is_held_out() -> None:
    rows = [(user, step, 100 + min(step, 3 + user % 2)) for user in range(10) for step in range(5)]
    data = build_interactions(*map(list, zip(*rows, strict=True)))
    found = check_interactions(data, split=leave_one_out(data))["ties"]
    assert (found.count, found.share) == (10, 0.2) and found.severity == "warning"
    assert "5 users' first test target among them" in found.what and "validation" not in found.what
    few = build_interactions([1] * 100, list(range(100)), [0, 0, *range(2, 100)])
    assert check_interactions(few)["ties"].severity == "note"


def test_mixed_units() -> None:
    data = sound()
    assert data.timestamps is not None
    times = data.timestamps.copy()
    times[7:9] *= 1000
    found = check_interactions(replace(data, timestamps=times))["mixed_units"]
    assert found.count == 2 and "238 in seconds, 2 in milliseconds" in found.what
    assert found.examples[0]["time"] == times[7] and found.severity == "warning"
    between = times.copy()
    between[0] = 10**10  # a number of no unit: another scale, as reading sees it
    for other in (data.timestamps * 1000, between, data.timestamps.astype(np.float64), np.arange(240) * 10**8):
        assert "mixed_units" not in codes(check_interactions(replace(data, timestamps=other)))


def test_long_histories_count_targets() -> None:
    data = from_sequences([list(range(n)) for n in (3, 10, 30)])
    report = check_interactions(data, 5)
    found = report["long_histories"]
    assert found.count == (10 - 1 - 5) + (30 - 1 - 5) and report.beyond == found.share == found.count / (2 + 9 + 29)
    assert found.examples == ({"user": 2},) and "window_stride: 1 gives each at least 5" in found.remedy
    split = leave_one_out(data)
    assert check_interactions(data, 5, split)["long_histories"].count == (8 - 1 - 5) + (28 - 1 - 5)
    for limit in (1, 5, 27, 28):
        plain = pack_windows(data.offsets, data.offsets[1:], limit, per_target=True)
        start = data.offsets[plain.user]
        beyond = int((plain.first_target - start > limit).sum())
        long = check_lengths(data, limit)
        assert long is not None and long.count == beyond
    assert check_lengths(data, 29) is None
    assert check_interactions(data, None).beyond is None


def test_what_is_said_of_windows_is_what_they_do() -> None:
    """The least context of a target beyond L, by stride."""
    data = from_sequences([list(range(100))])
    for stride in (1, 3, 8):
        windows = pack_windows(data.offsets, data.offsets[1:], 8, stride)
        later = windows.first_target > 8
        least = int((windows.first_target - windows.start)[later].min())
        long = check_lengths(data, 8, window_stride=stride)
        assert long is not None
        words = "the last 8 alone" if stride == 1 else f"only {least} or a few more (window_stride: {stride})"
        assert words in long.consequence
    caser = check_lengths(data, 8, window_stride=8, whole_context=True)
    assert caser is not None and "the last 8 alone" in caser.consequence and caser.severity == "note"
    with pytest.raises(ConfigError, match="max_seq_len is 0"):
        check_lengths(data, 0)


def test_the_length_that_is_named_leaves_a_twentieth() -> None:
    data = from_sequences([list(range(n)) for n in range(2, 120)])
    long = check_lengths(data, 10)
    assert long is not None
    named = int(long.remedy.split("max_seq_len: ")[1].split(" ")[0])
    total = data.n_events - data.n_users
    after, before = check_lengths(data, named), check_lengths(data, named - 1)
    assert after is not None and before is not None and after.count <= total / 20 < before.count


def test_users_with_one_event_and_without_targets() -> None:
    data = from_sequences([[1], [2], [1, 2], [1, 2, 3], [1, 2, 3, 4]])
    report = check_interactions(data, split=leave_one_out(data))
    assert report["single_event_users"].count == 2 and report["single_event_users"].share == 0.4
    assert report["single_event_users"].examples == ({"user": 0}, {"user": 1})
    found = report["users_without_targets"]  # of the last two, which are split, one has one training event
    assert (found.count, found.share, found.examples) == (1, 0.5, ({"user": 3},))


def test_users_who_have_seen_everything() -> None:
    data = from_sequences([list(range(20)), [*range(18), 0, 0], list(range(17)), [0, 1, 2]])
    report = check_interactions(data, per_user_negatives=True)
    everything, nearly = report["seen_everything"], report["seen_nearly_everything"]
    assert everything.examples == ({"user": 0},) and everything.severity == "warning"
    assert nearly.examples == ({"user": 1},) and "of one user 2:" in nearly.consequence
    end = data.offsets[1:].copy()
    whole = Split(data, end, end)
    assert check_interactions(data, split=whole)["seen_everything"].severity == "error"
    shared = check_interactions(data, split=whole, per_user_negatives=False)["seen_everything"]
    assert shared.severity == "warning" and "nothing is left to recommend" in shared.consequence


def test_cold_targets_and_users() -> None:
    rows = [(u, i, t) for u in range(6) for t, i in enumerate((u % 3, 3 + u % 2, 7, 7 + u))]
    rows += [(9, 1, 3), (9, 2, 3)]  # a user who comes late
    data = build_interactions(*map(list, zip(*rows, strict=True)))
    kept = check_interactions(data, split=global_temporal(data, timestamp=3, validation_timestamp=2))
    found = kept["cold_targets"]
    assert "6 of 6 (100.0%) validation targets and 6 of 8 (75.0%) test targets are items without" in found.what
    assert found.count == 12 and found.share == 12 / 14 and found.examples[0] == {"item": 7}
    assert kept["cold_users"].examples == ({"user": 9},) and "2 held-out events" in kept["cold_users"].what
    specs = [{"strategy": "timestamp_slicing", "timestamp": moment} for moment in (3, 2)]
    warm = check_interactions(data, split=warprec_split(data, *specs))
    assert "6 of 6 (100.0%) validation targets and 8 of 8 (100.0%) test targets had an item or a user" in (
        warm["cold_targets"].what
    )
    assert "cold_users" not in codes(warm)


@pytest.mark.parametrize(
    ("values", "code", "count", "severity"),
    [
        (["1.2E+05", "3e+10", "12E4", "1E5", "x"], "ids_in_scientific_notation", 2, "warning"),
        (["12.0", "12", "13.0", "1.5"], "ids_as_floats", 2, "warning"),
        (["12.0", "13.0"], "ids_as_floats", 2, "note"),
        (["123456789012345680.0", "x"], "ids_as_floats", 1, "warning"),
        (["a\u00a0", "a", "\ufeffb", "\u200bc", "d e"], "ids_with_blanks", 3, "warning"),
        (["Ab", "aB", "ab", "c", "Straße", "STRASSE"], "ids_differ_in_case", 5, "warning"),
        (["Ab", "ab", *map(str, range(500))], "ids_differ_in_case", 2, "note"),
        (["007", "7", "08", "000", "0", "x"], "ids_with_leading_zeros", 2, "warning"),
    ],
)
def test_damaged_ids(values: list[str], code: str, count: int, severity: str) -> None:
    (found,) = check_ids(IdMap(values), "item")
    assert (found.code, found.count, found.severity) == (f"item_{code}", count, severity)
    assert found.share == count / len(set(values)) and all(each["item"] in values for each in found.examples)


def test_ids_of_both_columns_are_looked_at() -> None:
    data = build_interactions(["U", "u", "u"], ["1.0E+12", "x", "y"])
    assert {"user_ids_differ_in_case", "item_ids_in_scientific_notation"} <= set(codes(check_interactions(data)))


def test_integers_that_have_passed_through_a_float() -> None:
    draw = random.Random(0)
    true = [draw.randrange(10**17, 10**18) for _ in range(100)]
    lists: list[tuple[list[int], str | None]] = [
        (true, None),
        ([n >> 12 << 12 for n in true], None),  # bits of zero by design
        ([n // 10**9 * 10**9 for n in true], None),  # zeros by design
        ([int(float(n)) for n in true], "a float"),
        ([n // 1000 * 1000 for n in true], "a spreadsheet"),
        ([int(float(n)) for n in true[:10]], None),  # too few to tell
        ([-int(float(n)) for n in true], "a float"),
        (list(range(100)), None),
        ([-(2**63), 2**63 - 1], None),
    ]
    for values, how in lists:
        found = check_ids(IdMap(values), "user")
        assert (how is None and not found) or (how is not None and how in found[0].what), values[:3]
        assert not found or found[0].code == "user_ids_rounded"


def test_the_gravest_comes_first() -> None:
    data = from_sequences([["A", "a", "b", "b"], ["a", "b", "A"], ["b"], *[["a", "b", "c", "d"]] * 3])
    order = [finding.severity for finding in check_interactions(data, 2, leave_one_out(data)).findings]
    assert order == sorted(order, key=["error", "warning", "note"].index) and len(order) > 2


def test_memory_is_bounded() -> None:
    """Beside the data: a block of events, flags for ties, some numbers a user; not a second tape."""
    import tracemalloc

    data = make_long_tail(5_000, 20_000, 4_000_000)
    tracemalloc.start()
    check_interactions(data, 50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * checks.BLOCK + 200 * data.n_users
    assert peak < 8 * data.n_events * 8


@pytest.mark.parametrize(
    ("name", "reading", "figures", "found"),
    [
        ("ml-1m.txt", {"format": "sequences"}, (6_040, 3_416, 987_019), {"long_histories"}),
        ("beauty.txt", {}, (40_226, 54_542, 353_962), {"long_histories", "cold_targets"}),
        (
            "s3_beauty.txt",
            {"format": "user_sequences"},
            (22_363, 12_101, 198_502),
            {"long_histories", "cold_targets"},
        ),
        ("ml-100k.inter", {}, (943, 1_682, 100_000), {"long_histories", "cold_targets", "ties"}),
    ],
)
def test_real_data(
    shared_data: Path, name: str, reading: dict[str, Any], figures: tuple[int, int, int], found: set[str]
) -> None:
    if not (shared_data / name).exists():
        pytest.skip(f"{shared_data / name} does not exist")
    data = read_interactions(shared_data / name, **reading)
    split = leave_one_out(data)
    report = check_interactions(data, 50, split)
    assert (report.users, report.items, report.events) == figures and set(codes(report)) == found
    assert sum(users for _, _, users in report.histogram) == data.n_users
    said = split.describe()
    if "cold_targets" in found:
        cold = sum(said[f"{part}_targets_without_training"] for part in ("validation", "test"))
        assert report["cold_targets"].count == cold
    assert report.tied_share == said["tied_events_share"]


def test_data_without_a_training_target_are_an_error() -> None:
    short = build_interactions(*map(list, zip(*[(u, (u + t) % 7, t) for u in range(9) for t in range(3)], strict=True)))
    finding = check_interactions(short, 50, leave_one_out(short))["users_without_targets"]
    assert finding.severity == "error" and finding.count == 9
    assert finding.consequence == "training refuses the data: no user has 2 training events"


def test_examples_of_repeats_differ() -> None:
    finding = check_interactions(from_sequences([[1, 1, 1, 1, 2, 2], [3, 1]]))["repeats"]
    assert [each["item"] for each in finding.examples] == [1, 2]
