"""Reasoning patterns in a trace, found in its text alone, so that any teacher's traces can be measured alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distill.teacher.trace import Trace

VERIFICATION = re.compile(r"\b(?:check|checking|verify|verifying)\b", re.IGNORECASE)
MENDED_MISTAKE = re.compile(r"\bwait\b", re.IGNORECASE)
PERCENTILES = (5, 50, 95, 100)


def pattern_statistics(
    traces: Sequence[Trace], count_tokens: Callable[[Sequence[str]], list[int]] | None
) -> dict[str, Any]:
    """Shares of traces with a verification and with a mended mistake, and how long the parts are.

    Args:
        traces: kept traces, all of one family.
        count_tokens: the lengths of texts in tokens; None leaves token lengths out.

    Returns:
        `traces`, and unless there are none `verification`, `mended_mistake` (shares) and, in characters and tokens,
        percentiles of `reasoning`, `solution` (without the check) and `answer`.
    """
    found: dict[str, Any] = {"traces": len(traces)}
    if not traces:
        return found
    found["verification"] = _share(VERIFICATION, traces)
    found["mended_mistake"] = _share(MENDED_MISTAKE, traces)
    parts = {
        "reasoning": [trace.reasoning for trace in traces],
        "solution": [trace.solution for trace in traces],
        "answer": [trace.answer for trace in traces],
    }
    found["characters"] = {part: _percentiles([len(text) for text in texts]) for part, texts in parts.items()}
    if count_tokens is not None:
        found["tokens"] = {part: _percentiles(count_tokens(texts)) for part, texts in parts.items()}
    return found


def _share(pattern: re.Pattern[str], traces: Sequence[Trace]) -> float:
    return sum(pattern.search(trace.reasoning) is not None for trace in traces) / len(traces)


def _percentiles(lengths: Sequence[int]) -> dict[str, float]:
    values = np.percentile(lengths, PERCENTILES)
    return {f"p{percentile}": float(value) for percentile, value in zip(PERCENTILES, values, strict=True)} | {
        "mean": float(np.mean(lengths))
    }
