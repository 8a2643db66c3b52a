"""fastseq check: what in the data will change the result, before anything is trained."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, DataError
from .console import Json, say, show, show_table, stdout
from .paths import expanded

if TYPE_CHECKING:
    from ..data.findings import DataReport, Finding
    from .configuration import Config

SAID = 3  # findings that `fastseq train` names
BAR = 30  # characters


def check_data(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DATA|CONFIG",
            help="Interactions, or a configuration (.yaml, .yml), whose reader, filters, split and models count.",
            show_default=False,
            callback=expanded,
        ),
    ],
    file_format: Annotated[str | None, typer.Option(help="As reader.file_format.", show_default=False)] = None,
    sep: Annotated[str | None, typer.Option(help="Between fields.", show_default=False)] = None,
    user: Annotated[
        str | None, typer.Option("--user-id-label", "--user", help="Column of users.", show_default=False)
    ] = None,
    item: Annotated[
        str | None, typer.Option("--item-id-label", "--item", help="Column of items.", show_default=False)
    ] = None,
    timestamp: Annotated[
        str | None,
        typer.Option("--timestamp-label", "--timestamp", help="Column of times; null: file order.", show_default=False),
    ] = None,
    header: Annotated[
        bool | None, typer.Option("--header/--no-header", help="Without one columns have numbers.", show_default=False)
    ] = None,
    user_type: Annotated[
        str | None, typer.Option("--user-id-type", help="int64 or str, as reader.dtypes.", show_default=False)
    ] = None,
    item_type: Annotated[str | None, typer.Option("--item-id-type", help="Likewise.", show_default=False)] = None,
    max_len: Annotated[
        int | None,
        typer.Option(help="max_seq_len (default: that of the models; 200 without any).", min=1, show_default=False),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="Draw the history lengths into this PNG file.", show_default=False, callback=expanded),
    ] = None,
    as_json: Json = False,
) -> None:
    """Look at the data before training: sizes, history lengths, and what will change the result.

    Each finding has its consequence and its remedy. Data alone are split as `fastseq train` does where nothing else is
    said: leave-one-out. Exit code 2 where training would refuse the data.
    """
    from . import experiment

    reader = {
        "file_format": file_format,
        "sep": None if sep is None else sep.replace("\\t", "\t"),
        "header": header,
        "labels": {"user_id_label": user, "item_id_label": item, "timestamp_label": timestamp},
        "dtypes": {"user_id_type": user_type, "item_id_type": item_type},
    }
    settings = _settings(source, reader)
    # With cold: keep in the end, so that cold targets are there to be counted.
    configured, settings.splitter.cold, refused = settings.splitter.cold, "keep", ""
    if settings.reader.loading_strategy == "split":
        data, parts = experiment.read_and_split(settings)
    else:
        data, parts = experiment.read(settings), None
        try:
            for settings.splitter.cold in dict.fromkeys((configured, "keep")):
                parts = experiment.split_of(settings, data)
        except (ConfigError, DataError) as error:
            refused = str(error)
    settings.splitter.cold = configured
    report = experiment.look(settings, data, parts, max_len)
    if figure is not None:
        draw_lengths(report, figure)
    if as_json:
        print(json.dumps({"source": str(source), "split_refused": refused or None, **report.to_dict()}))
    else:
        print_report(report, settings.dataset_name)
    errors = [finding.what for finding in report.findings if finding.severity == "error"]
    if refused or errors:
        raise DataError(f"{source}: training would refuse these data: {refused or errors[0]}")


def _settings(source: Path, reader: dict[str, Any]) -> Config:
    """The configuration of a file, or one for a data file and these keys of the section reader, None where not given.

    Raises:
        ConfigError: naming the key, or options beside a configuration.
    """
    from .configuration import Config, load_config, validated_reader

    given = {key: value for key, value in reader.items() if value is not None and not isinstance(value, dict)}
    for key in ("labels", "dtypes"):
        given[key] = {name: value for name, value in reader[key].items() if value is not None}
    if source.suffix.lower() in (".yaml", ".yml"):
        if any(value != {} for value in given.values()):
            raise ConfigError(f"{source} is a configuration: its section reader says how the data are read, no option")
        return load_config(source)
    if not source.exists():
        raise DataError(f"{source}: no such file or folder")
    labels = given["labels"]
    if labels.get("timestamp_label") in ("", "null", "none"):
        labels["timestamp_label"] = None
    if given.get("header") is False:
        given["labels"] = {key: int(name) if name and name.isdecimal() else name for key, name in labels.items()}
    return Config(reader=validated_reader({**given, "local_path": source}), models=[])


def print_report(report: DataReport, name: str) -> None:
    """Figures, the histogram of history lengths, and the findings, on stdout."""
    lengths = report.lengths
    rows = [
        ("events", f"{report.events:,}"),
        ("users", f"{report.users:,}"),
        ("items", f"{report.items:,}"),
        ("density", f"{report.density:.4%}"),
        ("history length", f"mean {lengths['mean']:,.1f}, " + ", ".join(_quantiles(lengths))),
    ]
    if report.beyond is not None:
        rows.append((f"training targets beyond max_seq_len = {report.max_seq_len}", f"{report.beyond:.1%}"))
    if report.tied_share is not None:
        rows.append(("events tied in time", f"{report.tied_share:.1%}"))
    if report.split is not None:
        parts = ", ".join(f"{part} {report.split[f'{part}_targets']:,} targets" for part in ("validation", "test"))
        rows.append(("split", f"training {report.split['train_events']:,} events, {parts}"))
    show_table(name, ("figure", "value"), rows)
    most = max(users for _, _, users in report.histogram)
    lines = []
    for low, high, users in report.histogram:
        line = (f"{low:,}" if low == high else f"{low:,} – {high:,}", f"{users:,}", f"{users / report.users:.1%}")
        lines.append((*line, _bar(users / most)) if sys.stdout.isatty() else line)
    columns = ("events", "users", "share", "")
    show_table("History lengths", columns[: len(lines[0])], lines)
    if not report.findings:
        show("no findings")
        return
    findings = [(each.severity, _with_examples(each), each.consequence, each.remedy) for each in report.findings]
    show_table("Findings", ("", "finding", "what it does", "remedy"), findings)


def say_findings(findings: Sequence[Finding]) -> None:
    """Some lines on stderr at the start of training; none where there is nothing to say."""
    for finding in findings[:SAID]:
        say(f"{finding.what}: {finding.consequence}")
    if findings:
        more = f", and {len(findings) - SAID} more" if len(findings) > SAID else ""
        say(f"(`fastseq check` says what to do about {'these' if len(findings) > 1 else 'this'}{more})")


def draw_lengths(report: DataReport, path: Path) -> None:
    """The histogram of history lengths as a PNG, with max_seq_len as a line.

    Raises:
        ImportError: naming the extra, where matplotlib cannot be imported.
        DataError: if the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure  # no pyplot: no window, no global state
    except (ImportError, ValueError) as error:  # the second: MPLBACKEND names a backend that is not installed
        raise ImportError(f"--figure needs matplotlib ({error}): pip install 'fastseq-rec[cli]'") from None
    drawing = Figure(figsize=(8, 4), layout="constrained")
    axes = drawing.add_subplot()
    edges = [0.5, *(high + 0.5 for _, high, _ in report.histogram)]
    axes.stairs([users for _, _, users in report.histogram], edges, fill=True, ec="white")
    axes.set_xscale("log")
    if report.max_seq_len is not None:
        axes.axvline(report.max_seq_len, color="tab:orange", label=f"max_seq_len = {report.max_seq_len:,}")
        axes.legend()
    axes.set_xlabel("events of a user")
    axes.set_ylabel("users")
    picture = io.BytesIO()
    drawing.savefig(picture, format="png", dpi=120)
    try:
        path.write_bytes(picture.getvalue())
    except OSError as error:
        raise DataError(f"--figure {path}: cannot be written ({error.strerror or error})") from error


def _quantiles(lengths: dict[str, float]) -> list[str]:
    return [f"{name} {value:,.0f}" for name, value in lengths.items() if name != "mean"]


def _bar(share: float) -> str:
    """As long as the share, 0 … 1, of what encoding the terminal has."""
    utf = str(stdout.encoding).lower().startswith("utf")
    return ("█" if utf else "#") * max(round(share * BAR), share > 0)


def _with_examples(finding: Finding) -> str:
    shown = [", ".join(f"{key} {value!r}" for key, value in each.items()) for each in finding.examples]
    return finding.what + (f"; {'; '.join(shown)}" if shown else "")
