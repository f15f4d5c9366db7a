"""From ranks in fields of known ratings to a rating.

In Elo's model a competitor rated r_i is ahead of one rated r with chance 1 / (1 + 10^((r - r_i) / 400)). So the rank
expected of r in a field is 1 + the sum of these chances, and a rating is estimated as the r whose expected rank is the
one observed. Over several contests, the sums of both are set equal: the maximum of the likelihood in which every
competitor of every contest is one comparison (ties half each).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from eval.codeforces.contests import Contest
from eval.codeforces.scoring import Score, UnusableContest

FloatArray = NDArray[np.float64]
Newcomers = Literal["keep", "drop"]
Clamped = Literal["first", "last"]

ELO_SCALE = 400.0  # points of rating for odds of 10 to 1
NEAREST_END = 0.5  # places: no estimate exists at the first and last rank, so they count as half a place inside
MOST_UNMATCHED = 0.1  # share of rows that may lack their counterpart in the other list
NEW = 0.0  # Codeforces shows this rating for accounts that were not rated yet, since May 2020


@dataclass(frozen=True)
class RatedField:
    """The competitors of a contest: its official rows with a known rating.

    Args:
        ratings, points, penalties: [competitors] each; penalties 0 where they do not count.
        unmatched: official rows without a known rating.
        newcomers: competitors with a rating of 0, those dropped included.
    """

    ratings: FloatArray
    points: FloatArray
    penalties: FloatArray
    unmatched: int = 0
    newcomers: int = 0

    def __len__(self) -> int:
        return len(self.ratings)

    def rank(self, score: Score) -> float:
        """One-based: 1 + competitors ahead + half of those level, from 1 to competitors + 1."""
        level = self.points == score.points
        ahead = (self.points > score.points) | (level & (self.penalties < score.penalty))
        return 1.0 + float(ahead.sum()) + 0.5 * float((level & (self.penalties == score.penalty)).sum())

    def beaten(self, rank: float) -> float:
        """The share of competitors that a rank beats, those level with it half: 0 to 1."""
        return (len(self) + 1 - rank) / len(self)


def field_of(contest: Contest, minimum_rows: int = 200, newcomers: Newcomers = "keep") -> RatedField:
    """The contest's competitors.

    Args:
        minimum_rows: fewer make no field.
        newcomers: whether competitors rated 0, whose rating is not yet one, are compared with.

    Raises:
        UnusableContest: no ratings, too few rows, or standings and rating changes of other people.
    """
    official = contest.official
    known = {change.handle: change.old_rating for change in contest.rating_changes if change.old_rating is not None}
    if not known:
        raise UnusableContest("no rating before the contest is known")
    handles = {row.handle for row in official}
    matched = [row for row in official if row.handle in known]
    unmatched = len(official) - len(matched)
    if unmatched > MOST_UNMATCHED * len(official):
        raise UnusableContest(f"{unmatched} of {len(official)} official rows have no known rating")
    absent = len(known.keys() - handles)
    if absent > MOST_UNMATCHED * len(known):
        # Standings saved in part hold only the top, and every rank in them is too good.
        raise UnusableContest(f"{absent} of {len(known)} rated handles are not in the standings")
    new = sum(known[row.handle] == NEW for row in matched)
    kept = [row for row in matched if newcomers == "keep" or known[row.handle] != NEW]
    if len(kept) < max(1, minimum_rows):
        raise UnusableContest(f"{len(kept)} official rated rows, fewer than {max(1, minimum_rows)}")
    return RatedField(
        ratings=np.array([known[row.handle] for row in kept], dtype=np.float64),
        points=np.array([row.points for row in kept], dtype=np.float64),
        penalties=np.array([row.penalty if contest.scoring == "icpc" else 0.0 for row in kept], dtype=np.float64),
        unmatched=unmatched,
        newcomers=new,
    )


@dataclass(frozen=True)
class Rating:
    """An estimate. `clamped`: the ranks were the best or the worst possible, and the true rating may lie beyond."""

    value: float
    clamped: Clamped | None = None


def expected_rank(rating: float, ratings: FloatArray, counts: NDArray[np.int64] | None = None) -> float:
    """The rank expected of `rating` among competitors; `counts` says how many have each of `ratings`."""
    from scipy.special import expit

    ahead = expit((ratings - rating) * (math.log(10) / ELO_SCALE))
    return 1.0 + float(ahead.sum() if counts is None else ahead @ counts)


def clamp(total: float, contests: int, competitors: int) -> tuple[float, Clamped | None]:
    """A sum of ranks in `contests` with `competitors` in all, held half a place from the ends of what is possible."""
    best, worst = contests + NEAREST_END, contests + competitors - NEAREST_END
    if total < best:
        return best, "first"
    if total > worst:
        return worst, "last"
    return total, None


def bracket(ratings: FloatArray, competitors: int) -> tuple[float, float]:
    """Two ratings between which every clamped sum of ranks among `competitors` with such ratings has its solution."""
    # Beyond the highest rating by this, all competitors together expect to be ahead less than half a time.
    margin = ELO_SCALE * math.log10(2 * max(competitors, 1)) + 1
    return float(ratings.min()) - margin, float(ratings.max()) + margin


def pooled_rating(fields: Sequence[FloatArray], ranks: Sequence[float]) -> Rating:
    """The rating whose expected ranks add up to the ranks observed; that of one contest when there is one.

    Args:
        fields: per contest the ratings of its competitors.
        ranks: per contest the one-based rank, ties averaged.

    Raises:
        ValueError: no contest, a field without competitors, or a rank outside of 1..competitors + 1.
    """
    from scipy.optimize import brentq

    for field, rank in zip(fields, ranks, strict=True):
        if not len(field) or not 1 <= rank <= len(field) + 1:
            raise ValueError(f"rank {rank} among {len(field)} competitors")
    ratings, counts = np.unique(np.concatenate(list(fields)), return_counts=True)
    competitors = int(counts.sum())
    target, clamped = clamp(float(sum(ranks)), len(fields), competitors)
    rank = target - len(fields) + 1  # in a single contest with all the competitors, which has the same solution
    low, high = bracket(ratings, competitors)
    root = brentq(lambda rating: expected_rank(rating, ratings, counts) - rank, low, high, xtol=1e-6)
    return Rating(float(root), clamped)
