"""Judging programs for tasks: the cases go to the process's judge, answers without a program do not."""

from __future__ import annotations

from collections.abc import Sequence

from eval.judge.case import Case, Mode
from eval.judge.shared import shared_judge
from eval.tasks.family import Judgement
from recipes.rows import Verdict

NO_PROGRAM = Judgement(Verdict.NO_ANSWER, "no program in the answer")


def judge_cases(cases: Sequence[Case | None], mode: Mode = "strict") -> list[Judgement]:
    """A verdict for each case; NO_ANSWER where there is none, apart from programs that are wrong."""
    asked = [case for case in cases if case is not None]
    found = iter(shared_judge(mode).judge_many(asked) if asked else [])
    judged = []
    for case in cases:
        if case is None:
            judged.append(NO_PROGRAM)
        else:
            one = next(found)
            judged.append(Judgement(one.verdict, one.detail, one.seconds, str(one.isolation)))
    return judged
