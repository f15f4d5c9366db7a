"""Ranks in a contest's field, and the rating that they speak for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from contest_work import contest, tries
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from eval.codeforces.contests import Contest
from eval.codeforces.rating import ELO_SCALE, RatedField, Rating, expected_rank, field_of, pooled_rating
from eval.codeforces.scoring import Score

# -- ranks and fields ----------------------------------------------------------------------------------------------


def rated(points: list[float], penalties: list[float] | None = None) -> RatedField:
    values = np.array(points, dtype=np.float64)
    return RatedField(1500 + values, values, np.array(penalties or [0.0] * len(points)))


def test_ranks_are_one_based_with_averaged_ties():
    field = rated([3, 2, 2, 2, 0], [0, 5, 9, 9, 0])
    ranks = [
        field.rank(Score(*score, 0)) for score in ((4, 0), (3, 0), (2, 4), (2, 5), (2, 9), (1, 0), (0, 0), (-1, 0))
    ]
    assert ranks == [1, 1.5, 2, 2.5, 4, 5, 5.5, 6]
    assert [field.beaten(rank) for rank in (1, 4, 6)] == pytest.approx([1, 0.4, 0])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30), st.integers(-1, 6))
def test_a_rank_is_its_place_in_the_sorted_list(points, own):
    rank = rated([float(p) for p in points]).rank(Score(own, 0, 0))
    ordered = sorted([*points, own], reverse=True)  # the model among them
    places = [place for place, p in enumerate(ordered, 1) if p == own]
    assert rank == pytest.approx(np.mean(places))


def test_only_official_rows_with_a_rating_are_competitors():
    data = contest(rows=12)
    data["standings"][11]["participant_type"] = "OUT_OF_COMPETITION"
    data["standings"].append({"handle": "user3", "points": 0, "participant_type": "PRACTICE"})
    data["rating_changes"][0]["old_rating"] = None
    field = field_of(Contest.model_validate(data), 5)
    assert (len(field), field.unmatched) == (10, 1)
    assert list(field.ratings) == [1000.0 + 100 * i for i in range(1, 11)]
    assert list(field.points) == [100.0 * (i + 1) for i in range(1, 11)]


def unusable() -> dict[str, dict[str, Any]]:
    def ratings(rows: int, known: int) -> list[dict[str, Any]]:
        return [{"handle": f"user{i}", "old_rating": 1500 if i < known else None} for i in range(rows)]

    others = [{"handle": f"other{i}", "old_rating": 1500} for i in range(10)]
    return {
        "no rating before the contest is known": contest(rating_changes=ratings(10, 0)),
        "2 of 10 official rows have no known rating": contest(rating_changes=ratings(10, 8)),
        "10 of 10 official rows have no known rating": contest(rating_changes=others),
        "10 of 20 rated handles are not in the standings": contest(rating_changes=ratings(10, 10) + others),
        "4 official rated rows, fewer than 5": contest(rows=4),
    }


@pytest.mark.parametrize("reason", unusable())
def test_contests_that_cannot_be_rated_are_refused_or_skipped(work, capsys, reason):
    work.write([unusable()[reason], contest("2")], tries("C") + tries("C", id="2"))
    assert work.run() == 2
    error = capsys.readouterr().err
    assert "1.json: expected a contest that can be rated" in error and reason in error
    assert not work.out.exists()
    assert work.run("--skip-unusable") == 0
    assert f"Skipped contest 1: {reason}" in " ".join(capsys.readouterr().out.split())
    report = work.report()
    assert [row.id for row in report.contests] == ["2"]
    assert [(one.id, one.reason) for one in report.skipped] == [("1", reason)]
    assert report.rating.pooled.value == report.contests[0].rating  # nothing of the other is in it


def test_nothing_but_unusable_contests_is_refused(work, capsys):
    work.write([contest(rows=4)], tries("C"))
    assert work.run("--skip-unusable") == 2
    assert "at least one contest that can be rated" in capsys.readouterr().err


def test_newcomers_can_be_left_out():
    data = contest(rows=10)
    for change in data["rating_changes"][:3]:
        change["old_rating"] = 0
    kept, dropped = (field_of(Contest.model_validate(data), 5, how) for how in ("keep", "drop"))
    assert (len(kept), kept.newcomers, len(dropped), dropped.newcomers) == (10, 3, 7, 3)
    assert dropped.ratings.min() == 1300


# -- ratings -------------------------------------------------------------------------------------------------------


def normal_field(count: int) -> np.ndarray:
    """Ratings at the quantiles of a normal distribution, of mean 1471.5 and standard deviation 350."""
    return norm.ppf((np.arange(count) + 0.5) / count) * 350 + 1471.5


def test_the_rank_expected_among_equals_and_at_odds_of_ten_to_one():
    assert expected_rank(1500, np.full(10, 1500.0)) == pytest.approx(6)
    assert expected_rank(1500, np.array([1900.0])) == pytest.approx(1 + 10 / 11)
    assert pooled_rating([np.full(11, 1500.0)], [2.0]).value == pytest.approx(1900, abs=1e-3)  # 11 times 1/11 ahead


@given(st.lists(st.integers(-100, 3800), min_size=1, max_size=40), st.floats(0, 3500))
def test_a_rating_solves_its_expected_rank(ratings, true):
    field = np.array(ratings, dtype=np.float64)
    rank = expected_rank(true, field)
    if 1.5 <= rank <= len(field) + 0.5:
        found = pooled_rating([field], [rank])
        assert found.clamped is None
        assert found.value == pytest.approx(true, abs=1e-3)


def test_a_zero_based_rank_is_too_good():
    """Rank 5 of 250 gives 2491; counted from zero, 2549. The error falls with rank and field."""
    field = normal_field(250)

    def pair(rank: int, ratings: np.ndarray) -> tuple[float, float]:
        return pooled_rating([ratings], [rank]).value, pooled_rating([ratings], [rank - 1]).value

    assert pair(5, field) == pytest.approx((2491, 2549), abs=1)
    one, zero = pair(100, field)
    assert 4 < zero - one < 7
    big = normal_field(5000)
    one, zero = pair(100, big)
    assert zero - one == pytest.approx(2.1, abs=0.1)
    for rank in (250, 500, 1000, 2500, 4000):
        one, zero = pair(rank, big)
        assert 0 < zero - one < 1


def test_the_first_and_last_rank_are_clamped_and_said_to_be():
    field = normal_field(250)
    first, second, last = (pooled_rating([field], [rank]) for rank in (1, 2, 251))
    assert (first.clamped, second.clamped, last.clamped) == ("first", None, "last")
    assert first == Rating(pooled_rating([field], [1.5]).value, "first")  # half a place inside
    assert field.max() < second.value < first.value < field.max() + ELO_SCALE * math.log10(500)
    assert last.value == pytest.approx(2 * 1471.5 - first.value, abs=1e-3)  # the field is symmetric
    both = pooled_rating([field, field], [1, 251])
    assert (both.value, both.clamped) == (pytest.approx(1471.5, abs=1e-3), None)
    assert pooled_rating([field, field], [1, 1]).clamped == "first"
    level = pooled_rating([np.array([1500.0])], [1.5])
    assert (level.value, level.clamped) == (pytest.approx(1500), None)


@pytest.mark.parametrize(("fields", "ranks"), [([], []), ([[1.0]], [0.0]), ([[1.0]], [2.5]), ([[]], [1.0])])
def test_ranks_outside_of_a_field_are_refused(fields, ranks):
    with pytest.raises(ValueError):
        pooled_rating([np.array(field) for field in fields], ranks)


def simulate(true: float, contests: int, rows: int, seed: int) -> tuple[list[np.ndarray], list[float]]:
    """Fields of known ratings and the ranks of a competitor rated `true` in them.

    A performance is the rating plus Gumbel noise of scale 400 / ln 10: then one is ahead of another exactly with Elo's
    chance. The model's own noise is taken at quantiles, one a contest, so that few contests suffice.
    """
    rng = np.random.default_rng(seed)
    scale = ELO_SCALE / math.log(10)
    fields, ranks = [], []
    for quantile in (rng.permutation(contests) + 0.5) / contests:
        ratings = rng.normal(1450, 350, rows).round()
        performances = ratings - scale * np.log(-np.log(rng.random(rows)))
        own = true - scale * math.log(-math.log(quantile))
        fields.append(ratings)
        ranks.append(RatedField(ratings, performances, np.zeros(rows)).rank(Score(own, 0, 0)))
    return fields, ranks


@pytest.mark.parametrize("true", [1200, 1600, 2000])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_known_rating_is_recovered(true, seed):
    fields, ranks = simulate(true, contests=200, rows=800, seed=seed)
    assert pooled_rating(fields, ranks).value == pytest.approx(true, abs=5)


def test_the_mean_over_contests_overstates_the_strong_and_understates_the_weak():
    """A rank's rating rises the faster the nearer it is to an end, so that good days weigh more than bad ones."""
    off = {}
    for true in (1200, 2000):
        fields, ranks = simulate(true, contests=100, rows=400, seed=0)
        singles = [pooled_rating([field], [rank]).value for field, rank in zip(fields, ranks, strict=True)]
        off[true] = np.mean(singles) - true
    assert -45 < off[1200] < -15
    assert 45 < off[2000] < 85
