"""The Codeforces command: what it prints, writes and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from contest_work import contest, tries

from eval.codeforces.rating import pooled_rating


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
