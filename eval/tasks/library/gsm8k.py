"""GSM8K: word problems of grade-school arithmetic (Cobbe et al., 2021)."""

from __future__ import annotations

from typing import ClassVar

from eval.tasks.maths import MathsTask


class GSM8K(MathsTask):
    """Word problems of grade-school arithmetic; rows as on the hub (openai/gsm8k, main) or {question, answer}."""

    gold_hashes: ClassVar[bool] = True
