"""The nano teacher: exact algorithmic traces in R1's manner, rendered instead of sampled.

Every trace works the problem step by step, verifies the result, and in a seeded share makes a mistake first, notices
and mends it: the verification and reflection patterns that distillation is to carry over (V3 report, section 5.4.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from distill.teacher import base_conversion, chain_sum, code, count_bits, gcd, letter_counting, number_sorting
from distill.teacher.trace import Trace
from recipes.rows import Problem, sha256_of

Render = Callable[[dict[str, Any], Random, bool], Trace]

_FROM_METADATA: dict[str, Render] = {
    "chain_sum": chain_sum.render,
    "count_bits": count_bits.render,
    "base_conversion": base_conversion.render,
    "number_sorting": number_sorting.render,
    "gcd": gcd.render,
    "letter_counting": letter_counting.render,
}
RENDERED_FAMILIES = (*_FROM_METADATA, "code")


@dataclass(frozen=True)
class Renderer:
    """A teacher for the families in `RENDERED_FAMILIES`.

    Args:
        mistake_share: share of traces with a mistake that is found and mended, 0 to 1.
        check_share: share of traces that end with a verification, 0 to 1.
    """

    mistake_share: float = 0.15
    check_share: float = 1.0

    @property
    def identity(self) -> dict[str, Any]:
        shares = {"mistake_share": self.mistake_share, "check_share": self.check_share}
        return {"name": "renderer", "revision": "2", **shares}

    def generate(self, problem: Problem, seed: int) -> Trace:
        """The trace for a problem.

        Raises:
            ValueError: no renderer for the problem's family.
        """
        rng = Random(int(sha256_of("trace", problem.id, seed)[:16], 16))
        mistake, checked = rng.random() < self.mistake_share, rng.random() < self.check_share
        if problem.source == "code":
            trace = code.render(problem.verification_info, rng, mistake)
        elif problem.source in _FROM_METADATA:
            trace = _FROM_METADATA[problem.source](problem.verification_info["metadata"], rng, mistake)
        else:
            raise ValueError(f"no trace renderer for the family {problem.source!r}")
        return trace if checked else replace(trace, check="")
