"""fastseq: SASRec, GRU4Rec and Caser, fast."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from . import data, models, ops, training
    from .models.base import SequentialRecommender
    from .models.caser import Caser
    from .models.gru4rec import GRU4Rec
    from .models.recommend import Catalogue, Recommendation
    from .models.recommendations import Recommendations, recommendations
    from .models.sasrec import SASRec
    from .ops import explain, set_backend
    from .training.run import load

# Loaded on first use: importing fastseq alone costs next to nothing.
_PACKAGES = ("data", "models", "ops", "training")
_HOMES = {
    "SASRec": "models.sasrec",
    "GRU4Rec": "models.gru4rec",
    "Caser": "models.caser",
    "SequentialRecommender": "models.base",
    "Catalogue": "models.recommend",
    "Recommendation": "models.recommend",
    "Recommendations": "models.recommendations",
    "recommendations": "models.recommendations",
    "explain": "ops",
    "load": "training.run",
    "set_backend": "ops",
}

__all__ = [
    "Caser",
    "Catalogue",
    "GRU4Rec",
    "Recommendation",
    "Recommendations",
    "SASRec",
    "SequentialRecommender",
    "__version__",
    "data",
    "explain",
    "load",
    "models",
    "ops",
    "recommendations",
    "set_backend",
    "training",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return __all__
