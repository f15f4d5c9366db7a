"""Every word spelt with a running count; checked by adding the words' counts."""

from __future__ import annotations

from random import Random
from typing import Any

from distill.teacher.trace import Line, Trace, write_out


def render(metadata: dict[str, Any], rng: Random, mistake: bool) -> Trace:
    """A trace from `{"target_letter": "e", "span": ["apple", ...]}`."""
    letter, words = metadata["target_letter"], metadata["span"]
    total, lines = 0, []
    for word in words:
        lines.append(_line(word, letter, total, rng))
        total += word.count(letter)
    lines.append(Line(f"Total {total}."))
    counts = [word.count(letter) for word in words]
    parts = ", ".join(f"{word} {count}" for word, count in zip(words, counts, strict=True))
    added = f", {' + '.join(map(str, counts))} = {total}" if len(words) > 1 else ""
    return Trace(write_out(lines, rng, mistake), f"Check: {parts}{added}. Correct.", str(total))


def _line(word: str, letter: str, before: int, rng: Random) -> Line:
    """The word's letters, the running count behind each that counts; the slip takes one letter for another kind."""
    counted = [index for index, other in enumerate(word) if other == letter]
    slip = rng.randrange(len(word))
    remark = f"{letter} was not counted" if slip in counted else f"{word[slip]} is not {letter}"
    return Line(_spelt(word, set(counted), before), _spelt(word, set(counted) ^ {slip}, before), remark)


def _spelt(word: str, counted: set[int], before: int) -> str:
    count, shown = before, []
    for index, other in enumerate(word):
        shown.append(other)
        if index in counted:
            count += 1
            shown.append(str(count))
    return f"{word}: {' '.join(shown)}"
