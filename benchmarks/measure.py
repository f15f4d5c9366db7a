"""Timing two programs in turn, and the ratio of their medians."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

RESAMPLES = 1000


@dataclass(frozen=True)
class BenchmarkRow:
    """One line of a benchmark's table; `ours`, `peer` and `limit` are rates in `unit`, larger is better."""

    case: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    limit: float | None
    ratio: float
    ratio_low: float
    ratio_high: float
    target: float | None

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def interleaved(
    ours: Callable[[], object], peer: Callable[[], object], repetitions: int
) -> tuple[list[float], list[float]]:
    """Seconds of each program, run in turn after one warm-up each, so that both meet the same disturbances."""
    seconds: tuple[list[float], list[float]] = ([], [])
    ours(), peer()
    for _ in range(repetitions):
        for times, run in zip(seconds, (ours, peer), strict=True):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
    return seconds


def compare(
    case: str,
    unit: str,
    work: float,
    ours: Callable[[], object],
    peer: Callable[[], object],
    peer_name: str,
    *,
    repetitions: int = 9,
    limit: float | None = None,
    target: float | None = None,
) -> BenchmarkRow:
    """Run both in turn and compare.

    Args:
        work: units done by one run of either, so that rates are work / seconds.
        limit: the physical limit in the same unit, measured in the same process.
    """
    mine, theirs = interleaved(ours, peer, repetitions)
    draw = random.Random(0)
    ratios = sorted(
        statistics.median(draw.choices(theirs, k=len(theirs))) / statistics.median(draw.choices(mine, k=len(mine)))
        for _ in range(RESAMPLES)
    )
    return BenchmarkRow(
        case=case,
        unit=unit,
        ours=work / statistics.median(mine),
        peer=work / statistics.median(theirs),
        peer_name=peer_name,
        limit=limit,
        ratio=statistics.median(theirs) / statistics.median(mine),
        ratio_low=ratios[int(0.025 * RESAMPLES)],
        ratio_high=ratios[int(0.975 * RESAMPLES)],
        target=target,
    )
