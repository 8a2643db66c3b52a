"""fastseq bench train | predict: speed on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import Device, Json, show_table
from .paths import expanded

bench = typer.Typer(no_args_is_help=True, help="Measure speed on this machine.")

Model = Annotated[str, typer.Option(help="As in a configuration; its reference configuration is measured.")]
Data = Annotated[Path | None, typer.Option(help="Interactions (default: the embedded data set).", callback=expanded)]
MaxLen = Annotated[int | None, typer.Option(help="max_seq_len (default: the model's).", min=1)]


@bench.command("train")
def bench_train(
    model: Model = "SASRec",
    data: Data = None,
    max_len: MaxLen = None,
    stride: Annotated[int | None, typer.Option(help="window_stride (default: max_len).", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Targets of one optimizer step.", min=1)] = 2048,
    loss: Annotated[str | None, typer.Option(help="As in a configuration (default: the model's).")] = None,
    precision: Annotated[str, typer.Option(help="As in a configuration.")] = "fp32",
    execution: Annotated[str, typer.Option(help="auto, eager or graph, as in a configuration.")] = "auto",
    updates: Annotated[str, typer.Option(help="auto, rows or dense, as in a configuration.")] = "auto",
    table: Annotated[str, typer.Option(help="replicated or sharded, as in a configuration.")] = "replicated",
    embedding_size: Annotated[int | None, typer.Option(help="Default: the model's.", min=1)] = None,
    items: Annotated[int | None, typer.Option(help="Generate data of so many items in place of --data.", min=1)] = None,
    users: Annotated[int, typer.Option(help="Of generated data.", min=1)] = 20_000,
    events: Annotated[int, typer.Option(help="Of generated data; at least as many as items.", min=2)] = 1_500_000,
    per_target: Annotated[bool, typer.Option("--per-target", help="WarpRec's own batches.")] = False,
    seconds: Annotated[float, typer.Option(help="How long to train.", min=0.1)] = 20.0,
    warmup: Annotated[float, typer.Option(help="Seconds of a first run, not counted; 0 for memory.", min=0.0)] = 2.0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Targets per second of the training loop: loader, sampling, forward, backward, optimizer."""
    from ..data.synthetic import make_long_tail
    from ..devices import claim_device
    from ..errors import ConfigError
    from ..training.throughput import train_throughput

    if items is not None and data is not None:
        raise ConfigError("--items generates data and --data reads them: pass one of them")
    interactions = data if items is None else make_long_tail(items, users, max(events, items))
    figures = train_throughput(
        model, interactions, max_len, stride, batch_size=batch_size, embedding_size=embedding_size, loss=loss,
        precision=precision, execution=execution, updates=updates, table=table, per_target=per_target, seconds=seconds,
        warmup_seconds=warmup, device=claim_device(device, "--device"),
    )  # fmt: skip
    _print_figures(figures, as_json)


@bench.command("predict")
def bench_predict(
    model: Model = "SASRec",
    data: Data = None,
    max_len: MaxLen = None,
    k: Annotated[int, typer.Option("-k", help="Recommendations for each history.", min=1)] = 10,
    batch_size: Annotated[int, typer.Option(help="Histories of one call; 1 measures latency.", min=1)] = 512,
    seconds: Annotated[float, typer.Option(help="How long to measure.", min=0.1)] = 10.0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Histories per second, and the latency of one call, of `recommend`."""
    from ..devices import claim_device
    from ..training.throughput import predict_throughput

    claimed = claim_device(device, "--device")
    figures = predict_throughput(model, data, max_len, k=k, batch_size=batch_size, seconds=seconds, device=claimed)
    _print_figures(figures, as_json)


@bench.command("data")
def bench_data(
    file: Annotated[Path, typer.Argument(help="The CSV file to write.", callback=expanded)],
    items: Annotated[int, typer.Option(help="Each occurs.", min=1)] = 1_000_000,
    users: Annotated[int, typer.Option(min=1)] = 20_000,
    events: Annotated[int, typer.Option(help="At least as many as items.", min=2)] = 1_500_000,
) -> None:
    """Write generated events of any number, popularity by Zipf's law, to measure with."""
    from ..data.synthetic import write_long_tail

    write_long_tail(file, items, users, max(events, items))


def _print_figures(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures))
        return
    rows = [(name, f"{value:,.3f}" if isinstance(value, float) else value) for name, value in figures.items()]
    show_table("", ("figure", "value"), rows)
