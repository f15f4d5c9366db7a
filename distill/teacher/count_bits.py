"""Halving with a running count of the odd numbers; checked by listing those."""

from __future__ import annotations

from random import Random
from typing import Any

from distill.teacher.trace import Line, Trace, write_out


def render(metadata: dict[str, Any], rng: Random, mistake: bool) -> Trace:
    """A trace from `{"number": n}`, n at least 1."""
    halves = [int(metadata["number"])]
    while halves[-1] > 1:
        halves.append(halves[-1] // 2)
    odd = [number for number in halves if number % 2]
    slip_at = rng.randrange(len(halves))
    remark = f"{halves[slip_at]} is {'odd' if halves[slip_at] % 2 else 'even'}"
    lines = [Line(_counted(halves, None), _counted(halves, slip_at), remark)]
    check = f"Check: {' '.join(map(str, odd))}, {len(odd)} odd. Correct."
    return Trace(write_out(lines, rng, mistake), check, str(len(odd)))


def _counted(halves: list[int], slip_at: int | None) -> str:
    """Every number with the count so far, which depends on the digit just before it and on the count before.

    At `slip_at` an odd number is taken for an even one, or the other way round.
    """
    count, shown = 0, []
    for index, number in enumerate(halves):
        count += (number % 2) ^ (index == slip_at)
        shown.append(f"{number}:{count}")
    return f"Halve: {' '.join(shown)}"
