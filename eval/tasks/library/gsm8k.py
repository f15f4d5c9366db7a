"""GSM8K: word problems of grade-school arithmetic (Cobbe et al., 2021)."""

from __future__ import annotations

from core_model.errors import InputError
from eval.judge.expressions import exact_number
from eval.tasks.maths import MathsTask
from eval.tasks.rows_file import Row


class GSM8K(MathsTask):
    """Word problems of grade-school arithmetic; rows as on the hub (openai/gsm8k, main) or {question, answer}.

    Of a worked answer, what stands behind the last "####" is the right one. V3, base model: 8 shots.
    """

    def gold(self, row: Row, place: str) -> str:
        gold = super().gold(row, place).rpartition("####")[2].strip()
        if exact_number(gold) is None:
            raise InputError(place, where="answer", expected="a number, behind #### if worked", found=repr(gold[-80:]))
        return gold
