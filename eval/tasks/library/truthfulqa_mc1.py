"""TruthfulQA, one right choice (Lin et al., 2022)."""

from __future__ import annotations

from collections.abc import Sequence

from core_model.errors import InputError
from eval.tasks.choice import RowsChoiceTask
from eval.tasks.rows_file import Row, text_of, texts_of
from recipes.rows import Problem


class TruthfulQA(RowsChoiceTask):
    """Questions that invite a common error; rows {question, mc1_targets} or {question, choices, answer}.

    The text of lm-eval's truthfulqa_mc1, whose six fixed questions before each are not here: give shots.
    """

    def question(self, row: Row, place: str) -> str:
        return f"Q: {text_of(row, place, ['question'])}\nA:"

    def choices(self, row: Row, place: str) -> list[str]:
        targets = row.get("mc1_targets")
        found = targets if isinstance(targets, dict) else row
        return [" " + choice for choice in texts_of(found, place, ["choices"])]

    def right(self, row: Row, place: str) -> int:
        targets = row.get("mc1_targets")
        if not isinstance(targets, dict):
            return super().right(row, place)
        labels, count = targets.get("labels"), len(self.choices(row, place))
        if not isinstance(labels, list) or len(labels) != count or labels.count(1) != 1:
            raise InputError(place, where="mc1_targets.labels", expected=f"one 1 of {count}", found=str(labels)[:80])
        return labels.index(1)

    def best_constant(self, problems: Sequence[Problem]) -> tuple[str, float] | None:
        """None: the right choice comes first in every row, and the order of the choices is not shown to the model."""
        return None
