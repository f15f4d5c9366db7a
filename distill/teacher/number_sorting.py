"""Buckets by the leading digit, read off in order; checked for order and count."""

from __future__ import annotations

from itertools import pairwise
from random import Random
from typing import Any

from distill.teacher.trace import Line, Trace, write_out


def render(metadata: dict[str, Any], rng: Random, mistake: bool) -> Trace:
    """A trace from `{"original_numbers": ["14", ...]}`, ascending, none negative."""
    numbers = sorted(int(number) for number in metadata["original_numbers"])
    place = 10 ** (len(str(numbers[-1])) - 1)  # 10 for numbers up to 99: the buckets are the tens
    # One question a bucket, "which numbers begin with 4?": each is a look-up, where the smallest of what is left
    # would have to be compared with all of it.
    lines = [
        _bucket(digit, [number for number in numbers if number // place == digit], rng)
        for digit in range(numbers[0] // place and 1, 10)
    ]
    answer = " ".join(map(str, numbers))
    lines.append(Line(f"Sorted: {answer}"))
    order = "".join(f"{'<' if before < after else '='}{after}" for before, after in pairwise(numbers))
    check = f"Check: {numbers[0]}{order}, {len(numbers)} numbers. Correct."
    return Trace(write_out(lines, rng, mistake), check, answer)


def _bucket(digit: int, members: list[int], rng: Random) -> Line:
    right = f"{digit}: {' '.join(map(str, members))}".rstrip()
    if not members:
        return Line(right)
    missing = rng.randrange(len(members))
    rest = members[:missing] + members[missing + 1 :]
    return Line(right, f"{digit}: {' '.join(map(str, rest))}".rstrip(), f"{members[missing]} is missing")
