"""MMLU: 57 subjects, four choices (Hendrycks et al., 2021)."""

from __future__ import annotations

from string import ascii_uppercase

from core_model.errors import InputError
from eval.tasks.choice import RowsChoiceTask
from eval.tasks.rows_file import Row, text_of, texts_of


class MMLU(RowsChoiceTask):
    """57 subjects, the letter of the right choice; rows {question, choices, answer, subject}. V3: 5 shots.

    The text of lm-eval's mmlu without the line that names the subject; shots are of one file, not of each subject.
    """

    def question(self, row: Row, place: str) -> str:
        listed = "\n".join(f"{letter}. {text}" for letter, text in _lettered(row, place))
        return f"{text_of(row, place, ['question']).strip()}\n{listed}\nAnswer:"

    def choices(self, row: Row, place: str) -> list[str]:
        return [f" {letter}" for letter, _ in _lettered(row, place)]


def _lettered(row: Row, place: str) -> list[tuple[str, str]]:
    texts = texts_of(row, place, ["choices"])
    if len(texts) > len(ascii_uppercase):
        raise InputError(place, where="choices", expected="at most 26", found=str(len(texts)))
    return list(zip(ascii_uppercase, texts, strict=False))
