"""The allow-list runner: hostile programs never start, greedy ones meet their limits, right ones pass.

Nothing here may run unless the syntax tree passed; what passes is harmless but for the time and memory it takes.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.judge import allowlist
from eval.judge.allowlist import Limits, Program, judge, judge_many, same_output
from eval.judge.program_rules import CompileRefusal, disallowed
from recipes.rows import Verdict

GOOD = "a = list(map(int, input().split()))\nprint(sum(a))"
TESTS = [("4 7 2\n", "13\n"), ("-1\n", "-1\n")]
QUICK = Limits(cpu_seconds=0.2, wall_seconds=20.0, output_characters=2000)

HOSTILE = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "import inside": "__import__('os').system('true')",
    "import from": "from os import system\nsystem('true')",
    "import alias": "import sys, os as sys",
    "import submodule": "import sys.os",
    "sys.modules": "import sys\nsys.modules['os'].system('true')",
    "from sys import modules": "from sys import modules\nmodules['os'].system('true')",
    "from sys import star": "from sys import *\nmodules",
    "relative import": "from . import sys",
    "sys frames": "import sys\nsys._getframe(1).f_locals",
    "read a file": "print(open('/etc/passwd').read())",
    "write a file": "open('CANARY', 'w').write('x')",
    "open by full-width letters": "print(ｏｐｅｎ('/etc/passwd').read())",
    "open under another name": "f = open\nprint(f('/etc/passwd').read())",
    "exec": "exec('import os')",
    "eval": "print(eval('1+1'))",
    "compile": "compile('1', 'x', 'exec')",
    "getattr": "getattr(print, '__self__')",
    "setattr": "setattr(print, 'x', 1)",
    "delattr": "delattr(print, 'x')",
    "globals": "globals()['__builtins__']",
    "locals": "print(locals())",
    "vars": "print(vars())",
    "dir": "print(dir())",
    "type": "type('X', (), {})",
    "object": "print(object().x)",
    "super": "super().x",
    "memoryview": "memoryview(b'x')",
    "breakpoint": "breakpoint()",
    "help": "help()",
    "base exception": "try:\n    print(1)\nexcept BaseException:\n    print(2)",
    "bare except": "while True:\n    try:\n        print(1)\n    except:\n        print(2)",
    "subclasses": "print(().__class__.__bases__[0].__subclasses__())",
    "dunder by full-width underscores": "print(()._＿class_＿)",
    "dunder name": "print(__builtins__)",
    "dunder argument": "def f(__class__): return 1",
    "dunder keyword": "dict(__class__=1)",
    "function globals": "def f(): return 1\nprint(f.__globals__)",
    "generator frame": "g = (x for x in [1])\nprint(g.gi_frame.f_back)",
    "traceback frame": "try:\n    1/0\nexcept Exception as e:\n    print(e.with_traceback)",
    "str.format": "print('{0.__class__.__init__.__globals__}'.format(print))",
    "str.format_map": "print('{x.__class__}'.format_map({'x': 1}))",
    "unbound str.format": "f = str.format\nprint(f('{0.__class__}', 1))",
    "attribute in an f-string": "print(f'{().__class__}')",
    "attribute in a format width": "print(f'{1:{().__class__}}')",
    "class": "class X:\n    pass",
    "decorator": "@print\ndef f(): return 1",
    "async": "async def f(): return 1",
    "with": "with input as f:\n    pass",
    "del": "x = 1\ndel x",
    "global": "def f():\n    global x\n    x = 1",
    "nonlocal": "def f():\n    x = 1\n    def g():\n        nonlocal x\n    g()",
    "match": "match 1:\n    case int():\n        print(1)",
    "overwrite stdout": "import sys\nsys.stdout = None",
    "rebind print": "print.write = 1",
    "recursion limit": "import sys\nsys.setrecursionlimit(10**9)",
    "stdin's buffer": "import sys\nsys.stdin.buffer.raw",
    "a very long program": "x = 1\n" * 5000,
}


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_program_is_refused_and_never_started(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(*_: object, **__: object) -> None:
        raise AssertionError("a refused program reached a process")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    result = judge(source, TESTS)
    assert result.verdict is Verdict.WRONG_ANSWER
    assert result.detail.startswith("disallowed: ")
    assert (result.passed, result.total, result.isolation) == (0, 2, "none")


ORDINARY = {
    "lists": GOOD,
    "sys.stdin": "import sys\nprint(sum(map(int, sys.stdin.read().split())))",
    "from sys import stdin": "from sys import stdin\nprint(sum(int(x) for x in stdin.readline().split()))",
    "function and loop": "def f(a):\n  t = 0\n  for x in a: t += x\n  return t\nprint(f(map(int, input().split())))",
    "dict": "d = {}\nfor x in input().split():\n    d[x] = d.get(x, 0) + int(x)\nprint(sum(d.values()))",
    "f-string, conditional": "a = input().split()\nprint(f'{sum(map(int, a)):d}' if a else '')",
    "try": "t = 0\ntry:\n    while True:\n        t += sum(map(int, input().split()))\nexcept EOFError:\n    print(t)",
    "exit 0": "import sys\nprint(sum(map(int, input().split())))\nsys.exit(0)",
    "lambda, walrus": "f = lambda v: sum(v)\nprint(f(a := [int(x) for x in input().split()]))",
    "underscore": "for _ in range(1):\n    print(sum(map(int, input().split())))",
    "write": "import sys\nsys.stdout.write(str(sum(map(int, input().split()))) + '\\n')",
    "trailing whitespace": "print(sum(map(int, input().split())), ' \\n\\n')",
}


def test_ordinary_programs_are_correct() -> None:
    results = judge_many([Program(source, tuple(TESTS)) for source in ORDINARY.values()])
    assert {name: r.verdict for name, r in zip(ORDINARY, results, strict=True)} == dict.fromkeys(
        ORDINARY, Verdict.CORRECT
    )
    assert all(r.passed == r.total == 2 and r.isolation.startswith("allowlist+rlimits") for r in results)


FAILING = {
    "while True:\n    pass": Verdict.TIME_LIMIT,
    "print(10**10**9)": Verdict.TIME_LIMIT,  # one call into C that no exception can interrupt
    "try:\n    print(1)\nfinally:\n    while True:\n        pass": Verdict.TIME_LIMIT,
    "while True:\n    print(1)": Verdict.OUTPUT_LIMIT,
    "for i in range(10**6):\n  try:\n    print('x' * 500)\n  except Exception:\n    pass": Verdict.OUTPUT_LIMIT,
    "def f():\n    try:\n        print('x' * 3000)\n    finally:\n        return\nf()\nprint(13)": Verdict.OUTPUT_LIMIT,
    "a = [0] * 10**9": Verdict.MEMORY_LIMIT,
    "a = []\nwhile True:\n    a.append('x' * 10**7)": Verdict.MEMORY_LIMIT,
    "print(1 / 0)": Verdict.RUNTIME_ERROR,
    "print(undefined)": Verdict.RUNTIME_ERROR,
    "def f(n):\n    return f(n + 1)\nf(0)": Verdict.RUNTIME_ERROR,
    "import sys\nprint(13)\nsys.exit(3)": Verdict.RUNTIME_ERROR,
    "input()\nprint(input())": Verdict.RUNTIME_ERROR,  # reads beyond the end
    "raise ValueError": Verdict.RUNTIME_ERROR,
    "print(": Verdict.COMPILE_ERROR,
    "return 13": Verdict.COMPILE_ERROR,  # parses; only the compiler objects
    "print(13)\0": Verdict.COMPILE_ERROR,
    "(" * 3000: Verdict.COMPILE_ERROR,
    "1+" * 5000 + "1": Verdict.COMPILE_ERROR,
    "print(13)": Verdict.WRONG_ANSWER,  # right on the first test only
    "": Verdict.WRONG_ANSWER,
    "print('13\\n' * 2)": Verdict.WRONG_ANSWER,
    "print(chr(0xD800))": Verdict.WRONG_ANSWER,
}


def test_each_failure_has_its_verdict_and_harms_no_neighbour() -> None:
    """All in one process queue with a right program after each: a death takes only the program at work."""
    programs = []
    for source in FAILING:
        programs += [Program(source, tuple(TESTS)), Program(GOOD, tuple(TESTS))]
    results = judge_many(programs, workers=2, limits=QUICK)
    found = {source: result.verdict for source, result in zip(FAILING, results[::2], strict=True)}
    assert found == FAILING
    assert {result.verdict for result in results[1::2]} == {Verdict.CORRECT}


def test_later_tests_count_after_a_wrong_one() -> None:
    result = judge("print(-1)", TESTS)
    assert (result.verdict, result.passed, result.total) == (Verdict.WRONG_ANSWER, 1, 2)
    assert "test 1" in result.detail and "'-1" in result.detail


def test_programs_share_nothing() -> None:
    first = Program("x = 5\nprint(x)", (("", "5"),))
    second = Program("print(x)", (("", "5"),))
    kept = Program("def f(a=[]):\n    a.append(1)\n    return len(a)\nprint(f())", (("", "1"), ("", "1")))
    results = judge_many([first, second, kept], workers=1)
    assert [r.verdict for r in results] == [Verdict.CORRECT, Verdict.RUNTIME_ERROR, Verdict.CORRECT]


def test_second_layer_stops_what_the_first_might_miss(tmp_path: Path) -> None:
    """Past the syntax check there is still no builtin to open files, no import, no file size, no process."""
    canary = tmp_path / "canary"
    sources = [f"open({str(canary)!r}, 'w').write('x')", "import os", "print(__import__('sys').modules)", "eval('1')"]
    programs = [Program(source, (("", ""),)) for source in sources]
    results = allowlist._run_batch(programs, Limits())
    assert {r.verdict for r in results} == {Verdict.RUNTIME_ERROR}
    assert not canary.exists()


def test_environment_and_folder_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    popen = subprocess.Popen

    def spy(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        seen.update(options)
        seen["folder"] = list(Path(str(options["cwd"])).iterdir())
        return popen(command, **options)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setattr(subprocess, "Popen", spy)
    assert judge(GOOD, TESTS).verdict is Verdict.CORRECT
    assert set(seen["env"]) == {"PYTHONHASHSEED", "PYTHONUTF8"}  # type: ignore[call-overload]
    assert seen["folder"] == [] and seen["start_new_session"] is True
    assert not Path(str(seen["cwd"])).exists()


def test_machine_faults_are_not_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", no_memory)
        results = judge_many([Program(GOOD, tuple(TESTS))] * 3)
    assert [r.verdict for r in results] == [Verdict.INFRA_ERROR] * 3

    monkeypatch.setattr(sys, "executable", "/bin/false")  # an interpreter that ends before it is ready
    assert judge(GOOD, TESTS).verdict is Verdict.INFRA_ERROR


def test_death_by_a_foreign_hand_is_not_a_wrong_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernel's memory killer does to a process says nothing about the program."""
    popen = subprocess.Popen

    def doomed(command: list[str], **options: object) -> subprocess.Popen[bytes]:
        process = popen(command, **options)  # type: ignore[call-overload]
        threading.Timer(0.5, process.kill).start()
        return process  # type: ignore[no-any-return]

    monkeypatch.setattr(subprocess, "Popen", doomed)
    result = judge("while True:\n    pass", TESTS, Limits(cpu_seconds=30.0))
    assert result.verdict is Verdict.INFRA_ERROR


def test_wall_time_is_enforced_by_the_parent() -> None:
    result = judge("while True:\n    pass", TESTS, Limits(cpu_seconds=60.0, wall_seconds=0.3))
    assert (result.verdict, result.detail) == (Verdict.TIME_LIMIT, "test 1: wall time")


def test_problem_without_tests_is_invalid() -> None:
    assert judge(GOOD, []).verdict is Verdict.INVALID_PROBLEM
    assert judge_many([]) == []


def test_many_keeps_the_order() -> None:
    programs = [Program(f"print({number})", (("", str(number)),)) for number in range(100)]
    programs[50] = Program("print(0)", (("", "1"),))
    verdicts = [result.verdict for result in judge_many(programs)]
    assert verdicts == [Verdict.CORRECT] * 50 + [Verdict.WRONG_ANSWER] + [Verdict.CORRECT] * 49


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("1 2\n", "1 2", True),
        ("1 2  \n\n", "1 2\n", True),
        ("1\r\n2\r\n", "1\n2\n", True),
        ("", "\n", True),
        ("1  2", "1 2", False),
        (" 1", "1", False),
        ("1\n\n2", "1\n2", False),
        ("1.0", "1", False),
        ("12", "1\n2", False),
    ],
)
def test_comparison(found: str, expected: str, same: bool) -> None:
    assert same_output(found, expected) is same


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_the_screen_never_raises_anything_else(source: str) -> None:
    try:
        reason = disallowed(source)
    except CompileRefusal:
        return
    assert reason is None or reason
