"""What fastseq raises for input it cannot use. Each is a ValueError: ``except ValueError`` keeps working."""

from __future__ import annotations


class DataError(ValueError):
    """Interactions that cannot be used; the message names the file, row and column, and the remedy."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the key, its value, and the remedy."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file, what was expected, and what was found."""


class TrainingError(RuntimeError):
    """Training that cannot go on: the loss or the weights are not finite."""
