"""fastseq recommend: answers on the screen, or as a table in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, DataError
from .asked import among, as_ids, lines_of, raw
from .console import Device, Json, fail, say, show_table
from .paths import expanded
from .runs import AllowChanged, Data, Run, load_model, refuse_changed

if TYPE_CHECKING:
    from ..data import Interactions
    from ..models.recommendations import Recommendations
    from ..training import RunFolder

Requests = list[tuple[Any, Any, list[Any]]]  # a name for the answer, the user, the history


def recommend(
    run: Run,
    user: Annotated[list[str] | None, typer.Option("--user", "-u", help="A user of the data; may be repeated.")] = None,
    history: Annotated[
        list[str] | None,
        typer.Option("--history", help="Item ids, oldest first, separated by commas; may be repeated, or empty."),
    ] = None,
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help="A history a line: item ids separated by tabs, else by spaces; - is stdin.",
            callback=expanded,
        ),
    ] = None,
    histories: Annotated[
        Path | None,
        typer.Option(
            help="The histories of anyone: a file of users and items, an event a row, in any format that training "
            "takes.",
            callback=expanded,
        ),
    ] = None,
    columns: Annotated[
        str,
        typer.Option(
            help="USER,ITEM or USER,ITEM,TIME: the columns of --histories (default: those of the training data); "
            "numbers from 0 where there is no header. Without TIME rows are in order."
        ),
    ] = "",
    sample: Annotated[int, typer.Option(help="So many users of the data, spread over it.", min=0)] = 0,
    k: Annotated[int, typer.Option("-k", help="Recommendations for each.", min=1)] = 10,
    include_seen: Annotated[bool, typer.Option("--include-seen", help="Do not leave out the history's items.")] = False,
    skip_unknown: Annotated[bool, typer.Option("--skip-unknown", help="Leave out unknown items of a history.")] = False,
    mean_user: Annotated[
        bool, typer.Option("--mean-user", help="Caser: score users it does not know with the mean user vector.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write a table of user, item, score and rank: .csv, .tsv, .parquet or .jsonl. Of all users of the "
            "data, if no others are named.",
            callback=expanded,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out if it is there.")] = False,
    data: Data = None,
    allow_changed_data: AllowChanged = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Recommend items for users of the data or for any history, in raw ids, on the screen or as a table in a file."""
    from ..data import tables
    from ..models.recommendations import recommendations
    from ..training import RunFolder
    from . import experiment

    if out is not None:
        tables.check_target(out, overwrite)  # before anything takes time
    elif overwrite:
        raise ConfigError("--overwrite is of --out")
    if columns and histories is None:
        raise ConfigError("--columns are those of --histories")
    if histories is not None and (user or sample or history or input_file):
        raise ConfigError("--histories stands alone: leave out --user, --sample, --history and --input")
    words_given = bool(history or input_file)
    model, folder = load_model(run, device), RunFolder.existing(run)
    if not (user or sample or words_given or histories or out):
        raise ConfigError("nothing to recommend for: give --user, --history, --histories, --input, --sample or --out")
    if untrained := experiment.trained_split(folder).get("items_without_training"):
        say(f"{untrained} items without a training event may be recommended (splitter.cold: drop: none)")
    source: Interactions | None = None
    chosen: list[Any] | None = None  # of the source; None: all its users
    if histories is not None:
        source = _read_histories(histories, columns, folder)
        _say_unknown(model, source, histories, skip_unknown)
    elif user or sample or not words_given:
        source = _trained_data(run, folder, data, allow_changed_data)
        chosen = _chosen(model, source, user or [], sample, mean_user)
    options: dict[str, Any] = {"filter_seen": not include_seen, "unknown_users": "mean" if mean_user else "error"}
    if out is not None and source is not None and not words_given:
        # Of users of the data those events count whose items the model knows.
        table = recommendations(model, source, k, users=chosen, unknown_items="skip", **options)
        _write(table, out, overwrite, type(model).__name__, as_json)
        return
    requests = [] if source is None else _of_source(model, source, chosen, skipped_before=histories is None)
    requests += _of_words(model, history or [], input_file, skip_unknown)
    if not requests:
        raise ConfigError("nothing to recommend for: what was given has no histories")
    names, users, asked = map(list, zip(*requests, strict=True))
    options |= {"users": users if model.needs_user else None, "unknown_items": "skip" if skip_unknown else "error"}
    if out is not None:
        named = replace(recommendations(model, asked, k, **options), users=_column(names))
        _write(named, out, overwrite, type(model).__name__, as_json)
        return
    answers = model.recommend(asked, k, **options)
    if as_json:
        rows = [
            {"for": name, "items": answer.items, "scores": answer.scores}
            for name, answer in zip(names, answers, strict=True)
        ]
        print(json.dumps(rows))
        return
    lines = [
        (name, ", ".join(map(str, events[-3:])), answer.items)
        for name, events, answer in zip(names, asked, answers, strict=True)
    ]
    show_table(f"{type(model).__name__} recommends", ("for", "last events", f"best {k}"), lines)


def _read_histories(path: Path, columns: str, folder: RunFolder) -> Interactions:
    """The histories of a file, whose columns are those of ``--columns`` or of the training data."""
    from ..data import read_histories
    from . import experiment

    layout: dict[str, Any] = {}
    if folder.config_path.exists():
        reader = experiment.config_of_run(folder).reader
        layout = experiment.columns_of_reader(reader, reader.header)
        if reader.local_path is not None and reader.local_path.suffix.lower() == path.suffix.lower():
            layout |= experiment.format_of_reader(reader)
    if columns:
        words: list[Any] = [word.strip() for word in columns.split(",")]
        if len(words) not in (2, 3) or not all(words):
            raise ConfigError(f"--columns is {columns!r}, expected USER,ITEM or USER,ITEM,TIME")
        layout["header"] = not all(word.isdecimal() for word in words)
        words = words if layout["header"] else list(map(int, words))
        layout |= dict(zip(("user", "item", "timestamp"), [*words, None], strict=False))
    try:
        return read_histories(path, **layout)
    except DataError as error:
        raise DataError(f"--histories {error} (--columns USER,ITEM or USER,ITEM,TIME names its columns)") from error


def _say_unknown(model: Any, source: Interactions, path: Path, skip: bool) -> None:
    from ..models.recommendations import unknown_items_of

    if unknown := unknown_items_of(model, source):
        if not skip:
            raise DataError(f"--histories {path}: {unknown}; --skip-unknown leaves their events out")
        say(f"left out: {unknown}")


def _trained_data(run: Path, folder: RunFolder, data: Path | None, allow_changed: bool) -> Interactions:
    """The data that the run was trained on, or what takes their place."""
    from . import experiment

    config = experiment.config_of_run(folder, data)
    if allow_changed:
        return experiment.read(config)
    interactions, parts = experiment.read_and_split(config)
    refuse_changed(run, experiment.changed_since(folder, parts), False)
    return interactions


def _chosen(model: Any, source: Interactions, named: list[str], sample: int, mean_user: bool) -> list[Any] | None:
    """The users of the data who were asked for, also those that the split left out; None for all."""
    known_users = model.catalogue.users if model.catalogue is not None else None
    if named or sample:
        known = among(known_users, source.user_ids.values)
        step = max(1, len(known) // sample) if sample else 1
        names = [raw(source.user_ids, text, "user") for text in named] + known[::step][:sample]
    elif model.needs_user and not mean_user:
        names = among(known_users, source.user_ids.values)
        if away := source.n_users - len(names):
            say(f"left out: {away} users whom this {type(model).__name__} does not know; --mean-user takes them")
    else:
        return None
    return [name.item() if hasattr(name, "item") else name for name in names]


def _of_source(model: Any, source: Interactions, chosen: list[Any] | None, skipped_before: bool) -> Requests:
    """What is asked for users of a source; without the events of unknown items, or for ``recommend`` to skip them."""
    from ..models.recommend import known_items, known_users
    from ..models.recommendations import as_kind

    items = known_items(model)
    names = source.user_ids.decode(range(source.n_users)) if chosen is None else chosen
    users = as_kind(names, known_users(model)) if model.needs_user else names
    histories = [as_kind(source.history(name), items) for name in names]
    if skipped_before:
        histories = [among(items, history) for history in histories]
    return list(zip(names, users, histories, strict=True))


def _of_words(model: Any, lines: list[str], file: Path | None, skip_unknown: bool) -> Requests:
    """What is asked in words: ``--history`` and ``--input``."""
    items = model.catalogue.items if model.catalogue is not None else None
    requests: Requests = []
    for number, line in enumerate(lines, start=1):
        words = [text for text in line.split(",") if text.strip()]
        requests.append((line, None, as_ids(items, words, f"--history {number}", skip_unknown)))
    if file is not None:
        for number, line in enumerate(lines_of(file), start=1):
            words = [text for text in line.split("\t") if text.strip()] if "\t" in line else line.split()
            requests.append((f"line {number}", None, as_ids(items, words, f"{file}, line {number}", skip_unknown)))
    return requests


def _column(names: Sequence[Any]) -> Any:
    """The column of users, as text where some are no integers."""
    from ..models.recommendations import user_column

    mixed = len({isinstance(name, str) for name in names}) > 1
    return user_column([str(name) for name in names] if mixed else list(names))


def _write(table: Recommendations, out: Path, overwrite: bool, model: str, as_json: bool) -> None:
    from .progress import counting

    users = len(table.users)
    try:
        with counting(f"{model}, users", users, quiet=as_json) as advance:
            rows = table.write(out, overwrite=overwrite, on_progress=advance)
    except KeyboardInterrupt:
        fail(f"interrupted; {out} was not written", 130)
    if as_json:
        print(json.dumps({"out": str(out), "users": users, "rows": rows}))
    else:
        say(f"{model}: {rows:,} rows for {users:,} users; {out}")
