"""Codeforces: contest files, scores, ranks, ratings, percentiles, the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from core_model.errors import InputError
from eval.codeforces.command import main
from eval.codeforces.contests import Contest, ContestFile, read_contests
from eval.codeforces.estimate import Attempt, CodeforcesReport, Options, attempts_of, estimate, resample, tail
from eval.codeforces.population import Population
from eval.codeforces.rating import ELO_SCALE, RatedField, Rating, expected_rank, field_of, pooled_rating
from eval.codeforces.scoring import (
    ContestTries,
    Rules,
    Score,
    TryRow,
    UnusableContest,
    contest_score,
    problem_points,
    read_results,
)


def contest(id: str | int = "1", rows: int = 10, **changes: Any) -> dict[str, Any]:
    """A contest: rows competitors with 100 points and 100 of rating more from one to the next, from 100 and 1000 on."""
    handles = [f"user{i}" for i in range(rows)]
    return {
        "id": id,
        "name": f"Round {id}",
        "date": "2024-03-09",
        "scoring": "points",
        "duration_minutes": 120,
        "problems": [{"index": "A", "points": 500}, {"index": "B", "points": 1000}],
        "standings": [
            {"handle": handle, "points": 100 * (i + 1), "participant_type": "CONTESTANT"}
            for i, handle in enumerate(handles)
        ],
        "rating_changes": [{"handle": handle, "old_rating": 1000 + 100 * i} for i, handle in enumerate(handles)],
    } | changes


def model(**changes: Any) -> Contest:
    return Contest.model_validate(contest(**changes))


def tries(verdicts: str, index: str = "A", id: str = "1", minutes: float | None = None) -> list[dict[str, Any]]:
    """A row for each letter: C right, W wrong, N no answer, I infrastructure."""
    names = {"C": "CORRECT", "W": "WRONG_ANSWER", "N": "NO_ANSWER", "I": "INFRA_ERROR"}
    at = {} if minutes is None else {"minutes": minutes}
    return [
        {"contest_id": id, "problem_index": index, "sample": i, "verdict": names[letter]} | at
        for i, letter in enumerate(verdicts)
    ]


def rows_of(*groups: list[dict[str, Any]]) -> dict[str, list[TryRow]]:
    rows = [TryRow.model_validate(row) for group in groups for row in group]
    return {row.problem_index: [other for other in rows if other.problem_index == row.problem_index] for row in rows}


class Work:
    """A folder with contests, results and a population."""

    def __init__(self, folder: Path) -> None:
        self.contests, self.results, self.out = folder / "contests", folder / "tries.jsonl", folder / "out" / "r.json"
        self.contests.mkdir()

    def write(self, contests: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
        for one in contests:
            (self.contests / f"{one['id']}.json").write_text(json.dumps(one))
        self.results.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, *options: str) -> int:
        needed = ["--contests", str(self.contests), "--results", str(self.results), "--json", str(self.out)]
        return main([*needed, "--minimum-rows", "5", "--resamples", "50", *options])

    def report(self) -> CodeforcesReport:
        return CodeforcesReport.model_validate_json(self.out.read_bytes())


@pytest.fixture
def work(tmp_path) -> Work:
    return Work(tmp_path)


# -- contest files -------------------------------------------------------------------------------------------------


def test_contests_are_read_in_the_order_of_their_days(work):
    work.write([contest("5"), contest(7, date="2023-12-31")], [])
    assert [(id, file.path.name) for id, file in read_contests(work.contests).items()] == [
        ("7", "7.json"),
        ("5", "5.json"),
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 1}, "rounds: expected a contest file"),
        ({"date": "20240309"}, "date: .* a day such as"),
        ({"scoring": "icpc"}, "points are 1 each"),
        ({"problems": []}, "problems: "),
        ({"rating_changes": [{"handle": "a", "old_rating": 1}] * 2}, "a is there twice"),
        ({"standings": [{"handle": "a", "points": 1, "participant_type": "CONTESTANT"}] * 2}, "a is there twice"),
        ({"standings": [{"handle": "a", "points": 1, "participant_type": "GUEST"}]}, r"standings\.0\.participant_type"),
        ({"standings": [{"handle": "a", "points": math.nan, "participant_type": "VIRTUAL"}]}, r"standings\.0\.points"),
    ],
)
def test_files_of_another_form_are_refused(work, changes, message):
    work.write([contest(**changes)], [])
    with pytest.raises(InputError, match=rf"1\.json: .*{message}"):
        read_contests(work.contests)


def test_the_documented_example_is_a_contest():
    text = (Path(__file__).parents[2] / "docs" / "codeforces.md").read_text()
    example = Contest.model_validate_json(text.split("```json\n")[1].split("```")[0])
    assert (example.id, example.scoring, len(example.official)) == ("1900", "points", 1)


def test_a_contest_is_there_once(work):
    work.write([contest()], [])
    (work.contests / "copy.json").write_text(json.dumps(contest()))
    with pytest.raises(InputError, match=r"copy\.json: id: expected each contest once; found contest 1 again"):
        read_contests(work.contests)


def test_an_empty_folder_is_refused(tmp_path):
    for folder, found in ((tmp_path, "no \\*.json"), (tmp_path / "none", "no such folder")):
        with pytest.raises(InputError, match=found):
            read_contests(folder)


# -- Codeforces' responses -----------------------------------------------------------------------------------------


def api_row(handles: list[str], points: float, kind: str = "CONTESTANT") -> dict[str, Any]:
    party = {"contestId": 9, "members": [{"handle": handle} for handle in handles], "participantType": kind}
    return {"party": party | {"ghost": False}, "rank": 1, "points": points, "penalty": 7, "problemResults": []}


def api(**about: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Responses to contest.standings and contest.ratingChanges."""
    times = {"durationSeconds": 9000, "startTimeSeconds": 1700000000}  # 2023-11-14, 22:13 UTC
    described = {"id": 9, "name": "Round 9", "type": "CF", "phase": "FINISHED", "frozen": False} | times | about
    problems = [{"contestId": 9, "index": "A", "type": "PROGRAMMING", "points": 500.0, "tags": []}]
    rows = [api_row(["ann"], 500.0), api_row(["bob"], 0.0), api_row(["cy"], 500.0, "PRACTICE")]
    rows.append(api_row(["dee", "eve"], 500.0))
    changes = [{"contestId": 9, "handle": "ann", "rank": 1, "oldRating": 1400, "newRating": 1450}]
    changes.append({"contestId": 9, "handle": "bob", "rank": 2})
    standings = {"contest": described, "problems": problems, "rows": rows}
    return {"status": "OK", "result": standings}, {"status": "OK", "result": changes}


def convert(folder: Path, standings: dict[str, Any], changes: dict[str, Any]) -> int:
    paths = [folder / "standings.json", folder / "changes.json"]
    for path, response in zip(paths, (standings, changes), strict=True):
        path.write_text(json.dumps(response))
    return main(["convert", *map(str, paths), "--out", str(folder / "contests" / "9.json")])


def test_saved_responses_become_a_contest_file(tmp_path, capsys):
    assert convert(tmp_path, *api()) == 0
    told = capsys.readouterr().out
    assert "1 official rows of teams are left out" in told
    assert "contest 9, 2023-11-14, points, 1 problems, 2 official rows, 2 rating changes" in told
    found = read_contests(tmp_path / "contests")["9"].contest
    assert (found.id, found.date, found.scoring, found.duration_minutes) == ("9", "2023-11-14", "points", 150.0)
    assert [(row.handle, row.points, row.participant_type) for row in found.standings] == [
        ("ann", 500.0, "CONTESTANT"),
        ("bob", 0.0, "CONTESTANT"),
        ("cy", 500.0, "PRACTICE"),
    ]
    assert [(change.handle, change.old_rating) for change in found.rating_changes] == [("ann", 1400.0), ("bob", None)]


def test_an_icpc_contest_has_problems_of_one_point(tmp_path):
    standings, changes = api(type="ICPC")
    del standings["result"]["problems"][0]["points"]
    assert convert(tmp_path, standings, changes) == 0
    found = read_contests(tmp_path / "contests")["9"].contest
    assert (found.scoring, found.problems[0].points, found.official[0].penalty) == ("icpc", 1.0, 7.0)


def refusals() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    standings, changes = api()
    other = {"status": "OK", "result": [{"contestId": 10, "handle": "ann", "oldRating": 1}]}
    pointless = json.loads(json.dumps(standings))
    pointless["result"]["problems"][0]["points"] = None
    return {
        "expected a contest of type CF or ICPC; found IOI": (api(type="IOI")[0], changes),
        "expected FINISHED; found CODING": (api(phase="CODING")[0], changes),
        "found Rating changes are unavailable": (
            standings,
            {"status": "FAILED", "comment": "Rating changes are unavailable"},
        ),
        "expected the rating changes of a rated contest; found none": (standings, {"status": "OK", "result": []}),
        "expected contest 9, as in the standings; found contest 10": (standings, other),
        "problems, A: expected its points": (pointless, changes),
        "result.contest: expected Codeforces' response to contest.standings": ({"status": "OK", "result": {}}, changes),
    }


@pytest.mark.parametrize("message", refusals())
def test_other_responses_are_refused(tmp_path, capsys, message):
    assert convert(tmp_path, *refusals()[message]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "contests").exists()


# -- scores --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("C", "", (500, 1)),
        ("WWC", "C", (400 + 1000, 2)),
        ("WNC", "", (400, 1)),  # a try without a program is a wrong one
        ("WIC", "", (450, 1)),  # one that the machine lost is none
        ("WWWW", "W", (0, 0)),  # nothing is lost for what is not solved
        ("CWWW", "", (500, 1)),
        ("W" * 7 + "C", "", (150, 1)),
        ("W" * 8 + "C", "", (0, 0)),  # the ninth is not looked at
        ("I" + "W" * 7 + "C", "", (150, 1)),
    ],
)
def test_points(a, b, expected):
    counted = {
        index: [row for row in rows if row.verdict.counts] for index, rows in rows_of(tries(a), tries(b, "B")).items()
    }
    score = contest_score(model(), counted, Rules())
    assert (score.points, score.solved) == expected
    assert score.penalty == 0


def test_points_are_never_negative():
    assert [problem_points(250, wrong, None, None) for wrong in (0, 4, 5, 7)] == [250, 50, 0, 0]


def test_icpc_counts_problems_then_penalty():
    problems = [{"index": "A", "points": 1}, {"index": "B", "points": 1}, {"index": "C", "points": 1}]
    icpc = model(scoring="icpc", problems=problems)
    rows = rows_of(tries("WWC", minutes=30.9), tries("WC", "B", minutes=7), tries("WW", "C", minutes=1))
    assert contest_score(icpc, rows, Rules()) == Score(2, 30, 2)
    assert contest_score(icpc, rows, Rules(time="rows")) == Score(2, 30 + 30 + 7, 2)  # whole minutes
    assert contest_score(icpc, rows, Rules(time=5.0)) == Score(2, 30 + 10, 2)
    assert contest_score(icpc, rows, Rules(tries=2)) == Score(1, 10, 1)


def test_time_takes_codeforces_share_of_the_points():
    # Two hours: 1/250 a minute. At 1:59 a problem of 1000 is worth 524, one of 3000 1572 (Codeforces' published case).
    assert problem_points(1000, 0, 119, 120) == 524
    assert problem_points(3000, 0, 119, 120) == 1572
    assert problem_points(1000, 2, 10, 120) == 1000 - 40 - 100
    assert problem_points(1000, 0, 3, 180) == 1000 - 8  # three hours: 1/375
    assert problem_points(500, 7, 119, 120) == 150  # 30 % remain
    with pytest.raises(UnusableContest, match="no duration_minutes"):
        problem_points(500, 0, 1, None)
    with pytest.raises(UnusableContest, match="minute 121, after its end at minute 120"):
        contest_score(model(), rows_of(tries("C")), Rules(time=121.0))


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


# -- populations ---------------------------------------------------------------------------------------------------


def test_percentiles_count_equal_ratings_half():
    population = Population(id="four", date="2024-11-01", counts={-5: 1, 1134: 2, 2029: 1})
    shares = [population.share_below(rating) for rating in (-6, -5, 0, 1134, 1134.5, 2029, 3000)]
    assert shares == [0, 0.125, 0.25, 0.5, 0.75, 0.875, 1]


def test_a_percentile_is_that_of_its_population():
    """The same two ratings against two bell-shaped histograms: percentiles differ by points."""
    found = {}
    for name, mean in (("weaker", 1100), ("stronger", 1250)):
        ratings = range(-200, 3800)
        counts = dict(zip(ratings, (700_000 * norm.pdf(ratings, mean, 400)).round().astype(int).tolist(), strict=True))
        population = Population(id=name, date="2024-11-01", counts=counts)
        assert population.users == sum(counts.values())
        found[name] = [round(100 * population.share_below(rating), 1) for rating in (1134, 2029)]
        expected = [100 * norm.cdf(rating, mean, 400) for rating in (1134, 2029)]
        assert found[name] == pytest.approx(expected, abs=0.2)
    assert found["weaker"][0] - found["stronger"][0] > 10


@pytest.mark.parametrize("counts", [{}, {"1200": -1}, {"1200": 0}, {"high": 3}])
def test_populations_without_people_are_refused(work, capsys, counts):
    path = work.contests.parent / "users.json"
    path.write_text(json.dumps({"id": "none", "date": "2024-11-01", "counts": counts}))
    work.write([contest()], tries("C"))
    assert work.run("--population", str(path)) == 2
    assert "users.json" in capsys.readouterr().err
    assert not work.out.exists()


# -- results -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "an empty file"),
        (tries("C", id="8"), "line 1, contest_id: expected a contest of the folder; found 8"),
        (tries("W") + tries("C", "Z"), r"line 2, problem_index: expected a problem of contest 1 \(A, B\); found Z"),
        (tries("W") + tries("C"), "line 2, contest_id, problem_index and sample: expected each once"),
        ([tries("C")[0] | {"verdict": "OK"}], "line 1, verdict"),
        (tries("WC"), "line 2, minutes"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(work, rows, message):
    work.write([contest()], rows)
    with pytest.raises(InputError, match=message):
        read_results(work.results, read_contests(work.contests), "rows")


def test_samples_are_tries_in_their_order_whatever_the_order_of_the_rows(work):
    rows = [row | {"contest_id": 1, "seconds": 0.5} for row in tries("WWIC")]
    work.write([contest()], rows[::-1])
    found = read_results(work.results, read_contests(work.contests), "none")["1"]
    assert [row.sample for row in found.counted["A"]] == [0, 1, 3]
    assert (found.left_out, list(found.dead), list(found.without)) == (1, [], ["B"])


def test_a_problem_that_could_not_be_judged_makes_the_contest_unusable(work, capsys):
    work.write([contest(), contest("2")], tries("C") + tries("II", "B") + tries("C", id="2"))
    assert work.run() == 2
    assert "no try at B could be judged" in capsys.readouterr().err
    assert work.run("--skip-unusable") == 0
    assert [one.id for one in work.report().skipped] == ["1"]


# -- estimates -----------------------------------------------------------------------------------------------------


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


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes_what_it_found(work, capsys):
    users = work.contests.parent / "users.json"
    users.write_text(json.dumps({"id": "all-2024", "date": "2024-11-01", "counts": {"1000": 3, "1500": 4, "3000": 3}}))
    work.write([contest("1"), contest("2"), contest("3")], tries("WC") + tries("WWC", "B", "2"))
    assert work.run("--population", str(users)) == 0
    report = work.report()
    one, two = report.contests
    assert (one.points, one.rank, one.beaten, one.solved, one.without_tries) == (450, 7, 0.4, 1, ["B"])
    assert (two.points, two.rank, two.beaten) == (900, 2.5, 0.85)  # level with the second
    ratings = np.arange(1000.0, 2000.0, 100.0)
    assert one.rating == pytest.approx(pooled_rating([ratings], [7]).value)
    assert report.rating.pooled.value == pytest.approx(pooled_rating([ratings] * 2, [7, 2.5]).value)
    assert report.rating.contest_mean.value == pytest.approx((one.rating + two.rating) / 2)
    assert report.beaten.value == pytest.approx(0.625)
    assert (report.population.id, report.population.users, report.population.pooled.value) == ("all-2024", 10, 0.7)
    assert report.not_attempted == ["3"]
    assert report.protocol.model_dump() == {
        "tries": 8,
        "time": "none",
        "minimum_rows": 5,
        "newcomers": "keep",
        "shuffles": 100,
        "resamples": 50,
        "seed": 0,
        "level": 0.95,
    }
    assert {Path(name).name for name in report.files} == {"1.json", "2.json", "tries.jsonl", "users.json"}
    told = " ".join(capsys.readouterr().out.split())
    assert f"rating, contests pooled {report.rating.pooled.value:.0f}" in told
    assert "competitors beaten in contests, % 62.5" in told
    assert "all-2024" in told and "1 contests of the folder have no results" in told
    assert "taken as not solved: 1 B; 2 A" in told


def test_the_time_can_be_that_of_the_rows(work, capsys):
    work.write([contest("1"), contest("2")], tries("C", minutes=100) + tries("C", id="2", minutes=0))
    assert work.run("--time", "rows") == 0
    report = work.report()
    assert [row.points for row in report.contests] == [300, 500]
    assert (report.protocol.time, report.protocol.shuffles) == ("rows", 0)  # tries have one order in time
    assert work.run("--time", "25") == 0
    assert [row.points for row in work.report().contests] == [450, 450]
    assert work.report().protocol.time == 25.0
    with pytest.raises(SystemExit) as stopped:
        work.run("--time", "rows", "--shuffles", "5")
    assert stopped.value.code == 2
    assert "--time rows takes 0" in capsys.readouterr().err


def test_an_input_is_not_overwritten(work, capsys):
    work.write([contest()], tries("C"))
    before = work.results.read_bytes()
    assert work.run("--json", str(work.results)) == 2
    assert "expected a file of its own" in capsys.readouterr().err
    assert work.results.read_bytes() == before


@pytest.mark.parametrize(
    "option", [("--time", "-1"), ("--time", "noon"), ("--level", "1"), ("--tries", "0"), ("--seed", "x")]
)
def test_bad_options_are_refused(work, option):
    work.write([contest()], tries("C"))
    with pytest.raises(SystemExit) as stopped:
        work.run(*option)
    assert stopped.value.code == 2
    assert not work.out.exists()
