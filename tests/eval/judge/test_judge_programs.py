"""What the judge's programs see and may do, functions that are called, languages, what a test leaves to the next."""

from __future__ import annotations

import pytest
from small_judge import ADD, program

from eval.judge.case import Case, Limits, Test
from eval.judge.judge import Judge
from eval.judge.languages import LANGUAGES, Language
from recipes.rows import Verdict

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


def test_details_are_unicode(judge: Judge) -> None:
    one = program(judge, "class E(Exception): pass\nE.__name__ = 'E'\nraise E('\\ud800')")
    assert one.verdict is Verdict.RUNTIME_ERROR
    one.detail.encode()


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


@pytest.mark.skipif(LANGUAGES["cpp"].missing() is not None, reason="no C++ compiler")
def test_a_compilers_error_is_told_by_its_line(judge) -> None:
    verdict = program(judge, "int main() { return undeclared; }", language="cpp")
    assert verdict.verdict is Verdict.COMPILE_ERROR and "undeclared" in verdict.detail and "error" in verdict.detail


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
