"""The report of an evaluation: report.json, report.html with its figures, and the tables on the terminal.

Everything is made from the run folder's rows, so that `trivium report RUN` can make it again at any time.
"""

from __future__ import annotations

import argparse
import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_model.errors import InputError
from recipes.atomic import write_json, write_text

if TYPE_CHECKING:
    from eval.figures import Drawing
    from eval.recipe import Recipe
    from eval.score import Samples
    from recipes.rows import Condition

TEMPLATES = Path(__file__).with_name("templates")
REPORT, PAGE, FIGURES, TABLES = "report.json", "report.html", "figures", "tables"


def main(arguments: Sequence[str], prog: str = "trivium report") -> int:
    """Make the report of an eval run again from its rows, and show it.

    Args:
        prog: what the command is called as.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Make the report of an evaluation (report.json, report.html, figures/, tables/) again from its "
        "rows, in place of what is there, and print its tables.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of an eval run, or of a pipeline with one")
    for folder in find_eval_runs(parser.parse_args(list(arguments)).run):
        report = write_report(read_recipe(folder), folder)
        print_report(report)
        print(f"report: {folder / PAGE}")
    return 0


def find_eval_runs(folder: Path) -> list[Path]:
    """The eval run's folder: the one given, or in a pipeline's folder those its tables come from.

    Raises:
        InputError: neither.
    """
    found = [folder]
    pipeline = folder / "pipeline.yaml"
    if pipeline.is_file():
        from recipes.loader import read_yaml

        listed = read_yaml(pipeline)[0].get("tables")
        if not isinstance(listed, list) or not listed or not all(isinstance(table, str) for table in listed):
            raise InputError(pipeline, where="tables", expected="a list of <stage id>/report.json", found=repr(listed))
        found = [folder / Path(table).parent for table in listed]
    for run in found:
        if not (run / "recipe.yaml").is_file():
            raise InputError(run, expected="the folder of an eval run (with recipe.yaml)", found="none")
    return found


def read_recipe(folder: Path) -> Recipe:
    """The recipe of an eval run.

    Raises:
        InputError: it is another stage's run.
    """
    from eval.recipe import Recipe
    from recipes.loader import load_recipe, read_yaml

    path = folder / "recipe.yaml"
    stage = read_yaml(path)[0].get("stage")
    if stage != "eval":
        raise InputError(path, where="stage", expected="'eval'", found=repr(stage))
    recipe: Recipe = load_recipe(path, [], Recipe)
    return recipe


def write_report(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Score the rows in `folder` and write report.json, report.html and figures/.

    Raises:
        InputError: rows are missing or damaged.
    """
    from eval.collect import read_collected
    from eval.figures import draw_all, to_svg
    from eval.figures_lengths import draw as draw_lengths
    from eval.lengths.tables import csv_tables
    from eval.score import score

    collected = read_collected(folder / "collected.json")
    report = score(recipe, read_samples(recipe, folder))
    write_json(folder / REPORT, report)
    for name in (FIGURES, TABLES):
        (folder / name).mkdir(exist_ok=True)
    drawings = draw_all(report, collected)
    if report["lengths"] is not None:
        drawings += draw_lengths(report["lengths"])
        for name, rows in csv_tables(report["lengths"]).items():
            write_text(folder / TABLES / name, csv_text(rows))
    for name, grid in (report["needle"] or {"models": {}})["models"].items():
        write_text(folder / TABLES / f"needle_{name}.csv", grid_csv(grid, recipe))
    pictures = {drawing.name: to_svg(drawing) for drawing in drawings}
    for name, svg in pictures.items():
        write_text(folder / FIGURES / f"{name}.svg", svg)
    write_text(folder / PAGE, render_page(report, drawings, pictures))
    return report


def csv_text(rows: Sequence[Sequence[object]]) -> str:
    """Rows as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def grid_csv(grid: dict[str, Any], recipe: Recipe) -> str:
    """One model's needle grid as CSV: a row for each cell."""
    from eval.needle_grid import grid_rows

    rows = grid_rows(grid, recipe.needle)
    return csv_text([list(rows[0]), *(list(row.values()) for row in rows)])


def read_samples(recipe: Recipe, folder: Path) -> Samples:
    """The rows of an eval run.

    Raises:
        InputError: a file is missing or damaged, or its rows are not those that the run asked for last.
    """
    from eval.collect import read_collected
    from eval.generate import budgeted_problems, part_name, read_seconds
    from eval.likelihood import ChoiceRow, TextRow
    from eval.needle_grid import NeedleRow
    from eval.plan import problems_sha256, read_plan
    from eval.score import Samples
    from eval.subjects.subject import FREE
    from recipes.rows import JudgedSample, Problem, read_rows

    rows = folder / "samples"
    plan = read_plan(rows)
    collected = read_collected(folder / "collected.json")
    problems = list(read_rows(rows / "problems.jsonl", Problem))
    if problems_sha256(problems) != plan.protocol["problems_sha256"]:
        raise InputError(rows / "problems.jsonl", expected="the problems that were asked", found="others")
    kinds = {
        kind: [one for one in problems if recipe.tasks[one.source].kind == kind] for kind in ("answers", "choices")
    }
    answering = [name for name, entry in recipe.models.items() if entry.problems]

    def made(file: str, row: type[Any]) -> list[Any]:
        found = list(read_rows(rows / file, row))
        plan.check(rows, file, [one.key for one in found])
        return found

    def judged(name: str, condition: Condition) -> list[JudgedSample]:
        file = f"judged/{part_name(name, condition)}.jsonl"
        found: list[JudgedSample] = made(file, JudgedSample)
        stale = [row for row in found if row.verdict_key != plan.verdict_key(row.key, row.task)]
        if stale:
            expected = "verdicts by the tasks as they were when the run was last begun"
            raise InputError(rows / file, expected=expected, found=f"{len(stale)} others: python -m eval judge")
        asked = written if condition == FREE else few
        place = {(one.source, one.id): index for index, one in enumerate(asked)}
        return sorted(found, key=lambda row: (place[row.task, row.problem_id], row.index))

    written = kinds["answers"]
    few = budgeted_problems(recipe, written)
    texts = len(problems) - sum(map(len, kinds.values()))
    return Samples(
        problems=problems,
        judged={name: judged(name, FREE) for name in answering if written},
        protocol=plan.protocol,
        budgeted={
            name: {each.id: judged(name, each) for each in recipe.budgets.conditions}
            for name in answering
            if written and recipe.models[name].budgets
        },
        seconds=read_seconds(rows / "seconds.jsonl"),
        choices={name: made(f"choices/{name}.jsonl", ChoiceRow) for name in answering if kinds["choices"]},
        texts={name: made(f"texts/{name}.jsonl", TextRow) for name in answering if texts},
        needle={name: made(f"needle/{name}.jsonl", NeedleRow) for name, entry in recipe.models.items() if entry.needle},
        trained=collected.trained,
        text=collected.text,
    )


def render_page(report: dict[str, Any], drawings: Sequence[Drawing], pictures: dict[str, str]) -> str:
    """report.html: one file that needs no other."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    from eval.tables import cell, interval_text

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"percent": cell, "interval": interval_text}
    figures = [
        {
            "title": drawing.title,
            "caption": drawing.caption,
            # As an image of its own: the ids inside one SVG must not meet those of another.
            "data": base64.b64encode(pictures[drawing.name].encode()).decode(),
        }
        for drawing in drawings
    ]
    return environment.get_template("report.html.jinja").render(report=report, figures=figures)


def print_table(path: Path) -> None:
    """Print the tables of a report.json.

    Raises:
        InputError: no report there.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(path, expected="a report of the eval stage", found="no such file")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        known = isinstance(report, dict) and {"models", "tasks", "comparisons"} <= report.keys()
    except ValueError as error:
        raise InputError(path, expected="JSON", found=str(error)) from error
    if not known:
        raise InputError(path, expected="a report of the eval stage", found="another file")
    print_report(report)


def print_report(report: dict[str, Any]) -> None:
    """Print a report's tables, as wide as the terminal or 120 columns elsewhere."""
    from eval.tables import print_tables

    print_tables(report)
