"""Child processes that may be lost: work that can hang, fill memory or crash is done there, one request at a time.

A child runs `maths_worker.py` in a session of its own with limits on CPU time, address space and files. It is started
when first asked, kept warm, and replaced after a few hundred requests, after a request that took much memory, and
after every kill. The clock that counts against a request is CPU time, kept by the kernel, so that a busy machine
changes no verdict; a child that does not answer although it has used no such time is the machine's fault.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

WORKER = Path(__file__).with_name("maths_worker.py")
START_SECONDS = 120.0  # imports on a busy machine; beyond this the machine is at fault
RECYCLE_AFTER = 300  # requests: sympy keeps what it has seen
ATTEMPTS = 3  # of one request, each with a fresh child, when the machine is at fault
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "VIRTUAL_ENV", "HOME")

TIME_SIGNALS = {signal.SIGPROF, signal.SIGXCPU}
CRASH_SIGNALS = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGXFSZ}

Fault = Literal["time", "memory", "recursion", "crash", "lost"]


@dataclass(frozen=True)
class ChildLimits:
    """What one request may use.

    Args:
        library: imported before the limits hold, so that they count the request alone.
        seconds: CPU time.
        memory_bytes: address space, beyond what the libraries take.
    """

    library: str
    seconds: float = 5.0
    memory_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.memory_bytes <= 0:
            raise ValueError(f"limits are more than 0, not {self.seconds} s and {self.memory_bytes} bytes")

    @property
    def wall_seconds(self) -> float:
        """Generous: the kernel ends the child by its CPU time long before, unless it gets none."""
        return 5 * self.seconds + 30


@dataclass(frozen=True)
class Outcome:
    """A reply, or what kept the child from giving one. "lost" is the machine's fault, all others the request's."""

    reply: Mapping[str, Any] = field(default_factory=dict)
    fault: Fault | None = None
    detail: str = ""


class _Gone(Exception):
    """The child ended, or had to be ended. Carries its return code, None when we ended it at the wall deadline."""

    def __init__(self, returncode: int | None) -> None:
        super().__init__()
        self.returncode = returncode


class Child:
    """One worker process, started by the first `ask`. Not for several threads at once."""

    def __init__(self, limits: ChildLimits) -> None:
        self.limits = limits
        self.process: subprocess.Popen[bytes] | None = None
        self._received = b""
        self._served = 0

    def ask(self, request: Mapping[str, Any]) -> Outcome:
        """The outcome of one request; the child is closed afterwards unless it is fit for another."""
        try:
            process = self.process or self._start()
        except (OSError, _Gone) as error:
            self.close()
            return Outcome(fault="lost", detail=f"the child does not start: {_words(error)}")
        try:
            reply = self._exchange(process, request, self.limits.wall_seconds)
        except _Gone as gone:
            self.close()
            return self._blame(gone)
        except BaseException:  # an interrupt: its reply must not be taken for the next one's
            self.close()
            raise
        self._served += 1
        if reply["tired"] or self._served >= RECYCLE_AFTER:
            self.close()
        if "fault" in reply:
            return Outcome(
                fault=reply["fault"], detail=f"{reply['fault']} limit of {self.limits.memory_bytes >> 20} MiB"
            )
        return Outcome(reply)

    def close(self) -> None:
        """End the process and whatever it started."""
        process, self.process, self._received, self._served = self.process, None, b"", 0
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    def _start(self) -> subprocess.Popen[bytes]:
        kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
        process = self.process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],  # -P: our modules' folder must not shadow anybody's modules
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd="/",
            env={**kept, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUTF8": "1"},
            start_new_session=True,
        )
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
        settings = {
            "library": self.limits.library,
            "seconds": self.limits.seconds,
            "memory_bytes": self.limits.memory_bytes,
        }
        self._exchange(process, settings, START_SECONDS)
        return process

    def _exchange(self, process: subprocess.Popen[bytes], request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Write one line, read one line.

        Raises:
            _Gone: the process ended, or the time is over.
        """
        assert process.stdin is not None and process.stdout is not None
        waiting = memoryview(json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            selector.register(process.stdin, selectors.EVENT_WRITE)
            while b"\n" not in self._received:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise _Gone(None)
                for key, _ in selector.select(left):
                    if key.fileobj is process.stdout:
                        part = os.read(process.stdout.fileno(), 1 << 16)
                        if not part:
                            raise _Gone(_returncode(process))
                        self._received += part
                        continue
                    try:
                        waiting = waiting[os.write(process.stdin.fileno(), waiting) :]
                    except BrokenPipeError as error:
                        raise _Gone(_returncode(process)) from error
                    if not waiting:
                        selector.unregister(process.stdin)
        line, self._received = self._received.split(b"\n", 1)
        return json.loads(line)

    def _blame(self, gone: _Gone) -> Outcome:
        if gone.returncode is None:
            return Outcome(fault="lost", detail=f"no answer within {self.limits.wall_seconds:g} s")
        number = -gone.returncode
        if number in TIME_SIGNALS:
            return Outcome(fault="time", detail=f"more than {self.limits.seconds:g} s of CPU time")
        if number in CRASH_SIGNALS:
            return Outcome(fault="crash", detail=f"the child crashed: {signal.Signals(number).name}")
        return Outcome(fault="lost", detail=f"the child ended: {_words(gone)}")


class Children:
    """A few children shared by threads; a context manager.

    Args:
        count: how many at most, and so how many requests at a time.
    """

    def __init__(self, count: int, limits: ChildLimits) -> None:
        if count < 1:
            raise ValueError(f"count is 1 or more, not {count}")
        self.limits = limits
        self._all = [Child(limits) for _ in range(count)]
        self._idle: queue.LifoQueue[Child] = queue.LifoQueue()  # last in, first out: a warm one before a cold one
        for child in reversed(self._all):
            self._idle.put(child)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(self, request: Mapping[str, Any]) -> Outcome:
        """The outcome of one request. What the machine may be to blame for is asked again of a fresh child: "lost"
        comes back only after several attempts, "crash" only when it happened twice."""
        child = self._idle.get()
        try:
            crashes = 0
            for _ in range(ATTEMPTS):
                outcome = child.ask(request)
                crashes += outcome.fault == "crash"
                if outcome.fault not in ("lost", "crash") or crashes == 2:
                    break
            return outcome if outcome.fault != "crash" or crashes == 2 else Outcome(fault="lost", detail=outcome.detail)
        finally:
            self._idle.put(child)

    def close(self) -> None:
        """End the processes; asking again starts new ones."""
        for child in self._all:
            child.close()


def _returncode(process: subprocess.Popen[bytes]) -> int | None:
    """Of a process that has closed its end: it is ending, or (None) still there for no reason we know."""
    try:
        return process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        return None


def _words(error: OSError | _Gone) -> str:
    if isinstance(error, OSError):
        return str(error)
    code = error.returncode
    if code is None:
        return "it does not answer"
    return f"signal {-code}" if code < 0 else f"exit status {code}"
