"""MATH-500: 500 problems of the MATH test set (Hendrycks et al., 2021; Lightman et al., 2023)."""

from __future__ import annotations

from eval.tasks.maths import MathsTask


class MATH500(MathsTask):
    """Competition mathematics in five levels; rows {problem, answer, level}. V3: greedy, up to 8192 tokens."""
