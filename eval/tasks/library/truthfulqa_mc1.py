"""TruthfulQA, one right choice (Lin et al., 2022)."""

from __future__ import annotations

from eval.tasks.choice import RowsChoiceTask
from eval.tasks.rows_file import Row, text_of


class TruthfulQA(RowsChoiceTask):
    """Questions that invite a common error; rows {question, choices, expected_index or answer}."""

    def question(self, row: Row, place: str) -> str:
        return f"Q: {text_of(row, place, ['question'])}\nA:"
