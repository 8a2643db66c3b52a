"""The command line, and what stands behind it: configurations, and the way from one to run folders."""

from __future__ import annotations


def main() -> None:
    """Entry point of the ``fastseq`` command."""
    from .commands import main as command

    command()
