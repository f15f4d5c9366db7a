"""The figures and the page's part of the length analysis: what they hold, and nothing where there is nothing."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from eval.figures import to_svg
from eval.figures_lengths import draw, outcomes
from eval.lengths.analyse import analyse
from eval.lengths.runs import LengthOptions, LengthRun
from eval.report import TEMPLATES
from eval.tables import cell, interval_text
from recipes.rows import Condition, JudgedSample, Message, Problem, Verdict

TASKS = ("chain_sum", "count_bits", "base_conversion")
OPTIONS = LengthOptions(resamples=50)
FREE = Condition()


def make_problem(task: str, index: int) -> Problem:
    return Problem(
        id=f"{task}-{index}",
        source=task,
        domain="math",
        messages=[Message(role="user", content="?")],
        verifier=task,
        verification_info={},
    )


def make_row(problem: Problem, thought: int, verdict: Verdict, condition=FREE, model="m") -> JudgedSample:
    reasoning = "2+2=4. " + "Wait, check: 5. " * (thought // 40) + "a b c d e f g h i " * (thought // 60)
    return JudgedSample(
        key=f"{model}-{problem.id}-{condition.id}",
        task=problem.source,
        problem_id=problem.id,
        index=0,
        seed=0,
        text=f"<think>{reasoning}</think>5",
        reasoning=reasoning,
        answer="5",
        finish_reason="length" if verdict is Verdict.TRUNCATED else "stop",
        prompt_tokens=9,
        reasoning_tokens=thought,
        answer_tokens=3,
        sampling={"max_new_tokens": 256},
        teacher={"name": model, "revision": "0"},
        template_sha256="t",
        condition=condition,
        verdict=verdict,
    )


SKILLS = {"sft_short": 0.15, "sft_reasoning": 0.6, "rl": 0.8}
LABELS = {"sft_short": "SFT, short answers", "sft_reasoning": "SFT, reasoning", "rl": "RL"}


def made_up(rng, model: str, asked: list[Problem], condition: Condition, factor: float, length: float) -> LengthRun:
    """Answers of a model of `factor` times its skill; thoughts of about `length` tokens, cut off at 250."""
    rows = []
    for problem in asked:
        thought = 2 if model == "sft_short" else int(np.clip(rng.lognormal(np.log(length), 0.5), 5, 250))
        right = rng.random() < SKILLS[model] * factor * (1.2 - 0.4 * int(problem.id.rsplit("-")[-1]) / len(asked))
        verdict = Verdict.CORRECT if right else rng.choice([Verdict.WRONG_ANSWER] * 9 + [Verdict.NO_ANSWER])
        verdict = Verdict.TRUNCATED if thought == 250 else verdict
        rows.append(make_row(problem, thought, Verdict(verdict), condition, model))
    return LengthRun(model, LABELS[model], rows, 12.0)


def nano_like(problems: int = 200, budgeted: int = 60) -> tuple[list[LengthRun], list[Problem]]:
    """Three models as nano's: one that answers at once, two that think; these at budgets of thought too."""
    rng = np.random.default_rng(0)
    asked = [make_problem(task, index) for task in TASKS for index in range(problems)]
    few = [problem for problem in asked if int(problem.id.rsplit("-")[-1]) < budgeted]
    runs = [made_up(rng, model, asked, FREE, 1, 120 if model == "rl" else 90) for model in SKILLS]
    for model in ("sft_reasoning", "rl"):
        for tokens in (16, 32, 64, 128, 256):
            forced = Condition(mechanism="forced", tokens=tokens)
            stated = Condition(mechanism="stated", tokens=tokens)
            runs.append(made_up(rng, model, few, forced, tokens / (tokens + 60), tokens * 0.7))
            runs.append(made_up(rng, model, few, stated, 0.9, 60 + tokens / 4))
    return runs, asked


@pytest.fixture(scope="module")
def analysis():
    runs, problems = nano_like()
    return analyse(runs, problems, OPTIONS, pairs=[("rl", "sft_reasoning"), ("sft_reasoning", "sft_short")])


@pytest.fixture(scope="module")
def drawings(analysis):
    return draw(analysis)


def test_every_figure_is_drawn(drawings):
    assert [drawing.name for drawing in drawings] == [
        "outcomes",
        "accuracy_by_budget",
        "rates_by_budget",
        "pareto_front",
        "by_difficulty",
        "stated_against_used",
        "markers",
        "same_budget",
    ]


def test_equal_figures_have_equal_bytes(analysis, drawings):
    svg = to_svg(drawings[0])
    assert ET.fromstring(svg).tag.endswith("svg")
    assert svg == to_svg(outcomes(analysis))


def test_mechanisms_are_lines_of_their_own(analysis, drawings):
    figure = next(one.figure for one in drawings if one.name == "accuracy_by_budget")
    panel = figure.axes[-1]
    assert panel.get_title() == "RL (180 problems)"
    sides = analysis["models"]["rl"]["mechanisms"]
    lines = {tuple(np.asarray(line.get_ydata())): list(line.get_xdata()) for line in panel.get_lines()}
    for name in ("hard", "forced", "stated"):
        values = tuple(100 * point["accuracy"]["value"] for point in sides[name])
        assert lines[values] == [point["budget"] for point in sides[name]]


def test_labels_do_not_overlap(drawings):
    """Tick labels, titles and legends of every figure keep off each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for drawing in drawings:
        canvas = FigureCanvasAgg(drawing.figure)
        canvas.draw()
        renderer = canvas.get_renderer()
        for axes in drawing.figure.axes:
            for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
                boxes = [text.get_window_extent(renderer) for text in labels if text.get_text() and text.get_visible()]
                assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]), drawing.name
        titles = [axes.title.get_window_extent(renderer) for axes in drawing.figure.axes if axes.get_title()]
        legends = [legend.get_window_extent(renderer) for legend in drawing.figure.legends]
        boxes = titles + legends
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :]), drawing.name


def test_a_cut_run_is_marked_beside_its_bar():
    problems = [make_problem("gcd", index) for index in range(10)]
    verdicts = [Verdict.TRUNCATED] * 2 + [Verdict.CORRECT] * 8
    rows = [make_row(problem, 60, verdict) for problem, verdict in zip(problems, verdicts, strict=True)]
    found = draw(analyse([LengthRun("m", "M", rows)], problems, OPTIONS))
    (axes,) = found[0].figure.axes
    assert [text.get_text() for text in axes.texts] == ["20.0 % cut"]


def test_a_value_outside_its_interval_is_drawn():
    """One resample can lie anywhere, rounding puts a value just outside."""
    runs, problems = nano_like(12, 6)
    assert len(draw(analyse(runs, problems, LengthOptions(resamples=1)))) == 7  # all but the one of pairs


def test_nothing_is_drawn_of_nothing():
    assert draw(analyse([], [], OPTIONS)) == []
    assert draw(analyse([LengthRun("m", "M", [])], [], OPTIONS)) == []


def render(found) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": cell, "interval": interval_text}
    return environment.get_template("lengths.html.jinja").render(lengths=found)


def test_the_page_shows_every_table_and_escapes_labels(analysis):
    page = render(analysis | {"headlines": ["<b>&"]})
    for heading in (
        "Length against accuracy",
        "Accuracy at a budget of tokens, in %",
        "RL: mechanisms side by side",
        "Accuracy for tokens spent",
        "By difficulty",
        "Budgets stated in the prompt",
        "Reflection and repetition",
        "Differences at equal length, in points",
    ):
        assert f"<h2>{heading}</h2>" in page
    assert "&lt;b&gt;&amp;" in page and "<b>&<" not in page
    accuracy = analysis["models"]["rl"]["runs"][0]["accuracy"]
    assert f"<td>{cell(accuracy['value'])}</td>" in page
    for sentence in analysis["sentences"]:
        assert sentence in page
    for table in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        widths = {len(re.findall(r"<t[hd][ >]", row)) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)}
        assert len(widths) == 1  # no row has a cell too few or too many


def test_the_page_of_little():
    problem = make_problem("gcd", 0)
    assert "<table>" in render(analyse([], [], OPTIONS))
    one = render(analyse([LengthRun("m", "M", [make_row(problem, 5, Verdict.CORRECT)])], [problem], OPTIONS))
    assert "M: 100.0 % (truncated 0.0 %)" in one
    lost = render(analyse([LengthRun("m", "M", [make_row(problem, 5, Verdict.INFRA_ERROR)])], [problem], OPTIONS))
    assert "no answer counts" in lost
