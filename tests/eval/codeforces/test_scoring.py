"""What tries at a contest's problems score, and the files of tries."""

from __future__ import annotations

from typing import Any

import pytest
from contest_work import contest, rows_of, tries

from core_model.errors import InputError
from eval.codeforces.contests import Contest, read_contests
from eval.codeforces.scoring import Rules, Score, UnusableContest, contest_score, problem_points, read_results

# -- scores --------------------------------------------------------------------------------------------------------


def model(**changes: Any) -> Contest:
    return Contest.model_validate(contest(**changes))


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
