"""Accuracy by difficulty, platform and month of the problems, and before and after a model's cut-off date."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from eval.metrics import Array, bootstrap_means, unpaired_difference
from recipes.rows import Problem, sha256_of

Means = Mapping[str, tuple[float, float]]  # problem id -> accuracy, mean tokens


def _difficulty(problem: Problem) -> str | None:
    return problem.difficulty


def _platform(problem: Problem) -> str | None:
    platform = problem.verification_info.get("platform")
    return platform if isinstance(platform, str) else None


def _month(problem: Problem) -> str | None:
    return None if problem.date is None else problem.date[:7]


SLICES: dict[str, Callable[[Problem], str | None]] = {
    "difficulty": _difficulty,
    "platform": _platform,
    "month": _month,
}


def slice_scores(
    problems: Sequence[Problem], means: Means, *, resamples: int, level: float, seed: int
) -> dict[str, Any]:
    """Per slice and its values: problems, accuracy and mean tokens with their intervals; only where values differ.

    Args:
        problems: of one task.
        means: of one model; problems that are not in it do not count.
    """
    found: dict[str, Any] = {}
    for name, value_of in SLICES.items():
        groups: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for problem in problems:
            value = value_of(problem)
            if value is not None and problem.id in means:
                groups[value].append(means[problem.id])
        if len(groups) > 1:
            found[name] = {
                value: _scores(np.array(groups[value]), resamples, level, seed, (name, value))
                for value in sorted(groups)
            }
    return found


def _scores(rows: Array, resamples: int, level: float, seed: int, what: tuple[str, str]) -> dict[str, Any]:
    accuracy, length = bootstrap_means([rows], resamples, _seed(seed, *what), level)
    return {
        "problems": len(rows),
        "accuracy": {"value": accuracy.value, "low": accuracy.low, "high": accuracy.high},
        "mean_tokens": {"value": length.value, "low": length.low, "high": length.high},
    }


def contamination(
    problems: Sequence[Problem], means: Means, cutoff: str, *, resamples: int, level: float, seed: int
) -> dict[str, Any] | None:
    """Accuracy on dated problems up to the cut-off day (inclusive) and after it, and the difference after - before.

    A model that has seen problems published before its cut-off does better on those than on later ones of the same
    kind. None where either side has no problem.
    """
    day = datetime.date.fromisoformat(cutoff)
    sides: dict[bool, list[float]] = {True: [], False: []}
    for problem in problems:
        if problem.date is not None and problem.id in means:
            sides[datetime.date.fromisoformat(problem.date[:10]) <= day].append(means[problem.id][0])
    before, after = np.array(sides[True]), np.array(sides[False])
    if not len(before) or not len(after):
        return None
    drawn = _seed(seed, "cutoff", cutoff)
    difference = unpaired_difference(after, before, resamples=resamples, seed=drawn, level=level)
    return {
        "cutoff": cutoff,
        "before": {"problems": len(before), "accuracy": float(before.mean())},
        "after": {"problems": len(after), "accuracy": float(after.mean())},
        "difference": {"value": difference.value, "low": difference.low, "high": difference.high},
    }


def _seed(seed: int, *what: str) -> int:
    return int(sha256_of("slice", seed, *what)[:12], 16)
