"""Rating and percentiles of a model, with intervals from a bootstrap over contests and the order of samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from core_model.errors import InputError
from eval.codeforces.contests import Contest, ContestFile, Scoring
from eval.codeforces.population import Population
from eval.codeforces.rating import (
    ELO_SCALE,
    Clamped,
    FloatArray,
    Newcomers,
    RatedField,
    Rating,
    bracket,
    clamp,
    field_of,
    pooled_rating,
)
from eval.codeforces.scoring import ContestTries, Rules, Score, TimeModel, UnusableContest, contest_score
from recipes.rows import Row

GRID_STEP = 4.0  # rating points between tabulated expected ranks; interpolating errs by hundredths of a point
DRAWN_AT_ONCE = 4_000_000  # numbers in one block of resamples: bounds the memory


@dataclass(frozen=True)
class Options:
    """Args:
    rules: how tries are scored.
    minimum_rows, newcomers: which fields are fit, see `field_of`.
    skip_unusable: leave contests out that cannot be rated, and say so, instead of refusing them.
    shuffles: orders of the samples that the bootstrap draws from; 0: only the order given.
    resamples, seed, level: of the bootstrap and its intervals.
    """

    rules: Rules = field(default_factory=Rules)
    minimum_rows: int = 200
    newcomers: Newcomers = "keep"
    skip_unusable: bool = False
    shuffles: int = 100
    resamples: int = 1000
    seed: int = 0
    level: float = 0.95


# -- the report ----------------------------------------------------------------------------------------------------


class Estimate(Row):
    """A value with its interval (see `tail`); none where there is but one contest to draw from."""

    value: float
    low: float | None
    high: float | None


class RatingEstimates(Row):
    """`clamped`: every rank was the best (or worst) possible; `clamped_resamples`: the share of draws of that kind, in
    which the interval's end is a bound of the method and not of the model; `clamped_contests`: how many contests of the
    mean are such.
    """

    pooled: Estimate
    clamped: Clamped | None
    clamped_resamples: float | None
    contest_mean: Estimate
    clamped_contests: int


class PopulationPercentile(Row):
    """Shares (0 to 1) of a population with a lower rating, for either estimate of the rating."""

    id: str
    date: str
    users: int
    pooled: Estimate
    contest_mean: Estimate


class ContestRow(Row):
    """What came out in one contest. `beaten`: the share of competitors, 0 to 1."""

    id: str
    name: str
    date: str
    scoring: Scoring
    competitors: int
    newcomers: int
    unmatched: int
    problems: int
    without_tries: list[str]
    tries_left_out: int
    solved: int
    points: float
    penalty: float
    rank: float
    rating: float
    clamped: Clamped | None
    beaten: float


class Skipped(Row):
    """A contest that was left out, and why."""

    id: str
    reason: str


class Protocol(Row):
    """All that the numbers depend on beside the files."""

    tries: int
    time: TimeModel
    minimum_rows: int
    newcomers: Newcomers
    shuffles: int
    resamples: int
    seed: int
    level: float


class CodeforcesReport(Row):
    """The contents of --json. `beaten`: the mean over contests of the share of competitors beaten."""

    protocol: Protocol
    rating: RatingEstimates
    beaten: Estimate
    population: PopulationPercentile | None
    contests: list[ContestRow]
    skipped: list[Skipped]
    not_attempted: list[str]  # contests of the folder without a row of results
    files: dict[str, str]  # sha256 of what was read, by path as given


# -- contests ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempt:
    """A model at a contest.

    Args:
        ranks: [1 + shuffles], the order given first.
        ratings: the rating for each of the ranks.
    """

    contest: Contest
    field: RatedField
    tries: ContestTries
    score: Score
    ranks: FloatArray
    ratings: Sequence[Rating]


def attempt(contest: Contest, tries: ContestTries, options: Options, rng: np.random.Generator) -> Attempt:
    """Score, rank and rating in every order of the samples.

    Raises:
        UnusableContest: the contest has no usable field, or a problem none of whose tries count.
    """
    if tries.dead:
        raise UnusableContest(f"no try at {', '.join(tries.dead)} could be judged")
    rated = field_of(contest, options.minimum_rows, options.newcomers)
    orders = [tries.counted, *(tries.shuffled(rng) for _ in range(options.shuffles))]
    scores = [contest_score(contest, order, options.rules) for order in orders]
    rank_of = {score: rated.rank(score) for score in set(scores)}
    rating_of = {rank: pooled_rating([rated.ratings], [rank]) for rank in set(rank_of.values())}
    ranks = [rank_of[score] for score in scores]
    return Attempt(contest, rated, tries, scores[0], np.array(ranks), [rating_of[rank] for rank in ranks])


def attempts_of(
    contests: Mapping[str, ContestFile], results: Mapping[str, ContestTries], options: Options
) -> tuple[list[Attempt], list[Skipped]]:
    """The model at each contest that it tried, and the contests that cannot be rated.

    Raises:
        InputError: a contest cannot be rated and is not to be skipped, or none can.
    """
    attempts, skipped = [], []
    for number, (id, file) in enumerate(contests.items()):
        if id not in results:
            continue
        rng = np.random.default_rng([options.seed, 1, number])  # one each: leaving one out changes no other
        try:
            attempts.append(attempt(file.contest, results[id], options, rng))
        except UnusableContest as error:
            if not options.skip_unusable:
                expected = "a contest that can be rated (--skip-unusable leaves others out)"
                raise InputError(file.path, expected=expected, found=str(error)) from error
            skipped.append(Skipped(id=id, reason=str(error)))
    if not attempts:
        reasons = "; ".join(f"{one.id}: {one.reason}" for one in skipped)
        raise InputError("--contests", expected="at least one contest that can be rated", found=reasons or "none")
    return attempts, skipped


# -- the bootstrap -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resampled:
    """[resamples] each. `clamped`: whether the pooled ranks were the best or worst possible."""

    pooled: FloatArray
    clamped: np.ndarray
    contest_mean: FloatArray
    beaten: FloatArray


def resample(attempts: Sequence[Attempt], options: Options) -> Resampled:
    """Draw contests with replacement and, for each one drawn, an order of its samples."""
    rng = np.random.default_rng([options.seed, 0])
    count = len(attempts)
    drawn = rng.integers(count, size=(options.resamples, count))
    # The order given is one of the shuffles in distribution; with no shuffles it is the only one.
    first = min(1, options.shuffles)
    order = rng.integers(first, options.shuffles + 1, size=drawn.shape)
    ranks = np.stack([one.ranks for one in attempts])[drawn, order]
    ratings = np.array([[rating.value for rating in one.ratings] for one in attempts])[drawn, order]
    sizes = np.array([len(one.field) for one in attempts], dtype=np.float64)
    pooled, clamped = _pooled(attempts, drawn, ranks.sum(axis=1), sizes)
    beaten = ((sizes[drawn] + 1 - ranks) / sizes[drawn]).mean(axis=1)
    return Resampled(pooled, clamped, ratings.mean(axis=1), beaten)


def _pooled(
    attempts: Sequence[Attempt], drawn: np.ndarray, totals: FloatArray, sizes: FloatArray
) -> tuple[FloatArray, np.ndarray]:
    """Pooled ratings [resamples] of draws of contests, read off tables of expected ranks; whether each was clamped."""
    count = len(attempts)
    every = np.concatenate([one.field.ratings for one in attempts])
    low, high = bracket(every, count * int(sizes.max()))
    grid = np.arange(low, high + GRID_STEP, GRID_STEP)
    tables = np.stack([rank_table(one.field.ratings, grid) for one in attempts])  # [contests, grid]
    values, clamped = np.empty(len(drawn)), np.zeros(len(drawn), dtype=bool)
    step = max(1, DRAWN_AT_ONCE // len(grid))
    for start in range(0, len(drawn), step):
        block = drawn[start : start + step]
        times = np.stack([np.bincount(row, minlength=count) for row in block])
        curves = times @ tables  # each falls along the grid
        for i, curve in enumerate(curves, start):
            target, end = clamp(float(totals[i]), count, int(sizes[drawn[i]].sum()))
            values[i] = np.interp(-target, -curve, grid)
            clamped[i] = end is not None
    return values, clamped


def rank_table(ratings: FloatArray, grid: FloatArray) -> FloatArray:
    """The rank expected in a field of each rating of the grid."""
    from scipy.special import expit

    values, counts = np.unique(ratings, return_counts=True)
    scale = np.log(10) / ELO_SCALE
    step = max(1, DRAWN_AT_ONCE // len(values))
    parts = [expit((values - grid[start : start + step, None]) * scale) @ counts for start in range(0, len(grid), step)]
    return 1.0 + np.concatenate(parts)


# -- all of it -----------------------------------------------------------------------------------------------------


def estimate(
    contests: Mapping[str, ContestFile],
    results: Mapping[str, ContestTries],
    options: Options,
    population: Population | None = None,
    files: Mapping[str, str] = MappingProxyType({}),
) -> CodeforcesReport:
    """The report on a model.

    Args:
        files: the sha256 of what was read, by path, for the record.

    Raises:
        InputError: as for `attempts_of`.
    """
    attempts, skipped = attempts_of(contests, results, options)
    pooled = pooled_rating([one.field.ratings for one in attempts], [float(one.ranks[0]) for one in attempts])
    mean = float(np.mean([one.ratings[0].value for one in attempts]))
    beaten = float(np.mean([one.field.beaten(float(one.ranks[0])) for one in attempts]))
    draws = resample(attempts, options) if len(attempts) > 1 else None

    count, level = len(attempts), options.level
    ratings = RatingEstimates(
        pooled=_bounded(pooled.value, None if draws is None else draws.pooled, count, level),
        clamped=pooled.clamped,
        clamped_resamples=None if draws is None else float(draws.clamped.mean()),
        contest_mean=_bounded(mean, None if draws is None else draws.contest_mean, count, level),
        clamped_contests=sum(one.ratings[0].clamped is not None for one in attempts),
    )
    return CodeforcesReport(
        protocol=_protocol(options),
        rating=ratings,
        beaten=_bounded(beaten, None if draws is None else draws.beaten, count, level),
        population=None if population is None else population_percentile(population, ratings),
        contests=[_row(one) for one in attempts],
        skipped=skipped,
        not_attempted=[id for id in contests if id not in results],
        files=dict(files),
    )


def tail(level: float, contests: int) -> float:
    """The share of resamples to leave out at either end for an interval of `level`.

    A bootstrap of few contests is too narrow, by the spread's n - 1 and by normal in place of t quantiles. Going out to
    other percentiles mends both: Hesterberg, "What Teachers Should Know About the Bootstrap" (2015), section 3.2.
    """
    from scipy.stats import norm, t

    quantile = t.ppf(0.5 * (1 + level), contests - 1) * math.sqrt(contests / (contests - 1))
    return float(norm.cdf(-quantile))


def _bounded(value: float, values: FloatArray | None, contests: int, level: float) -> Estimate:
    if values is None:
        return Estimate(value=value, low=None, high=None)
    out = 100 * tail(level, contests)
    low, high = np.percentile(values, [out, 100 - out])
    return Estimate(value=value, low=float(low), high=float(high))


def population_percentile(population: Population, ratings: RatingEstimates) -> PopulationPercentile:
    """Where the ratings and the ends of their intervals stand in a population."""

    def share(rating: Estimate) -> Estimate:
        ends = [None if end is None else population.share_below(end) for end in (rating.low, rating.high)]
        return Estimate(value=population.share_below(rating.value), low=ends[0], high=ends[1])

    return PopulationPercentile(
        id=population.id,
        date=population.date,
        users=population.users,
        pooled=share(ratings.pooled),
        contest_mean=share(ratings.contest_mean),
    )


def _protocol(options: Options) -> Protocol:
    return Protocol(
        tries=options.rules.tries,
        time=options.rules.time,
        minimum_rows=options.minimum_rows,
        newcomers=options.newcomers,
        shuffles=options.shuffles,
        resamples=options.resamples,
        seed=options.seed,
        level=options.level,
    )


def _row(one: Attempt) -> ContestRow:
    rank = float(one.ranks[0])
    return ContestRow(
        id=one.contest.id,
        name=one.contest.name,
        date=one.contest.date,
        scoring=one.contest.scoring,
        competitors=len(one.field),
        newcomers=one.field.newcomers,
        unmatched=one.field.unmatched,
        problems=len(one.contest.problems),
        without_tries=list(one.tries.without),
        tries_left_out=one.tries.left_out,
        solved=one.score.solved,
        points=one.score.points,
        penalty=one.score.penalty,
        rank=rank,
        rating=one.ratings[0].value,
        clamped=one.ratings[0].clamped,
        beaten=one.field.beaten(rank),
    )
