"""Programs that fail, each with its verdict; limits of time, memory and output, and which of them can be kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
from small_judge import ADD, SMALL, program

from eval.judge.case import Case, Limits, Test
from eval.judge.judge import Judge
from recipes.rows import Verdict

FAILS = {
    "a loop": ("while True: pass", Verdict.TIME_LIMIT),
    "a loop in C": ("sum(range(10 ** 13))", Verdict.TIME_LIMIT),
    "a loop that ignores signals": (
        "import signal\nfor n in range(1, 60):\n    try: signal.signal(n, signal.SIG_IGN)\n    except OSError: pass\n"
        "while True: pass",
        Verdict.TIME_LIMIT,
    ),
    "a loop in a thread": (
        "import threading\ndef f():\n    while True: pass\nthreading.Thread(target=f).start()",
        Verdict.TIME_LIMIT,
    ),
    "much memory": ("x = bytearray(1 << 40)", Verdict.MEMORY_LIMIT),
    "memory little by little": ("x = []\nwhile True: x.append(bytearray(1 << 20))", Verdict.MEMORY_LIMIT),
    "much output": ("while True: print('x' * 1000)", Verdict.OUTPUT_LIMIT),
    "much output, errors ignored": (
        "import os, signal\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nwhile True:\n"
        "    try: os.write(1, b'x' * 4096)\n    except OSError: break\nos._exit(0)",
        Verdict.OUTPUT_LIMIT,
    ),
    "much on stderr": ("import sys\nwhile True: sys.stderr.write('x' * 1000)", Verdict.OUTPUT_LIMIT),
    "an exception": ("print(3)\n1 / 0", Verdict.RUNTIME_ERROR),
    "an exit status": ("import sys\nprint(3)\nsys.exit(1)", Verdict.RUNTIME_ERROR),
    "an abort": ("import os\nprint(3, flush=True)\nos.abort()", Verdict.RUNTIME_ERROR),
    "killing itself": ("import os\nprint(3, flush=True)\nos.kill(os.getpid(), 9)", Verdict.RUNTIME_ERROR),
    "infinite recursion": ("def f(): return f()\nf()", Verdict.RUNTIME_ERROR),
    "a syntax error": ("print(", Verdict.COMPILE_ERROR),
    "nesting beyond the parser": ("(" * 5000 + ")" * 5000, Verdict.COMPILE_ERROR),
    "a null byte": ("print(3)\0", Verdict.COMPILE_ERROR),
    "a return at top level": ("print(3)\nreturn", Verdict.COMPILE_ERROR),
    "a wrong answer": ("print(4)", Verdict.WRONG_ANSWER),
    "no output": ("pass", Verdict.WRONG_ANSWER),
    "an exit before the flush": ("import os\nprint(3)\nos._exit(0)", Verdict.WRONG_ANSWER),
    "no program": (" \n", Verdict.NO_ANSWER),
}


@pytest.mark.parametrize("name", FAILS)
def test_other_programs_fail(judge: Judge, name: str) -> None:
    source, verdict = FAILS[name]
    # A machine's first use of memory can cost a second of CPU time per 200 MB.
    limits = replace(SMALL, cpu_seconds=20) if verdict is Verdict.MEMORY_LIMIT else None
    one = program(judge, source, limits=limits)
    assert one.verdict is verdict, one.detail
    assert one.verdict is Verdict.NO_ANSWER or one.detail


def test_a_program_that_sleeps_meets_the_wall_limit(judge: Judge) -> None:
    one = program(judge, "import time\ntime.sleep(60)", limits=Limits(cpu_seconds=1, wall_seconds=0.3))
    assert one.verdict is Verdict.TIME_LIMIT and "wall" in one.detail


def test_cpu_time_of_children_counts(judge: Judge) -> None:
    source = (
        "import os, time\npids = []\nfor _ in range(3):\n    pid = os.fork()\n    if pid == 0:\n"
        "        end = time.process_time() + 0.4\n        while time.process_time() < end: pass\n        os._exit(0)\n"
        "    pids.append(pid)\nfor pid in pids: os.waitpid(pid, 0)\nprint(sum(map(int, input().split())))"
    )
    assert program(judge, source).verdict is Verdict.TIME_LIMIT
    assert program(judge, source, ADD[:1], limits=Limits(cpu_seconds=5)).passed


def test_time_of_all_tests_together_is_limited(judge: Judge) -> None:
    source = "import time\nend = time.process_time() + 0.2\nwhile time.process_time() < end: pass\nprint(1)"
    tests = (Test("", "1"),) * 4
    assert program(judge, source, tests).passed
    one = program(judge, source, tests, limits=Limits(cpu_seconds=1, problem_seconds=0.3))
    assert (one.verdict, one.results) == (Verdict.TIME_LIMIT, (True, -3))
    assert len(one.test_seconds) == 2 and one.seconds == sum(one.test_seconds)


def test_first_failure_ends_a_case(judge: Judge) -> None:
    one = program(judge, "a, b = map(int, input().split())\nprint(3 if a == 1 else 7)")
    assert (one.verdict, one.results, one.error_code) == (Verdict.WRONG_ANSWER, (True, -2), -2)
    assert one.detail.startswith("test 2: ") and one.tests == 3 and len(one.test_seconds) == 2


def test_the_code_of_a_program_is_not_its_output(judge) -> None:
    add = "print(sum(map(int, input().split())))"
    assert program(judge, add, limits=Limits(output_bytes=100)).passed
    big = f"x = {list(range(20_000))}\nprint(sum(map(int, input().split())))"
    assert program(judge, big, limits=Limits(output_bytes=1000)).passed


def test_time_runs_out_while_compiling(judge) -> None:
    verdict = program(judge, "print(3)", limits=Limits(wall_seconds=0.00001))
    assert verdict.verdict is Verdict.TIME_LIMIT


def test_a_value_larger_than_the_limit_is_too_much_output(judge) -> None:
    found = [
        judge.judge(Case(f"def f(n): return '\u00e9' * {size}", (Test("1", '""'),), "f")).verdict
        for size in (400_000, 600_000)  # two bytes each, of a megabyte
    ]
    assert found == [Verdict.WRONG_ANSWER, Verdict.OUTPUT_LIMIT]


def test_numpy_for_want_of_memory(judge) -> None:
    assert program(judge, "import numpy\nnumpy.ones(1 << 30)").verdict is Verdict.MEMORY_LIMIT


# -- limits themselves -----------------------------------------------------------------------------------------------


def test_limits_make_sense() -> None:
    for wrong in ({"cpu_seconds": 0}, {"memory_bytes": -1}, {"wall_seconds": 0.0}, {"problem_seconds": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Limits(**wrong)


@pytest.mark.parametrize(
    "limits",
    [
        {"cpu_seconds": float("inf")},
        {"cpu_seconds": float("nan")},
        {"wall_seconds": float("nan")},
        {"memory_bytes": 1 << 64},
        {"memory_bytes": 0},
        {"processes": -1},
        {"problem_seconds": 0.0},
    ],
)
def test_limits_that_cannot_be_kept_are_refused(limits) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        Limits(**limits)
