"""Whether a model thinks for as long as the prompt says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from eval.lengths.runs import Measured, shared_keys
from eval.metrics import Array


def obedience(runs: Sequence[Measured]) -> dict[str, Any] | None:
    """Asked and used tokens of thought, per stated budget and over all of them; None without a stated budget.

    Relative errors are (used - asked) / asked, averaged over answers as they are and without their sign; no such thing
    for a budget of 0. `correlation` is Pearson's between asked and used tokens over all answers on the problems that
    all budgets share, None where either is constant. A thought that was cut off counts with the tokens it had.

    Args:
        runs: all of one model's.
    """
    stated = [run for run in runs if run.condition.mechanism == "stated" and run.rows]
    if not stated:
        return None
    keys = shared_keys(stated)
    rows = []
    asked_all, used_all = [], []
    for run in sorted((run.on(keys) for run in stated), key=lambda run: run.condition.tokens or 0):
        asked = run.condition.tokens or 0
        if not run.rows:
            continue
        errors = (run.thought - asked) / asked if asked else None
        rows.append(
            {
                "budget": asked,
                "answers": len(run.rows),
                "mean_used": float(run.thought.mean()),
                "p10_used": float(np.percentile(run.thought, 10)),
                "p90_used": float(np.percentile(run.thought, 90)),
                "signed_error": None if errors is None else float(errors.mean()),
                "absolute_error": None if errors is None else float(np.abs(errors).mean()),
                "over": float((run.thought > asked).mean()),
            }
        )
        asked_all.append(np.full(len(run.rows), float(asked)))
        used_all.append(run.thought)
    correlation = _correlation(np.concatenate(asked_all), np.concatenate(used_all)) if rows else None
    return {"problems": len(keys), "budgets": rows, "correlation": correlation}


def _correlation(a: Array, b: Array) -> float | None:
    if a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])
