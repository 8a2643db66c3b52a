"""What the commands print: tables and sentences of what a run or an evaluation gave."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .console import say, show, show_table

if TYPE_CHECKING:
    from ..training import Evaluation, TrainResult
    from .experiment import Outcome
    from .reproduce import Row
    from .verify import Report


def print_differences(answer: dict[str, Any]) -> None:
    """What `fastseq compare` found: a table a run."""
    columns = ("metric", "first", "run", "difference", "95% of users", "p", "higher", "lower", "equal")
    for each in answer["comparisons"]:
        rows = []
        for name, m in each["metrics"].items():
            interval = " – ".join(f"{end:+.4f}" for end in m["interval"])
            numbers = (f"{m['first']:.4f}", f"{m['run']:.4f}", f"{m['difference']:+.4f}", interval, f"{m['p']:.4f}")
            rows.append((name, *numbers, m["higher"], m["lower"], m["equal"]))
        show_table(f"{each['run']} against {answer['first']}, {answer['users']:,} users", columns, rows)
    show(answer["method"], "dim")


def list_rows(rows: list[Row], as_json: bool) -> None:
    if as_json:
        print(json.dumps([row.to_dict() for row in rows]))
        return
    columns = ("name", "data, users / items", "published by", "protocol", "HR@10", "NDCG@10", "source")
    cells = [
        (
            row.name,
            f"{row.data.title}, {row.data.users:,} / {row.data.items:,}",
            each["system"],
            row.protocol,
            f"{each['HR']:.4f}",
            f"{each['NDCG']:.4f}",
            each["source"],
        )
        for row in rows
        for each in row.published
    ]
    show_table("Published scores", columns, cells)
    say("fastseq reproduce NAME --data FILE trains one of them")


def announce_row(row: Row) -> None:
    """What is published, and what is trained to reach it, before that is."""
    say(f"{row.name}: {row.data.title}; {row.protocol}; configuration {row.path}")
    for each in row.published:
        scores = f"HR@10 {each['HR']:.4f}, NDCG@10 {each['NDCG']:.4f}"
        say(f"{row.name}: published {scores}: {each['system']}, {each['source']}")


def answer_rows(reports: list[dict[str, Any]], missing: dict[str, str], as_json: bool) -> None:
    """What `fastseq reproduce` prints at its end: a line a published score."""
    from ..training.distributed import Ranks

    ranks = Ranks.join()
    ranks.leave()
    if not ranks.is_first:
        return
    if as_json:
        print(json.dumps({"rows": reports, "left_out": missing}))
        return
    for reason in missing.values():
        say(reason)
    for report in reports:
        if "changed_data" in report:
            say(f"{report['name']}: {report['changed_data']}")
    if not reports:  # interrupted
        return
    names = ("HR@10", "NDCG@10")
    columns = ["row", "published by", *names, *(f"reached {name}" for name in names), *(f"± {name}" for name in names)]
    cells = []
    for report in reports:
        mean, spread = report["reached"]["mean"], report["reached"]["spread"]
        for each in report["published"]:
            scores = [f"{source[name]:.4f}" for source in (each, mean) for name in names]
            scores += [f"{spread[name]:.4f}" if spread else "–" for name in names]
            differences = [f"{each['relative'][name]:+.1%}" for name in names]
            time = f"{report['seconds']:,.0f} s"
            cells.append((report["name"], f"{each['system']}, {each['source']}", *scores, *differences, time))
    show_table("Published and reached", (*columns, *(f"{name} differs" for name in names), "time of all seeds"), cells)


def print_comparisons(report: Report) -> None:
    rows = []
    for c in report.comparisons:
        for number, what in enumerate(("scores", "loss", "gradients")):
            errors = [
                f"{c.errors[what, dtype]:.1e}" if (what, dtype) in c.errors else "–" for dtype in ("float64", "float32")
            ]
            reference = c.batch_size / c.reference_seconds
            speeds = [
                (f"reference, {c.batch_size} rows", reference, 1.0),
                ("fastseq, same batch", c.batch_size / c.seconds, c.reference_seconds / c.seconds),
                (
                    f"windows, stride {c.window_stride}, {c.window_batch_size} targets",
                    c.window_speed,
                    c.window_speed / reference,
                ),
            ]
            name, speed, ratio = speeds[number]
            rows.append((c.model, what, *errors, name, f"{speed:,.0f}", f"{ratio:.1f}×"))
    columns = ("model", "error in", "float64", "float32", "training step", "targets/s", "speed")
    show_table("", columns, rows)
    show(f"compared with {report.reference}")
    show(f"on {report.data}; {report.device}")
    show("windows: the core model in batches of its own, without WarpRec's adapter, trainer and evaluation")
    for c in report.comparisons:
        if c.differing:
            show(f"{c.model} DIFFERS: {', '.join(c.differing)}; worst gradient: {c.worst}", "bold red")
    if report.same:
        show("same scores, loss and gradients", "bold")


def as_planned(result: TrainResult) -> str:
    """What a run took, beside what was planned."""
    memory = f"peak memory {result.peak_memory_mb:,.0f} MB, planned {result.planned_memory_mb or 0:,.0f}"
    if result.epoch_seconds is None:
        return memory
    planned = result.planned_epoch_seconds
    foretold = "" if planned is None else f", by its first seconds {planned:,.1f}"
    return f"{memory}; {result.epoch_seconds:,.1f} s of training an epoch{foretold}"


def columns_of(metrics: list[str], ks: list[int]) -> list[str]:
    """The metrics of a table, by their names in ``Evaluation.metrics``."""
    from ..training.metrics import parse_metric

    return ["@".join(map(str, parse_metric(f"{name}@{k}"))) for k in ks for name in metrics]


def print_table(metrics: list[str], ks: list[int], outcomes: list[Outcome], baseline: Evaluation | None) -> None:
    columns = columns_of(metrics, ks)
    rows = []
    if baseline is not None:
        rows.append(["popularity", *cells(baseline.metrics, columns), "", ""])
    for outcome in outcomes:
        speed, memory = f"{outcome.result.targets_per_second:,.0f}", f"{outcome.peak_rss_mb:,.0f} MB"
        scores = outcome.evaluation.metrics if outcome.evaluation else {}
        rows.append([outcome.name, *cells(scores, columns), speed, memory])
    ranking = "full" if baseline is None else baseline.protocol["ranking"]
    show_table(f"Test set, {ranking} ranking", ["model", *columns, "targets/s", "peak memory"], rows)


def cells(scores: dict[str, float], columns: list[str]) -> list[str]:
    """Metrics as text; a dash for what was not measured, such as coverage among sampled candidates."""
    return [f"{scores[c]:.4f}" if c in scores else "–" for c in columns]


def summary(outcome: Outcome) -> dict[str, Any]:
    result = asdict(outcome.result)
    result.pop("history")
    return {
        "model": outcome.name,
        "run": str(outcome.run.path),
        "peak_rss_mb": round(outcome.peak_rss_mb, 1),
        "plan": outcome.plan.to_dict(),
        "training": result,
        "evaluation": outcome.evaluation.to_dict() if outcome.evaluation else None,
    }
