"""The models, by the names that configurations and checkpoints use."""

from __future__ import annotations

from .base import SequentialRecommender
from .caser import Caser
from .gru4rec import GRU4Rec
from .sasrec import SASRec
from .shards import Shards

MODELS: dict[str, type[SequentialRecommender]] = {"SASRec": SASRec, "GRU4Rec": GRU4Rec, "Caser": Caser}

__all__ = ["MODELS", "Caser", "GRU4Rec", "SASRec", "SequentialRecommender", "Shards"]
