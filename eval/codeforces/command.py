"""`python -m eval codeforces`: rating and percentile from saved contests and judged tries; `convert` makes contests."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from core_model.errors import InputError, disk_fault
from core_model.manifest import sha256_file
from eval.codeforces.contests import ContestFile, read_contests
from eval.codeforces.estimate import Options, estimate
from eval.codeforces.population import read_population
from eval.codeforces.scoring import Rules, TimeModel, read_results
from recipes.atomic import write_json
from recipes.stage_main import EXIT_BAD_INPUT

EPILOG = """\
examples:
  python -m eval codeforces --contests contests --results tries.jsonl --population users.json --json rating.json
  python -m eval codeforces convert standings.json rating_changes.json --out contests/1900.json

A row of --results, a judged try; samples of a problem in their order are the tries one after another:
  {"contest_id": 1900, "problem_index": "A", "sample": 0, "verdict": "WRONG_ANSWER"}
  {"contest_id": 1900, "problem_index": "A", "sample": 1, "verdict": "CORRECT", "minutes": 12}
minutes (from the contest's start) may be left out but with --time rows. Other keys are passed over.

--population: {"id": "codeforces-active", "date": "2024-11-01", "counts": {"1134": 210, "1135": 190}}, users by rating.
A file of --contests is described in docs/codeforces.md.

Ratings are in points of Codeforces, percentiles in % of users or competitors, times in minutes.

exit status: 0 done; 2 bad input (one message says which file and key; nothing was written).
"""
CONVERT_EPILOG = """\
example, with the responses fetched beforehand (nothing is fetched here):
  curl -o standings.json 'https://codeforces.com/api/contest.standings?contestId=1900&showUnofficial=false'
  curl -o rating_changes.json 'https://codeforces.com/api/contest.ratingChanges?contestId=1900'
  python -m eval codeforces convert standings.json rating_changes.json --out contests/1900.json

exit status: 0 done; 2 bad input (nothing was written).
"""


def main(arguments: Sequence[str]) -> int:
    """The command; returns the exit status."""
    convert = list(arguments[:1]) == ["convert"]
    try:
        return _convert(arguments[1:]) if convert else _estimate(arguments)
    except InputError as error:
        print(f"eval codeforces: {error}", file=sys.stderr)
    except OSError as error:
        if (fault := disk_fault(error)) is None:
            raise
        print(f"eval codeforces: {fault}", file=sys.stderr)
    return EXIT_BAD_INPUT


def _estimate(arguments: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    shuffles = options.shuffles
    if shuffles is None:
        shuffles = 0 if options.time == "rows" else 100
    elif shuffles and options.time == "rows":
        parser.error("--shuffles: tries with minutes of their own have one order; --time rows takes 0")
    chosen = Options(
        rules=Rules(options.tries, options.time),
        minimum_rows=options.minimum_rows,
        newcomers=options.newcomers,
        skip_unusable=options.skip_unusable,
        shuffles=shuffles,
        resamples=options.resamples,
        seed=options.seed,
        level=options.level,
    )
    contests = read_contests(options.contests)
    results = read_results(options.results, contests, options.time)
    population = None if options.population is None else read_population(options.population)
    inputs = [*(file.path for file in contests.values()), options.results, options.population]
    if options.json is not None:
        _refuse_input(options.json, inputs, "--json")
    report = estimate(contests, results, chosen, population, _sums(contests, results, options))
    from eval.codeforces.tables import print_report

    print_report(report)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.json, report.model_dump(mode="json"))
    return 0


def _sums(contests: Mapping[str, ContestFile], results: Collection[str], options: argparse.Namespace) -> dict[str, str]:
    """The sha256 of the files that the numbers come from, by path."""
    paths = [file.path for id, file in contests.items() if id in results] + [options.results]
    if options.population is not None:
        paths.append(options.population)
    return {path.as_posix(): sha256_file(path) for path in paths}


def _convert(arguments: Sequence[str]) -> int:
    from eval.codeforces.convert import read_api

    options = _convert_parser().parse_args(arguments)
    _refuse_input(options.out, [options.standings, options.rating_changes], "--out")
    contest, notes = read_api(options.standings, options.rating_changes)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.out, contest.model_dump(mode="json"))
    for note in notes:
        print(note)
    print(
        f"{options.out}: contest {contest.id}, {contest.date}, {contest.scoring}, {len(contest.problems)} problems, "
        f"{len(contest.official)} official rows, {len(contest.rating_changes)} rating changes"
    )
    return 0


def _refuse_input(out: Path, inputs: Sequence[Path | None], option: str) -> None:
    if any(path is not None and path.resolve() == out.resolve() for path in inputs):
        raise InputError(out, where=option, expected="a file of its own", found="one of the inputs")


# -- options -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval codeforces",
        description="Estimate a model's Codeforces rating and percentiles from saved contests and its judged tries.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    time = "when solved problems were solved: none (it does not matter, default), rows (their minutes), or a minute"
    shuffles = "orders of the samples that intervals draw from; 0: the given one (default 100; 0 with --time rows)"
    newcomers = "competitors with a rating of 0, which stands for none yet: keep (default) or drop"
    add("--contests", type=Path, required=True, metavar="FOLDER", help="contest files (*.json)")
    add("--results", type=Path, required=True, metavar="ROWS.jsonl", help="the model's tries (below)")
    add("--population", type=Path, metavar="FILE", help="users by rating, for a percentile among them (below)")
    add("--json", type=Path, metavar="OUT", help="write the report to this file")
    add("--tries", type=_at_least(1), default=8, metavar="N", help="tries of a problem that count (default 8)")
    add("--time", type=_time, default="none", metavar="MODEL", help=time)
    add("--minimum-rows", type=_at_least(1), default=200, metavar="N", help="official rated rows (default 200)")
    add("--newcomers", choices=("keep", "drop"), default="keep", help=newcomers)
    add("--skip-unusable", action="store_true", help="leave out contests that cannot be rated, instead of refusing")
    add("--shuffles", type=_at_least(0), metavar="N", help=shuffles)
    add("--resamples", type=_at_least(1), default=1000, metavar="N", help="of the bootstrap (default 1000)")
    add("--level", type=_level, default=0.95, metavar="P", help="of the intervals (default 0.95)")
    add("--seed", type=_at_least(0), default=0, metavar="N", help="of shuffles and bootstrap (default 0)")
    return parser


def _convert_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m eval codeforces convert",
        description="Turn two saved responses of Codeforces' API into a contest file.",
        epilog=CONVERT_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("standings", type=Path, metavar="STANDINGS.json", help="the response to contest.standings, all rows of it")
    add("rating_changes", type=Path, metavar="RATING_CHANGES.json", help="the response to contest.ratingChanges")
    add("--out", type=Path, required=True, metavar="FILE", help="the contest file")
    return parser


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{least} or more is expected, not {text}")
        return value

    parse.__name__ = "whole number"  # what argparse calls a text that is none
    return parse


def _time(text: str) -> TimeModel:
    if text == "none":
        return "none"
    if text == "rows":
        return "rows"
    try:
        minutes = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"none, rows or a number of minutes is expected, not {text}") from None
    if not 0 <= minutes < float("inf"):
        raise argparse.ArgumentTypeError(f"minutes from the start, 0 or more, are expected, not {text}")
    return minutes


def _level(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"a share between 0 and 1 is expected, not {text}")
    return value
