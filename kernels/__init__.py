"""Triton kernels, one file per hot path, named as the file of fastseq.ops that they serve.

Only fastseq.ops imports this package, and only where Triton is installed. Without a GPU Triton's interpreter runs the
kernels on CPU tensors (``FASTSEQ_BACKEND=triton``): slow, for checking them. TRITON_INTERPRET overrides that. It is
read when a kernel is defined, Triton's own (tl.sum, tl.sort) included, so before anything imports Triton.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import triton
import triton.language as tl

if os.environ.get("TRITON_INTERPRET") == "1" and isinstance(tl.sum, triton.JITFunction):
    raise ImportError(
        "Triton was imported (by torch.compile, say) before its interpreter was chosen: "
        "set TRITON_INTERPRET=1 when the process starts"
    )
