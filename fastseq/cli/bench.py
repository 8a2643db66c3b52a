"""fastseq bench train | predict | kernels: speed on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .console import Json, fail, stderr, stdout

bench = typer.Typer(no_args_is_help=True, help="Measure speed on this machine.")


@bench.command("train")
def bench_train(
    model: Annotated[str, typer.Option(help="SASRec, GRU4Rec or Caser, in the seed's configuration.")] = "SASRec",
    data: Annotated[Path | None, typer.Option(help="Interactions (default: the embedded data set).")] = None,
    max_len: Annotated[int | None, typer.Option(help="max_seq_len (default: the seed's).", min=1)] = None,
    stride: Annotated[int | None, typer.Option(help="window_stride (default: max_len).", min=1)] = None,
    batch_size: Annotated[int, typer.Option(help="Targets of one optimizer step.", min=1)] = 2048,
    loss: Annotated[str | None, typer.Option(help="As in a configuration (default: the model's).")] = None,
    precision: Annotated[str, typer.Option(help="As in a configuration.")] = "fp32",
    per_target: Annotated[bool, typer.Option("--per-target", help="WarpRec's own batches.")] = False,
    seconds: Annotated[float, typer.Option(help="How long to train.", min=0.1)] = 20.0,
    as_json: Json = False,
) -> None:
    """Targets per second of the training loop: loader, sampling, forward, backward, optimizer."""
    from ..training.throughput import train_throughput

    _print_figures(
        train_throughput(
            model,
            data,
            max_len,
            stride,
            batch_size=batch_size,
            loss=loss,
            precision=precision,
            per_target=per_target,
            seconds=seconds,
        ),
        as_json,
    )


@bench.command("predict")
def bench_predict(
    model: Annotated[str, typer.Option(help="SASRec, GRU4Rec or Caser, in the seed's configuration.")] = "SASRec",
    data: Annotated[Path | None, typer.Option(help="Interactions (default: the embedded data set).")] = None,
    max_len: Annotated[int | None, typer.Option(help="max_seq_len (default: the seed's).", min=1)] = None,
    k: Annotated[int, typer.Option("-k", help="Recommendations for each history.", min=1)] = 10,
    batch_size: Annotated[int, typer.Option(help="Histories of one call; 1 measures latency.", min=1)] = 512,
    seconds: Annotated[float, typer.Option(help="How long to measure.", min=0.1)] = 10.0,
    as_json: Json = False,
) -> None:
    """Histories per second, and the latency of one call, of `recommend`."""
    from ..training.throughput import predict_throughput

    _print_figures(predict_throughput(model, data, max_len, k=k, batch_size=batch_size, seconds=seconds), as_json)


@bench.command("kernels")
def bench_kernels(
    device: Annotated[
        str | None,
        typer.Option(help="cuda: the Triton kernels; cpu: C++, few shapes (default: cuda where there is one)."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="An op by its file in fastseq/ops, gru for example; may be repeated.")
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(help="Only this rival: eager, compiled, nested, flex, …; may be repeated.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Rounds of each measurement, in time.", min=0.0)] = 0.3,
    budget: Annotated[float | None, typer.Option(help="Start no case after so many seconds.", min=0.0)] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the times into this .png, .svg or .pdf.")] = None,
    as_json: Json = False,
) -> None:
    """Every op beside what PyTorch offers on the same inputs, forward and with its gradients.

    Nothing is timed that has not passed its check against the reference in the same run: fastseq without dropout and
    with it, the rivals, which draw other masks, without it. torch.compile takes most of the time: --against eager
    leaves it out. Ctrl-C reports what was measured so far. Exit code 1 when an op is wrong
    or nothing was measured.
    """
    import torch

    from benchmarks.ops import report
    from benchmarks.ops.run import collect, machine, measured, run
    from benchmarks.ops.suite import check_names

    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen not in ("cuda", "cpu"):
        raise typer.BadParameter(f"{chosen!r}: expected cuda or cpu", param_hint="--device")
    if chosen == "cuda" and not torch.cuda.is_available():
        raise typer.BadParameter(f"'cuda': PyTorch {torch.__version__} sees no GPU; take cpu", param_hint="--device")
    if plot is not None and (plot.suffix not in (".png", ".svg", ".pdf") or not plot.absolute().parent.is_dir()):
        raise typer.BadParameter(f"{plot}: expected a .png, .svg or .pdf in a folder that exists", param_hint="--plot")
    where = torch.device(chosen)
    try:
        check_names(where, only or [], against or [])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=f"--{str(error).split()[0]}") from error
    results, interrupted = collect(
        run(
            where,
            only=only or [],
            against=against or [],
            seconds=seconds,
            budget=budget,
            on_start=lambda spec, dtype: stderr.print(f"{spec.op}, {dtype} …", highlight=False),
        )
    )
    if interrupted:
        stderr.print("interrupted: what follows was measured before")
    about = machine(where)
    if as_json:
        print(json.dumps(report.document(results, about)))
    else:
        _print_kernels(results, about)
    if plot is not None and measured(results):
        report.plot(results, plot, about)
    if interrupted:
        raise typer.Exit(130)
    if not measured(results):
        fail("nothing was measured" + (f": {plot} is not drawn" if plot is not None else ""), 1)
    if any(result.failed for result in results):
        raise typer.Exit(1)


def _print_kernels(results: Any, about: dict[str, Any]) -> None:
    from benchmarks.ops.report import HEADER, cells, rows, summary

    table = Table(*HEADER, title=f"{about['device']}, torch {about['torch']}, {about['date']}")
    last = ""
    for row in rows(results):
        if row.ours.op != last and last:
            table.add_section()
        last = row.ours.op
        table.add_row(*cells(row))
    wide = stdout if stdout.is_terminal else Console(width=240)
    wide.print(table)
    for line in summary(results):
        wide.print(line, highlight=False, markup=False, soft_wrap=True)


def _print_figures(figures: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(figures))
        return
    table = Table("figure", "value")
    for name, value in figures.items():
        table.add_row(name, f"{value:,.3f}" if isinstance(value, float) else str(value))
    stdout.print(table)
