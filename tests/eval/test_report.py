"""From made-up rows to the report: numbers, tables, page, figures, and making it again."""

from __future__ import annotations

import base64
import importlib
import json
import re
import shutil
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from core_model.errors import InputError
from eval.__main__ import main as eval_main
from eval.collect import MOST_POINTS, Collected, read_curves
from eval.figures import draw_all, to_svg
from eval.metrics import pass_at_k
from eval.perplexity import TextReport, read_text_report
from eval.plan import PLAN, Expected, Plan, protocol_of
from eval.recipe import Recipe
from eval.report import main, print_table, render_page, write_report
from eval.score import Samples, problem_means, rounded, score
from eval.tables import WIDTH, print_tables, tables
from eval.tasks import problems
from recipes.rows import JudgedSample, Verdict, write_rows

FAMILIES = ("gcd", "chain_sum")


def make_recipe(models=("a", "b"), families=FAMILIES, samples=1, **more) -> Recipe:
    return Recipe.model_validate(
        {
            "stage": "eval",
            "name": "made-up",
            "models": {name: {"path": "x", "mode": "chat"} for name in models},
            "tasks": {name: {"count": 40} for name in families},
            "sampling": {"samples": samples, "temperature": 1.0, "pass_at": tuple({1, samples})},
            "comparisons": [{"better": models[0], "baseline": models[-1]}] if len(models) > 1 else [],
            "statistics": {"resamples": 300, "flips": 300},
            **more,
        }
    )


def sample(problem, index=0, verdict=Verdict.CORRECT, reasoning=30, answer=3) -> JudgedSample:
    return JudgedSample(
        key=f"{problem.id}-{index}",
        task=problem.source,
        problem_id=problem.id,
        index=index,
        seed=0,
        text="",
        reasoning="r",
        answer="a",
        finish_reason="length" if verdict is Verdict.TRUNCATED else "stop",
        prompt_tokens=5,
        reasoning_tokens=reasoning,
        answer_tokens=answer,
        sampling={},
        teacher={"name": "m", "revision": "r"},
        template_sha256="t",
        verdict=verdict,
    )


@pytest.fixture(scope="module")
def asked():
    return [problem for family in FAMILIES for problem in problems(family, "test", 40)]


def rows_right(asked, right, **lengths):
    """A sample each; the first `right` of every family are correct."""
    return [
        sample(problem, verdict=Verdict.CORRECT if index % 40 < right else Verdict.WRONG_ANSWER, **lengths)
        for index, problem in enumerate(asked)
    ]


def scored(recipe, asked, judged):
    return score(recipe, Samples(asked, judged, protocol_of(recipe, asked)))


def test_accuracy_lengths_and_difference(asked):
    judged = {"a": rows_right(asked, 30), "b": rows_right(asked, 10, reasoning=0, answer=3)}
    report = scored(make_recipe(), asked, judged)
    a = report["models"]["a"]
    assert a["macro"]["accuracy"]["value"] == 0.75 and a["tasks"]["gcd"]["accuracy"]["value"] == 0.75
    assert a["macro"]["accuracy"]["low"] < 0.75 < a["macro"]["accuracy"]["high"]
    assert (a["all"]["tokens"]["mean"], a["all"]["reasoning_tokens"]["p99"], a["all"]["answer_tokens"]["p50"]) == (
        33.0,
        30.0,
        3.0,
    )
    assert a["all"]["tokens_per_correct"] == 44.0
    (pair,) = report["comparisons"]
    assert pair["macro"]["accuracy"]["value"] == 0.5 and pair["macro"]["accuracy"]["low"] > 0.3
    assert pair["macro"]["length_ratio"] == {"value": 11.0, "low": 11.0, "high": 11.0}
    assert pair["macro"]["p"] < 0.01 and pair["macro"]["problems"] == 80
    assert report["tasks"]["gcd"]["best_constant"]["accuracy"] <= 0.3
    mean = sum(family["best_constant"]["accuracy"] for family in report["tasks"].values()) / 2
    assert report["best_constant"] == pytest.approx(mean)


def test_comparison_of_some_families(asked):
    rows = [
        sample(problem, verdict=Verdict.CORRECT if problem.source == "gcd" else Verdict.WRONG_ANSWER)
        for problem in asked
    ]
    pair = {"better": "a", "baseline": "b", "tasks": ["gcd"]}
    report = scored(make_recipe(comparisons=[pair]), asked, {"a": rows, "b": rows_right(asked, 0)})
    (compared,) = report["comparisons"]
    assert list(compared["tasks"]) == ["gcd"] and compared["macro"]["problems"] == 40
    assert compared["macro"]["accuracy"]["value"] == 1.0  # 0.5 over both families
    tables(report, WIDTH)  # a family that was left out is a dash


def test_what_could_not_be_judged_is_no_wrong_answer(asked):
    rows = rows_right(asked, 40)
    rows[0] = rows[0].model_copy(update={"verdict": Verdict.INFRA_ERROR})
    rows[1] = rows[1].model_copy(update={"verdict": Verdict.INVALID_PROBLEM})
    report = scored(make_recipe(), asked, {"a": rows, "b": rows_right(asked, 40)})
    a = report["models"]["a"]
    assert a["macro"]["accuracy"]["value"] == 1.0 and a["all"]["left_out"] == 2 and a["all"]["samples"] == 78
    assert report["comparisons"][0]["macro"]["problems"] == 78  # paired where both count
    assert report["comparisons"][0]["macro"]["accuracy"]["value"] == 0.0


def test_truncation_is_wrong_and_bounded(asked):
    rows = rows_right(asked, 20)
    for index in (25, 30, 65, 70):
        rows[index] = rows[index].model_copy(update={"verdict": Verdict.TRUNCATED})
    rows[79] = rows[79].model_copy(update={"verdict": Verdict.NO_ANSWER})
    found = scored(make_recipe(("a",)), asked, {"a": rows})["models"]["a"]["all"]
    assert (found["truncated"], found["no_answer"]) == (0.05, 0.0125)
    assert (found["correct"], found["correct_or_truncated"]) == (0.5, 0.55)
    assert found["verdicts"] == {"CORRECT": 40, "WRONG_ANSWER": 35, "NO_ANSWER": 1, "TRUNCATED": 4}


def test_samples_of_a_problem_stay_together(asked):
    few = asked[:10]
    rows = [
        sample(problem, index, Verdict.CORRECT if index < number % 5 else Verdict.WRONG_ANSWER, reasoning=index)
        for number, problem in enumerate(few)
        for index in range(4)
    ]
    recipe = make_recipe(("a",), ("gcd",), samples=4)
    found = scored(recipe, few, {"a": rows})["models"]["a"]["tasks"]["gcd"]
    assert found["accuracy"]["value"] == pytest.approx(0.5) and found["samples"] == 40
    expected = sum(pass_at_k(4, number % 5, 4) for number in range(10)) / 10
    assert found["pass_at"] == {"1": 0.5, "4": pytest.approx(expected)}
    assert problem_means({"p": rows[:4]})["p"] == (0.0, 4.5)


def test_nothing_counts(asked):
    rows = [row.model_copy(update={"verdict": Verdict.INFRA_ERROR}) for row in rows_right(asked, 40)]
    report = scored(make_recipe(), asked, {"a": rows, "b": rows_right(asked, 3)})
    assert "macro" not in report["models"]["a"] and report["comparisons"][0]["macro"] is None
    page = render_page(report, [], {})
    assert "best constant" in page
    print_tables(report, Console(file=open("/dev/null", "w")))  # noqa: SIM115


def test_histograms_hold_every_sample_that_counts(asked):
    rows = [row.model_copy(update={"reasoning_tokens": 7 * i}) for i, row in enumerate(rows_right(asked, 20))]
    lengths = scored(make_recipe(("a",)), asked, {"a": rows})["models"]["a"]["lengths"]
    assert sum(lengths["right"]) == 40 and sum(lengths["wrong"]) == 40 and sum(lengths["truncated"]) == 0
    assert lengths["edges"][0] == 0 and lengths["edges"][-1] > max(row.reasoning_tokens + 3 for row in rows)


def shown(report, width) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"), highlight=False)  # noqa: SIM115
    print_tables(report, console)
    return console.export_text()


def wide_report(names=6, label="SFT on distilled reasoning traces"):
    """A report with many families, made by renaming those of a small one."""
    asked = problems("gcd", "test", 5)
    recipe = make_recipe(families=("gcd",))
    report = scored(recipe, asked, {"a": rows_right(asked, 5), "b": rows_right(asked, 0)})
    families = ["chain_sum", "base_conversion", "number_sorting", "gcd", "letter_counting", "code"]
    families += [f"extra_{number}" for number in range(names)]
    report["tasks"] = dict.fromkeys(families[:names], report["tasks"]["gcd"])
    for row in report["models"].values():
        row["tasks"] = dict.fromkeys(families[:names], row["tasks"]["gcd"])
    report["comparisons"][0]["tasks"] = dict.fromkeys(families[:names], report["comparisons"][0]["tasks"]["gcd"])
    report["models"]["a"]["label"] = label
    return report


def test_six_families_fit_into_one_table():
    lines = shown(wide_report(6), WIDTH).splitlines()
    assert sum("best constant" in line for line in lines) == 1 and max(map(len, lines)) <= WIDTH
    text = "\n".join(lines)
    for heading in ("conversion", "counting", "95 % interval", "tokens", "100.0", "+100.0", "[100.0, 100.0]"):
        assert heading in text


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 20), st.integers(80, 160))
def test_tables_fit_whatever_the_width(names, width):
    report = wide_report(names)
    text = shown(report, width)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= width and "…" not in text
    headings = set(re.findall(r"[a-z0-9_]+", text))
    assert all(set(family.split("_")) <= headings for family in report["tasks"])
    assert text.count("100.0") >= 2 * names


def test_markup_in_names_is_text():
    report = wide_report(6, label="[bold]a[/b] <script>x</script>")
    assert "[bold]a[/b]" in shown(report, 140).replace("\n", "")
    page = render_page(report, [], {})
    assert "<script>" not in page and "&lt;script&gt;" in page


@pytest.fixture(scope="module")
def made(asked, tmp_path_factory):
    """The files of a finished eval run, its rows made by hand."""
    folder = tmp_path_factory.mktemp("pipeline") / "eval"
    recipe = make_recipe()
    (folder / "samples" / "judged").mkdir(parents=True)
    (folder / "recipe.yaml").write_text(json.dumps(recipe.model_dump(mode="json")))
    write_rows(folder / "samples" / "problems.jsonl", asked)
    files = {f"judged/{name}.jsonl": Expected.of([f"{problem.id}-0" for problem in asked]) for name in ("a", "b")}
    plan = Plan(protocol=protocol_of(recipe, asked), files=files)
    (folder / "samples" / PLAN).write_text(plan.model_dump_json())
    for name, right in (("a", 30), ("b", 10)):
        rows = [
            row.model_copy(update={"verdict_key": plan.verdict_key(row.key, row.task)})
            for row in rows_right(asked, right)
        ]
        write_rows(folder / "samples" / "judged" / f"{name}.jsonl", rows)
    losses = {"short": {"bits_per_byte": 2.0}, "long": {"edges": [0, 8, 16], "loss": [3.0, 2.0]}}
    collected = Collected(
        curves={
            "pretrain": {"lm_loss": [(1, 3.0), (2, 2.0)], "validation/bits_per_byte": [(2, 1.5)]},
            "rl": {"accuracy": [(1, 0.5)], "reward/mean": [(1, 0.4)], "loss": [(1, 0.0)]},
            "sft": {"router/layer_1/max_violation": [(1, 0.5), (2, 0.25)], "max_violation": [(1, 0.5)]},
        },
        text={"a": TextReport.model_validate({"before": losses, "after": losses})},
        trained={},
    )
    (folder / "collected.json").write_text(collected.model_dump_json())
    write_report(recipe, folder)
    return folder


@pytest.fixture
def run(made, tmp_path):
    """A test's own copy of that run."""
    return Path(shutil.copytree(made, tmp_path / "pipeline" / "eval"))


def test_made_again_the_report_is_the_same(run, capsys):
    before = {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for path in (run / "report.json", run / "report.html", *(run / "figures").iterdir()):
        path.unlink()
    assert main([str(run)]) == 0
    assert {path.name: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    printed = capsys.readouterr().out
    assert "75.0" in printed and "+50.0" in printed and "report.html" in printed
    (run.parent / "pipeline.yaml").write_text("{name: p, stages: [], tables: [eval/report.json]}")
    assert main([str(run.parent)]) == 0
    assert capsys.readouterr().out == printed
    print_table(run / "report.json")
    assert printed.startswith(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["report", "leaderboard"])
def test_help_says_as_what_it_was_called(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["eval", name, "--help"])
    with pytest.raises(SystemExit):
        eval_main()
    assert capsys.readouterr().out.startswith(f"usage: python -m eval {name} ")
    with pytest.raises(SystemExit):
        importlib.import_module(f"eval.{name}").main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: trivium {name} ")


def test_the_page_needs_no_other_file(run):
    page = (run / "report.html").read_text()
    sources = re.findall(r'src="([^"]+)"', page)
    assert len(sources) >= 5 and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    for source in sources:
        assert ET.fromstring(base64.b64decode(source.split(",")[1])).tag.endswith("svg")
    assert not re.search(r"https?://|<link|@import|<script", page)
    for title in ("Accuracy against length", "Loss by stage", "Router balance", "Loss by position", "unjudged"):
        assert (title in page) == (title != "unjudged")


def test_truncation_stands_at_the_top_of_the_page(asked):
    """A fifth of the answers cut off: said before the first table, with what accuracy could be."""
    rows = [
        sample(problem, verdict=Verdict.TRUNCATED if index % 5 == 0 else Verdict.CORRECT)
        for index, problem in enumerate(asked)
    ]
    report = scored(make_recipe(models=("a",)), asked, {"a": rows})
    page = render_page(report, [], {})
    warning = "20.0 % of answers were cut off at the limit; accuracy lies between 80.0 and 100.0 %"
    assert warning in page and page.index(warning) < page.index("<table")


def test_two_tasks_may_have_problems_of_one_id(asked):
    """As the same contest problems asked with and without a chain of thought."""
    twice = [problem.model_copy(update={"source": name}) for name in ("cot", "direct") for problem in asked[:40]]
    rows = [
        sample(problem, verdict=Verdict.CORRECT if problem.source == "cot" else Verdict.WRONG_ANSWER)
        for problem in twice
    ]
    tasks = {name: {"task": "gcd", "count": 40} for name in ("cot", "direct")}
    report = scored(make_recipe(models=("a",), tasks=tasks), twice, {"a": rows})
    found = report["models"]["a"]["tasks"]
    assert (found["cot"]["accuracy"]["value"], found["direct"]["accuracy"]["value"]) == (1.0, 0.0)
    assert report["models"]["a"]["macro"]["accuracy"]["value"] == 0.5


def test_figures_say_what_they_show(run, asked):
    report = json.loads((run / "report.json").read_text())
    needle = {"lengths": [256, 2048], "depths": [0.0, 1.0], "documents_per_cell": 1}
    grid = {"trained_length": 256, "shares": [[1.0, 0.5], [0.0, 0.0]], "by_length": [0.75, 0.0], "within": 0.75}
    report["needle"] = needle | {"models": {"a": grid, "b": grid | {"trained_length": 4096}}}
    collected = Collected.model_validate_json((run / "collected.json").read_bytes())
    drawings, again = draw_all(report, collected), draw_all(report, collected)
    assert [drawing.name for drawing in drawings] == [
        "accuracy_against_length",
        "length_histograms",
        "loss_curves",
        "router_balance",
        "needle_grid",
        "loss_by_position",
    ]
    for drawing, equal in zip(drawings, again, strict=True):
        assert drawing.title and drawing.caption.endswith(".")
        for axes in drawing.figure.axes:
            assert axes.get_ylabel() and (axes.get_xlabel() or axes.get_ylabel() == "held-out bits a byte")
        assert to_svg(drawing) == to_svg(equal)
    shown_grid = [text.get_text() for text in drawings[4].figure.axes[0].texts]
    assert shown_grid == ["100", "0", "50", "0"]  # rows are depths, columns lengths
    assert list(tables(report, 100))


def test_damage_is_named(run, capsys):
    judged = run / "samples" / "judged" / "a.jsonl"
    whole = judged.read_text()
    judged.write_text("".join(whole.splitlines(keepends=True)[:-1]))
    with pytest.raises(InputError, match="expected 80 rows; found 79"):
        main([str(run)])
    judged.write_text(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="line 4"):
        main([str(run)])
    judged.unlink()
    with pytest.raises(InputError, match=r"a\.jsonl"):
        main([str(run)])
    judged.write_text(whole)
    (run / "samples" / PLAN).write_text("{}")
    with pytest.raises(InputError, match="expected protocol and files"):
        main([str(run)])
    (run / "samples" / PLAN).unlink()
    with pytest.raises(InputError, match="expected what was asked"):
        main([str(run)])
    (run / "recipe.yaml").write_text("{stage: sft, name: x}")
    with pytest.raises(InputError, match="expected 'eval'"):
        main([str(run)])
    with pytest.raises(InputError, match=r"with recipe\.yaml"):
        main([str(run / "samples")])


def test_rows_of_another_time_are_refused(run, asked):
    """What was judged by other code, or asked otherwise, is no result of what the protocol says."""
    folder, judged = run / "samples", run / "samples" / "judged" / "a.jsonl"
    whole = judged.read_text()
    judged.write_text(whole.replace('"verdict_key":"', '"verdict_key":"0', 3))
    with pytest.raises(InputError, match="found 3 others: python -m eval judge"):
        main([str(run)])
    judged.write_text(whole.replace('"key":"', '"key":"0', 1))
    with pytest.raises(InputError, match="found rows of other problems"):
        main([str(run)])
    judged.write_text(whole)
    changed = asked[0].model_copy(update={"id": "another"})
    write_rows(folder / "problems.jsonl", [changed, *asked[1:]])
    with pytest.raises(InputError, match="expected the problems that were asked"):
        main([str(run)])


def test_the_protocol_is_of_the_day_it_was_judged(run, monkeypatch):
    """A task that judges otherwise by now changes neither the suite's sha256 nor a verdict."""
    before = json.loads((run / "report.json").read_text())
    monkeypatch.setattr("eval.tasks.task.JUDGE_VERSION", "another")
    assert main([str(run)]) == 0
    after = json.loads((run / "report.json").read_text())
    assert (after["protocol"], after["models"]) == (before["protocol"], before["models"])


def test_answers_without_lengths_are_no_point_of_the_front(asked):
    """The reference solutions would beat every model with no tokens at all."""
    given = {"a": rows_right(asked, 20), "b": rows_right(asked, 40, reasoning=0, answer=0)}
    report = scored(make_recipe(), asked, given)
    assert report["comparisons"][0]["macro"]["accuracy"]["value"] == -0.5
    assert [point["model"] for point in report["lengths"]["pareto"]["points"]] == ["a"]
    assert report["lengths"]["pairs"] == [] and list(report["lengths"]["models"]) == ["a"]


def test_what_the_length_report_looks_at_is_the_recipes(asked):
    lengths = {"budgets": [16, 33], "base": "b", "groups": 2}
    found = scored(make_recipe(lengths=lengths), asked, {"a": rows_right(asked, 20), "b": rows_right(asked, 10)})
    assert found["lengths"]["budgets"] == [16, 33]
    assert (found["lengths"]["quintiles"]["base"], found["lengths"]["quintiles"]["of"]) == ("b", 2)
    with pytest.raises(ValueError, match="'c' is no model that answers problems"):
        make_recipe(lengths={"base": "c"})


@pytest.mark.parametrize("content", ["", "{", "[]", '{"steps": 3}'])
def test_no_table_of_something_else(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(InputError):
        print_table(path)
    with pytest.raises(InputError):
        print_table(tmp_path / "missing.json")


def test_curves_are_thinned_and_torn_lines_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": i, "loss": i / 7, "seconds": 3, "reward": None if i else 1.0}) for i in range(1500)]
    path.write_text("\n".join(lines) + '\n{"step": 1500, "lo')
    curves = read_curves(path)
    assert set(curves) == {"loss", "reward"} and len(curves["loss"]) == MOST_POINTS
    assert curves["loss"][0] == (0, 0.0) and curves["loss"][-1] == (1499, 1499 / 7)
    assert curves["reward"] == [(0, 1.0)]
    with pytest.raises(InputError, match="no such file"):
        read_curves(tmp_path / "missing.jsonl")


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ({"after": {"short": {"bits_per_byte": 1.0}}}, "before"),
        ({"before": {"short": {"bits_per_byte": -1.0}}, "after": {"short": {"bits_per_byte": 1.0}}}, "before.short"),
        ({"before": {}, "after": {"short": {"bits_per_byte": 1.0}}}, "before.short"),
    ],
)
def test_losses_on_text_are_checked(tmp_path, report, message):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    with pytest.raises(InputError, match=message):
        read_text_report(path)


def test_stretches_and_losses_are_one_to_one(tmp_path):
    short = {"bits_per_byte": 1.0}
    for edges in ([0, 4], [0, 8, 4], [0, 4, 8, 12]):
        path = tmp_path / "report.json"
        losses = {"short": short, "long": {"edges": edges, "loss": [1.0, 2.0]}}
        path.write_text(json.dumps({"before": losses, "after": losses}))
        with pytest.raises(InputError, match="edges rise"):
            read_text_report(path)


def test_rounding():
    assert rounded({"a": [0.12345678, 1, None, "x", True], "b": (2.0,)}) == {
        "a": [0.123457, 1, None, "x", True],
        "b": [2.0],
    }
