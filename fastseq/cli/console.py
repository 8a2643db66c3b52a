"""What the commands share: how they print, the option --json, and how they end early.

Ids, paths and other text of the user are printed as they are: never read as markup, never cut.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Column, Table

stderr = Console(stderr=True, markup=False, emoji=False, highlight=False)
stdout = Console(markup=False, emoji=False, highlight=False)

Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:n; auto is a GPU where there is one.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))}  # a tab would end a field


def write_any_text() -> None:
    """What the encoding of stdout or stderr cannot express is written as ``\\xe9``."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """One line on stderr."""
    stderr.print(text, soft_wrap=True)


def show(text: str, style: str | None = None) -> None:
    """One line on stdout."""
    stdout.print(text, style=style, soft_wrap=True)


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on a terminal, where long cells go on in the next line. Elsewhere a line a row, with tabs between fields.

    Args:
        title: above the table; elsewhere on stderr.
        rows: cells of any type; a list is several fields, or one cell with commas.
    """
    cells = [[[str(x).translate(_CONTROLS) for x in (c if isinstance(c, list) else [c])] for c in row] for row in rows]
    if sys.stdout.isatty():
        table = Table(*(Column(name, overflow="fold") for name in columns), title=title)
        for row in cells:
            table.add_row(*map(", ".join, row))
        stdout.print(table)
        return
    if title:
        say(title)
    print("\t".join(columns))
    for row in cells:
        print("\t".join(text for cell in row for text in cell))


def fail(message: str, code: int) -> NoReturn:
    """Ends the process with one line on stderr."""
    print(f"fastseq: {message}", file=sys.stderr)
    sys.exit(code)
