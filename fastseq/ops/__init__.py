"""The hot paths: one file each. Implementations and their choice: fastseq/ops/_dispatch.py.

Function and file often share a name; here the function wins: ``fastseq.ops.dropout`` is the function.
"""

from __future__ import annotations

from ._dispatch import BackendError, explain, record_served, set_backend
from .dropout import dropout
from .philox import make_rng

__all__ = [
    "BackendError",
    "dropout",
    "explain",
    "make_rng",
    "record_served",
    "set_backend",
]
