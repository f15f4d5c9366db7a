"""Halving, the bits so far grown by one in front at each step; checked by doubling up again."""

from __future__ import annotations

from random import Random
from typing import Any

from distill.teacher.trace import Line, Trace, write_out


def render(metadata: dict[str, Any], rng: Random, mistake: bool) -> Trace:
    """A trace from `{"decimal_value": n}`."""
    halves = [int(metadata["decimal_value"])]
    while halves[-1] > 1:
        halves.append(halves[-1] // 2)
    # A bit follows the number it is the parity of. The bits are copied in their order, one place further at each line:
    # read back from the end at once, they were the last thing that a small model learnt (LABBOOK.md).
    bits, lines = "", []
    for number in halves:
        right, wrong = f"{number % 2}{bits}", f"{1 - number % 2}{bits}"
        parity = "odd" if number % 2 else "even"
        lines.append(Line(f"{number} {right}", f"{number} {wrong}", f"{number} is {parity}"))
        bits = right
    check = f"Check: {' '.join(map(str, reversed(halves)))}. Correct."
    return Trace(write_out(lines, rng, mistake), check, bits)
