"""What the commands share: where they print, the option --json, and how they end early."""

from __future__ import annotations

import sys
from typing import Annotated, NoReturn

import typer
from rich.console import Console

stderr = Console(stderr=True)
stdout = Console()

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


def fail(message: str, code: int) -> NoReturn:
    """Ends the process with one line on stderr."""
    print(f"fastseq: {message}", file=sys.stderr)
    sys.exit(code)
