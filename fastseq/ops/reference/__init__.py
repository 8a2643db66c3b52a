"""Plain PyTorch twins of every op: slow, differentiable, obvious. Every fast path is checked against them."""
