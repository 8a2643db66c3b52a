"""benchmarks/op_table.py: whom an op is compared with, and what is marked."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PATH = Path(__file__).resolve().parents[1] / "benchmarks" / "op_table.py"


@pytest.fixture(scope="module")
def op_table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("op_table", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["op_table"] = module  # its dataclass looks its module up
    spec.loader.exec_module(module)
    return module


def timed(implementation: str, median: float, direction: str = "forward") -> dict[str, Any]:
    names = {"op": "gru", "shape": "[2, 3]", "direction": direction, "dtype": "float32"}
    stats = {"median": median, "q1": median * 0.9, "q3": median * 1.2}
    return {"extra_info": {**names, "implementation": implementation}, "stats": stats}


def test_the_rival_is_the_best_of_all_others(op_table: ModuleType) -> None:
    file = [timed("fastseq", 0.002), timed("eager", 0.009), timed("grouped", 0.005), timed("compiled", 0.006)]
    (row,) = op_table.rows(file)
    assert row.eager["median"] == 0.005 and row.compiled["median"] == 0.006
    assert row.ratio == pytest.approx(2.5)
    (row,) = op_table.rows([*file[:3], timed("compiled", 0.003)])
    assert row.ratio == pytest.approx(1.5)


def test_what_is_missing_gives_no_ratio(op_table: ModuleType) -> None:
    file = [timed("fastseq", 1.0), timed("eager", 1.0, "backward"), {"extra_info": {}, "stats": {}}]
    alone, without = op_table.rows(file)
    assert alone.ratio is None and without.ratio is None and without.fastseq is None
    assert op_table.markdown([alone, without]).endswith("0 of 0 below 1.5×.")


def test_markdown_marks_what_is_below_the_bar(op_table: ModuleType) -> None:
    file = [timed("fastseq", 0.002), timed("eager", 0.003)]
    file += [timed("fastseq", 0.002, "forward + backward"), timed("compiled", 0.00298, "forward + backward")]
    *_, at, below, empty, total = op_table.markdown(op_table.rows(file)).split("\n")
    assert at == "| gru | [2, 3] | forward | float32 | 2 (1.8 – 2.4) | 3 (2.7 – 3.6) | – | **1.50×** |"
    assert below.endswith("| – | 2.98 (2.68 – 3.58) | **1.49×** (below 1.5×) |")
    assert (empty, total) == ("", "1 of 2 below 1.5×.")
