"""The length analysis on rows made up by hand: numbers that can be worked out on paper, and invariants."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from length_rows import (
    CUT,
    OPTIONS,
    PROBLEMS,
    RIGHT,
    WRONG,
    accuracies,
    budget,
    free_run,
    make_problem,
    make_row,
    run_of,
)

from eval.lengths.analyse import analyse
from eval.lengths.budgets import log_weights
from eval.lengths.costs import dominated
from eval.lengths.difficulty import quintile_of
from eval.lengths.runs import LengthOptions, LengthRun, format_failed
from eval.lengths.tables import csv_tables
from recipes.rows import Condition, Verdict

# --- accuracy against a budget


def test_hard_scoring_area_and_bounds():
    """Right at 4, 8 and 30 tokens, wrong at 8, cut off at 60: 5 problems."""
    found = analyse([run_of([4, 8, 30, 8, 60], [RIGHT, RIGHT, RIGHT, WRONG, CUT])], PROBLEMS, OPTIONS)
    assert found["budgets"] == [4, 8, 16, 32, 64]
    hard = found["models"]["m"]["hard"]
    assert accuracies(hard["points"]) == {4: 0.2, 8: 0.4, 16: 0.4, 32: 0.6, 64: 0.6}
    assert [point["exact"] for point in hard["points"]] == [True] * 4 + [False]
    assert hard["points"][-1]["bounds"] == pytest.approx([0.6, 0.8])
    assert [point["truncated"] for point in hard["points"]] == pytest.approx([0.8, 0.4, 0.4, 0.2, 0.2])
    assert [point["mean_tokens"] for point in hard["points"]] == pytest.approx([4, 7.2, 10.4, 16.4, 22])
    assert hard["area"]["value"] == pytest.approx((0.1 + 0.4 + 0.4 + 0.6 + 0.3) / 4)


def test_budgets_of_the_options_are_kept_and_cover_the_longest_answer():
    options = LengthOptions(resamples=10, budgets=(0, 48, 6))
    found = analyse([run_of([5, 60])], PROBLEMS, options)
    assert found["budgets"] == [6, 48, 64]
    found = analyse([run_of([5, 48])], PROBLEMS, options)
    assert found["budgets"] == [6, 48]


def test_mechanisms_stand_side_by_side_on_shared_problems():
    runs = [
        run_of([4, 8, 16, 32], [RIGHT, RIGHT, WRONG, RIGHT]),
        run_of([6, 6], [WRONG, RIGHT], condition=budget("forced", 4)),
        run_of([18, 18, 18], [RIGHT, RIGHT, CUT], condition=budget("stated", 16)),
        run_of([9, 9], [RIGHT, RIGHT], condition=budget("extended", 8)),
    ]
    model = analyse(runs, PROBLEMS, OPTIONS)["models"]["m"]
    sides = model["mechanisms"]
    assert sides["problems"] == 2
    assert accuracies(sides["hard"]) == {4: 0.5, 8: 1, 16: 1, 32: 1}
    assert accuracies(sides["forced"]) == {4: 0.5}
    assert accuracies(sides["stated"]) == {16: 1.0}  # the one cut off is not among the shared problems
    assert accuracies(sides["extended"]) == {8: 1.0}
    assert sides["free"]["mean_tokens"] == 6
    assert accuracies(model["hard"]["points"])[32] == 0.75  # on all problems
    assert [run["condition"] for run in model["runs"]] == ["free", "forced-4", "extended-8", "stated-16"]


def test_tasks_weigh_the_same():
    others = [make_problem("q0", "words")]
    rows = [make_row(p, 4, RIGHT) for p in PROBLEMS[:3]] + [make_row(others[0], 4, WRONG)]
    found = analyse([LengthRun("m", "M", rows)], PROBLEMS + others, OPTIONS)
    assert free_run(found)["accuracy"]["value"] == 0.5
    assert free_run(found)["tasks"] == {"sums": 1.0, "words": 0.0}


rows_drawn = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 200), st.sampled_from([RIGHT, WRONG, CUT, Verdict.NO_ANSWER])),
    min_size=1,
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(rows_drawn)
def test_invariants_of_any_run(drawn):
    rows = [make_row(PROBLEMS[p], tokens, verdict, index=i) for i, (p, tokens, verdict) in enumerate(drawn)]
    found = analyse([LengthRun("m", "M", rows, 3.0)], PROBLEMS, LengthOptions(resamples=10))
    json.dumps(found, allow_nan=False)
    points = found["models"]["m"]["hard"]["points"]
    values = [point["accuracy"]["value"] for point in points]
    assert values == sorted(values)
    assert 0 <= found["models"]["m"]["hard"]["area"]["value"] <= 1 + 1e-12
    run = free_run(found)
    assert values[-1] == pytest.approx(run["accuracy"]["value"])  # the last budget takes everything in
    for one in [*points, run]:
        low, high = one["bounds"]
        assert low == one["accuracy"]["value"] <= high <= 1 + 1e-12
        assert one["accuracy"]["low"] <= one["accuracy"]["value"] + 1e-12
    # Over all rows: exact is what no row that was cut off could change.
    for point in points:
        assert point["exact"] == all(v is not CUT or tokens > point["budget"] for _, tokens, v in drawn)
    assert sum(run["outcomes"].values()) == pytest.approx(1)


@given(st.sets(st.integers(1, 10**6), min_size=1, max_size=12))
def test_log_weights_are_an_average(budgets):
    weights = log_weights(sorted(budgets))
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()


# --- what leaves the numbers, and what is said


def test_rows_that_do_not_count_leave_everything_but_their_number():
    lost = [make_row(PROBLEMS[2], 99, Verdict.INFRA_ERROR), make_row(PROBLEMS[3], 99, Verdict.INVALID_PROBLEM)]
    kept = run_of([4, 8])
    with_lost = analyse([LengthRun("m", "M", [*lost, *kept.rows])], PROBLEMS, OPTIONS)
    without = analyse([kept], PROBLEMS, OPTIONS)
    assert free_run(with_lost)["left_out"] == 2
    assert "M: 2 of 4 answers could not be judged and are in none of the numbers." in with_lost["warnings"]
    assert free_run(with_lost) | {"left_out": 0} == free_run(without)
    assert with_lost["models"]["m"]["hard"] == without["models"]["m"]["hard"]


def test_a_fifth_cut_off_is_the_first_warning():
    verdicts = [RIGHT] * 61 + [CUT] * 20 + [WRONG] * 19
    problems = [make_problem(f"p{index}") for index in range(100)]
    run = LengthRun("rl", "RL", [make_row(p, 60, v) for p, v in zip(problems, verdicts, strict=True)])
    found = analyse([run], problems, OPTIONS)
    assert found["headlines"] == ["RL: 61.0 % (truncated 20.0 %)"]
    assert found["warnings"][0] == (
        "RL: 20.0 % of answers were cut off at the limit; accuracy lies between 61.0 and 81.0 %."
    )
    assert free_run(found, "rl")["accuracy_finished"] == pytest.approx(61 / 80)


def test_a_clean_run_has_no_warning():
    assert analyse([run_of([4, 8, 16])], PROBLEMS, OPTIONS)["warnings"] == []


def test_uneven_limits_are_warned_of():
    """The classic trap: the baseline is cut off at a smaller limit, and the gain is the limit's."""
    short = [make_row(p, 30, CUT, sampling={"max_new_tokens": 32}) for p in PROBLEMS]
    runs = [run_of([60] * 10, model="after"), LengthRun("before", "BEFORE", short)]
    found = analyse(runs, PROBLEMS, OPTIONS, pairs=[("after", "before")])
    (pair,) = found["pairs"]
    assert pair["difference"]["value"] == 1 and pair["bounds"] == [0, 1]
    assert any(
        "0.0 % of AFTER and 100.0 % of BEFORE were cut off (limits of 128 and 32 tokens)" in one
        for one in found["warnings"]
    )


def test_of_budgeted_runs_only_the_worst_is_named():
    runs = [
        run_of([4] * 10),
        run_of([4] * 10, [CUT] + [RIGHT] * 9, condition=budget("stated", 4)),
        run_of([4] * 10, [CUT] * 3 + [RIGHT] * 7, condition=budget("stated", 8)),
    ]
    found = analyse(runs, PROBLEMS, OPTIONS)
    assert [one.split(":")[0] for one in found["warnings"]] == ["M, stated-8"]


@pytest.mark.parametrize(
    ("text", "answer", "finish", "failed"),
    [
        ("<think>a</think>5", "5", "stop", False),
        ("a</think>5", "5", "stop", False),  # the prompt had begun the thought
        ("5", "5", "stop", False),
        ("<think>a 5", "<think>a 5", "stop", True),
        ("<think>a</think><think>5", "5", "stop", True),
        ("<think>a</think>b</think>5", "b</think>5", "stop", True),
        ("<think>a", "", "length", False),  # that is truncation
    ],
)
def test_format(text, answer, finish, failed):
    row = make_row(PROBLEMS[0], 5, text=text, answer=answer, finish_reason=finish)
    assert format_failed(row) is failed


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="several conditions"):
        rows = [make_row(PROBLEMS[0], 4), make_row(PROBLEMS[0], 4, condition=budget("forced", 4))]
        analyse([LengthRun("m", "M", rows)], PROBLEMS, OPTIONS)
    with pytest.raises(ValueError, match="two runs of m with condition free"):
        analyse([run_of([4]), run_of([4])], PROBLEMS, OPTIONS)
    with pytest.raises(ValueError, match="'p0'"):
        analyse([run_of([4])], PROBLEMS[1:], OPTIONS)
    with pytest.raises(ValueError, match="forced with a budget of None"):
        analyse([run_of([4], condition=Condition(mechanism="forced"))], PROBLEMS, OPTIONS)
    with pytest.raises(ValueError, match="'n' has no free run"):
        analyse([run_of([4])], PROBLEMS, OPTIONS, pairs=[("m", "n")])
    with pytest.raises(ValueError, match="base model 'n'"):
        analyse([run_of([4])], PROBLEMS, LengthOptions(resamples=10, base="n"))
    with pytest.raises(ValueError, match="resamples"):
        LengthOptions(resamples=0)


def test_nothing_and_one_row():
    nothing = analyse([LengthRun("m", "M", [])], [], OPTIONS)
    assert nothing["budgets"] == [] and nothing["pareto"] is None and nothing["quintiles"] is None
    assert nothing["warnings"] == ["M: no answer that counts."]
    assert csv_tables(nothing) == {}
    one = analyse([run_of([5])], PROBLEMS, OPTIONS)
    assert one["budgets"] == [4, 8]
    assert free_run(one)["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    none_right = analyse([run_of([0], [WRONG])], PROBLEMS, OPTIONS)
    assert none_right["budgets"] == [1]
    assert none_right["models"]["m"]["hard"]["area"]["value"] == 0
    assert free_run(none_right)["tokens_per_correct"] is None


def test_equal_arguments_give_equal_results():
    runs = [run_of([4, 9, 30], model="a"), run_of([5, 6, 70], [RIGHT, WRONG, CUT], model="b")]
    first, second = (json.dumps(analyse(runs, PROBLEMS, OPTIONS, pairs=[("a", "b")])) for _ in range(2))
    assert first == second
    reordered = [LengthRun(run.model, run.label, list(reversed(run.rows))) for run in runs]
    assert json.dumps(analyse(reordered, PROBLEMS, OPTIONS, pairs=[("a", "b")])) == first


def test_rows_without_a_task_belong_to_their_problems_source():
    rows = [make_row(PROBLEMS[0], 5, task="")]
    assert free_run(analyse([LengthRun("m", "M", rows)], PROBLEMS, OPTIONS))["tasks"] == {"sums": 1.0}


# --- costs


def test_lengths_and_costs():
    run = run_of([10, 20, 60, 30], [RIGHT, RIGHT, WRONG, CUT], seconds=6.0)
    found = free_run(analyse([run], PROBLEMS, OPTIONS))
    assert found["tokens_per_correct"] == 60  # 120 tokens, 2 right
    assert found["seconds_per_correct"] == 3
    assert found["tokens"]["right"] == pytest.approx({"mean": 15, "p50": 15, "p90": 19, "p99": 19.9})
    assert found["tokens"]["wrong"]["mean"] == 45
    assert found["reasoning_tokens"]["all"]["mean"] == 28 and found["answer_tokens"]["all"]["mean"] == 2
    assert found["outcomes"] == {"right": 0.5, "wrong": 0.25, "no_answer": 0, "truncated": 0.25}
    assert found["allowed"] == 128
    unknown = free_run(analyse([run_of([10])], PROBLEMS, OPTIONS))
    assert unknown["seconds_per_correct"] is None


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_pareto_front_by_brute_force(points):
    costs, gains = [float(cost) for cost, _ in points], [float(gain) for _, gain in points]
    expected = [any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points) for cost, gain in points]
    assert dominated(costs, gains) == expected


def test_pareto_front_is_of_shared_problems():
    runs = [
        run_of([8, 8, 8, 8], [RIGHT, WRONG, RIGHT, RIGHT], model="a"),
        run_of([16, 16], [RIGHT, WRONG], model="b"),
        run_of([32, 32], [RIGHT, RIGHT], model="b", condition=budget("forced", 30)),
        LengthRun("c", "C", []),
    ]
    front = analyse(runs, PROBLEMS, OPTIONS)["pareto"]
    assert front["problems"] == 2
    seen = [(p["model"], p["condition"], p["mean_tokens"], p["dominated"]) for p in front["points"]]
    assert seen == [("a", "free", 8, False), ("b", "free", 16, True), ("b", "forced-30", 32, False)]


# --- difficulty


def test_quintiles_of_equal_rates_stay_together():
    rates = {("t", str(i)): rate for i, rate in enumerate([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5, 0.75, 1.0])}
    groups = list(quintile_of(rates, 5).values())
    assert groups == [1] * 6 + [3] * 2 + [4, 4]


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40), st.integers(1, 7))
def test_harder_problems_are_never_in_an_easier_group(rates, count):
    of = {("t", str(i)): rate for i, rate in enumerate(rates)}
    groups = quintile_of(of, count)
    assert set(groups.values()) <= set(range(count))
    ordered = sorted((of[key], groups[key]) for key in of)
    assert [group for _, group in ordered] == sorted(groups.values())
    assert len(set(ordered)) == len(set(rates))


def test_quintiles_are_filled_evenly_where_rates_differ():
    rates = {("t", str(i)): i / 50 for i in range(50)}
    assert np.bincount(list(quintile_of(rates, 5).values())).tolist() == [10] * 5


def test_accuracy_and_length_by_difficulty():
    runs = [
        run_of([4] * 4, [WRONG, WRONG, RIGHT, RIGHT], model="a"),
        run_of([40, 40, 8, 8], [WRONG, RIGHT, RIGHT, RIGHT], model="b"),
    ]
    options = LengthOptions(resamples=10, quintiles=2)
    found = analyse(runs, PROBLEMS, options)["quintiles"]
    assert [group["pass_rate"] for group in found["groups"]] == [[0, 0.5], [1, 1]]
    assert found["groups"][0]["models"]["b"]["accuracy"]["value"] == 0.5
    assert found["groups"][0]["models"]["b"]["mean_tokens"]["value"] == 40
    by_a = analyse(runs, PROBLEMS, LengthOptions(resamples=10, quintiles=2, base="a"))["quintiles"]
    assert [group["pass_rate"] for group in by_a["groups"]] == [[0, 0], [1, 1]]


# --- stated budgets


def test_obedience():
    """10 asked: 5 and 15 used; 20 asked: 15 and 25. The answer's 2 tokens do not count."""
    runs = [
        run_of([7, 17], condition=budget("stated", 10)),
        run_of([17, 27], condition=budget("stated", 20)),
    ]
    found = analyse(runs, PROBLEMS, OPTIONS)["models"]["m"]["obedience"]
    small, large = found["budgets"]
    assert small | {"p10_used": 0, "p90_used": 0} == {
        "budget": 10,
        "answers": 2,
        "mean_used": 10,
        "p10_used": 0,
        "p90_used": 0,
        "signed_error": 0,
        "absolute_error": 0.5,
        "over": 0.5,
    }
    assert large["absolute_error"] == 0.25
    # asked -5, -5, 5, 5 and used -10, 0, 0, 10 about their means: 100 / sqrt(100 * 200)
    assert found["correlation"] == pytest.approx(1 / math.sqrt(2))


def test_obedience_to_a_budget_of_nothing_and_without_spread():
    found = analyse([run_of([7, 7], condition=budget("stated", 0))], PROBLEMS, OPTIONS)["models"]["m"]["obedience"]
    assert found["budgets"][0]["signed_error"] is None and found["budgets"][0]["over"] == 1
    assert found["correlation"] is None
    assert analyse([run_of([7])], PROBLEMS, OPTIONS)["models"]["m"]["obedience"] is None


# --- pairs


def test_top_line():
    runs = [
        run_of([20, 20, 20, 20], [RIGHT, RIGHT, RIGHT, WRONG], model="after"),
        run_of([10, 10, 10, 10, 10], [RIGHT, WRONG, WRONG, WRONG, RIGHT], model="before"),
    ]
    found = analyse(runs, PROBLEMS, OPTIONS, pairs=[("after", "before")])
    (pair,) = found["pairs"]
    assert pair["problems"] == 4  # the fifth is not shared
    assert (pair["before"]["accuracy"]["value"], pair["after"]["accuracy"]["value"]) == (0.25, 0.75)
    assert (pair["before"]["mean_tokens"]["value"], pair["after"]["mean_tokens"]["value"]) == (10, 20)
    assert pair["difference"]["value"] == 0.5 and pair["length_ratio"]["value"] == 2
    assert found["sentences"][0].startswith(
        "AFTER against BEFORE: accuracy 25.0 to 75.0 %, mean length 10.0 to 20.0 tokens (x 2.00); +50.0 points"
    )
    at = {row["budget"]: row["difference"]["value"] for row in pair["same_budget"]}
    assert at == {8: 0, 16: -0.25, 32: 0.5}


def test_a_gain_that_is_length_alone_vanishes_at_equal_length():
    """Both are right at 40 tokens and wrong at 10; one of them writes more often at length."""
    a = run_of([40] * 8 + [10] * 2, [RIGHT] * 8 + [WRONG] * 2, model="a")
    b = run_of([40] * 2 + [10] * 8, [RIGHT] * 2 + [WRONG] * 8, model="b")
    (pair,) = analyse([a, b], PROBLEMS, OPTIONS, pairs=[("a", "b")])["pairs"]
    assert pair["difference"]["value"] == pytest.approx(0.6)
    assert pair["same_length"]["difference"]["value"] == pytest.approx(0)
    assert pair["same_length"]["answers"] == 1
    assert [(row["shortest"], row["longest"], row["after"]["answers"]) for row in pair["same_length"]["strata"]] == [
        (8, 15, 2),
        (32, 63, 8),
    ]


def test_strata_are_weighed_by_both_sides():
    """At length 10: 2 of 2 against 1 of 2, weight 1. At 40: 0 of 1 against 3 of 3, weight 3/4. At 100 only one side."""
    a = run_of([10, 10, 40, 100, 100], [RIGHT, RIGHT, WRONG, RIGHT, RIGHT], model="a")
    b = run_of([10, 10, 40, 40, 40], [RIGHT, WRONG, RIGHT, RIGHT, RIGHT], model="b")
    (pair,) = analyse([a, b], PROBLEMS, OPTIONS, pairs=[("a", "b")])["pairs"]
    assert pair["same_length"]["difference"]["value"] == pytest.approx((0.5 - 0.75) / 1.75)
    assert pair["same_length"]["answers"] == 0.8


def test_lengths_that_never_meet_have_no_difference_at_equal_length():
    runs = [run_of([100, 100], model="a"), run_of([4, 4], model="b")]
    (pair,) = analyse(runs, PROBLEMS, OPTIONS, pairs=[("a", "b")])["pairs"]
    assert pair["same_length"] is None


def test_equal_mean_tokens():
    """b spends 20 in the mean. a, of 10, 20, 30 and 60, does so at a budget of 25, where two of its four are left."""
    a = run_of([10, 20, 30, 60], model="a")
    b = run_of([20, 20, 20, 20], [RIGHT, WRONG, WRONG, WRONG], model="b")
    for pair, sign in ((("a", "b"), 1), (("b", "a"), -1)):
        (found,) = analyse([a, b], PROBLEMS, OPTIONS, pairs=[pair])["pairs"]
        means = found["same_mean_tokens"]
        assert means["cut"] == "a" and means["budget"] == pytest.approx(25, abs=1e-3) and means["mean_tokens"] == 20
        assert means["difference"]["value"] == sign * 0.25


def test_a_pair_without_shared_problems():
    a, b = run_of([4]), run_of([4], model="n", problems=PROBLEMS[1:])
    found = analyse([a, b], PROBLEMS, OPTIONS, pairs=[("m", "n")])
    assert found["pairs"] == [{"problems": 0, "after": {"model": "m"}, "before": {"model": "n"}}]
    assert found["sentences"] == [] and "pairs.csv" not in csv_tables(found)


# --- tables


def test_csv_tables_are_rectangular_and_hold_the_numbers():
    runs = [
        run_of([4, 8, 30], [RIGHT, WRONG, CUT], model="a", seconds=2.0),
        run_of([4, 8], [RIGHT, RIGHT], model="b"),
        run_of([7, 17], condition=budget("stated", 10), model="b"),
        LengthRun("c", "C", []),
    ]
    found = analyse(runs, PROBLEMS, OPTIONS, pairs=[("b", "a")])
    tables = csv_tables(found)
    for name, (header, *rows) in tables.items():
        assert rows and {len(row) for row in rows} == {len(header)}, name
        assert len(set(header)) == len(header), name
        assert all(isinstance(cell, str | int | float) for row in rows for cell in row), name
    header, first, *_ = tables["runs.csv"]
    line = dict(zip(header, first, strict=True))
    assert (line["model"], line["accuracy"], line["tokens_per_correct"], line["seconds_per_correct"]) == (
        "a",
        pytest.approx(1 / 3),
        42,
        2,
    )
    assert line["budget"] == ""  # there is none
    curve = [
        dict(zip(tables["accuracy_by_budget.csv"][0], row, strict=True)) for row in tables["accuracy_by_budget.csv"]
    ]
    assert {row["mechanism"] for row in curve[1:]} == {"hard", "stated"}
    stated = next(row for row in curve if row["mechanism"] == "stated")
    assert stated["exact"] == "" and stated["truncated"] == 0 and stated["mean_tokens"] == 12
