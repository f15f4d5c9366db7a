"""Verdicts a second against LiveCodeBench's official evaluator, as `nvidia-livecodebench` packages it.

The peer forks its workers and every program's process from the process it is called in. So that its forks have no more
to copy than they need, the timing runs in a process of its own that holds numpy and the standard library, and no torch.
Both sides have two workers, all cases at once, and have started before the clock does as far as they can: our
sandboxes, full isolation, stand; the peer's modules are imported, and its pool, which it makes anew in every call, is
its own. The peer isolates nothing.

    python -m benchmarks judge
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.judge_programs import CALL_PROBLEMS, STDIN_PROBLEMS, ContestProblem
from benchmarks.measure import BenchmarkRow, Comparison, compare
from core_model.errors import InputError

PEER, VERSION = "nvidia-livecodebench", "26.3"
WORKERS = 2
INSTALL = "pip install --no-deps -r tests/interop/livecodebench.txt"


@dataclass(frozen=True)
class Setting:
    """Cases of one row: three right programs and a wrong one for every problem, each with tests of its own."""

    name: str
    problems: tuple[ContestProblem, ...]
    tests: int
    cases: int
    target: float | None


SETTINGS = (
    Setting("stdin", STDIN_PROBLEMS, 1, 64, 5.0),
    Setting("stdin", STDIN_PROBLEMS, 10, 64, 2.0),
    Setting("stdin", STDIN_PROBLEMS, 40, 32, 1.2),
    Setting("call-based", CALL_PROBLEMS, 10, 64, None),
)


@dataclass(frozen=True)
class Submission:
    """A program, its problem's tests, and whether it passes them."""

    code: str
    tests: tuple[tuple[str, str], ...]
    entry: str | None
    right: bool


def run() -> Iterator[BenchmarkRow]:
    """Rows of a process of its own.

    Raises:
        InputError: the peer is not installed, or no sandbox starts.
    """
    require_peer()
    child = subprocess.Popen([sys.executable, "-m", "benchmarks.judge"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    with child:
        for line in child.stdout:
            yield BenchmarkRow(**json.loads(line))
    if child.returncode:
        raise InputError("benchmarks judge", expected="its timing process to end", found=f"status {child.returncode}")


def require_peer() -> None:
    """Raises:
    InputError: it is not installed, or another version is.
    """
    try:
        version = importlib.metadata.version(PEER)
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    if version != VERSION:
        raise InputError(PEER, expected=f"version {VERSION} ({INSTALL})", found=version)


def submissions(setting: Setting, seed: int = 0) -> list[Submission]:
    """The cases of a row, in an order that does not know right from wrong."""
    draw = random.Random(seed)
    made = []
    for number in range(setting.cases):
        problem = setting.problems[number // 4 % len(setting.problems)]
        right = number % 4 != 3
        tests = tuple(problem.test(draw) for _ in range(setting.tests))
        # Programs that are the same text are no two submissions.
        code = f"{problem.program if right else problem.wrong}# {number}\n"
        made.append(Submission(code, tests, problem.entry, right))
    draw.shuffle(made)
    return made


def measure() -> Iterator[BenchmarkRow]:
    """The rows, timed in this process.

    Raises:
        RuntimeError: the two sides differ in a verdict, or this process holds torch.
    """
    from eval.judge.case import Case, Test
    from eval.judge.judge import Judge
    from eval.judge.layers import FULL

    with Judge("strict", WORKERS) as strict, Judge("lcb-compat", WORKERS) as compat:
        level = strict.isolation.level
        isolation = "full isolation" if level == FULL else f"isolation level {level} of {FULL}"
        for setting in SETTINGS:
            given = submissions(setting)
            peer = _peer(given)
            cases = [Case(one.code, tuple(Test(*test) for test in one.tests), one.entry) for one in given]
            agree(given, peer(), [list(verdict.results) for verdict in compat.judge_many(cases)], "lcb-compat")
            compat.close()  # nothing else is kept waiting while the clock runs
            agree(given, peer(), [list(verdict.results) for verdict in strict.judge_many(cases)], "strict")
            if "torch" in sys.modules:
                raise RuntimeError("torch is loaded: the peer's forks would copy its pages")
            yield compare(
                Comparison(
                    f"{setting.name}, {setting.tests} tests a problem, {setting.cases} programs, {isolation}",
                    "verdicts/s",
                    len(cases),
                    f"{PEER} {VERSION}, {WORKERS} processes, no isolation",
                    target=setting.target,
                ),
                lambda cases=cases: strict.judge_many(cases),  # type: ignore[misc]
                peer,
                repetitions=7,
            )


def _peer(given: Sequence[Submission]) -> Callable[[], list[list[bool | int]]]:
    """The official evaluator on the same programs; its results, test by test."""
    from livecodebench.evaluation.compute_code_generation_metrics import evaluate_generations

    samples: list[dict[str, str]] = []
    for one in given:
        inputs, outputs = ([test[side] for test in one.tests] for side in (0, 1))
        samples.append({"input_output": json.dumps({"inputs": inputs, "outputs": outputs, "fn_name": one.entry})})
    programs = [[one.code] for one in given]

    def evaluate() -> list[list[bool | int]]:
        # Its bar is not what is measured. A real file, because its children look for the number of stderr.
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
            results: dict[int, Any] = evaluate_generations(samples, programs, num_process_evaluate=WORKERS)[0]
        return [list(results[index][0]) for index in range(len(given))]

    return evaluate


def agree(
    given: Sequence[Submission], theirs: Sequence[list[bool | int]], ours: Sequence[list[bool | int]], mode: str
) -> None:
    """Make sure that both sides found the same, and what is true.

    Raises:
        RuntimeError: a case on which they did not.
    """
    for one, peer, own in zip(given, theirs, ours, strict=True):
        passed = all(result is True for result in own) and len(own) == len(one.tests)
        if peer != own or passed != one.right or (not one.right and len(own) != 1):
            raise RuntimeError(f"{mode}: ours {own}, the peer's {peer}, right: {one.right}\n{one.code}")


def main() -> int:
    """Print the rows as JSON, a line each."""
    try:
        for row in measure():
            print(json.dumps(row.to_json()), flush=True)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
