"""HellaSwag: which ending is the true one (Zellers et al., 2019)."""

from __future__ import annotations

import re

from eval.tasks.choice import RowsChoiceTask
from eval.tasks.rows_file import Row, text_of, texts_of


class HellaSwag(RowsChoiceTask):
    """Which of four endings follows; rows {activity_label, ctx, endings, label}. V3: 10 shots.

    Text and its cleaning as in lm-eval's hellaswag.
    """

    def question(self, row: Row, place: str) -> str:
        return _clean(f"{text_of(row, place, ['activity_label'])}: {_context(row, place)}")

    def choices(self, row: Row, place: str) -> list[str]:
        return [" " + _clean(ending) for ending in texts_of(row, place, ["endings"])]


def _context(row: Row, place: str) -> str:
    if isinstance(row.get("ctx_a"), str):
        return f"{row['ctx_a']} {str(row.get('ctx_b') or '').capitalize()}"
    return text_of(row, place, ["ctx"])


def _clean(text: str) -> str:
    """Without the traces of WikiHow's markup."""
    return re.sub(r" +", " ", re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))).strip()
