"""A judge that runs nothing: a program's text says what becomes of it. As a script, the judge command with that judge.

    python tests/eval/judge/fake_judge.py KILL_AFTER [arguments of the command]

KILL_AFTER: kill the process with SIGKILL when so many verdicts have been given; negative: never.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Sequence
from typing import ClassVar

from eval.judge import command
from eval.judge.case import Case, CaseVerdict, Isolation, Limits
from recipes.rows import Verdict

ISOLATION = Isolation(6, ("process", "rlimits", "uid", "namespaces", "seccomp", "cgroup"), {})
VERDICTS = {
    "right": CaseVerdict(Verdict.CORRECT, "", (True,), None, 1, 0.25, 9.5, (0.25,), ISOLATION, True),
    "slow": CaseVerdict(Verdict.CORRECT, "", (True,), None, 1, 3.0, 9.5, (3.0, 1.0), ISOLATION, True),
    "wrong": CaseVerdict(Verdict.WRONG_ANSWER, "line 1", (-2,), -2, 1, 0.25, 9.5, (0.25,), ISOLATION, True),
    "odd": CaseVerdict(Verdict.RUNTIME_ERROR, "\ud800", (-4,), -4, 1, 0.25, 9.5, (0.25,), ISOLATION, True),
    "unsafe": CaseVerdict(Verdict.CORRECT, "", (True,), None, 1, 0.25, 9.5, (0.25,), Isolation(2, ("rlimits",)), True),
    "infra": CaseVerdict(Verdict.INFRA_ERROR, "no room", (-2,), -5, 1, isolation=ISOLATION, ran=True),
    "": CaseVerdict(Verdict.NO_ANSWER, "no program", (-4,), -4, 1),
}


class FakeJudge:
    """Has the interface of `Judge`; `judged` counts for the class what any of them was given."""

    judged: ClassVar[list[Case]] = []
    made: ClassVar[list[FakeJudge]] = []
    kill_after = -1
    healed = False  # the machine's fault is gone

    def __init__(self, mode: str, workers: int | None, limits: Limits, *, allow_unsandboxed: bool = False) -> None:
        self.mode, self.workers, self.limits, self.allow_unsandboxed = mode, workers, limits, allow_unsandboxed
        self.isolation = ISOLATION
        self.made.append(self)

    def __enter__(self) -> FakeJudge:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def judge_many(
        self, cases: Sequence[Case], on_verdict: Callable[[int, CaseVerdict], None] | None = None
    ) -> list[CaseVerdict]:
        """Verdicts come in an order of their own."""
        given = {}
        for index in random.Random(len(cases)).sample(range(len(cases)), len(cases)):
            self.judged.append(cases[index])
            word = cases[index].source.strip()
            given[index] = VERDICTS["right" if word == "infra" and self.healed else word]
            if on_verdict is not None:
                on_verdict(index, given[index])
            if len(self.judged) == self.kill_after:
                os.kill(os.getpid(), signal.SIGKILL)
        return [given[index] for index in range(len(cases))]


if __name__ == "__main__":
    FakeJudge.kill_after = int(sys.argv[1])
    command.Judge = FakeJudge  # type: ignore[misc,assignment]
    sys.exit(command.main(sys.argv[2:]))
