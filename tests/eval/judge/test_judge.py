"""The judge's core: recorded verdicts, limits, languages, what a test leaves to the next, faults of the machine.

Recorded programs that attack (kinds `attack` and `sandbox`) are replayed by the attack suite, in a sandbox around ours.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from core_model.errors import InputError
from eval.judge.case import Case, CaseVerdict, Limits, Test
from eval.judge.judge import Judge
from eval.judge.languages import LANGUAGES, Language
from eval.judge.layers import FULL, NAMESPACES
from eval.judge.sandbox import Sandbox
from eval.tasks.livecodebench import read_records, to_cases
from recipes.rows import Verdict

ADD = (Test("1 2\n", "3\n"), Test("10 -4\n", "6\n"), Test("0 0\n", "0\n"))
SMALL = Limits(cpu_seconds=1, wall_seconds=20, memory_bytes=256 << 20, output_bytes=1 << 20, disk_bytes=8 << 20)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(workers=1, limits=SMALL) as one:
        assert one.isolation.level >= NAMESPACES, f"install bubblewrap: {one.isolation.missing}"
        yield one


def program(judge: Judge, source: str, tests: tuple[Test, ...] = ADD, **case: Any) -> CaseVerdict:
    return judge.judge(Case(source, tests, **case))


# -- recorded verdicts -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(repository) -> list[tuple[dict[str, Any], Case]]:
    folder = repository / "tests" / "oracles" / "lcb"
    tests = {record.question_id: to_cases(record) for record in read_records(folder / "problems.jsonl")}
    rows = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    return [
        (row, Case(row["code"], *tests[row["question_id"]])) for row in rows if row["kind"] in ("ordinary", "policy")
    ]


def test_strict_verdicts_are_those_recorded(recorded) -> None:
    with Judge(workers=2, limits=Limits(cpu_seconds=2)) as judge:
        found = judge.judge_many([case for _, case in recorded])
    wanted = {f"{row['question_id']} {row['name']}": row["strict"]["passed"] for row, _ in recorded}
    passed = dict(zip(wanted, (one.passed for one in found), strict=True))
    assert {name: passed[name] for name, value in wanted.items() if value is not None} == {
        name: value for name, value in wanted.items() if value is not None
    }
    assert not [one for one in found if one.verdict is Verdict.INFRA_ERROR]


def test_compatible_verdicts_are_the_official_ones(recorded) -> None:
    ordinary = [(row, case) for row, case in recorded if row["kind"] == "ordinary"]
    with Judge("lcb-compat", workers=2, limits=Limits(cpu_seconds=2)) as judge:
        found = judge.judge_many([case for _, case in ordinary])
    assert len(found) == 75
    for (row, _), one in zip(ordinary, found, strict=True):
        official = row["official"]
        ours = (one.passed, list(one.results), one.error_code)
        assert ours == (official["passed"], official["results"], official["error_code"]), row["name"]


# -- what a program sees ---------------------------------------------------------------------------------------------

SEES = {
    "a main guard": "def main():\n    print(sum(map(int, input().split())))\nif __name__ == '__main__':\n    main()",
    "iteration over stdin": "import sys\nfor line in sys.stdin:\n    print(sum(map(int, line.split())))",
    "stdin as a file": "print(sum(map(int, open(0).read().split())))",
    "/dev/stdin": "print(sum(map(int, open('/dev/stdin').read().split())))",
    "a file of its own": "open('x', 'w').write('7')\nassert open('x').read() == '7'\n"
    "print(sum(map(int, input().split())))",
    "shared memory": "open('/dev/shm/x', 'w').write('7')\nprint(sum(map(int, input().split())))",
    "names not imported": "print(sum(map(int, input().split())) + len(deque()) + gcd(1, 1) - 1)",
    "numpy": "import numpy as np\nprint(np.array(input().split(), dtype=int).sum())",
    "numpy by another name": "m = __import__('num' + 'py')\nprint(m.array(input().split(), dtype=int).sum())",
    "deep recursion": "def f(n): return n and 1 + f(n - 1)\nf(20000)\nprint(sum(map(int, input().split())))",
    "deep recursion through C": "from functools import cache\n@cache\ndef f(n): return n and 1 + f(n - 1)\nf(20000)\n"
    "print(sum(map(int, input().split())))",
    "threads": "import threading\n"
    "t = threading.Thread(target=lambda: print(sum(map(int, input().split()))))\nt.start()",
    "exit functions": "import atexit\natexit.register(lambda: print(sum(map(int, input().split()))))",
    "a process": "import os\nif os.fork() == 0:\n    print(sum(map(int, input().split())), flush=True)\n"
    "    os._exit(0)\nos.wait()",
    "a subprocess": "import subprocess\nout = subprocess.run(['/bin/cat'], capture_output=True).stdout\n"
    "print(sum(map(int, out.split())))",
    "multiprocessing": "from multiprocessing import Pool\nif __name__ == '__main__':\n    with Pool(2) as p:\n"
    "        print(sum(p.map(abs, [0, 0])) + sum(map(int, input().split())))",
    "classes of its own": "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\n"
    "print(sum(map(int, input().split())) + P(0).x)",
    "stdout in bytes": "import sys\nsys.stdout.buffer.write(b'%d' % sum(map(int, input().split())))",
    "an output without newline": "import sys\nsys.stdout.write(str(sum(map(int, input().split()))))",
    "sys.exit": "import sys\nprint(sum(map(int, input().split())))\nsys.exit()",
    "noise on stderr": "import sys\nprint('x' * 5000, file=sys.stderr)\nprint(sum(map(int, input().split())))",
    "a coding line": "# -*- coding: latin-1 -*-\nprint(sum(map(int, input().split())))",
    "pickled classes": "import pickle\nclass A: pass\npickle.loads(pickle.dumps(A()))\n"
    "print(sum(map(int, input().split())))",
}


@pytest.mark.parametrize("name", SEES)
def test_right_programs_pass(judge: Judge, name: str) -> None:
    one = program(judge, SEES[name], limits=Limits(cpu_seconds=6, disk_bytes=8 << 20))
    assert (one.verdict, one.results) == (Verdict.CORRECT, (True, True, True)), one.detail


def test_text_beyond_ascii_and_bytes_that_are_none(judge: Judge) -> None:
    assert program(judge, "print(input()[::-1])", (Test("añ𝔘\n", "𝔘ña\n"),)).passed
    junk = program(judge, "import sys\nsys.stdout.buffer.write(b'\\xff\\xfe3')", (Test("", "3"),))
    assert junk.verdict is Verdict.WRONG_ANSWER
    assert program(judge, "print('\ud800')", (Test("", "x"),)).verdict is Verdict.COMPILE_ERROR


def test_a_large_input_and_output(judge: Judge) -> None:
    numbers = "\n".join(map(str, range(300_000)))
    limits = Limits(cpu_seconds=6, output_bytes=1 << 16)  # the expected output is always within the limit
    assert program(
        judge, "import sys\nsys.stdout.write(sys.stdin.read())", (Test(numbers, numbers),), limits=limits
    ).passed


# -- limits ----------------------------------------------------------------------------------------------------------

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


def test_a_problem_without_tests_is_no_success(judge: Judge) -> None:
    assert program(judge, "print(1)", ()).verdict is Verdict.INVALID_PROBLEM


def test_limits_make_sense() -> None:
    for wrong in ({"cpu_seconds": 0}, {"memory_bytes": -1}, {"wall_seconds": 0.0}, {"problem_seconds": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Limits(**wrong)


# -- call-based ------------------------------------------------------------------------------------------------------

PAIR = (Test("[1,2]\n3", "[3, 3]"), Test('["a"]\n"b"', '["a", "b"]'))


@pytest.mark.parametrize(
    ("body", "verdict"),
    [
        ("return [sum(xs), y] if y == 3 else xs + [y]", Verdict.CORRECT),
        ("return tuple([sum(xs), y] if y == 3 else xs + [y])", Verdict.CORRECT),
        ("print('noise'); return [3.0, 3] if y == 3 else xs + [y]", Verdict.CORRECT),
        ("return [3, 4]", Verdict.WRONG_ANSWER),
        ("return None", Verdict.WRONG_ANSWER),
        ("return {3, 4}", Verdict.WRONG_ANSWER),
        ("return {1: 2}", Verdict.WRONG_ANSWER),
        ("import numpy; return numpy.array([3, 3])", Verdict.WRONG_ANSWER),
        ("return float('nan')", Verdict.WRONG_ANSWER),
        ("import sys; sys.exit(0)", Verdict.RUNTIME_ERROR),
        ("import os; os._exit(0)", Verdict.RUNTIME_ERROR),
        ("raise ValueError('x')", Verdict.RUNTIME_ERROR),
        ("import os; os.write(3, b'{\"value\": [3, 3]}'); os._exit(0)", Verdict.WRONG_ANSWER),
        ("x = []\n        x.append(x)\n        return x", Verdict.WRONG_ANSWER),
    ],
)
def test_functions_are_called(judge: Judge, body: str, verdict: Verdict) -> None:
    """The forged result above is no success either: it is the answer to one test and wrong for the next."""
    source = f"class Solution:\n    def pair(self, xs, y):\n        {body}\n"
    assert judge.judge(Case(source, PAIR, entry="pair")).verdict is verdict


def test_functions_outside_a_class_and_missing_ones(judge: Judge) -> None:
    assert judge.judge(Case("def double(x):\n    return 2 * x", (Test("4", "8"),), entry="double")).passed
    missing = judge.judge(Case("def triple(x): return 3 * x", (Test("4", "8"),), entry="double"))
    assert missing.verdict is Verdict.RUNTIME_ERROR and "double" in missing.detail
    assert judge.judge(Case("def f(x): return x + 1", (Test("7", "8"), Test("0", "1")), entry="f")).passed
    assert judge.judge(Case("def f(x): return 10 ** 4500", (Test("0", "1" + "0" * 4500),), entry="f")).passed


def test_a_test_that_is_not_json_is_the_problems_fault(judge: Judge) -> None:
    one = judge.judge(Case("def f(x): return x", (Test("[1", "1"),), entry="f"))
    assert one.verdict is Verdict.INVALID_PROBLEM


# -- other languages -------------------------------------------------------------------------------------------------

CPP = "#include <iostream>\nint main() { long a, b; std::cin >> a >> b; std::cout << a + b; }"


@pytest.mark.skipif(LANGUAGES["cpp"].missing() is not None, reason="no C++ compiler")
def test_cpp(judge: Judge) -> None:
    cases = [
        Case(CPP, ADD, language="cpp"),
        Case(CPP.replace("+", "-"), ADD, language="cpp"),
        Case("int main() { return x; }", ADD, language="cpp"),
        Case("int main() { for (;;) ; }", ADD, language="cpp"),
        Case("#include <vector>\nint main() { std::vector<char> v(1ul << 40); return v[1]; }", ADD, language="cpp"),
        Case("int main() { volatile int* p = nullptr; return *p; }", ADD, language="cpp"),
    ]
    assert [one.verdict for one in judge.judge_many(cases)] == [
        Verdict.CORRECT,
        Verdict.WRONG_ANSWER,
        Verdict.COMPILE_ERROR,
        Verdict.TIME_LIMIT,
        Verdict.MEMORY_LIMIT,
        Verdict.RUNTIME_ERROR,
    ]


@pytest.mark.skipif(LANGUAGES["c"].missing() is not None, reason="no C compiler")
def test_a_compiled_program_cannot_change_itself(judge: Judge) -> None:
    """Opened for reading while it runs, the file could be written to through /proc by what is executed next."""
    source = """
    #include <fcntl.h>
    #include <stdio.h>
    #include <unistd.h>
    char state[] = "STATE-0";
    int main(void) {
        puts(state + 6); fflush(stdout);
        int file = open("/proc/self/exe", O_RDONLY), at = 0, n;
        static char data[1 << 20];
        n = read(file, data, sizeof data);
        for (int i = 0; i < n - 7; i++) if (data[i] == 'S' && data[i + 1] == 'T' && data[i + 5] == '-') at = i + 6;
        char command[200];
        sprintf(command, "printf 1 | dd of=/proc/self/fd/%d bs=1 seek=%d conv=notrunc 2>/dev/null", file, at);
        execl("/bin/sh", "sh", "-c", command, (char*)0);
    }
    """
    one = program(judge, source, (Test("", "0"),) * 2, language="c")
    assert one.results[:1] in ((True,), (-4,)) and "'1'" not in one.detail, one.detail


def test_languages_that_are_not_there(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LANGUAGES, "abc", Language("main.abc", ("no-such-compiler",)))
    assert program(judge, "x", language="abc").verdict is Verdict.INFRA_ERROR
    unknown = program(judge, "x", language="cobol")
    assert unknown.verdict is Verdict.INVALID_PROBLEM and "cpp" in unknown.detail


# -- between tests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "import os\nprint(len(os.listdir('/tmp')))\nopen('/tmp/x', 'w')",
        "import os\nprint(len(os.listdir('/dev/shm')))\nopen('/dev/shm/x', 'w')",
        "import os\nours = 1, os.getpid(), os.getppid()\n"
        "print(len([p for p in os.listdir('/proc') if p.isdigit() and int(p) not in ours]))\n"
        "if os.fork() == 0:\n    os.setsid()\n    import time\n    time.sleep(30)",
        "import builtins\nprint(getattr(builtins, 'tally', 0))\nbuiltins.tally = 1",
        "import sys\nprint(int('leftover' in sys.modules))\nsys.modules['leftover'] = sys",
    ],
    ids=["files", "shared memory", "processes", "builtins", "modules"],
)
def test_nothing_is_left_to_the_next_test(judge: Judge, source: str) -> None:
    one = program(judge, source, (Test("", "0"),) * 3)
    assert one.passed, one.detail


# -- faults of the machine -------------------------------------------------------------------------------------------


def test_a_sandbox_that_is_killed_is_replaced(judge: Judge) -> None:
    """Once is not noticed; again and again is INFRA_ERROR, never a wrong answer."""
    worker = judge._workers[0]
    slow = "import time\ntime.sleep(0.5)\nprint(sum(map(int, input().split())))"

    def kill() -> None:
        time.sleep(0.2)
        os.killpg(worker.start().process.pid, signal.SIGKILL)  # type: ignore[union-attr]

    worker.start()
    thread = threading.Thread(target=kill)
    thread.start()
    one = program(judge, slow)
    thread.join()
    assert one.passed, one.detail


def test_a_sandbox_that_always_dies_is_no_wrong_answer(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    run = Sandbox.run

    def dying(self: Sandbox, job: Any, files: Any) -> Any:
        started.append(self)
        assert self.process is not None
        os.killpg(self.process.pid, signal.SIGKILL)
        return run(self, job, files)

    monkeypatch.setattr(Sandbox, "run", dying)
    one = program(judge, "print(4)")
    assert one.verdict is Verdict.INFRA_ERROR and len(set(started)) == 3
    monkeypatch.undo()
    assert program(judge, "print(4)").verdict is Verdict.WRONG_ANSWER


def test_memory_of_one_program_is_not_blamed_on_the_next(judge: Judge) -> None:
    greedy = (
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0:\n        x = b'x' * (200 << 20)\n"
        "        time.sleep(1)\n"
        "        os._exit(0)\nfor _ in range(5): os.wait()\nprint(sum(map(int, input().split())))"
    )
    program(judge, greedy, ADD[:1], limits=Limits(cpu_seconds=6, memory_bytes=256 << 20))
    assert program(judge, "raise SystemExit(3)").verdict is Verdict.RUNTIME_ERROR


def test_an_array_that_is_no_answer_costs_the_judge_nothing() -> None:
    """Compared with numpy's broadcasting it would take the product of both sizes."""
    source = (
        "import os\nclass Solution:\n    def f(self, x):\n"
        "        os.write(3, ('{\"array\": [' + ','.join(['[0]'] * 60000) + ']}').encode())\n        os._exit(0)"
    )
    case = Case(source, (Test("1", json.dumps(list(range(60000)))),), entry="f", limits=SMALL)
    with Judge("lcb-compat", workers=1, limits=SMALL) as compat:
        one = compat.judge(case)
    assert (one.verdict, one.results) == (Verdict.WRONG_ANSWER, (False,))


def test_details_are_unicode(judge: Judge) -> None:
    one = program(judge, "class E(Exception): pass\nE.__name__ = 'E'\nraise E('\\ud800')")
    assert one.verdict is Verdict.RUNTIME_ERROR
    one.detail.encode()


def test_a_full_disk_is_no_wrong_answer(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    one = program(judge, "print(4)")
    assert (one.verdict, one.detail) == (Verdict.INFRA_ERROR, "no room on the disk or in memory")
    monkeypatch.undo()
    assert program(judge, "print(4)").verdict is Verdict.WRONG_ANSWER


def test_nothing_remains_after_closing() -> None:
    with Judge(workers=2, limits=SMALL) as judge:
        assert all(one.passed for one in judge.judge_many([Case("print(1)", (Test("", "1"),))] * 4))
        boxes = [box for worker in judge._workers for box in worker.sandboxes.values()]
        pids = [box.process.pid for box in boxes if box.process is not None]
        groups = [folder for box in boxes if box.group is not None for folder in box.group.folders.values()]
        assert pids
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    assert not [group for group in groups if group.exists()]


def test_verdicts_come_one_by_one_and_in_order(judge: Judge) -> None:
    cases = [Case(f"print({number})", (Test("", "3"),)) for number in range(6)]
    seen: dict[int, CaseVerdict] = {}
    found = judge.judge_many(cases, seen.__setitem__)
    assert [one.passed for one in found] == [number == 3 for number in range(6)]
    assert [seen[index] for index in range(6)] == found and judge.judge_many([]) == []


def test_a_caller_that_stops_leaves_a_judge_that_works(judge: Judge) -> None:
    def stop(index: int, verdict: CaseVerdict) -> None:
        raise KeyboardInterrupt

    slow = Case("import time\ntime.sleep(60)", (Test("", "1"),), limits=Limits(wall_seconds=60))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        judge.judge_many([Case("print(1)", (Test("", "1"),)), slow, slow], stop)
    assert time.monotonic() - started < 30  # what was running is not waited for
    assert program(judge, "print(1)", (Test("", "1"),)).passed


def test_a_test_that_is_not_unicode_is_the_problems_fault(judge: Judge) -> None:
    assert program(judge, "print(1)", (Test("\ud800", "1"),)).verdict is Verdict.INVALID_PROBLEM


# -- isolation -------------------------------------------------------------------------------------------------------


def test_the_level_is_in_every_verdict(judge: Judge) -> None:
    one = program(judge, "print(3)")
    assert one.isolation == judge.isolation and one.isolation.level in range(NAMESPACES, FULL + 1)
    assert one.isolation.to_json()["layers"][:2] == ["process", "rlimits"]


def test_model_written_programs_are_refused_below_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """No program runs here: what is refused is refused before."""
    monkeypatch.setattr("eval.judge.worker.Worker.start", lambda self, **_: None)
    with Judge(workers=1, highest=NAMESPACES - 1) as judge:
        assert judge.isolation.level < NAMESPACES and judge.isolation.missing["namespaces"] == "not asked for"
        with pytest.raises(InputError, match="isolation level 4"):
            program(judge, "print(3)")
        with pytest.raises(InputError, match="isolation level 4"):
            judge.judge_many([Case("print(3)", ADD, trusted=True), Case("print(3)", ADD)])
    with Judge(workers=1, highest=NAMESPACES - 1, allow_unsandboxed=True) as judge:
        judge.require_isolation()


# -- problems, limits, several judges --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["strict", "lcb-compat"])
def test_a_bad_test_makes_the_problem_invalid_for_every_program(mode) -> None:
    """Whoever stops at the first test must not be counted where those who come to the second are not."""
    bad = {
        "output is not JSON": (Test("1", "1"), Test("2", "oops")),
        "input is not JSON": (Test("1", "1"), Test("2\n", "2")),
        "output is not Unicode": (Test("1", "1"), Test("2", "\ud800")),
    }
    with Judge(mode, workers=1, limits=SMALL) as one:
        for name, tests in bad.items():
            for source in ("def f(n): return n", "def f(n): return 0", "def f(n): 1/0"):
                verdict = one.judge(Case(source, tests, "f"))
                assert verdict.verdict is Verdict.INVALID_PROBLEM and "test 2" in verdict.detail, name
        assert one.judge(Case("def f(n): return n", (Test("1", "1"),), "f" * 70_000)).verdict is Verdict.INVALID_PROBLEM


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


def test_what_another_sandbox_does_to_its_memory_is_nobody_elses_fault() -> None:
    """One program has its children ended for want of memory, again and again; another, beside it, ends itself."""
    hog = (
        "import os, time\nend = time.monotonic() + 1.5\nwhile time.monotonic() < end:\n    pid = os.fork()\n"
        "    if pid == 0:\n        x = [bytearray(b'x') * (100 << 20) for _ in range(9)]\n        os._exit(0)\n"
        "    os.waitpid(pid, 0)\nprint('no')"
    )
    killed = "import os, time\ntime.sleep(0.5)\nos.kill(os.getpid(), 9)"
    limits = Limits(cpu_seconds=20, memory_bytes=200 << 20, disk_bytes=1 << 20, output_bytes=1 << 16)
    with Judge(workers=2, limits=limits) as one:
        first, second = one.judge_many([Case(hog, ADD[:1]), Case(killed, ADD[:1])])
        both = one.judge(Case("x = [bytearray(b'x') * (150 << 20) for _ in range(2)]", ADD[:1]))
        group = one.judge(Case(hog.replace("print('no')", "os.kill(os.getpid(), 9)"), ADD[:1]))
    assert first.verdict is not Verdict.INFRA_ERROR and both.verdict is Verdict.MEMORY_LIMIT
    assert group.verdict is not Verdict.INFRA_ERROR  # its children's memory, its own end: nothing of the machine's
    assert second.verdict is Verdict.RUNTIME_ERROR and "SIGKILL" in second.detail


def test_a_judge_does_not_wait_for_itself(judge) -> None:
    def again(_: int, __: CaseVerdict) -> None:
        judge.judge(Case("print(3)", ADD))

    with pytest.raises(RuntimeError, match="on_verdict"):
        judge.judge_many([Case("print(3)", ADD)], again)
    assert not program(judge, "print(4)").passed  # and it still works


def test_closing_ends_a_call_of_another_thread() -> None:
    one = Judge(workers=2, limits=SMALL)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            one.judge_many([Case("import time\ntime.sleep(10)", ADD)] * 8)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.5)
    one.close()
    thread.join(timeout=10)
    assert not thread.is_alive() and failures
    assert not any(worker.sandboxes for worker in one._workers)


def test_a_fork_of_the_judges_process_does_not_hold_it_up() -> None:
    one = Judge(workers=1, limits=SMALL)
    child = os.fork()
    if child == 0:
        time.sleep(4)
        os._exit(0)
    started = time.monotonic()
    one.close()
    assert time.monotonic() - started < 3
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_bubblewrap_is_found_where_the_users_path_has_it(monkeypatch, tmp_path) -> None:
    from eval.judge.layers import bubblewrap

    (tmp_path / "bwrap").write_text("#!/bin/sh\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bubblewrap(1 << 20, None)[0] == str(tmp_path / "bwrap")


@pytest.mark.skipif(LANGUAGES["cpp"].missing() is not None, reason="no C++ compiler")
def test_a_compilers_error_is_told_by_its_line(judge) -> None:
    verdict = program(judge, "int main() { return undeclared; }", language="cpp")
    assert verdict.verdict is Verdict.COMPILE_ERROR and "undeclared" in verdict.detail and "error" in verdict.detail
