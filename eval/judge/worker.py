"""One place where cases are judged, one at a time: it keeps a sandbox, gives it the jobs of a case, compares.

The order of things for one case: each test runs in a fresh process that gets stdin as a file and writes to files that
only grow to the output limit; the first one compiles the program, too (what is to be built is built before, in a
process of its own). When it and all it started have ended, what it printed is read and compared here.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from eval.judge.case import Case, CaseVerdict, Limits, Mode, Test
from eval.judge.languages import LANGUAGES
from eval.judge.layers import Layers
from eval.judge.outcome import (
    Outcome,
    first_error,
    invalid_test,
    last_line,
    official_outcome,
    program_outcome,
    value_outcome,
)
from eval.judge.sandbox import Ending, Sandbox, SandboxLost
from recipes.rows import Verdict

BUILD_LIMITS = {"cpu": 30.0, "wall": 120.0, "memory": 2 << 30, "file_bytes": 256 << 20}
WHOLE, NOT_BEGUN = b"\nwhole\n", 120  # as in inside/python_runner.py and inside/zygote.py
LONGEST_NAME = 256  # characters of a function's name
ATTEMPTS = 3  # when the machine, not the program, is at fault


@dataclass
class Program:
    """A program on its way through its tests.

    Args:
        kind: how a test is run: program, call, official (Python), execute (an executable).
        file: an open file with its text; once `compiled`, with marshalled code or the executable.
    """

    kind: str
    file: int
    compiled: bool
    in_class: bool = False
    numpy: bool = False


class Worker:
    """Judges one case after another in a sandbox of its own, made anew whenever something was left behind in it.

    It has two: programs that name numpy run where numpy is loaded already. For all others that would double what a
    fork has to copy, and forks are most of the time.
    """

    def __init__(self, layers: Layers, mode: Mode, limits: Limits) -> None:
        self.layers, self.mode, self.limits = layers, mode, limits
        self.sandboxes: dict[bool, Sandbox] = {}
        self.stopping = False

    def start(self, *, numpy: bool = False) -> Sandbox:
        """A sandbox that is ready.

        Raises:
            SandboxLost: none starts.
        """
        if numpy not in self.sandboxes:
            self.sandboxes[numpy] = Sandbox(self.layers, self.mode, self.limits, numpy=numpy)
        return self.sandboxes[numpy]

    def close(self) -> None:
        """End the sandboxes."""
        while self.sandboxes:
            self.sandboxes.popitem()[1].close()

    def stop(self) -> None:
        """From another thread: end the case at hand now; its verdict means nothing."""
        self.stopping = True
        for sandbox in list(self.sandboxes.values()):
            sandbox.kill()

    def judge(self, case: Case) -> CaseVerdict:
        """The verdict; INFRA_ERROR only after several sandboxes. Never raises for anything a program does."""
        verdict = CaseVerdict(Verdict.INFRA_ERROR)
        for _ in range(ATTEMPTS):
            try:
                verdict = self._judge_once(case)
            except SandboxLost as error:
                self.close()
                if error.out_of_memory:
                    verdict = self._failed(Verdict.MEMORY_LIMIT, "the sandbox's memory was used up", case)
                else:
                    verdict = self._failed(Verdict.INFRA_ERROR, str(error), case)
            except OSError as error:  # no memory or no files left for the judge itself
                self.close()
                reason = "no room on the disk or in memory" if error.errno == errno.ENOSPC else str(error.strerror)
                verdict = self._failed(Verdict.INFRA_ERROR, reason, case)
            if verdict.verdict is not Verdict.INFRA_ERROR or self.stopping:
                break
        # A program can put half a surrogate pair into its error message.
        verdict = replace(verdict, detail=verdict.detail.encode(errors="backslashreplace").decode())
        return replace(verdict, isolation=self.layers.isolation) if verdict.ran else verdict

    @staticmethod
    def _failed(verdict: Verdict, detail: str, case: Case) -> CaseVerdict:
        return CaseVerdict(verdict, detail, (-2,), -5, len(case.tests), ran=True)

    def _judge_once(self, case: Case) -> CaseVerdict:
        total = len(case.tests)
        if not case.source.strip() and self.mode == "strict":
            return CaseVerdict(Verdict.NO_ANSWER, "no program", (-4,), -4, total)
        if not case.tests and self.mode == "strict":
            return CaseVerdict(Verdict.INVALID_PROBLEM, "the problem has no tests")
        language = LANGUAGES.get(case.language)
        if language is None:
            known = ", ".join(LANGUAGES)
            return CaseVerdict(
                Verdict.INVALID_PROBLEM, f"no language {case.language!r} (there are {known})", tests=total
            )
        if (compiler := language.missing()) is not None:
            return CaseVerdict(Verdict.INFRA_ERROR, f"no {compiler} on this machine", (-2,), -5, total)
        if (reason := invalid_test(case)) is not None:
            return CaseVerdict(Verdict.INVALID_PROBLEM, reason, (-4,), -5, total)
        if case.entry is not None and not (case.entry.isidentifier() and len(case.entry) <= LONGEST_NAME):
            return CaseVerdict(Verdict.INVALID_PROBLEM, "its function has no name of Python's", tests=total)
        if case.entry is not None and language.build is not None:
            return CaseVerdict(Verdict.INVALID_PROBLEM, f"call-based tests are for Python, not {case.language}")
        with ExitStack() as files:
            program = self._prepare(case, files)
            if isinstance(program, CaseVerdict):
                return program
            if case.tests:
                return self._run_tests(case, program, files)
            failure = self._compile_only(case, program)
            return failure or CaseVerdict(Verdict.INVALID_PROBLEM, "the problem has no tests", ran=True)

    # -- jobs ------------------------------------------------------------------------------------------------------

    def _run(self, job: dict[str, Any], files: dict[str, int], *, numpy: bool = False) -> Ending:
        sandbox = self.start(numpy=numpy)
        ending = sandbox.run(job, files)
        if sandbox.dirty:
            self.sandboxes.pop(numpy).close()
        return ending

    def _prepare(self, case: Case, files: ExitStack) -> Program | CaseVerdict:
        """The program, its file open as long as `files`; what is to be built is built here."""
        try:
            source = case.source.encode()
        except UnicodeEncodeError:
            return self._not_compiled(case, "the text is not Unicode (a lone surrogate)")
        text = files.enter_context(memory_file(source))
        language = LANGUAGES[case.language]
        if language.build is None:
            official = self.mode == "lcb-compat"
            kind = "official" if official else "program" if case.entry is None else "call"
            return Program(kind, text, False, "class Solution" in case.source, "numpy" in case.source)
        binary = files.enter_context(memory_file())
        job = {
            "kind": "build",
            "compile": True,
            "argv": language.build,
            "source_name": language.source_name,
            **BUILD_LIMITS,
        }
        return self._compile(case, job, text, binary) or Program("execute", seal(binary), True)

    def _compile_only(self, case: Case, program: Program) -> CaseVerdict | None:
        """Compile a program that has no tests, as the official judge does; the verdict when that fails."""
        job = {"kind": "official-text", "compile": True, **BUILD_LIMITS}
        with memory_file() as code:
            return self._compile(case, job, program.file, code)

    def _compile(self, case: Case, job: dict[str, Any], text: int, code: int) -> CaseVerdict | None:
        with memory_file() as errors:
            ending = self._run(job, {"program": text, "stderr": errors, "code": code})
            if ending.machine_out_of_memory:
                raise SandboxLost("this machine ran out of memory")
            if ending.status == 0:
                return None
            reason = "took too long" if ending.late else first_error(errors)
            return self._not_compiled(case, reason or f"the compiler ended with status {ending.status}")

    @staticmethod
    def _not_compiled(case: Case, reason: str) -> CaseVerdict:
        return CaseVerdict(Verdict.COMPILE_ERROR, reason, (-4,), -4, len(case.tests), ran=True)

    def _run_tests(self, case: Case, program: Program, files: ExitStack) -> CaseVerdict:
        limits = case.limits or self.limits
        results: list[bool | int] = []
        seconds: list[float] = []
        memory = 0.0
        outcome = Outcome(Verdict.CORRECT)
        for number, test in enumerate(case.tests, 1):
            outcome, ending = self._run_test(case, program, test, limits, files)
            seconds.append(ending.cpu)
            memory = max(memory, ending.memory_mb)
            allowed = limits.problem_seconds
            if outcome.verdict is Verdict.CORRECT and allowed is not None and sum(seconds) > allowed:
                outcome = Outcome(Verdict.TIME_LIMIT, f"more than {allowed:g} s in all", -3, -3)
            results = [-2] if outcome.error_code == -5 and self.mode == "lcb-compat" else [*results, *outcome.results]
            if outcome.verdict is not Verdict.CORRECT:
                if outcome.verdict is not Verdict.COMPILE_ERROR:
                    outcome = replace(outcome, detail=f"test {number}: {outcome.detail}")
                break
        return CaseVerdict(
            outcome.verdict, outcome.detail, tuple(results), outcome.error_code, len(case.tests),
            sum(seconds), memory, tuple(seconds), ran=True,
        )  # fmt: skip

    def _run_test(
        self, case: Case, program: Program, test: Test, limits: Limits, files: ExitStack
    ) -> tuple[Outcome, Ending]:
        job: dict[str, Any] = {
            "kind": program.kind,
            "compile": not program.compiled,
            "entry": case.entry,
            "in_class": program.in_class,
            "argv": ["main"],
            "cpu": limits.cpu_seconds,
            "wall": limits.deadline,
            "memory": limits.memory_bytes,
            "file_bytes": max(limits.output_bytes, 2 * len(test.output.encode(errors="replace"))),
        }
        if program.kind == "official":
            # Their clock rings in the program's code; this is the one behind it, for code that does not hear it.
            job |= {"alarm": limits.deadline, "wall": limits.deadline + limits.cpu_seconds}
        with ExitStack() as opened:
            names = {"stdin": test.input.encode(), "stdout": b"", "stderr": b""}
            if program.kind in ("call", "official"):
                names["result"] = b""
            streams = {name: opened.enter_context(memory_file(data)) for name, data in names.items()}
            given = {"program": program.file, **streams}
            if not program.compiled:
                given["code"] = files.enter_context(memory_file())
            ending = self._run(job, given, numpy=program.numpy)
            if ending.machine_out_of_memory:
                raise SandboxLost("this machine ran out of memory")
            if not program.compiled:
                if not _is_whole(given["code"]):
                    return self._not_begun(ending, streams["stderr"]), ending
                program.file, program.compiled = seal(given["code"]), True
            judge = _JUDGES[program.kind]
            return judge(case, test, ending, streams, job), ending

    def _not_begun(self, ending: Ending, errors: int) -> Outcome:
        """What a first test means that ended before any of the program's code was run."""
        if ending.status == NOT_BEGUN:
            raise SandboxLost(f"the test's process did not come to the program: {last_line(errors)}")
        if ending.late and self.mode == "strict":
            return Outcome(Verdict.TIME_LIMIT, "took too long to compile", -3, -3)
        reason = "took too long" if ending.late else last_line(errors)
        return Outcome(Verdict.COMPILE_ERROR, reason or "not a program", -4, -4)


_JUDGES = {"program": program_outcome, "execute": program_outcome, "call": value_outcome, "official": official_outcome}


def seal(file: int) -> int:
    """Let nobody change a file in memory any more: a program that runs from one can open it."""
    fcntl.fcntl(
        file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    )
    return file


def _is_whole(code: int) -> bool:
    """Whether all of a program's code is in a file."""
    return os.pread(code, len(WHOLE), max(0, os.fstat(code).st_size - len(WHOLE))) == WHOLE


@contextmanager
def memory_file(data: bytes = b"") -> Iterator[int]:
    """A file in memory, as a number; its offset is at the start."""
    file = os.memfd_create("judge", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view, offset = memoryview(data), 0
        while offset < len(view):
            offset += os.pwrite(file, view[offset:], offset)
        yield file
    finally:
        os.close(file)
