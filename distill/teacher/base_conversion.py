"""Halving, each number with its last bit beside it, read back; checked by doubling up again."""

from __future__ import annotations

from random import Random
from typing import Any

from distill.teacher.trace import Line, Trace, write_out


def render(metadata: dict[str, Any], rng: Random, mistake: bool) -> Trace:
    """A trace from `{"decimal_value": n}`."""
    value: int = metadata["decimal_value"]
    halves = [value]
    while halves[-1] > 1:
        halves.append(halves[-1] // 2)
    # The bit follows the number it is the parity of, so that it depends on the digit just before it; a space between
    # the steps and no more: for eleven bits every further mark costs eleven tokens.
    chain = " ".join(f"{number} r{number % 2}" for number in halves)
    bits = format(value, "b")
    slip = rng.randrange(len(bits))
    wrong = bits[:slip] + ("0" if bits[slip] == "1" else "1") + bits[slip + 1 :]
    lines = [
        Line(f"Halve: {chain}."),
        Line(f"Read back: {bits}", f"Read back: {wrong}", f"{wrong} is wrong"),
    ]
    # The values of the leading bits: each is twice the one before plus its bit, the last is the number itself.
    prefixes = [int(bits[: end + 1], 2) for end in range(len(bits))]
    return Trace(write_out(lines, rng, mistake), f"Check: {' '.join(map(str, prefixes))}. Correct.", bits)
