"""Interactions in, batches out: files → Interactions → Split → Windows → JaggedBatch."""

from __future__ import annotations

from ..errors import DataError
from .baselines import Popularity
from .batch import JaggedBatch
from .ids import IdMap
from .interactions import Interactions, filter_interactions
from .loader import Loader
from .negatives import NegativeSampler
from .readers import from_sequences, read_interactions, read_split
from .split import Split, leave_k_out, leave_one_out, ratio, temporal_holdout
from .synthetic import make_demo
from .windows import Windows, pack_windows

__all__ = [
    "DataError",
    "IdMap",
    "Interactions",
    "JaggedBatch",
    "Loader",
    "NegativeSampler",
    "Popularity",
    "Split",
    "Windows",
    "filter_interactions",
    "from_sequences",
    "leave_k_out",
    "leave_one_out",
    "make_demo",
    "pack_windows",
    "ratio",
    "read_interactions",
    "read_split",
    "temporal_holdout",
]
