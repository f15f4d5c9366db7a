"""`python -m eval score RUN`: report.json from the rows, without figures and page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from recipes.atomic import write_json


def main(arguments: Sequence[str]) -> int:
    """Score and print; the exit status."""
    from eval.report import REPORT, find_eval_runs, print_report, read_recipe, read_samples
    from eval.score import score

    parser = argparse.ArgumentParser(
        prog="python -m eval score",
        description="Make report.json of an eval run from its judged rows, and show its tables.",
    )
    parser.add_argument("run", type=Path, metavar="RUN", help="the folder of an eval run, or of a pipeline with one")
    for folder in find_eval_runs(parser.parse_args(list(arguments)).run):
        recipe = read_recipe(folder)
        report = score(recipe, read_samples(recipe, folder))
        write_json(folder / REPORT, report)
        print_report(report)
        print(f"scores: {folder / REPORT}")
    return 0
