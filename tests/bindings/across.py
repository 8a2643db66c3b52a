"""Whether two builds of fastseq._C compute the same, where one of them runs on another processor or under an emulator.

``python -m tests.bindings.across FILE`` writes there what every function returns and writes for seeded arguments; where
FILE exists already, it compares. Needs numpy alone. Fused multiply-adds move the rounding of floats: compare with a
build that has them too (FASTSEQ_CPU_ISA=avx2 for aarch64).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastseq import _C

from .doors import BUILDERS, Array, Maker

SEEDS, SCALES = 12, (5, 30, 120)
BAR = {"float32": 2e-6, "float64": 1e-14}  # of the largest entry


def flat(name: str, value: Any) -> Iterator[tuple[str, Array]]:
    if isinstance(value, tuple | list):
        for i, x in enumerate(value):
            yield from flat(f"{name}/{i}", x)
    elif value is not None:
        yield name, np.asarray(value)


def outputs() -> dict[str, Array]:
    results: dict[str, Array] = {}
    for name, build in BUILDERS.items():
        for seed in range(SEEDS):
            for kind in BAR:
                case = build(Maker(seed, SCALES[seed % len(SCALES)], np.dtype(kind).type))
                call = f"{name}/{seed}/{kind}"
                results.update(flat(f"{call}/returned", getattr(_C, name)(*case.arguments.values())))
                for key in sorted(case.outputs):
                    results.update(flat(f"{call}/{key}", case.arguments[key]))
    return results


def same(x: Array, y: Array) -> bool:
    """Equal; floats within BAR, with zeros (what a dropout has dropped), infinities and NaN in the same places."""
    if x.dtype != y.dtype or x.shape != y.shape:
        return False
    if x.dtype.kind != "f":
        return np.array_equal(x, y)
    finite = np.isfinite(x)
    if not np.array_equal(x[~finite], y[~finite], equal_nan=True) or not np.array_equal(x == 0, y == 0):
        return False
    return bool(np.allclose(x[finite], y[finite], rtol=0, atol=BAR[x.dtype.name] * np.abs(x[finite]).max(initial=0)))


def main(path: Path) -> int:
    arrays = outputs()
    if not path.exists():
        np.savez(path.open("wb"), **arrays)
        print(f"{_C.isa()}: {len(arrays)} arrays written")
        return 0
    with np.load(path) as expected:
        if arrays.keys() != set(expected.files):
            print(f"{path} was written by another version of the tests")
            return 1
        differ, bits = [], 0
        for name, x in arrays.items():
            y = expected[name]
            bits += x.tobytes() == y.tobytes()
            if not same(y, x):
                differ.append(name)
    floats = sum(x.dtype.kind == "f" for x in arrays.values())
    for name in differ:
        print(name)
    print(f"{_C.isa()}: {len(arrays)} arrays, {floats} of floats; {bits} have the same bits, {len(differ)} differ")
    return bool(differ)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
