"""The report of an evaluation: report.json, report.html with its figures, and the tables on the terminal.

Everything is made from the run folder's rows, so that `trivium report RUN` can make it again at any time.
"""

from __future__ import annotations

import argparse
import base64
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

TEMPLATES = Path(__file__).with_name("templates")
REPORT, PAGE, FIGURES = "report.json", "report.html", "figures"


def main(arguments: Sequence[str]) -> int:
    """`trivium report RUN`: make the report of an eval run again from its rows, and show it."""
    parser = argparse.ArgumentParser(
        prog="trivium report",
        description="Make the report of an evaluation (report.json, report.html, figures/) again from its rows.",
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
    from eval.score import score

    collected = read_collected(folder / "collected.json")
    report = score(recipe, read_samples(recipe, folder))
    write_json(folder / REPORT, report)
    drawings = draw_all(report, collected)
    (folder / FIGURES).mkdir(exist_ok=True)
    pictures = {drawing.name: to_svg(drawing) for drawing in drawings}
    for name, svg in pictures.items():
        write_text(folder / FIGURES / f"{name}.svg", svg)
    write_text(folder / PAGE, render_page(report, drawings, pictures))
    return report


def read_samples(recipe: Recipe, folder: Path) -> Samples:
    """The rows of an eval run.

    Raises:
        InputError: a file is missing, damaged, or has not all its rows.
    """
    from eval.collect import read_collected
    from eval.needle_grid import NeedleRow
    from eval.score import Samples
    from recipes.rows import JudgedSample, Problem, read_rows

    rows = folder / "samples"
    collected = read_collected(folder / "collected.json")
    problems = list(read_rows(rows / "problems.jsonl", Problem))
    answering = [name for name, entry in recipe.models.items() if entry.problems and problems]
    walking = [name for name, entry in recipe.models.items() if entry.needle]
    grid = recipe.needle
    samples = Samples(
        problems=problems,
        judged={name: list(read_rows(rows / "judged" / f"{name}.jsonl", JudgedSample)) for name in answering},
        needle={name: list(read_rows(rows / "needle" / f"{name}.jsonl", NeedleRow)) for name in walking},
        trained=collected.trained,
        text=collected.text,
    )
    wanted = len(problems) * recipe.sampling.samples
    for name, judged in samples.judged.items():
        _check_count(rows / "judged" / f"{name}.jsonl", wanted, len(judged))
    for name, needles in samples.needle.items():
        cells = len(grid.lengths) * len(grid.depths) * len(grid.seeds)
        _check_count(rows / "needle" / f"{name}.jsonl", cells, len(needles))
    return samples


def _check_count(path: Path, wanted: int, found: int) -> None:
    if found != wanted:
        raise InputError(
            path, expected=f"{wanted} rows", found=f"{found}: the run is not complete, its command resumes"
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
        known = isinstance(report, dict) and {"models", "families", "comparisons"} <= report.keys()
    except ValueError as error:
        raise InputError(path, expected="JSON", found=str(error)) from error
    if not known:
        raise InputError(path, expected="a report of the eval stage", found="another file")
    print_report(report)


def print_report(report: dict[str, Any]) -> None:
    """Print a report's tables, as wide as the terminal or 120 columns elsewhere."""
    from eval.tables import print_tables

    print_tables(report)
