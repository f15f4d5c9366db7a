"""reasoning-gym's data sets: right answers are right, and each trap of its scorers is closed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_model.errors import InputError
from eval.judge import child
from eval.judge.child import ChildLimits, Children
from eval.judge.gym import CHECKED, COMPARED, REFUSED, SCORED, GymScorer, data_sets
from recipes.rows import Verdict

SEED = 5
SLOW_TO_DRAW = {"knight_swap", "futoshiki", "zebra_puzzles", "sokoban"}  # one item each
GARBAGE = [
    "@@@",
    "the answer",
    "lorem ipsum dolor sit amet",
    "nan",
    "inf",
    "null",
    "[]",
    "{}",
    "[[]]",
    "()",
    "\0",
    "½½",
    "1e999999999",
    "0/0",
    "7" * 500,
    "[" * 5000,
    "__import__('os').getpid()",
    "print(1)",
]


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children(1, ChildLimits("reasoning_gym")) as shared:
        yield shared


def drawn(name: str, count: int = 1, **knobs: Any) -> list[dict[str, Any]]:
    """Entries as a JSONL file would give them back."""
    from reasoning_gym import create_dataset

    dataset = create_dataset(name, seed=SEED, size=50, **knobs)
    return [json.loads(json.dumps(dataset[index])) for index in range(count)]


def right_answer(entry: dict[str, Any]) -> str:
    """The entry's own, or an example among its metadata."""
    metadata = entry["metadata"]
    if entry["answer"] is not None:
        return entry["answer"]
    if "possible_answer" in metadata:
        return json.dumps(metadata["possible_answer"])
    return metadata["example_correct_answer"]


@pytest.mark.parametrize("name", [name for name in data_sets() if name not in REFUSED and name != "rush_hour"])
def test_right_answers_are_right_and_garbage_is_not(name: str, children: Children) -> None:
    scorer = GymScorer(name, children)
    for entry in drawn(name, 1 if name in SLOW_TO_DRAW else 2):
        right = right_answer(entry)
        if "Integral" in right:  # not worked out: the entry is judged, but its own answer is no answer
            continue
        assert scorer.judge(entry, f" {right}\n").verdict is Verdict.CORRECT
        spoilt = [f"the answer is {right}", f"x{right}", f"{right} 1", f"{right}, and more", f"1{right}x"]
        judged = {answer: scorer.judge(entry, answer).verdict for answer in GARBAGE + spoilt}
        assert set(judged.values()) == {Verdict.WRONG_ANSWER}, [a for a, v in judged.items() if v != "WRONG_ANSWER"]
        assert scorer.judge(entry, " \n").verdict is Verdict.NO_ANSWER


def test_every_data_set_has_one_place() -> None:
    assert len(data_sets()) > 100
    tables = [set(REFUSED), set(COMPARED), set(CHECKED), set(SCORED)]
    assert sum(map(len, tables)) == len(set.union(*tables))
    assert set.union(*tables) <= set(data_sets())


@pytest.mark.parametrize("name", REFUSED)
def test_refused_data_sets_say_why(name: str) -> None:
    with pytest.raises(InputError, match="refused"):
        GymScorer(name)


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(InputError, match="chain_summ"):
        GymScorer("chain_summ")


def cell_flipped(answer: str) -> str:
    grid = json.loads(answer)
    grid[0][0] = 1 - grid[0][0]
    return json.dumps(grid)


def first_number_off_by(step: float, answer: str) -> str:
    first, *others = json.loads(answer.replace("'", '"'))
    return json.dumps([str(float(first) + step), *others])


# (data set, knobs, what reasoning-gym pays full marks for although it is wrong)
TRAPS = [
    ("game_of_life", {"grid_size_x": 20, "grid_size_y": 20}, lambda e: cell_flipped(e["answer"])),
    ("word_sorting", {}, lambda e: e["answer"] + ", garbage"),
    ("puzzle24", {}, lambda e: "6*4*1*1"),
    ("gsm_symbolic", {}, lambda e: f"-{e['answer']}"),
    ("gsm_symbolic", {}, lambda e: f"{e['answer']} or 7"),
    ("simple_integration", {}, lambda e: f"Integral({e['metadata']['integrand']}, {e['metadata']['variable']})"),
    ("polynomial_multiplication", {}, lambda e: f"expand({e['metadata']['polynomial_expr']})"),
    ("time_intervals", {"task_types": ["date"]}, lambda e: f"{int(e['answer'].split()[0]) + 1} days"),
    ("time_intervals", {"task_types": ["time"]}, lambda e: e["answer"][:-1] + str((int(e["answer"][-1]) + 1) % 10)),
    ("number_sorting", {"min_value": 0.0}, lambda e: first_number_off_by(0.0625, e["answer"])),
    ("spell_backward", {"min_word_len": 7, "max_word_len": 7}, lambda e: e["answer"] + "zz"),
    ("decimal_chain_sum", {}, lambda e: e["answer"][:-1] + "_" + e["answer"][-1]),
    ("chain_sum", {}, lambda e: e["answer"].translate({48 + digit: 0xFF10 + digit for digit in range(10)})),
    ("sokoban", {}, lambda e: "well: " + " ".join(e["answer"])),
    ("quantum_lock", {}, lambda e: e["answer"].lower().replace("→", "then")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "knobs", "spoil"), TRAPS, ids=range(len(TRAPS)))
def test_what_its_scorers_pay_for_is_wrong(name: str, knobs: dict[str, Any], spoil: Any, children: Children) -> None:
    from reasoning_gym import create_dataset

    [entry] = drawn(name, 1, **knobs)
    answer = spoil(entry)
    assert answer != entry["answer"]
    assert create_dataset(name, seed=SEED, size=1, **knobs).score_answer(answer, entry) >= 0.985  # else it is no trap
    assert GymScorer(name, children).judge(entry, answer).verdict is Verdict.WRONG_ANSWER


@pytest.mark.parametrize(
    ("name", "right", "answer", "verdict"),
    [
        ("chain_sum", "1000", "+01,000.00", Verdict.CORRECT),
        ("chain_sum", "-5", "5", Verdict.WRONG_ANSWER),
        ("power_function", "1.1907265024592796e-06", "1.19e-6", Verdict.CORRECT),
        ("power_function", "1.1907265024592796e-06", "1.20e-6", Verdict.WRONG_ANSWER),
        ("power_function", "0.0", "0", Verdict.CORRECT),
        ("number_format", "592641326.305", "5.926413263049999e+08", Verdict.CORRECT),
        ("number_format", "592641326.305", "592,641,326.31", Verdict.WRONG_ANSWER),
        ("advanced_geometry", "(7.765, -7.882)", "(7.7650,-7.8821)", Verdict.CORRECT),
        ("advanced_geometry", "(7.765, -7.882)", "(7.765, 7.882)", Verdict.WRONG_ANSWER),
        ("advanced_geometry", "126.87°", "126.870", Verdict.CORRECT),
        ("pool_matrix", "3.67 9\n5.11 4.78", "3.67 9.0\n5.11 4.78", Verdict.CORRECT),
        ("pool_matrix", "3.67 9\n5.11 4.78", "3.70 9\n5.11 4.78", Verdict.WRONG_ANSWER),
        ("coin_flip", "0.234375", "15/64", Verdict.CORRECT),
        ("coin_flip", "0.0000305", "0", Verdict.WRONG_ANSWER),
        ("complex_arithmetic", "-2.0 - 4.0i", "-2-4i", Verdict.CORRECT),
        ("complex_arithmetic", "0.0 + 1.0i", "i", Verdict.CORRECT),
        ("complex_arithmetic", "3.0 + 0.0i", "3", Verdict.CORRECT),
        ("complex_arithmetic", "3.0 + 4.0i", "3 4i", Verdict.WRONG_ANSWER),
        ("complex_arithmetic", "3.0 + 4.0i", "3.001 + 4i", Verdict.WRONG_ANSWER),
        ("polynomial_equations", "-0.5314, 0.0", "0, -0.5314", Verdict.CORRECT),
        ("polynomial_equations", "-0.5314, 0.0", "0, -0.53", Verdict.WRONG_ANSWER),
        ("polynomial_equations", "", "there is none", Verdict.WRONG_ANSWER),
        ("fraction_simplification", "$1/2$", r"\frac{1}{2}", Verdict.CORRECT),
        ("fraction_simplification", "$1/2$", "2/4", Verdict.WRONG_ANSWER),
        ("prime_factorization", "5 × 7 × 7", "7*5 x 7", Verdict.CORRECT),
        ("prime_factorization", "5 × 7 × 7", "5 × 49", Verdict.WRONG_ANSWER),
        ("time_intervals", "67 days, 10:32", "67 days, 10:32", Verdict.CORRECT),
        ("time_intervals", "03:22:03", "3:22:03", Verdict.CORRECT),
        ("time_intervals", "99 days", "99", Verdict.WRONG_ANSWER),
        ("bitwise_arithmetic", "-0x3d2d", "-0x3D2D", Verdict.CORRECT),
        ("bitwise_arithmetic", "0xe956", "59734", Verdict.WRONG_ANSWER),
        ("base_conversion", "100", "1e2", Verdict.WRONG_ANSWER),  # a hexadecimal number
        ("knights_knaves", "Zoey is a hero, and Al is a fool.", "Al is a fool and Zoey is a hero", Verdict.CORRECT),
        ("knights_knaves", "Zoey is a hero, and Al is a fool.", "Zoey is a hero, Al is a hero", Verdict.WRONG_ANSWER),
        ("knights_knaves", "Zoey is a hero.", "Zoey is a hero and Zoey is a villain", Verdict.WRONG_ANSWER),
        ("number_filtering", "['18.5', '-26.0090']", "[18.5, -26.009]", Verdict.CORRECT),
        ("number_filtering", "['18.5']", "[true]", Verdict.WRONG_ANSWER),
        ("group_anagrams", '[["ab", "ba"], ["c"]]', '[["c"], ["ba", "ab"]]', Verdict.CORRECT),
        ("group_anagrams", '[["ab", "ba"], ["c"]]', '[["ab"], ["ba"], ["c"]]', Verdict.WRONG_ANSWER),
        ("codeio", '{"a": 1}', '{"a":1}', Verdict.CORRECT),
        ("codeio", '{"a": 1}', '{"a": true}', Verdict.WRONG_ANSWER),
        ("calendar_arithmetic", "Tuesday", "tuesday", Verdict.CORRECT),
        ("calendar_arithmetic", "-1", "50", Verdict.WRONG_ANSWER),
        ("mini_sudoku", "1 2\n3 4", "1  2 \n\n3 4", Verdict.CORRECT),
        ("mini_sudoku", "1 2\n3 4", "1 2 3 4", Verdict.WRONG_ANSWER),
    ],
)  # fmt: skip
def test_answers_are_compared_as_what_they_are(name: str, right: str, answer: str, verdict: Verdict) -> None:
    entry = {"question": "", "answer": right, "metadata": {}}
    assert GymScorer(name).judge(entry, answer).verdict is verdict


@given(st.text(max_size=40) | st.text(alphabet="0123456789.,:/-+eix×[]{}\"'() ", max_size=20))
@settings(max_examples=100, deadline=None)
def test_comparisons_take_any_text(text: str) -> None:
    rights = ("3.5", "1/2", "[[1]]", '[["a"]]', "3 days", "0x1f", "Al is a fool", "")
    for compare in set(COMPARED.values()):
        for right in rights:
            assert compare(text, right) in (True, False)
    for check in (*SCORED.values(), CHECKED["puzzle24"]):
        assert check(text, {"answer": "x", "metadata": {"numbers": [1], "variable": "x"}}) in (True, False)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("(5 - 1/5) * 5", Verdict.CORRECT),
        ("5*(5 - 1/5)", Verdict.CORRECT),
        ("5*5 - 1/1", Verdict.WRONG_ANSWER),
        ("5*5 - 5/5 + 0", Verdict.WRONG_ANSWER),
        ("5**5 - 1 + 5", Verdict.WRONG_ANSWER),
        ("24 + 5 - 5*1", Verdict.WRONG_ANSWER),
        ("5/(1 - 5/5)", Verdict.WRONG_ANSWER),
        ("(" * 300, Verdict.WRONG_ANSWER),
    ],
)
def test_puzzle24_is_exact_arithmetic_with_the_numbers_given(answer: str, verdict: Verdict) -> None:
    entry = {"question": "", "answer": "5*(5 - 1/5)", "metadata": {"numbers": [5, 5, 5, 1]}}
    assert GymScorer("puzzle24").judge(entry, answer).verdict is verdict


def test_rush_hour_board_by_hand(children: Children) -> None:
    entry = {"question": "", "answer": None, "metadata": {"board_config": "ooooooooooooAAooooooooooBBooooCCoooo"}}
    scorer = GymScorer("rush_hour", children)
    assert scorer.judge(entry, "A+4").verdict is Verdict.CORRECT
    assert scorer.judge(entry, "B+1 A+3 A+1").verdict is Verdict.CORRECT
    for wrong in ("A+1", "A-4", "I move A+4", "A+4.", "@@@"):
        assert scorer.judge(entry, wrong).verdict is Verdict.WRONG_ANSWER


def test_any_shortest_path_is_right_and_none_where_there_is_none(children: Children) -> None:
    scorer = GymScorer("shortest_path", children)
    asked = {
        ("*O\nO#", "right down"): {"right down", "down right"},
        ("*X\nX#", "infeasible"): {"infeasible"},
    }
    for (grid, right), rights in asked.items():
        matrix = [list(row) for row in grid.split("\n")]
        entry = {"question": "", "answer": right, "metadata": {"matrix": matrix}}
        answers = {"right down", "down right", "infeasible", "down up down right", "right", "Right down!"}
        judged = {answer: scorer.judge(entry, answer).verdict for answer in answers}
        assert {answer for answer, verdict in judged.items() if verdict is Verdict.CORRECT} == rights


def test_entries_that_cannot_be_judged(children: Children) -> None:
    unfit: list[tuple[str, dict[str, Any], str]] = [
        ("chain_sum", {"answer": "5"}, "5"),
        ("chain_sum", {"answer": None, "metadata": {}}, "5"),
        ("chain_sum", {"answer": 5, "metadata": {}}, "5"),
        ("puzzle24", {"answer": "24", "metadata": {}}, "24"),
        ("tower_of_hanoi", {"answer": "x", "metadata": {}}, "Move disk 1 from Peg 1 to Peg 2"),
        ("jugs", {"answer": "[]", "metadata": {"puzzle": object()}}, '["fill A"]'),
    ]
    for name, entry, answer in unfit:
        assert GymScorer(name, children).judge(entry, answer).verdict is Verdict.INVALID_PROBLEM, name
    [entry] = drawn("tower_of_hanoi")
    judged = GymScorer("tower_of_hanoi", children).judge(entry, "Move disk 1 from Peg 9 to Peg 2")
    assert judged.verdict is Verdict.WRONG_ANSWER  # whether its scorer raises or not


def test_an_answer_that_hangs_the_scorer_is_wrong() -> None:
    [entry] = drawn("simple_integration")
    with Children(1, ChildLimits("reasoning_gym", seconds=0.5)) as children:
        scorer = GymScorer("simple_integration", children)
        judged = scorer.judge(entry, "9**9**9**9")
        assert judged.verdict is Verdict.WRONG_ANSWER
        assert "CPU time" in judged.detail
        judged = scorer.judge(entry, "().__class__")
        assert judged.detail == "not in the form of an answer"


def test_a_child_that_cannot_start_is_an_infrastructure_error(monkeypatch: pytest.MonkeyPatch) -> None:
    [entry] = drawn("shortest_path")
    monkeypatch.setattr(child, "WORKER", Path("/nonexistent/worker.py"))
    with GymScorer("shortest_path") as scorer:
        assert scorer.judge(entry, "up up").verdict is Verdict.INFRA_ERROR
        assert scorer.judge(entry, "sideways").verdict is Verdict.WRONG_ANSWER
