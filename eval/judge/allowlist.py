"""Runs short model-written programs that pass an allow-list, in a limited process; no sandbox is needed for these.

Two layers. `program_rules` refuses, before anything runs, every program that uses more than plain arithmetic,
containers, `input` and `print`. What passes runs in `program_driver`: a bare interpreter of its own with limits on
CPU time, address space, files and processes, as an unprivileged user where we are root, with an empty environment and
an empty working directory. The judge compares; expected outputs never enter the program's process.

One process serves several programs in turn, since starting an interpreter costs more than running them: an
allow-listed program has no way to change what the next one sees (fresh globals, no attribute it could write to).
A process that dies or hangs takes only the program at work with it; the rest go to a new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from eval.judge.program_rules import ALLOWED_BUILTINS, CompileRefusal, disallowed
from recipes.rows import Verdict

DRIVER = Path(__file__).with_name("program_driver.py")
BATCH = 32  # programs a process serves; beyond this the start-up is already a small share
START_SECONDS = 30.0  # an interpreter that is not ready by then is the machine's fault, not the program's

_DRIVER_ERRORS = {
    "compile": Verdict.COMPILE_ERROR,
    "exception": Verdict.RUNTIME_ERROR,
    "exit": Verdict.RUNTIME_ERROR,
    "memory": Verdict.MEMORY_LIMIT,
    "output": Verdict.OUTPUT_LIMIT,
}


@dataclass(frozen=True)
class Limits:
    """What one program may use on one test.

    Args:
        cpu_seconds: CPU time; the kernel enforces it in whole seconds, rounded up.
        wall_seconds: wall time, enforced by the parent; generous, so that a busy machine changes no verdict.
        memory_bytes: address space of the process (a bare interpreter needs about 30 MB of it).
        output_characters: what the program may print.
    """

    cpu_seconds: float = 1.0
    wall_seconds: float = 10.0
    memory_bytes: int = 256 << 20
    output_characters: int = 64 << 10


@dataclass(frozen=True)
class Program:
    """A program and its tests, each (stdin, expected stdout)."""

    source: str
    tests: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class ProgramVerdict:
    """The verdict is that of the first test that failed; `passed` counts those that passed, of `total`."""

    verdict: Verdict
    detail: str = ""
    passed: int = 0
    total: int = 0
    seconds: float = 0.0  # wall time the program's own tests took
    isolation: str = "none"  # "none": it never ran


def same_output(found: str, expected: str) -> bool:
    """Line by line, trailing whitespace and trailing empty lines ignored."""
    return _lines(found) == _lines(expected)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def judge(source: str, tests: Sequence[tuple[str, str]], limits: Limits | None = None) -> ProgramVerdict:
    """Judge one program on (stdin, expected stdout) pairs; never raises for anything the program does."""
    return judge_many([Program(source, tuple(tests))], workers=1, limits=limits)[0]


def judge_many(programs: Sequence[Program], workers: int = 2, limits: Limits | None = None) -> list[ProgramVerdict]:
    """Judge programs, in order, with `workers` processes at a time."""
    limits = limits or Limits()
    verdicts: list[ProgramVerdict | None] = [_screen(program) for program in programs]
    waiting = [index for index, verdict in enumerate(verdicts) if verdict is None]
    size = max(1, min(BATCH, -(-len(waiting) // max(1, workers))))
    batches = [waiting[start : start + size] for start in range(0, len(waiting), size)]

    def run(batch: list[int]) -> list[ProgramVerdict]:
        return _run_batch([programs[index] for index in batch], limits)

    with ThreadPoolExecutor(max_workers=max(1, workers)) as pool:
        for batch, results in zip(batches, pool.map(run, batches), strict=True):
            for index, result in zip(batch, results, strict=True):
                verdicts[index] = result
    return [verdict for verdict in verdicts if verdict is not None]


def _screen(program: Program) -> ProgramVerdict | None:
    """The verdict on a program that must not or cannot run; None when it may run."""
    total = len(program.tests)
    if total == 0:
        return ProgramVerdict(Verdict.INVALID_PROBLEM, "the problem has no tests")
    try:
        reason = disallowed(program.source)
    except CompileRefusal as error:
        return ProgramVerdict(Verdict.COMPILE_ERROR, str(error), total=total)
    if reason is not None:
        return ProgramVerdict(Verdict.WRONG_ANSWER, f"disallowed: {reason}", total=total)
    return None


def _run_batch(programs: list[Program], limits: Limits) -> list[ProgramVerdict]:
    """Judge allow-listed programs in as few processes as their deaths permit."""
    verdicts: list[ProgramVerdict] = []
    while len(verdicts) < len(programs):
        rest = programs[len(verdicts) :]
        try:
            finished = _run_process(rest, limits)
        except OSError as error:
            finished = [ProgramVerdict(Verdict.INFRA_ERROR, str(error), total=len(rest[0].tests))]
        verdicts.extend(finished)
    return verdicts


def _run_process(programs: list[Program], limits: Limits) -> list[ProgramVerdict]:
    """Verdicts on the first programs: all of them, or up to and with the one that ended the process (>= 1)."""
    with tempfile.TemporaryDirectory(prefix="judge-") as folder, tempfile.TemporaryFile() as request:
        request.write(_request(programs, limits))
        request.seek(0)
        process = subprocess.Popen(
            # The environment is ours alone, so -I's disregard of PYTHON* is not wanted: a fixed hash seed makes a
            # program that prints a set give the same verdict twice.
            [sys.executable, "-P", "-s", "-S", "-B", "-W", "ignore", str(DRIVER)],
            stdin=request,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PYTHONHASHSEED": "0", "PYTHONUTF8": "1"},
            start_new_session=True,
        )
        assert process.stdout is not None
        try:
            return _collect(programs, _Replies(process.stdout, limits), process, limits)
        finally:
            _end(process)
            process.stdout.close()


def _request(programs: list[Program], limits: Limits) -> bytes:
    return json.dumps(
        {
            "jobs": [[program.source, [text for text, _ in program.tests]] for program in programs],
            "cpu_seconds": limits.cpu_seconds,
            "memory_bytes": limits.memory_bytes,
            "output_characters": limits.output_characters,
            "builtins": sorted(ALLOWED_BUILTINS),
        }
    ).encode()


@dataclass
class _Replies:
    """The driver's lines, read with a deadline and a cap: what comes from the child is data, never trusted."""

    stream: IO[bytes]
    limits: Limits
    buffer: bytearray = field(default_factory=bytearray)

    def next(self, seconds: float) -> dict[str, Any] | str:
        """The next reply, or why there is none: "closed", "late", "long" or "garbled"."""
        longest = 12 * self.limits.output_characters + 1024  # JSON escapes a character with at most twelve
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.stream, selectors.EVENT_READ)
            while (end := self.buffer.find(b"\n")) < 0:
                if len(self.buffer) > longest:
                    return "long"
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    return "late"
                block = os.read(self.stream.fileno(), 1 << 16)
                if not block:
                    return "closed"
                self.buffer += block
        line, self.buffer = bytes(self.buffer[:end]), self.buffer[end + 1 :]
        try:
            reply = json.loads(line)
        except ValueError:
            return "garbled"
        return reply if isinstance(reply, dict) else "garbled"


def _collect(
    programs: list[Program], replies: _Replies, process: subprocess.Popen[bytes], limits: Limits
) -> list[ProgramVerdict]:
    ready = replies.next(START_SECONDS)
    if isinstance(ready, str):
        return [ProgramVerdict(Verdict.INFRA_ERROR, f"the driver did not start: {ready}", total=len(programs[0].tests))]
    isolation = "allowlist+rlimits" if ready.get("uid") == 0 else "allowlist+rlimits+uid"
    verdicts = []
    for program in programs:
        started = time.monotonic()
        outcome, alive = _judge_tests(program, replies, process, limits)
        verdicts.append(replace(outcome, seconds=time.monotonic() - started, isolation=isolation))
        if not alive:
            break
    return verdicts


def _judge_tests(
    program: Program, replies: _Replies, process: subprocess.Popen[bytes], limits: Limits
) -> tuple[ProgramVerdict, bool]:
    """The verdict on one program, and whether the process can serve the next."""
    total, passed = len(program.tests), 0
    first_failure: tuple[Verdict, str] | None = None
    for number, (_, expected) in enumerate(program.tests, 1):
        reply = replies.next(limits.wall_seconds)
        if isinstance(reply, str):
            failure = first_failure or _death(reply, process, f"test {number}")
            return ProgramVerdict(*failure, passed=passed, total=total), False
        error, printed = reply.get("error"), reply.get("out")
        if error is not None:
            verdict = _DRIVER_ERRORS.get(error, Verdict.RUNTIME_ERROR)
            first_failure = first_failure or (verdict, f"test {number}: {reply.get('detail', '')}")
        elif isinstance(printed, str) and same_output(printed, expected):
            passed += 1
        else:
            first_failure = first_failure or (Verdict.WRONG_ANSWER, f"test {number}: printed {str(printed)[:80]!r}")
    verdict, detail = first_failure or (Verdict.CORRECT, "")
    # A heap that was once full may stay fragmented: the next program gets a fresh process.
    return ProgramVerdict(verdict, detail, passed, total), verdict is not Verdict.MEMORY_LIMIT


def _death(reason: str, process: subprocess.Popen[bytes], where: str) -> tuple[Verdict, str]:
    """The verdict on the program at work when the replies stopped for `reason`."""
    if reason == "late":
        return Verdict.TIME_LIMIT, f"{where}: wall time"
    if reason == "long":
        return Verdict.OUTPUT_LIMIT, where
    if reason == "garbled":
        return Verdict.RUNTIME_ERROR, f"{where}: unreadable reply"
    try:
        status = process.wait(timeout=START_SECONDS)
    except subprocess.TimeoutExpired:
        return Verdict.INFRA_ERROR, f"{where}: the process closed its output and stayed"
    if status == -signal.SIGXCPU:
        return Verdict.TIME_LIMIT, f"{where}: CPU time"
    if status == -signal.SIGKILL:  # neither we nor its own limits did this: the machine ran out of memory
        return Verdict.INFRA_ERROR, f"{where}: killed from outside"
    return Verdict.RUNTIME_ERROR, f"{where}: the process ended with status {status}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of the process and its group; nothing outlives its batch."""
    if process.poll() is None:
        # Not reaped yet, so the number cannot have passed to another process.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
