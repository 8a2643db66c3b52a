"""The command line: fastseq check | train | plan | evaluate | compare | recommend | reproduce | verify | bench.

Exit codes: 0 done; 1 training failed; 2 a mistake in the command, configuration, data or checkpoint; 130 interrupted.
Answers go to stdout (one JSON document with --json), progress and errors to stderr.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

try:
    import rich  # noqa: F401
    import typer
except ImportError as error:  # the core install has no command line
    sys.exit(f"the fastseq command needs its extra ({error.name} is missing): pip install 'fastseq-rec[cli]'")

from .._process import own_process
from ..errors import CheckpointError, ConfigError, DataError, TrainingError
from .bench import bench
from .check import check_data, say_findings
from .console import Device, Json, fail, say, show, show_table, stderr, write_any_text
from .paths import expanded
from .recommend import recommend
from .runs import AllowChanged, Data, Run, load_model, refuse_changed
from .tables import (
    announce_row,
    answer_rows,
    as_planned,
    cells,
    columns_of,
    list_rows,
    print_comparisons,
    print_differences,
    print_table,
    summary,
)

if TYPE_CHECKING:
    from ..training import Evaluation
    from .configuration import Config
    from .experiment import Outcome

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="SASRec, GRU4Rec and Caser, fast: train on your interactions, evaluate, recommend.\n\n"
    "Answers go to stdout, progress and errors to stderr. Exit codes: 0 done; 1 training failed; 2 a mistake in the "
    "command, configuration, data or checkpoint; 130 interrupted.",
)
app.add_typer(bench, name="bench")
app.command("check")(check_data)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Options before the command."""
    if show:
        from .. import __version__

        print(__version__)
        raise typer.Exit


@app.command()
def train(
    config: Annotated[
        Path, typer.Argument(help="YAML in WarpRec's shape; see examples/.", show_default=False, callback=expanded)
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Where run folders go (default: the configuration's writer).", callback=expanded),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on in the existing run folder, bit for bit.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete what an earlier run left there.")] = False,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:n, in place of the configuration's.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Train and test every model of a configuration.

    Each gets a run folder: config.yaml (resolved), metrics.jsonl, curve.png, evaluation.json, checkpoints. Ctrl-C saves
    and says how to resume. Under torchrun all processes train together, and the first one answers.
    """
    from ..training.watch import failing_together

    try:
        with failing_together():
            _train(config, out, resume, overwrite, device, as_json)
    except KeyboardInterrupt:  # outside training, or the second one
        fail("interrupted; what was saved is intact, and the same command with --resume goes on from it", 130)


def _train(config: Path, out: Path | None, resume: bool, overwrite: bool, device: str | None, as_json: bool) -> None:
    from ..training.distributed import Ranks
    from .configuration import load_config

    settings = load_config(config)
    if out is not None:
        settings.writer.local_experiment_path = out
    _choose_device(settings, device)
    outcomes, baseline = _fit(settings, resume, overwrite, as_json)
    ranks = Ranks.join()
    ranks.leave()
    if as_json and ranks.is_first:
        print(json.dumps({"popularity": baseline and baseline.metrics, "runs": [summary(o) for o in outcomes]}))
    elif ranks.is_first:
        print_table(settings.evaluation.metrics, settings.evaluation.top_k, outcomes, baseline)
    if outcomes and outcomes[-1].result.stopped == "interrupted":
        raise typer.Exit(130)


def _fit(
    settings: Config, resume: bool, overwrite: bool, as_json: bool, again: str | None = None
) -> tuple[list[Outcome], Evaluation | None]:
    """Trains and tests every model of a configuration, and says so on stderr: the outcomes, and that of popularity.

    ``again`` says how an interrupted training goes on, where that is not with --resume.
    """
    from ..training.distributed import Ranks
    from ..training.metrics import parse_metric
    from . import experiment
    from .progress import progress_of

    outcomes: list[Outcome] = []
    baseline: Evaluation | None = None
    devices = [experiment.device_of(settings, entry) for entry in settings.models]
    ranks = Ranks.join(next((each for each in devices if each.type == "cuda"), None))
    stderr.quiet = not ranks.is_first
    if settings.unused:
        say(f"not used here: {', '.join(settings.unused)}")
    if settings.binary_ndcg:
        say(
            "reader.rating_type is 'explicit': nDCG counts every target alike here, WarpRec's weighs them by rating; "
            "nDCGRendle2020 is the same in both"
        )
    shown = "@".join(map(str, parse_metric(settings.evaluation.validation_metric)))
    with progress_of(shown, quiet=as_json or not ranks.is_first) as callbacks:

        def announce(name: str, data: Any, parts: Any) -> None:
            nonlocal baseline
            if baseline is None and len(parts.part("test")):
                baseline = experiment.popularity(settings, parts)
                say(
                    f"{settings.dataset_name}: {data.n_users:,} users, {data.n_items:,} items, {data.n_events:,} events"
                )
                for note in experiment.notes(baseline):
                    say(note)

        def look(data: Any, parts: Any) -> None:
            if ranks.is_first:
                say_findings(experiment.worth_saying(experiment.look(settings, data, parts), parts))

        for outcome in experiment.train(
            settings, resume=resume, overwrite=overwrite, on_read=look, on_start=announce, callbacks=callbacks
        ):
            outcomes.append(outcome)
            result = outcome.result
            how = "" if result.execution == "eager" else f" ({result.execution})"
            where = f"on {result.device}{how}, updates {result.updates}"
            message = result.message
            if again and result.stopped == "interrupted":
                message = f"interrupted at step {result.steps} and saved; {again}"
            say(f"{outcome.name}: {message}; {where}; {outcome.run.path}")
            say(f"{outcome.name}: {as_planned(result)}")
    return outcomes, baseline


@app.command("plan")
def plan_run(
    config: Annotated[
        Path, typer.Argument(help="YAML in WarpRec's shape; see examples/.", show_default=False, callback=expanded)
    ],
    items: Annotated[int | None, typer.Option(help="Plan for data of so many, and read none.", min=1)] = None,
    users: Annotated[int | None, typer.Option(help="With --items.", min=1)] = None,
    events: Annotated[int | None, typer.Option(help="With --items.", min=2)] = None,
    processes: Annotated[int, typer.Option(help="That train together; figures are of each.", min=1)] = 1,
    time: Annotated[
        bool, typer.Option("--time/--no-time", help="Also the time of an epoch, from some seconds of training.")
    ] = True,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:n, in place of the configuration's.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what `fastseq train` would take: memory part by part, and the time of an epoch.

    Exit code 2 where a model cannot fit into the memory there is, as `fastseq train` would refuse it.
    """
    from . import experiment
    from .configuration import load_config

    settings = load_config(config)
    _choose_device(settings, device)
    sizes = (items, users, events)
    if len({each is None for each in sizes}) > 1:
        raise ConfigError("--items, --users and --events are given together, or none of them")
    plans = experiment.plan(settings, None if items is None else sizes, processes, time)  # type: ignore[arg-type]
    if as_json:
        print(json.dumps([plan.to_dict() for plan in plans]))
    for plan in [] if as_json else plans:
        of_each = "" if processes == 1 else f", each of {processes} processes"
        show_table(f"{plan.model} on {plan.device}{of_each}, updates {plan.updates}", ("part", "takes"), plan.rows())
    for plan, entry in zip(plans, settings.models, strict=True):
        experiment.check(plan, entry)


@app.command()
def evaluate(
    run: Run,
    part: Annotated[str, typer.Option(help="validation or test.")] = "test",
    k: Annotated[list[int] | None, typer.Option("-k", help="Cut-off; may be repeated.", min=1)] = None,
    sampled: Annotated[
        int | None, typer.Option(help="Rank among so many sampled negatives, not the whole catalogue.", min=1)
    ] = None,
    by: Annotated[
        str, typer.Option(help="Break metrics down: length (of histories), popularity (of targets), or both, by comma.")
    ] = "",
    data: Data = None,
    allow_changed_data: AllowChanged = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate a run's best epoch again, on the data and split of its configuration.

    The metrics of each user go to evaluation_users.safetensors in the run folder, for `fastseq compare`.
    """
    from ..training import RunFolder
    from ..training.breakdown import By
    from . import experiment

    breakdowns = [each.strip() for each in by.split(",") if each.strip()]
    if unknown := set(breakdowns) - set(get_args(By)):
        raise ConfigError(f"--by has {unknown.pop()!r}, expected length, popularity, or both")

    if part not in ("validation", "test"):
        raise ConfigError(f"--part is {part!r}, expected validation or test")
    model, folder = load_model(run, device), RunFolder.existing(run)
    config = experiment.config_of_run(folder, data)
    _, parts = experiment.read_and_split(config)
    changed = experiment.changed_since(folder, parts)
    refuse_changed(run, changed, allow_changed_data)
    if k:
        config.evaluation.top_k = sorted(set(k))
    if sampled:
        config.evaluation.strategy, config.evaluation.num_negatives = "sampled", sampled
    evaluation = experiment.score(
        config,
        config.models[0],
        model,
        parts,
        part,  # type: ignore[arg-type]
        per_user=True,
        by=breakdowns,  # type: ignore[arg-type]
    )
    if changed:
        evaluation.protocol["changed_data"] = changed
    assert evaluation.users is not None
    try:
        folder.write_users(evaluation.users)
    except CheckpointError as error:
        say(f"fastseq compare cannot take this evaluation: {error}")
    if as_json:
        print(json.dumps(evaluation.to_dict()))
        return
    title = f"{type(model).__name__} · {config.dataset_name}"
    intervals = {name: f"{low:.4f} – {high:.4f}" for name, (low, high) in evaluation.intervals.items()}
    rows = [(name, f"{value:.4f}", intervals.get(name, "")) for name, value in evaluation.metrics.items()]
    show_table(title, ("metric", part, "95% of users"), rows)
    columns = columns_of(config.evaluation.metrics, config.evaluation.top_k)
    for what, groups in evaluation.by.items():
        lines = [(group["group"], group["users"], *cells(group["metrics"], columns)) for group in groups]
        show_table(f"{title}, by {what}", (what, "users", *columns), lines)
    for note in experiment.notes(evaluation):
        say(note)
    for name, value in evaluation.protocol.items():
        show(f"{name}: {value}", "dim")


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(help="Run folders, two or more; each is compared with the first.", show_default=False),
    ],
    seed: Annotated[int, typer.Option(help="Of the resampling of users.", min=0)] = 42,
    as_json: Json = False,
) -> None:
    """Compare runs user by user: differences, their confidence intervals, and whether they may be chance.

    Takes what `fastseq train` or the latest `fastseq evaluate` left in the run folders.
    """
    from ..training import RunFolder, significance

    paths = [path for path in map(expanded, runs) if path is not None]
    if len(paths) < 2 or len({path.resolve() for path in paths}) < len(paths):
        raise ConfigError("fastseq compare takes two or more different run folders")
    answer = significance.compare({str(path): RunFolder.existing(path).read_users() for path in paths}, seed)
    if as_json:
        print(json.dumps(answer))
        return
    print_differences(answer)


app.command()(recommend)


@app.command()
def reproduce(
    name: Annotated[
        str | None, typer.Argument(help="A row; without one the rows are listed.", show_default=False)
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="The data file, or a folder that has it (default: the current one).", callback=expanded),
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every row whose data are there.")] = False,
    seeds: Annotated[int, typer.Option(help="Train with the seeds 1 to N.", min=1)] = 1,
    out: Annotated[Path, typer.Option(help="Where run folders go: OUT/ROW/seed-N/MODEL.", callback=expanded)] = Path(
        "runs/reproduce"
    ),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Train again what is there.")] = False,
    allow_changed_data: AllowChanged = False,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda or cuda:n, in place of the configuration's.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Train what others published, on your copy of their data, and compare the scores.

    Runs that are there are not trained again, and interrupted ones go on. Each configuration is one that `fastseq
    train` takes (examples/reproduce/).
    """
    from ..training.watch import failing_together
    from . import reproduce as published

    if name is None and not every:
        list_rows(list(published.table()[1].values()), as_json)
        return
    if name is not None and every:
        raise ConfigError("a row and --all: give one of them")
    rows = [published.row(name)] if name is not None else list(published.table()[1].values())
    found, missing = [], dict[str, str]()
    for row in rows:
        try:
            found.append((row, *row.prepare(data, seeds, out, overwrite, allow_changed_data)))
        except (CheckpointError, DataError) as error:
            if not every:
                raise
            missing[row.name] = str(error)
    if not found:
        raise DataError("no row can be run: " + next(iter(missing.values())))
    again = f"the same command{' without --overwrite' if overwrite else ''} goes on from here"
    reports: list[dict[str, Any]] = []
    interrupted = False
    for row, settings, changed in found:
        announce_row(row)
        outcomes: list[Outcome] = []
        try:
            with failing_together():
                for seed, each in enumerate(settings, start=1):
                    say(f"{row.name}, seed {seed}")
                    _choose_device(each, device)
                    (outcome,), _ = _fit(each, not overwrite, overwrite, as_json, again)
                    interrupted = outcome.result.stopped == "interrupted"
                    if interrupted:
                        break
                    outcomes.append(outcome)
        except KeyboardInterrupt:  # outside training, or the second one
            interrupted = True
            say(f"interrupted; what was saved is intact, and {again}")
        if outcomes:
            reports.append(row.report(outcomes, changed))
        if interrupted:
            break
    answer_rows(reports, missing, as_json)
    if interrupted:
        raise typer.Exit(130)


@app.command()
def verify(
    config: Annotated[Path, typer.Option(help="YAML, fastseq's or WarpRec's.", show_default=False, callback=expanded)],
    data: Annotated[
        Path | None, typer.Option(help="Interactions instead of the configuration's.", callback=expanded)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Most targets of the compared and timed batch.", min=1)] = 256,
    repeats: Annotated[int, typer.Option(help="Timed steps of each side.", min=1)] = 3,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compare every model with WarpRec's on your data, then time both.

    Same weights: scores; same batch: loss and gradients, in float64 and float32 (a GPU: float32). Needs WarpRec
    (pip install 'fastseq-rec[warprec]', Python >= 3.12). Exit code 1 when they differ.
    """
    from ..devices import claim_device
    from .verify import verify as run

    claimed = claim_device(device, "--device")
    report = run(config, data, batch_size=batch_size, repeats=repeats, device=claimed)
    if as_json:
        rows = [
            {
                "model": c.model,
                "errors": {f"{what} {dtype}": error for (what, dtype), error in c.errors.items()},
                "worst_gradient": c.worst,
                "differing": c.differing,
                "batch_size": c.batch_size,
                "reference_seconds": c.reference_seconds,
                "seconds": c.seconds,
                "window_stride": c.window_stride,
                "window_batch_size": c.window_batch_size,
                "window_targets_per_second": c.window_speed,
            }
            for c in report.comparisons
        ]
        about = {"reference": report.reference, "data": report.data, "device": report.device, "same": report.same}
        print(json.dumps(about | {"models": rows}))
    else:
        print_comparisons(report)
    if not report.same:
        raise typer.Exit(1)


def main() -> None:
    """Entry point: errors a user can mend are one line, without a traceback."""
    try:
        _answer()
    except SystemExit as end:
        if os.environ.get("WORLD_SIZE", "1") != "1" and (end.code is None or isinstance(end.code, int)):
            # Of several processes one aborted now and then: DistributedDataParallel keeps gloo's threads alive, and one
            # that lets go of a tensor while Python is taken down ends the process. So it is not taken down.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code or 0)
        raise


def _answer() -> None:
    """Runs the command and ends with its exit code."""
    own_process()
    warnings.formatwarning = lambda message, *_, **__: f"fastseq: {message}\n"
    write_any_text()
    try:
        app()
    except (CheckpointError, ConfigError, DataError, ImportError, OSError) as error:
        fail(str(error), 2)
    except TrainingError as error:
        fail(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        from ..devices import DeviceMemoryError
        from ..ops import BackendError
        from .experiment import out_of_memory

        if isinstance(error, DeviceMemoryError):
            fail(str(error), 1)
        if isinstance(error, BackendError):
            fail(str(error), 2)
        if not out_of_memory(error):
            raise
        fail("out of memory: lower batch_size, neg_samples, max_seq_len or evaluation.batch_size", 1)
    except KeyboardInterrupt:
        fail("interrupted", 130)


def _choose_device(settings: Config, device: str | None) -> None:
    """The option --device takes the place of the configuration's keys."""
    from ..devices import find_device

    if device is not None:
        find_device(device, "--device")
        settings.general.device = device
        for entry in settings.models:
            entry.optimization.device = None
