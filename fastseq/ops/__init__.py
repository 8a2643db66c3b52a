"""The hot paths: one file each. Implementations and their choice: fastseq/ops/_dispatch.py.

Function and file often share a name; here the function wins: ``fastseq.ops.dropout`` is the function.
"""

from __future__ import annotations

from .. import native as _native  # noqa: F401 - a forked child of whoever imports this has one thread
from ._checks import check_data
from ._dispatch import BackendError, explain, record_served, set_backend
from .adam_rows import adam_rows
from .attention import causal_attention, last_query_attention
from .bias_gelu_dropout import bias_gelu_dropout
from .caser_windows import caser_windows
from .cross_entropy import linear_cross_entropy
from .dropout import dropout
from .dropout_add_norm import dropout_add_norm
from .embed_sequence import embed_sequence
from .gru import gru
from .gru_sampled_loss import gru_sampled_loss
from .linear import linear, linear_relu
from .negatives import sample_negatives, sample_shared_negatives
from .philox import make_rng
from .sampled_loss import gbce_beta, sampled_loss
from .topk import item_codes, topk
from .transformer_layer import transformer_layer
from .windows import gather_windows

__all__ = [
    "BackendError",
    "adam_rows",
    "bias_gelu_dropout",
    "caser_windows",
    "causal_attention",
    "check_data",
    "dropout",
    "dropout_add_norm",
    "embed_sequence",
    "explain",
    "gather_windows",
    "gbce_beta",
    "gru",
    "gru_sampled_loss",
    "item_codes",
    "last_query_attention",
    "linear",
    "linear_cross_entropy",
    "linear_relu",
    "make_rng",
    "record_served",
    "sample_negatives",
    "sample_shared_negatives",
    "sampled_loss",
    "set_backend",
    "topk",
    "transformer_layer",
]
