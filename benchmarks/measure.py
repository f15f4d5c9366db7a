"""Timing two programs, and the ratio of their medians.

Nothing here needs torch: the judge's figures are taken in a process without it. What runs on a device is measured with
a `wait`, called before the clock is read.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

RESAMPLES = 1000

Program = Callable[[], object]


def nothing() -> None:
    """The wait of a program that is done when it returns."""


@dataclass(frozen=True)
class Comparison:
    """What is known of a row before its programs have run.

    work: units done by one run of either, so that rates are work / seconds.
    limit: the physical limit in the same unit, measured in the same process.
    target: the ratio that is aimed at.
    """

    case: str
    unit: str
    work: float
    peer_name: str
    limit: float | None = None
    target: float | None = None


@dataclass(frozen=True)
class BenchmarkRow:
    """One line of a benchmark's table; `ours`, `peer` and `limit` are rates in `unit`, larger is better.

    peer and the ratios are None where the peer did not run; peer_name then says why.
    """

    case: str
    unit: str
    ours: float
    peer: float | None
    peer_name: str
    limit: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    target: float | None

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def seconds_of(run: Program, wait: Callable[[], None]) -> float:
    """Seconds of one run, all that it launched included and nothing that was launched before."""
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def interleaved(
    ours: Program, peer: Program, repetitions: int, wait: Callable[[], None] = nothing
) -> tuple[list[float], list[float]]:
    """Seconds of each program, run in turn after one warm-up each, so that both meet the same disturbances."""
    seconds: tuple[list[float], list[float]] = ([], [])
    ours(), peer()
    for _ in range(repetitions):
        for times, run in zip(seconds, (ours, peer), strict=True):
            times.append(seconds_of(run, wait))
    return seconds


def alone(
    build: Callable[[], Program], repetitions: int, wait: Callable[[], None], release: Callable[[], None]
) -> list[float]:
    """Seconds of a program that is built, warmed up by two runs, timed and taken down, where two have no room."""
    gc.collect()  # what an earlier one that failed has left
    run = build()
    try:
        run(), run()
        return [seconds_of(run, wait) for _ in range(repetitions)]
    finally:
        del run
        gc.collect()  # modules and optimisers refer to each other
        release()


def compare(
    comparison: Comparison,
    ours: Program,
    peer: Program,
    *,
    repetitions: int = 9,
    wait: Callable[[], None] = nothing,
    faults: tuple[type[Exception], ...] = (),
) -> BenchmarkRow:
    """Run both in turn and compare.

    Args:
        wait: returns when all is done that the programs have launched.
        faults: with which a peer may end; our figure then stands without it.
    """
    try:
        mine, theirs = interleaved(ours, peer, repetitions, wait)
    except faults as error:
        mine, theirs = [seconds_of(ours, wait) for _ in range(repetitions)], []
        comparison = replace(comparison, peer_name=f"{comparison.peer_name}: {type(error).__name__}")
    return row_of(comparison, mine, theirs)


def row_of(comparison: Comparison, mine: list[float], theirs: list[float]) -> BenchmarkRow:
    """The row of both programs' seconds; `theirs` is empty where the peer did not run."""
    ratios: list[float] = []
    if theirs:
        draw = random.Random(0)
        ratios = sorted(
            statistics.median(draw.choices(theirs, k=len(theirs))) / statistics.median(draw.choices(mine, k=len(mine)))
            for _ in range(RESAMPLES)
        )
    return BenchmarkRow(
        case=comparison.case,
        unit=comparison.unit,
        ours=comparison.work / statistics.median(mine),
        peer=comparison.work / statistics.median(theirs) if theirs else None,
        peer_name=comparison.peer_name,
        limit=comparison.limit,
        ratio=statistics.median(theirs) / statistics.median(mine) if theirs else None,
        ratio_low=ratios[int(0.025 * RESAMPLES)] if theirs else None,
        ratio_high=ratios[int(0.975 * RESAMPLES)] if theirs else None,
        target=comparison.target,
    )
