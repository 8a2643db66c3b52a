"""fastseq: SASRec, GRU4Rec and Caser, fast."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import ops
    from .models.base import SequentialRecommender
    from .models.caser import Caser
    from .models.catalogue import Catalogue
    from .models.gru4rec import GRU4Rec
    from .models.recommend import Recommendation
    from .models.sasrec import SASRec
    from .ops import explain, set_backend
    from .training.run import load

# Loaded on first use: importing fastseq alone costs next to nothing.
_HOMES = {
    "SASRec": "models.sasrec",
    "GRU4Rec": "models.gru4rec",
    "Caser": "models.caser",
    "SequentialRecommender": "models.base",
    "Catalogue": "models.catalogue",
    "Recommendation": "models.recommend",
    "explain": "ops",
    "load": "training.run",
    "set_backend": "ops",
}

__all__ = [
    "Caser",
    "Catalogue",
    "GRU4Rec",
    "Recommendation",
    "SASRec",
    "SequentialRecommender",
    "__version__",
    "explain",
    "load",
    "ops",
    "set_backend",
]


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module(".ops", __name__)
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
