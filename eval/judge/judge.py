"""Judges programs: `with Judge() as judge: verdicts = judge.judge_many(cases)`.

A few workers, each with a sandbox of its own, take cases from a queue. See docs/judge.md for what a verdict means,
what the sandbox keeps out, and how the two modes differ.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Sequence
from types import TracebackType

from core_model.errors import InputError
from eval.judge.case import Case, CaseVerdict, Isolation, Limits, Mode
from eval.judge.layers import FULL, find_layers, isolation_fault
from eval.judge.sandbox import SandboxLost
from eval.judge.worker import Worker


class Judge:
    """Keeps its sandboxes between calls; close it, or use it as a context manager.

    Args:
        mode: strict (a real process; what the answer is worth) or lcb-compat (LiveCodeBench's official verdicts).
        workers: cases judged at a time; None: one for each core this process may use.
        limits: what a program may use, where its case does not say.
        allow_unsandboxed: judge model-written programs below the namespace level too.
        highest: build no layer above this one (tests).

    Raises:
        InputError: no sandbox starts here, or (at the first case that is not trusted) its level is too low.
    """

    def __init__(
        self,
        mode: Mode = "strict",
        workers: int | None = None,
        limits: Limits | None = None,
        *,
        allow_unsandboxed: bool = False,
        highest: int = FULL,
    ) -> None:
        self.mode, self.limits, self.allow_unsandboxed = mode, limits or Limits(), allow_unsandboxed
        self.layers = find_layers(highest)
        count = workers or len(os.sched_getaffinity(0))
        self._workers = [Worker(self.layers, mode, self.limits) for _ in range(count)]
        self._lock = threading.Lock()
        self._busy: int | None = None  # the thread whose call is at work
        try:
            self._workers[0].start()
        except SandboxLost as error:
            if not allow_unsandboxed and (fault := isolation_fault(self.layers)) is not None:
                raise fault from error  # what is missing is most likely why it ended
            missing = "; ".join(f"{name}: {reason}" for name, reason in self.layers.missing.items())
            found = f"{error}" + (f" ({missing})" if missing else "")
            raise InputError("judge", expected="a sandbox that starts (`trivium doctor`)", found=found) from error

    @property
    def isolation(self) -> Isolation:
        """What keeps programs in on this machine."""
        return self.layers.isolation

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all sandboxes; a call at work in another thread is stopped first. The next call would start new ones."""
        if self._busy == threading.get_ident():
            raise RuntimeError("a judge cannot be closed by its own call's on_verdict")
        for worker in self._workers:
            worker.stop()
        with self._lock:
            for worker in self._workers:
                worker.close()
                worker.stopping = False

    def judge(self, case: Case) -> CaseVerdict:
        """The verdict on one case."""
        return self.judge_many([case])[0]

    def judge_many(
        self, cases: Sequence[Case], on_verdict: Callable[[int, CaseVerdict], None] | None = None
    ) -> list[CaseVerdict]:
        """Verdicts in the order of the cases.

        Args:
            on_verdict: called in this thread with a case's index and verdict, in the order in which they come.

        Raises:
            InputError: model-written programs, and the sandbox's level is too low for them.
        """
        if not all(case.trusted for case in cases):
            self.require_isolation()
        if self._busy == threading.get_ident():
            raise RuntimeError("a judge's on_verdict cannot use the judge")
        with self._lock:  # the sandboxes serve one call at a time
            self._busy = threading.get_ident()
            try:
                return self._judge_many(cases, on_verdict)
            finally:
                self._busy = None

    def require_isolation(self) -> None:
        """Make sure that programs which a model wrote may run here.

        Raises:
            InputError: the sandbox's level is too low for them, and nobody said that it does not matter.
        """
        if not self.allow_unsandboxed and (fault := isolation_fault(self.layers)) is not None:
            raise fault

    def _judge_many(
        self, cases: Sequence[Case], on_verdict: Callable[[int, CaseVerdict], None] | None
    ) -> list[CaseVerdict]:
        waiting = iter(range(len(cases)))  # next() on it is one bytecode: safe between threads
        done: queue.SimpleQueue[tuple[int, CaseVerdict | BaseException]] = queue.SimpleQueue()

        def work(worker: Worker) -> None:
            for index in waiting:
                if worker.stopping:
                    done.put((index, RuntimeError("the judge was closed")))
                    return
                try:
                    done.put((index, worker.judge(cases[index])))
                except BaseException as error:  # a fault of ours: raised in the caller's thread
                    done.put((index, error))
                    return

        threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in self._workers[: len(cases)]]
        verdicts: dict[int, CaseVerdict] = {}
        for thread in threads:
            thread.start()
        try:
            while len(verdicts) < len(cases):
                index, verdict = done.get()
                if isinstance(verdict, BaseException):
                    raise verdict
                verdicts[index] = verdict
                if on_verdict is not None:
                    on_verdict(index, verdict)
        except BaseException:
            for worker in self._workers:
                worker.stop()
            raise
        finally:
            for thread in threads:
                thread.join()
            for worker in self._workers:
                worker.stopping = False
        return [verdicts[index] for index in range(len(cases))]
