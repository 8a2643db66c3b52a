"""benchmarks/ops/machine_code.py: disassemblies by loops, counts, and what has grown."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
from benchmarks.ops import machine_code
from benchmarks.ops.case import FLOAT32, OURS

# A loop within a loop, as nvdisasm prints them; the lines are those of the file that the test writes.
SASS = """
\t//## File "/somewhere/two.py", line 2
        /*0000*/                   LDC R1, c[0x0][0x28] ;
.L_x_1:
\t//## File "/somewhere/two.py", line 4
        /*0010*/                   FFMA R42, R11, R16.reuse, R9 ;
.L_x_0:
\t//## File "/somewhere/two.py", line 6
        /*0020*/              @!P0 LDG.E R2, [R4] ;
        /*0030*/                   HMMA.16816.F32 R4, R8, R9, R4 ;
\t//## File "/somewhere/two.py", line 5
        /*0040*/               @P1 BRA `(.L_x_0) ;
\t//## File "/somewhere/two.py", line 3
        /*0050*/              @!P2 BRA `(.L_x_1) ;
\t//## File "/somewhere/two.py", line 7
        /*0060*/                   STG.E [R4], R2 ;
        /*0070*/                   EXIT ;
.L_x_2:
        /*0080*/                   BRA `(.L_x_2);
        /*0090*/                   NOP;
"""
SOURCE = """
def kernel():
    for i in range(3):
        a = i
        while a:
            a = 1 + (
                a)
    return 1
"""


@pytest.fixture
def launch(tmp_path: Path) -> dict[str, Any]:
    """10 programs of 4 warps; half of them end before line 7."""
    (tmp_path / "two.py").write_text(SOURCE[1:])
    machine_code.loops.cache_clear()
    made = {"module": "kernels.two", "kernel": "kernel", "grid": [10, 1, 1], "registers": 32, "shared": 0, "warps": 4}
    return made | {"parts": machine_code.parts(SASS), "path": str(tmp_path / "two.py")}


def ran(launch: dict[str, Any]) -> dict[str, float]:
    """How often lines ran."""
    return {f"{launch['path']}:{line}": number for line, number in ((2, 10.0), (3, 30.0), (5, 70.0), (7, 5.0))}


def test_instructions_are_counted_by_their_innermost_loop(launch: dict[str, Any]) -> None:
    places = [(part["place"], dict(part["classes"])) for part in launch["parts"]]
    assert places == [
        ("", {"integer": 1, "global": 1, "wait": 2}),  # the branch to itself behind the end never runs
        ("two.py:3", {"FMA": 1, "wait": 1}),
        ("two.py:5", {"global": 1, "matrix": 1, "wait": 1}),
    ]


def test_loops_count_as_often_as_their_lines_ran(launch: dict[str, Any]) -> None:
    row = machine_code.joined(launch, ran(launch))
    assert [part["warps"] for part in row["parts"]] == [4 * (10 + 5 + 5 + 5) / 4, 4 * 30, 4 * 70]
    assert machine_code.instructions(row)["matrix"] == 280


def test_an_unrolled_loop_makes_all_rounds(launch: dict[str, Any]) -> None:
    body = launch["parts"][2]
    unrolled = body | {"classes": Counter({name: 4 * number for name, number in body["classes"].items()})}
    launch["parts"].append(unrolled)
    assert [part["warps"] for part in machine_code.joined(launch, ran(launch))["parts"]][2:] == [0, 4 * 70 / 4]
    launch["parts"][2:] = [body, body]  # a function that is inlined twice
    assert [part["warps"] for part in machine_code.joined(launch, ran(launch))["parts"]][2:] == [4 * 35, 4 * 35]


def test_a_detour_behind_the_end_is_no_loop() -> None:
    detour = """
        /*0000*/                   BRA.DIV UR4, `(.L_x_1) ;
        /*0010*/                   SHFL.BFLY PT, R2, R3, 0x1, 0x1f ;
.L_x_0:
        /*0020*/                   FADD R2, R2, R3 ;
        /*0030*/                   EXIT ;
.L_x_1:
        /*0040*/                   WARPSYNC.COLLECTIVE R4, `(.L_x_2) ;
        /*0050*/                   SHFL.BFLY PT, R2, R3, 0x1, 0x1f ;
.L_x_2:
        /*0060*/                   BRA `(.L_x_0) ;
"""
    assert [dict(part["classes"]) for part in machine_code.parts(detour)] == [{"wait": 2, "shuffle": 1, "float": 1}]


def test_what_has_grown_is_named(launch: dict[str, Any]) -> None:
    row = machine_code.joined(launch, ran(launch))
    about = {"case": "an op", "dtype": FLOAT32, "implementation": OURS}
    kept, now = [about | {"launches": [row]}], [about | {"launches": [launch]}]
    assert not machine_code.grown(kept, now)
    more = copy.deepcopy(now)
    more[0]["launches"][0]["parts"][2]["classes"]["FMA"] += 1  # 280 of 1,350 instructions
    assert "M instructions, now" in machine_code.grown(kept, more)[0]
    other = copy.deepcopy(now)
    other[0]["launches"][0]["parts"].pop()
    assert "other launches or loops" in machine_code.grown(kept, other)[0]
    assert not machine_code.grown([], now), "what was not counted cannot have grown"


def test_every_case_named_here_exists() -> None:
    named = {words for step in machine_code.STEPS.values() for words in step} | set(machine_code.MORE)
    assert {words for words, *_ in machine_code.reference_cases([], [FLOAT32])} == named
