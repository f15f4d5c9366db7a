"""ARC: grade-school science (Clark et al., 2018)."""

from __future__ import annotations

from eval.tasks.choice import RowsChoiceTask
from eval.tasks.rows_file import Row, text_of


class ARC(RowsChoiceTask):
    """Grade-school science; rows {question, choices: {text, label}, answerKey}. V3: 25 shots.

    Text as in lm-eval's arc_easy and arc_challenge.
    """

    def question(self, row: Row, place: str) -> str:
        return f"Question: {text_of(row, place, ['question'])}\nAnswer:"
