"""Triton kernels, one file per hot path, named as the file of fastseq.ops that they serve.

Only fastseq.ops imports this package, and only where Triton is installed. Without a GPU Triton's interpreter runs the
kernels on CPU tensors (``FASTSEQ_BACKEND=triton``): slow, for checking them. TRITON_INTERPRET overrides that.
"""

from __future__ import annotations

import os

import torch

if not torch.cuda.is_available():  # read when a kernel is defined, so before any is
    os.environ.setdefault("TRITON_INTERPRET", "1")
