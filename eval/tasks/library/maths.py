"""Any problems with a final answer."""

from __future__ import annotations

from eval.tasks.maths import MathsTask


class Maths(MathsTask):
    """Any problems with a final answer; rows {problem or question, answer}, perhaps {level}."""
