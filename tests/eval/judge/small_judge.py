"""Programs for the tests of the judge: three additions, small limits, a verdict."""

from __future__ import annotations

from typing import Any

from eval.judge.case import Case, CaseVerdict, Limits, Test
from eval.judge.judge import Judge

ADD = (Test("1 2\n", "3\n"), Test("10 -4\n", "6\n"), Test("0 0\n", "0\n"))
SMALL = Limits(cpu_seconds=1, wall_seconds=20, memory_bytes=256 << 20, output_bytes=1 << 20, disk_bytes=8 << 20)


def program(judge: Judge, source: str, tests: tuple[Test, ...] = ADD, **case: Any) -> CaseVerdict:
    return judge.judge(Case(source, tests, **case))
