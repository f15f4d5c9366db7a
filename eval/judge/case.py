"""What the judge is asked and what it answers: a program with its tests and limits; a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from recipes.rows import Verdict

Mode = Literal["strict", "lcb-compat"]
MOST_BYTES = 1 << 44  # of any limit: what Linux can address leaves room for more
MOST_SECONDS = 1e6
JUDGE_VERSION = "2"  # part of every verdict's key: raised whenever a verdict could change


@dataclass(frozen=True)
class Limits:
    """What a program may use.

    Args:
        cpu_seconds: CPU time on one test, threads and children together.
        wall_seconds: wall time on one test; generous, so that a busy machine changes no verdict. None: five times
            `cpu_seconds` and 5 s more.
        problem_seconds: CPU time on all tests together; None: no such limit.
        memory_bytes: address space of one process, and (where there is a memory cgroup) memory of all together.
        output_bytes: what the program may print, to stdout and to stderr each, and the size of any file.
        processes: processes and threads at a time.
        disk_bytes: the working directory and /dev/shm, each.
    """

    cpu_seconds: float = 6.0
    wall_seconds: float | None = None
    problem_seconds: float | None = None
    memory_bytes: int = 1 << 30
    output_bytes: int = 16 << 20
    processes: int = 32
    disk_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        for name in ("memory_bytes", "output_bytes", "processes", "disk_bytes"):
            if not 0 < getattr(self, name) <= MOST_BYTES:
                raise ValueError(f"{name} is more than 0 and at most {MOST_BYTES}, not {getattr(self, name)}")
        for name in ("cpu_seconds", "wall_seconds", "problem_seconds"):
            value = getattr(self, name)
            if value is None and name != "cpu_seconds":
                continue
            if not (isinstance(value, int | float) and 0 < value <= MOST_SECONDS):  # no NaN either
                raise ValueError(f"{name} is more than 0 and at most {MOST_SECONDS:g}, not {value}")

    @property
    def deadline(self) -> float:
        """Wall seconds one test may take."""
        return self.wall_seconds if self.wall_seconds is not None else 5 * self.cpu_seconds + 5


@dataclass(frozen=True)
class Test:
    """Of a stdin problem: what the program reads and should print. Of a call-based one, as LiveCodeBench writes them:
    one JSON value a line for each argument, and the JSON value that should come back."""

    __test__: ClassVar[bool] = False  # pytest takes classes of this name for tests

    input: str
    output: str


@dataclass(frozen=True)
class Case:
    """One program and the tests of its problem.

    Args:
        source: the program's text.
        tests: in the order in which they are run; judging stops at the first that fails.
        entry: the function (or method of `Solution`) to be called; None: a program that reads stdin and prints.
        language: a name in `languages.LANGUAGES`.
        limits: None: the judge's own.
        trusted: written by us (a reference solution): it may run where model-written programs are refused.
    """

    source: str
    tests: tuple[Test, ...]
    entry: str | None = None
    language: str = "python"
    limits: Limits | None = None
    trusted: bool = False


@dataclass(frozen=True)
class Isolation:
    """What kept the program in.

    Args:
        level: 0 (it never ran) to 6; see docs/judge.md.
        layers: those in place.
        missing: those not in place, each with the reason.
    """

    level: int = 0
    layers: tuple[str, ...] = ()
    missing: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"level": self.level, "layers": list(self.layers), "missing": dict(self.missing)}

    def __str__(self) -> str:
        return f"level {self.level}: {'+'.join(self.layers)}" if self.layers else "none"


@dataclass(frozen=True)
class CaseVerdict:
    """The verdict on a case is that of the first test that failed.

    Args:
        results: LiveCodeBench's list: True for each test passed, then the code of the one that failed: -2 wrong answer
            (call-based: False), -3 time limit, -4 run-time or compile error, -2 too where there was no result (its
            error code is then -5).
        error_code: LiveCodeBench's: None, -2, -3, -4 or -5.
        tests: how many the case has.
        seconds: CPU time of all tests that were run; memory_mb: the largest resident set, MiB.
        test_seconds: CPU time of each test that was run.
    """

    verdict: Verdict
    detail: str = ""
    results: tuple[bool | int, ...] = ()
    error_code: int | None = None
    tests: int = 0
    seconds: float = 0.0
    memory_mb: float | None = None
    test_seconds: tuple[float, ...] = ()
    isolation: Isolation = Isolation()
    ran: bool = False  # a process was started for it

    @property
    def passed(self) -> bool:
        return self.verdict is Verdict.CORRECT
