"""Contest files, and Codeforces' responses that become some."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from contest_work import contest

from core_model.errors import InputError
from eval.codeforces.command import main
from eval.codeforces.contests import Contest, read_contests

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


def test_the_documented_example_is_a_contest(repository):
    text = (repository / "docs" / "codeforces.md").read_text()
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
