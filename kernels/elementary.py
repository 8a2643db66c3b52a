"""Elementary functions in float32 that Triton lacks, or has too coarse: element-wise, right at any argument."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    decay = tl.exp(-tl.abs(x))  # at most 1
    return tl.where(x >= 0, 1.0, decay) / (1.0 + decay)


@triton.jit
def tanh(x):
    """Within 5 units of 2**-24, relative."""
    s = x * x  # near 0, where 1 - e cancels: the series to x^11
    series = -17.0 / 315.0 + s * (62.0 / 2835.0 - s * (1382.0 / 155925.0))
    near = x + x * s * (-1.0 / 3.0 + s * (2.0 / 15.0 + s * series))
    e = tl.exp(-2.0 * tl.abs(x))  # at most 1
    far = tl.where(x < 0.0, -1.0, 1.0) * (1.0 - e) / (1.0 + e)
    return tl.where(tl.abs(x) < 0.4, near, far)


@triton.jit
def softplus(x):
    """log(1 + exp(x)) and its derivative."""
    e = tl.exp(-tl.abs(x))  # at most 1
    # log(1 + e) = 2 artanh(z), z = e / (2 + e) <= 1/3: the series to z^17 is good to float32's last bit.
    z = e / (2.0 + e)
    s = z * z
    series = 1.0 / 15.0 + s * (1.0 / 17.0)
    series = 1.0 / 11.0 + s * (1.0 / 13.0 + s * series)
    series = 1.0 / 7.0 + s * (1.0 / 9.0 + s * series)
    series = 1.0 + s * (1.0 / 3.0 + s * (1.0 / 5.0 + s * series))
    return tl.maximum(x, 0.0) + 2.0 * z * series, tl.where(x >= 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def normal_cdf(z):
    """Φ(z)."""
    return 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)
