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
    """Φ(z) within 1e-7: tl.erf has two polynomials and takes twice as many instructions to choose between them."""
    # log2 Φ(-a), a from 0 to 5.5, weighted least maximum: 4e-8 of Φ, 3e-4 of Φ(-5). Beyond, it falls ever faster.
    a = tl.abs(z)
    e = 2.094028786814306e-05 - a * 1.256042382446706e-06
    e = -0.00010260201088385656 + a * e
    e = -0.0003255071642342955 + a * e
    e = 0.007288680411875248 + a * e
    e = -0.05263584107160568 + a * e
    e = -0.45916748046875 + a * e
    e = -1.1511095762252808 + a * e
    tail = tl.exp2(-0.9999999403953552 + a * e)
    return tl.where(z < 0.0, tail, 1.0 - tail)
