"""How much of a text says again what it said before, and whether it ended in a loop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.lengths.runs import Measured

GRAM = 8  # pieces in one n-gram
PIECE = re.compile(r"\w+|[^\w\s]")  # a word, a number, or one sign
LOOP_TIMES = 3  # a loop is one block so many times in a row at the end,
LOOP_PIECES = 24  # over so many pieces at least,
LONGEST_BLOCK = 512  # a block being no longer than this
MOSTLY = 0.5


def repeated_share(pieces: Sequence[str], gram: int = GRAM) -> float | None:
    """The share of n-grams that occurred before in the text: 1 - distinct / all. None where the text has none."""
    count = len(pieces) - gram + 1
    if count < 1:
        return None
    return 1 - len(set(zip(*(pieces[start:] for start in range(gram)), strict=False))) / count


def ends_in_loop(pieces: Sequence[str]) -> bool:
    """Whether the text ends in one block of pieces over and over; the last time may be broken off."""
    for block in range(1, min(len(pieces) // LOOP_TIMES, LONGEST_BLOCK) + 1):
        needed = max(LOOP_TIMES * block, LOOP_PIECES)
        if needed <= len(pieces) and pieces[-needed + block :] == pieces[-needed:-block]:
            return True
    return False


def repetition(run: Measured) -> dict[str, Any]:
    """Mean share of repeated 8-grams, in right and wrong answers; how many answers are mostly repetition; loops at the
    end of truncated answers. Thought and answer together; None where there is no such answer."""
    pieces = [PIECE.findall(row.text) for row in run.rows]
    shares = [repeated_share(one) for one in pieces]
    known = np.array([share is not None for share in shares], dtype=bool)
    values = np.array([0.0 if share is None else share for share in shares])

    def mean(chosen: np.ndarray) -> float | None:
        return float(values[chosen].mean()) if chosen.any() else None

    looping = [ends_in_loop(one) for one, cut in zip(pieces, run.truncated, strict=True) if cut]
    return {
        "gram": GRAM,
        "all": mean(known),
        "right": mean(known & run.right),
        "wrong": mean(known & ~run.right),
        "mostly": float((values[known] > MOSTLY).mean()) if known.any() else None,
        "truncated_in_loop": sum(looping) / len(looping) if looping else None,
    }
