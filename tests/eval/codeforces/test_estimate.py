"""Estimates over contests, and their intervals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contest_work import contest, rows_of, tries
from scipy.stats import norm

from eval.codeforces.contests import Contest, ContestFile
from eval.codeforces.estimate import Attempt, CodeforcesReport, Options, attempts_of, estimate, resample, tail
from eval.codeforces.rating import pooled_rating
from eval.codeforces.scoring import ContestTries


def files(*contests: dict[str, Any]) -> dict[str, ContestFile]:
    return {one["id"]: ContestFile(Path(f"{one['id']}.json"), Contest.model_validate(one)) for one in contests}


def given_tries(*verdicts: str) -> ContestTries:
    groups = rows_of(*(tries(v, "AB"[i]) for i, v in enumerate(verdicts)))
    return ContestTries(groups, 0, [], [])


def test_the_bootstrap_pools_as_the_estimate_does():
    contests = files(contest("1"), contest("2", rows=25), contest("3", rows=40))
    results = {"1": given_tries("WWWC"), "2": given_tries("WC", "WWC"), "3": given_tries("C", "WWWWC")}
    options = Options(minimum_rows=5, shuffles=20, resamples=40)
    attempts, _ = attempts_of(contests, results, options)
    assert len(set(attempts[0].ranks[1:])) > 1  # the order matters
    found = resample(attempts, options)
    rng = np.random.default_rng([options.seed, 0])  # the same draws again, solved one by one
    drawn = rng.integers(3, size=(40, 3))
    order = rng.integers(1, 21, size=(40, 3))
    for i in range(40):
        chosen: list[Attempt] = [attempts[j] for j in drawn[i]]
        ranks = [one.ranks[k] for one, k in zip(chosen, order[i], strict=True)]
        exact = pooled_rating([one.field.ratings for one in chosen], ranks)
        assert found.pooled[i] == pytest.approx(exact.value, abs=0.1)
        assert found.clamped[i] == (exact.clamped is not None)
        beaten = [one.field.beaten(rank) for one, rank in zip(chosen, ranks, strict=True)]
        assert found.beaten[i] == pytest.approx(np.mean(beaten))


def width(report: CodeforcesReport) -> float:
    """Of the pooled rating's interval."""
    found = report.rating.pooled
    assert found.low is not None and found.high is not None
    return found.high - found.low


def test_intervals_come_from_contests_and_the_order_of_samples():
    contests = files(*(contest(str(i)) for i in range(4)))
    same = dict.fromkeys(contests, given_tries("WWWWC"))
    fixed = estimate(contests, same, Options(minimum_rows=5, shuffles=0, resamples=100))
    assert width(fixed) == 0  # equal contests, one order
    assert fixed.rating.pooled.low == pytest.approx(fixed.rating.pooled.value, abs=0.1)
    orders = estimate(contests, same, Options(minimum_rows=5, shuffles=50, resamples=100))
    assert orders.rating.pooled.value == fixed.rating.pooled.value  # the order given
    assert width(orders) > 0
    assert orders == estimate(contests, same, Options(minimum_rows=5, shuffles=50, resamples=100))
    assert orders != estimate(contests, same, Options(minimum_rows=5, shuffles=50, resamples=100, seed=1))
    differing = {id: given_tries("C" if int(id) % 2 else "W") for id in contests}
    contest_noise = estimate(contests, differing, Options(minimum_rows=5, shuffles=0, resamples=100))
    assert width(contest_noise) > 0


def test_intervals_of_few_contests_are_wider():
    assert tail(0.95, 10) == pytest.approx(norm.cdf(-2.262157 * math.sqrt(10 / 9)), rel=1e-4)  # t, 9 degrees of freedom
    assert tail(0.95, 100_000) == pytest.approx(0.025, rel=1e-3)
    contests = files(contest("1"), contest("2"))
    results = {"1": given_tries("C"), "2": given_tries("W")}
    options = Options(minimum_rows=5, shuffles=0, resamples=200)
    found = estimate(contests, results, options)
    beaten = [row.beaten for row in found.contests]
    assert (found.beaten.low, found.beaten.high) == pytest.approx((min(beaten), max(beaten)))  # all that two can tell


def test_one_contest_has_no_interval():
    report = estimate(files(contest()), {"1": given_tries("C")}, Options(minimum_rows=5))
    assert (report.rating.pooled.low, report.beaten.high, report.rating.clamped_resamples) == (None, None, None)
    assert report.rating.pooled.value == pytest.approx(report.rating.contest_mean.value, abs=1e-3)


def test_winning_everything_is_flagged():
    contests = files(contest("1"), contest("2"))
    report = estimate(contests, dict.fromkeys(contests, given_tries("C", "C")), Options(minimum_rows=5, resamples=20))
    assert (report.rating.clamped, report.rating.clamped_contests, report.rating.clamped_resamples) == ("first", 2, 1.0)
    assert report.beaten.value == 1.0
