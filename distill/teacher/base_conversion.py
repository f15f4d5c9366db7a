"""Halving with remainders, read back; checked by doubling up again."""

from __future__ import annotations

from random import Random
from typing import Any

from distill.teacher.trace import Line, Trace, write_out


def render(metadata: dict[str, Any], rng: Random, mistake: bool) -> Trace:
    """A trace from `{"decimal_value": n}`."""
    value: int = metadata["decimal_value"]
    halves: list[tuple[int, int]] = []
    rest = value
    while rest or not halves:
        halves.append((rest // 2, rest % 2))
        rest //= 2
    # A space between the steps and no more: for twelve bits every further mark costs twelve tokens.
    chain = " ".join(f"{quotient} r{remainder}" for quotient, remainder in halves)
    bits = "".join(str(remainder) for _, remainder in reversed(halves))
    slip = rng.randrange(len(bits))
    wrong = bits[:slip] + ("0" if bits[slip] == "1" else "1") + bits[slip + 1 :]
    lines = [
        Line(f"{value}/2 = {chain}."),
        Line(f"Read back: {bits}", f"Read back: {wrong}", f"{wrong} is wrong"),
    ]
    # The values of the leading bits: each is twice the one before plus its bit, the last is the number itself.
    prefixes = [int(bits[: end + 1], 2) for end in range(len(bits))]
    return Trace(write_out(lines, rng, mistake), f"Check: {' '.join(map(str, prefixes))}. Correct.", bits)
