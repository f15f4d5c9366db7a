"""AIME: answers are whole numbers from 0 to 999."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from core_model.errors import InputError
from eval.tasks.maths import MathsTask
from eval.tasks.rows_file import Row


class AIME(MathsTask):
    """Whole numbers from 0 to 999; rows {problem, answer}. V3: temperature 0.7, the mean of 16 samples."""

    unboxed: Literal["whole", "last_number", "no_answer"] = Field(
        default="no_answer", description="an answer without a box counts as itself, as its last number, as none"
    )

    def gold(self, row: Row, place: str) -> str:
        gold = super().gold(row, place).strip()
        if not (gold.isascii() and gold.isdigit() and len(gold) <= 3):
            raise InputError(place, where="answer", expected="a whole number from 0 to 999", found=repr(gold[:80]))
        return gold
