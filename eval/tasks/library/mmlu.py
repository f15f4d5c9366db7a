"""MMLU: 57 subjects, four choices (Hendrycks et al., 2021)."""

from __future__ import annotations

from eval.tasks.choice import RowsChoiceTask
from eval.tasks.rows_file import Row, text_of, texts_of

LETTERS = "ABCDEFGHIJ"


class MMLU(RowsChoiceTask):
    """57 subjects, the letter of the right choice; rows {question, choices, answer, subject}. V3: 5 shots."""

    def question(self, row: Row, place: str) -> str:
        listed = "\n".join(f"{LETTERS[i]}. {text}" for i, text in enumerate(texts_of(row, place, ["choices"])))
        return f"{text_of(row, place, ['question']).strip()}\n{listed}\nAnswer:"

    def choices(self, row: Row, place: str) -> list[str]:
        return [f" {LETTERS[i]}" for i in range(len(texts_of(row, place, ["choices"])))]
