"""The eval stage: generate -> judge -> needle grid -> report. Killed anywhere, it goes on to the same files.

samples/problems.jsonl          the held-out problems (Problem)
samples/generated/<model>.jsonl, samples/judged/<model>.jsonl       Generation, JudgedSample
samples/needle/<model>.jsonl    NeedleRow
collected.json                  what other stages measured: curves, losses on text
report.json, report.html, figures/      all made from the files above; `trivium report RUN` makes them again
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.collect import collect
from eval.generate import Request, Subject, Work, build_requests, generate
from eval.judge.shared import use_judge
from eval.judging import judge
from eval.needle_grid import Cell, build_cells, read_filler, walk_grid
from eval.recipe import Recipe
from eval.report import print_report, write_report
from eval.tasks import get_family, problems
from recipes.atomic import write_json
from recipes.progress import Bar, progress_bar
from recipes.rows import Generation, Problem, write_rows
from recipes.run import Run


def run_stage(recipe: Recipe, run: Run) -> dict[str, Any]:
    """Evaluate as the recipe says.

    Returns:
        The summary: macro accuracy and mean length of every model.

    Raises:
        InputError: a model, the filler or a stage's report is missing or damaged, or a prompt is too long for a model.
    """
    use_judge(recipe.judge, needed="code" in recipe.problems.families)
    # First what needs no work: a missing file should not be found out after an hour.
    asked, collected = draw_problems(recipe), collect(recipe)
    subjects = {name: Subject(name, entry.path) for name, entry in recipe.models.items()}
    grids = draw_grids(recipe, subjects)
    write_rows(run.path / "samples" / "problems.jsonl", asked)
    write_json(run.path / "collected.json", collected.model_dump(mode="json"))

    answer_problems(recipe, run, subjects, asked)
    walk_grids(recipe, run, subjects, grids)
    report = write_report(recipe, run.path)
    if recipe.group is None:  # a pipeline prints it itself, after its last stage
        print_report(report)
    summary = _summary(report)
    run.rewind(-1)
    for step, (name, row) in enumerate(summary["models"].items()):
        run.log(step, {f"{name}/{key}": value for key, value in row.items() if value is not None})
    return summary


def draw_problems(recipe: Recipe) -> list[Problem]:
    """The held-out problems of all families.

    Raises:
        InputError: a family has not as many.
    """
    chosen = recipe.problems
    return [
        problem
        for name, count in chosen.families.items()
        for problem in problems(get_family(name, seed=chosen.seed), chosen.split, count, chosen.start)
    ]


def answer_problems(recipe: Recipe, run: Run, subjects: Mapping[str, Subject], asked: Sequence[Problem]) -> None:
    """Have every model answer, then judge all answers."""
    answering = [name for name, entry in recipe.models.items() if entry.problems and asked]
    if not answering:
        return
    total = len(answering) * len(asked) * recipe.sampling.samples
    generated: dict[str, list[list[Generation]]] = {}
    with progress_bar(total, "answer", unit="answers") as bar:
        for name in answering:
            generated[name] = _generate(recipe, run, subjects[name], asked, bar)
            subjects[name].release()
    by_id = {problem.id: problem for problem in asked}
    with progress_bar(total, "judge", unit="answers") as bar:
        for name in answering:
            judge(run.path / "samples" / "judged" / f"{name}.jsonl", by_id, generated[name], bar)


def _generate(recipe: Recipe, run: Run, subject: Subject, asked: Sequence[Problem], bar: Bar) -> list[list[Generation]]:
    """The model's rows in blocks."""
    requests: list[Request] = build_requests(subject, recipe.models[subject.name].mode, recipe, asked)
    path = run.path / "samples" / "generated" / f"{subject.name}.jsonl"
    work = Work.open(path, requests, recipe.chunk)
    bar.advance(len(work.journal.rows))
    rows = generate(subject, recipe, work, bar)
    size = recipe.chunk * recipe.sampling.samples
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def draw_grids(recipe: Recipe, subjects: Mapping[str, Subject]) -> dict[str, list[Cell]]:
    """The needle grid's documents of every model that walks it, in its tokens.

    Raises:
        InputError: no filler, or a length too small for a needle.
    """
    grid = recipe.needle
    filler = read_filler(grid.filler, grid.filler_mb) if grid.filler is not None else []
    walking = [name for name, entry in recipe.models.items() if entry.needle]
    return {name: build_cells(grid, subjects[name].tokenizer, filler) for name in walking}


def walk_grids(recipe: Recipe, run: Run, subjects: Mapping[str, Subject], grids: Mapping[str, Sequence[Cell]]) -> None:
    """Have the chosen models walk the needle grid."""
    if not grids:
        return
    with progress_bar(sum(map(len, grids.values())), "needles", unit="needles") as bar:
        for name, cells in grids.items():
            walk_grid(subjects[name], recipe, run.path / "samples" / "needle" / f"{name}.jsonl", cells, bar)
            subjects[name].release()


def _summary(report: dict[str, Any]) -> dict[str, Any]:
    models = {}
    for name, row in report["models"].items():
        macro = row.get("macro")
        if macro is not None:
            models[name] = {"accuracy": macro["accuracy"]["value"], "mean_tokens": macro["mean_tokens"]["value"]}
        needle = (report["needle"] or {"models": {}})["models"].get(name)
        if needle is not None:
            models[name] = models.get(name, {}) | {"needle_within": needle["within"]}
    return {"models": models}
