"""Accuracy by slice, and before and after a cut-off date."""

from __future__ import annotations

import pytest

from eval.slices import contamination, slice_scores
from recipes.rows import Message, Problem

SETTINGS = {"resamples": 300, "level": 0.95, "seed": 0}


def problem(number: int, date: str | None, difficulty: str | None = "easy", platform: str = "atcoder") -> Problem:
    return Problem(
        id=str(number),
        source="lcb",
        domain="code",
        messages=[Message(role="user", content="?")],
        verifier="stdin_stdout",
        verification_info={"platform": platform},
        difficulty=difficulty,
        date=date,
    )


def test_slices_by_difficulty_platform_and_month():
    asked = [problem(i, f"2024-{1 + i % 3:02}-15", ("easy", "hard")[i % 2], "leetcode") for i in range(12)]
    means = {one.id: (float(one.difficulty == "easy"), 10.0 + int(one.id)) for one in asked}
    found = slice_scores(asked, means, **SETTINGS)
    assert set(found) == {"difficulty", "month"}  # one platform is no slice
    assert found["difficulty"]["easy"]["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["difficulty"]["hard"]["accuracy"]["value"] == 0.0
    assert list(found["month"]) == ["2024-01", "2024-02", "2024-03"]
    assert sum(one["problems"] for one in found["month"].values()) == 12
    assert found["difficulty"]["easy"]["mean_tokens"]["value"] == pytest.approx(15.0)  # 10 + mean of 0, 2, ... 10


def test_problems_that_do_not_count_are_in_no_slice():
    asked = [problem(i, None, ("easy", "hard", None)[i % 3]) for i in range(9)]
    found = slice_scores(asked, {"0": (1.0, 5.0), "1": (0.0, 5.0), "2": (1.0, 5.0)}, **SETTINGS)
    assert {value: one["problems"] for value, one in found["difficulty"].items()} == {"easy": 1, "hard": 1}


@pytest.mark.parametrize(("cutoff", "before", "after"), [("2024-02-01", 2, 2), ("2024-01-31", 1, 3)])
def test_the_cutoff_day_itself_belongs_to_the_training_data(cutoff, before, after):
    days = ["2024-01-01", "2024-02-01T00:00:00", "2024-02-02", "2024-06-01"]
    asked = [problem(i, day) for i, day in enumerate(days)]
    means = {str(i): (float(i < 2), 1.0) for i in range(4)}
    found = contamination(asked, means, cutoff, **SETTINGS)
    assert found is not None
    assert (found["before"]["problems"], found["after"]["problems"]) == (before, after)
    expected = found["after"]["accuracy"] - found["before"]["accuracy"]
    assert found["difference"]["value"] == pytest.approx(expected) and expected < 0


def test_no_contamination_curve_without_two_sides():
    asked = [problem(0, "2024-01-01"), problem(1, None)]
    assert contamination(asked, {"0": (1.0, 1.0), "1": (1.0, 1.0)}, "2024-02-01", **SETTINGS) is None
