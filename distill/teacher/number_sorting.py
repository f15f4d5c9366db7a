"""Selection: the smallest of what is left, again and again; checked for order and count."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

from distill.teacher.trace import Line, Trace, write_out


def render(metadata: dict[str, Any], rng: Random, mistake: bool) -> Trace:
    """A trace from `{"original_numbers": ["14", ...]}`, ascending."""
    left = [int(number) for number in metadata["original_numbers"]]
    chosen: list[int] = []
    lines = []
    while len(left) > 1:
        smallest = min(left)
        shown = " ".join(map(str, left))
        slip = rng.choice([number for number in left if number != smallest] or [smallest])
        wrong = f"{shown}: {slip}" if slip != smallest else ""
        lines.append(Line(f"{shown}: {smallest}", wrong, f"{slip} is wrong, {smallest} is smaller"))
        left.remove(smallest)
        chosen.append(smallest)
    chosen += left
    answer = " ".join(map(str, chosen))
    lines.append(Line(f"Sorted: {answer}"))
    order = "".join(f"{'<' if before < after else '='}{after}" for before, after in pairwise(chosen))
    check = f"Check: {chosen[0]}{order}, {len(chosen)} numbers. Correct."
    return Trace(write_out(lines, rng, mistake), check, answer)
