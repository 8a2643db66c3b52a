"""The random stream: known answers, and the same bits from every implementation, width, thread and instruction set."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastseq import _C
from fastseq.ops import dropout, make_rng, set_backend
from fastseq.ops.philox import keep_scale, threshold
from fastseq.ops.reference.philox import keep_mask, philox

from .backends import check_same_on_threads

SHAPES = [(1, 1), (5, 3), (7, 64), (3, 65), (4, 128), (2, 130), (2, 513), (300, 24)]
P, SEED, STEP, SITE = 0.37, 2**63 - 12345, 2**32 + 77, 0x7FFF


def signed(x: int) -> int:
    """The int64 with the bits of a uint64."""
    return x - 2**64 if x >= 2**63 else x


# Counter, key, output: the known answers for philox4x32-10 published with Random123.
KNOWN = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN)
def test_known_answers(counter: str, key: str, output: str) -> None:
    c0, c1, c2, c3 = (int(word, 16) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    expected = [int(word, 16) for word in output.split()]
    seed = signed(k0 | k1 << 32)
    words = philox(make_rng(seed, c2), torch.tensor(c0), torch.tensor(c1), torch.tensor(c3))
    assert words.tolist() == expected
    assert list(_C.philox(seed=seed, step=c2, c0=c0, c1=c1, c3=c3)) == expected


def test_counter_layout() -> None:
    """Column c of row r is half c % 2 of word c % 8 // 2 of counter (c // 8, r, step, site): written out with the C++
    block function."""
    rows, columns, p = 3, 150, 0.5

    def value(row: int, column: int) -> int:
        return _C.philox(SEED, STEP, column // 8, row, SITE)[column % 8 // 2] >> 16 * (column % 2) & 0xFFFF

    expected = torch.tensor([[value(row, c) >= threshold(p) for c in range(columns)] for row in range(rows)])
    rng = make_rng(SEED, STEP)
    assert torch.equal(keep_mask(torch.arange(rows), columns, p, rng, SITE), expected)
    assert torch.equal(keep_mask(torch.arange(rows), 57, p, rng, SITE, first=45), expected[:, 45:102])
    assert torch.equal(dropout(torch.ones(rows, columns), p, rng, SITE) != 0, expected)


def masks() -> list[Tensor]:
    rng = make_rng(SEED, STEP)
    return [dropout(torch.ones(shape), P, rng, SITE) != 0 for shape in SHAPES]


def test_masks_for_any_width_and_thread_count() -> None:
    with set_backend("cpu"):
        check_same_on_threads(masks)
        fast = masks()
    with set_backend("reference"):
        plain = masks()
    for shape, a, b in zip(SHAPES, fast, plain, strict=True):
        assert torch.equal(a, b), shape


def test_streams_differ() -> None:
    """Seed, step, site and row each change the mask; the same four give it again."""
    x = torch.ones(2, 256)

    def mask(seed: int, step: int, site: int) -> Tensor:
        return dropout(x, 0.5, make_rng(seed, step), site)

    base = mask(1, 2, 3)
    assert torch.equal(base, mask(1, 2, 3))
    assert not torch.equal(base[0], base[1])
    for other in (mask(0, 2, 3), mask(1 + 2**32, 2, 3), mask(1, 3, 3), mask(1, 2, 4)):
        assert 180 < (base != other).sum() < 332  # 512 fair coins: within 6 standard deviations of 256


def test_the_eight_values_of_a_counter_are_independent() -> None:
    """Chi-squared of the 256 masks that eight values make; correlations with the next counter, row and step."""
    masks = [dropout(torch.ones(1025, 520), 0.5, make_rng(SEED, step), SITE) != 0 for step in (1, 2)]
    eights = [mask.view(1025, 65, 8) for mask in masks]
    calls = eights[0][:1024, :64].reshape(-1, 8)
    counts = (calls * 2 ** torch.arange(8)).sum(1).bincount(minlength=256)
    expected = len(calls) / 256
    chi_squared = ((counts - expected) ** 2 / expected).sum().item()
    assert abs(chi_squared - 255) < 5 * (2 * 255) ** 0.5
    others = [calls, eights[0][:1024, 1:].reshape(-1, 8), eights[0][1:, :64].reshape(-1, 8)]
    others.append(eights[1][:1024, :64].reshape(-1, 8))
    correlation = torch.corrcoef(torch.cat(others, 1).T.double()).fill_diagonal_(0.0)
    assert correlation.abs().max() < 5 / len(calls) ** 0.5


def test_threshold() -> None:
    assert [threshold(p) for p in (0.0, 1e-9, 0.3, 0.5, 1 - 1e-9)] == [0, 1, 19661, 2**15, 2**16 - 1]
    assert keep_scale(0.0) == 1.0 and keep_scale(0.5) == 2.0
    assert keep_scale(0.3) == 1 / (1 - 19661 / 65536)  # of the share that is kept: the mean is exact
    for p in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="expected 0 <= p < 1"):
            threshold(p)


@pytest.mark.parametrize(("seed", "step", "name"), [(2**63, 0, "seed"), (-(2**63) - 1, 0, "seed"), (0, 2**64, "step")])
def test_rng_of_64_bits(seed: int, step: int, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} is -?\d+, expected an integer from -2\*\*63"):
        make_rng(seed, step)
