"""Backward passes of the reference implementations, by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def vjp(
    function: Callable[..., Tensor],
    arguments: Sequence[Any],
    grad: Tensor,
    wanted: Sequence[int],
) -> list[Any]:
    """Gradients of ``function(*arguments)`` for the arguments at positions ``wanted``.

    Args:
        function: differentiable; returns one tensor.
        grad: upstream gradient of that tensor.
        wanted: positions of tensor arguments (a None argument yields a None gradient).
    """
    with torch.enable_grad():
        leaves = list(arguments)
        for i in wanted:
            if leaves[i] is not None:
                leaves[i] = leaves[i].detach().requires_grad_(True)
        output = function(*leaves)
        inputs = [leaves[i] for i in wanted if leaves[i] is not None]
        grads = iter(torch.autograd.grad(output, inputs, grad, materialize_grads=True))
    return [None if leaves[i] is None else next(grads) for i in wanted]
