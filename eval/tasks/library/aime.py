"""AIME: answers are whole numbers from 0 to 999."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from eval.tasks.maths import MathsTask


class AIME(MathsTask):
    """Whole numbers from 0 to 999; rows {problem, answer}. V3: temperature 0.7, the mean of 16 samples."""

    unboxed: Literal["whole", "last_number", "no_answer"] = Field(
        default="no_answer", description="an answer without a box counts as itself, as its last number, as none"
    )
