"""Paths as users write them, in configurations and on the command line."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import ConfigError


def expanded(path: Path | None) -> Path | None:
    """``~`` and ``$VARIABLES`` replaced as a shell would; what exists as it is written stays.

    Raises:
        ConfigError: naming the variable that is not set, or the user who is not known.
    """
    if path is None or os.path.exists(path):
        return path
    for braced, plain in re.findall(r"\$(?:\{(\w+)\}|(\w+))", str(path)):
        if (braced or plain) not in os.environ:
            raise ConfigError(f"{path}: the variable {braced or plain} is not set; set it, or write the path in full")
    result = os.path.expanduser(os.path.expandvars(path))
    if result.startswith("~"):
        raise ConfigError(f"{path}: no home folder is known for {result.split(os.sep)[0]}; write the path in full")
    return Path(result)
