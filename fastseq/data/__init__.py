"""Interactions in, batches out: files → Interactions → Split → Windows → JaggedBatch."""

from __future__ import annotations

from ..errors import DataError
from .baselines import Popularity
from .batch import JaggedBatch
from .checks import check_interactions
from .filters import apply_filter
from .findings import DataReport, Finding
from .ids import IdMap
from .interactions import Interactions, filter_interactions
from .loader import Loader
from .negatives import NegativeSampler
from .readers import from_sequences, read_histories, read_interactions, read_split
from .split import Split, global_temporal, leave_k_out, leave_one_out, ratio
from .strategies import warprec_split
from .synthetic import make_demo, make_long_tail, write_long_tail
from .windows import Windows, pack_windows

__all__ = [
    "DataError",
    "DataReport",
    "Finding",
    "IdMap",
    "Interactions",
    "JaggedBatch",
    "Loader",
    "NegativeSampler",
    "Popularity",
    "Split",
    "Windows",
    "apply_filter",
    "check_interactions",
    "filter_interactions",
    "from_sequences",
    "global_temporal",
    "leave_k_out",
    "leave_one_out",
    "make_demo",
    "make_long_tail",
    "pack_windows",
    "ratio",
    "read_histories",
    "read_interactions",
    "read_split",
    "warprec_split",
    "write_long_tail",
]
