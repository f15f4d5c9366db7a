"""What one test's ending, and what the program printed or returned, mean."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eval.judge.case import Case, Test
from eval.judge.compare import first_difference, same_output, same_value
from eval.judge.sandbox import Ending
from recipes.rows import Verdict

LONGEST_ERROR = 4096  # bytes of stderr that are looked at
LONGEST_DETAIL = 200  # characters
MOST_COMPARED = 1 << 20  # elements of two arrays of different shape that are still compared
LONGEST_INTEGER = 4000  # digits beyond which Python refuses to read one; longer ones are compared as text


@dataclass(frozen=True)
class Outcome:
    """The verdict on one test; `results` and `error_code` as LiveCodeBench has them."""

    verdict: Verdict
    detail: str = ""
    result: bool | int = True
    error_code: int | None = None
    before: tuple[bool | int, ...] = ()  # what the official judge has noted for this test before it failed

    @property
    def results(self) -> tuple[bool | int, ...]:
        return (*self.before, self.result)


_CODES = {
    Verdict.WRONG_ANSWER: -2,
    Verdict.TIME_LIMIT: -3,
    Verdict.MEMORY_LIMIT: -4,
    Verdict.OUTPUT_LIMIT: -4,
    Verdict.RUNTIME_ERROR: -4,
}


def failed(verdict: Verdict, detail: str) -> Outcome:
    return Outcome(verdict, detail[:LONGEST_DETAIL], _CODES[verdict], _CODES[verdict])


def how_it_ended(ending: Ending, files: Mapping[str, int], job: Mapping[str, Any]) -> Outcome | None:
    """The failure that an ending tells of by itself; None where what was printed decides."""
    if ending.late:
        return failed(Verdict.TIME_LIMIT, f"{ending.wall:.1f} s of wall time, {ending.cpu:.1f} of CPU time")
    if ending.cpu > job["cpu"] or ending.status == -signal.SIGXCPU:
        return failed(Verdict.TIME_LIMIT, f"{ending.cpu:.2f} s of CPU time, more than {job['cpu']:g}")
    for name in ("stdout", "stderr", "result"):
        if name in files and os.fstat(files[name]).st_size >= job["file_bytes"]:
            return failed(Verdict.OUTPUT_LIMIT, f"{name}: {job['file_bytes']} bytes")
    if ending.out_of_memory:
        return failed(Verdict.MEMORY_LIMIT, "ended for want of memory")
    if ending.status == 0:
        return None
    error = last_line(files["stderr"])
    kind = error.partition(":")[0]  # numpy has an error of its own, of this kind
    if kind.endswith("MemoryError") or "std::bad_alloc" in error or "memory allocation of" in error:
        return failed(Verdict.MEMORY_LIMIT, error)
    if ending.status < 0:
        return failed(Verdict.RUNTIME_ERROR, f"ended by {signal_name(-ending.status)}")
    return failed(Verdict.RUNTIME_ERROR, error or f"exit status {ending.status}")


def program_outcome(
    case: Case, test: Test, ending: Ending, files: Mapping[str, int], job: Mapping[str, Any]
) -> Outcome:
    """Of a program that reads stdin and prints."""
    if (failure := how_it_ended(ending, files, job)) is not None:
        return failure
    printed = read(files["stdout"]).decode(errors="replace")
    if same_output(printed, test.output):
        return Outcome(Verdict.CORRECT)
    return failed(Verdict.WRONG_ANSWER, first_difference(printed, test.output))


def value_outcome(case: Case, test: Test, ending: Ending, files: Mapping[str, int], job: Mapping[str, Any]) -> Outcome:
    """Of a function that was called. What it returned came back as JSON, written by a process that cannot be trusted:
    it is data and never a verdict."""
    if (failure := how_it_ended(ending, files, job)) is not None:
        return failure
    expected = load(test.output)
    reply = read_reply(files["result"])
    if reply is None:
        return failed(Verdict.RUNTIME_ERROR, "the process ended before the function returned")
    if "value" not in reply:
        return _wrong_value(f"returned {reply.get('not_plain', 'nothing')}")
    if same_value(reply["value"], expected):
        return Outcome(Verdict.CORRECT)
    return _wrong_value(f"returned {short(reply['value'])}, expected {short(expected)}")


def _wrong_value(detail: str) -> Outcome:
    return Outcome(Verdict.WRONG_ANSWER, detail[:LONGEST_DETAIL], False, -2)


def official_outcome(
    case: Case, test: Test, ending: Ending, files: Mapping[str, int], job: Mapping[str, Any]
) -> Outcome:
    """As LiveCodeBench's own judge would have it (docs/judge.md)."""
    reply = read_reply(files["result"])
    if reply is None:  # "no result from the child": a global timeout, an exit, a crash look the same there
        late = ending.late or ending.cpu > job["cpu"]
        verdict = Verdict.TIME_LIMIT if late else Verdict.RUNTIME_ERROR
        return Outcome(verdict, "no result (TestRunnerError)", -2, -5)
    if "setup" in reply:
        return Outcome(Verdict.RUNTIME_ERROR, short(reply["setup"]), -4, -4)
    if "error" in reply:
        verdict = Verdict.TIME_LIMIT if reply.get("timeout") is True else Verdict.RUNTIME_ERROR
        if str(reply["error"]).startswith("MemoryError"):
            verdict = Verdict.MEMORY_LIMIT
        return failed(verdict, short(reply["error"]))
    if case.entry is None:
        printed = reply.get("out")
        if isinstance(printed, str) and same_output(printed, test.output):
            return Outcome(Verdict.CORRECT)
        return failed(Verdict.WRONG_ANSWER, first_difference(str(printed), test.output))
    expected = load(test.output)
    if isinstance(array := reply.get("array"), list):
        return _array_outcome(array, expected)
    if "value" in reply and same_value(reply["value"], expected):
        return Outcome(Verdict.CORRECT)
    return _wrong_value(f"returned {short(reply.get('value', reply.get('other')))}, expected {short(expected)}")


def _array_outcome(array: list[Any], expected: Any) -> Outcome:
    """A numpy array compares element by element there; asking whether several comparisons are "true" then raises,
    after the array itself has been noted as this test's result (shown by its first element)."""
    import numpy

    try:
        found, wanted = numpy.asarray(array), numpy.asarray(expected)
        if found.size * wanted.size > MOST_COMPARED and found.shape != wanted.shape:
            return _wrong_value("returned an array of another shape")  # broadcasting would take the product's memory
        equal = numpy.asarray(found == wanted)
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        return failed(Verdict.RUNTIME_ERROR, str(error))
    if equal.size == 1:
        return Outcome(Verdict.CORRECT) if bool(equal.item()) else _wrong_value("returned another array")
    if equal.size == 0:
        return _wrong_value("returned an empty array")
    outcome = failed(Verdict.RUNTIME_ERROR, "the truth value of an array is ambiguous")
    return Outcome(outcome.verdict, outcome.detail, outcome.result, outcome.error_code, (bool(equal.flat[0]),))


# -- reading what the sandbox left ---------------------------------------------------------------------------------


def read(file: int) -> bytes:
    """All of a file that nobody writes to any more."""
    parts, offset = [], 0
    while block := os.pread(file, 1 << 20, offset):
        parts.append(block)
        offset += len(block)
    return b"".join(parts)


def read_reply(file: int) -> dict[str, Any] | None:
    """The JSON object in a file; None where there is none."""
    try:
        reply = load(read(file).decode(errors="surrogatepass"))
    except (ValueError, RecursionError):
        return None
    return reply if isinstance(reply, dict) else None


def load(text: str) -> Any:
    """JSON, integers of any length included.

    Raises:
        ValueError: it is none.
        RecursionError: it is nested too deep.
    """
    return json.loads(text, parse_int=_integer)


def _integer(text: str) -> Any:
    return int(text) if len(text) <= LONGEST_INTEGER else ("integer", text)


def invalid_test(case: Case) -> str | None:
    """Why no program can be judged by these tests; None where all are sound. Asked before any is run: a problem that
    is invalid for programs that come to its fifth test, and wrong for the others, would only ever count against."""
    for number, test in enumerate(case.tests, 1):
        for name, text in (("input", test.input), ("output", test.output)):
            try:
                text.encode()
                if case.entry is not None:
                    for line in text.split("\n") if name == "input" else [text]:
                        load(line)
            except UnicodeEncodeError:
                return f"test {number}: its {name} is not Unicode (a lone surrogate)"
            except (ValueError, RecursionError):
                return f"test {number}: its {name} is not JSON"
    return None


def last_line(file: int) -> str:
    """The last line of what a program wrote to stderr: for Python, the error itself."""
    size = os.fstat(file).st_size
    text = os.pread(file, LONGEST_ERROR, max(0, size - LONGEST_ERROR)).decode(errors="replace")
    lines = text.strip().splitlines()
    return lines[-1].strip()[:LONGEST_DETAIL] if lines else ""


def first_error(file: int) -> str:
    """The line in which a compiler says what is wrong; the last one where none says "error"."""
    text = os.pread(file, LONGEST_ERROR, 0).decode(errors="replace")
    found = next((line for line in text.splitlines() if "error" in line.lower()), None)
    return found.strip()[:LONGEST_DETAIL] if found is not None else last_line(file)


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
