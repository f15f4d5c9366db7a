"""Faults of the machine, and what one program does to the judge or to another, are no program's wrong answer."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from typing import Any

import pytest
from small_judge import ADD, SMALL, program

from eval.judge.case import Case, Limits, Test
from eval.judge.judge import Judge
from eval.judge.sandbox import Sandbox
from recipes.rows import Verdict


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


def test_a_full_disk_is_no_wrong_answer(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    one = program(judge, "print(4)")
    assert (one.verdict, one.detail) == (Verdict.INFRA_ERROR, "no room on the disk or in memory")
    monkeypatch.undo()
    assert program(judge, "print(4)").verdict is Verdict.WRONG_ANSWER


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
