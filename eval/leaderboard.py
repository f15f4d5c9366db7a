"""`trivium leaderboard RUNS`: models of several eval runs side by side, where their numbers can be put side by side.

Two runs are comparable when they share the suite's sha256 (the same problems, prompts, verifiers, sampling and
budgets). Each suite has a table of its own; nothing is ranked across suites.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as html_escape
from pathlib import Path
from typing import Any

from core_model.errors import InputError
from recipes.atomic import write_json, write_text

EPILOG = """\
examples:
  trivium leaderboard runs/nano/eval runs/other/eval
  trivium leaderboard runs/*/eval --markdown LEADERBOARD.md --html leaderboard.html

rank: by mean accuracy over tasks, shorter answers first where that is equal. "could be": the ranks that the intervals
leave open: how many models are surely better, and how many surely worse.
"""
HEADINGS = ("rank", "could be", "model", "run", "accuracy %", "interval", "cut %", "mean tokens", "tokens per right")


@dataclass(frozen=True)
class Entry:
    """One model of one run. Shares are 0 to 1, lengths in tokens."""

    run: str
    model: str
    suite: str
    accuracy: float
    low: float
    high: float
    truncated: float
    mean_tokens: float
    tokens_per_correct: float | None
    left_out: int
    tasks: dict[str, float]


@dataclass(frozen=True)
class Ranked:
    """An entry with its rank, the best and the worst that its interval leaves open."""

    entry: Entry
    rank: int
    best: int
    worst: int


def main(arguments: Sequence[str], prog: str = "trivium leaderboard") -> int:
    """Show the leaderboard; the exit status.

    Args:
        prog: what the command is called as.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Rank the models of eval runs; runs of different suites get tables of their own.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="an eval run's folder, or a pipeline's")
    parser.add_argument("--suite", metavar="SHA256", help="only the suite whose sha256 begins so")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables as Markdown")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write them as a page")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write them as JSON")
    options = parser.parse_args(list(arguments))
    suites = rank(read_entries(options.runs))
    if options.suite is not None:
        suites = {suite: rows for suite, rows in suites.items() if suite.startswith(options.suite)}
        if not suites:
            raise InputError("--suite", expected="the beginning of a suite's sha256", found=options.suite)
    _print(suites)
    if options.markdown is not None:
        write_text(options.markdown, markdown(suites))
    if options.html is not None:
        write_text(options.html, page(suites))
    if options.json is not None:
        write_json(options.json, as_json(suites))
    return 0


def read_entries(folders: Sequence[Path]) -> list[Entry]:
    """Every model with an accuracy in the reports of these runs; reference solutions do not compete.

    Raises:
        InputError: a folder without an evaluation's report, or with an older one; no model in any.
    """
    from eval.report import find_eval_runs

    entries = []
    for folder in dict.fromkeys(run for given in folders for run in find_eval_runs(given)):
        path = folder / "report.json"
        if not path.is_file():
            raise InputError(path, expected="a report of the eval stage", found="no such file; its run is not complete")
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
            rows = [row for row in report["models"].values() if row["kind"] != "canonical"]
            entries += [_entry(folder, report, row) for row in rows if row.get("macro")]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            found = f"another ({error!r}); `trivium report {folder}` writes it anew"
            raise InputError(path, expected="a report of the eval stage", found=found) from error
    if not entries:
        raise InputError(", ".join(map(str, folders)), expected="a model that answered problems", found="none")
    return entries


def _entry(folder: Path, report: dict[str, Any], row: dict[str, Any]) -> Entry:
    accuracy = row["macro"]["accuracy"]
    return Entry(
        run=str(folder),
        model=row["label"],
        suite=report["protocol"]["suite_sha256"],
        accuracy=accuracy["value"],
        low=accuracy["low"],
        high=accuracy["high"],
        truncated=row["all"]["truncated"],
        mean_tokens=row["macro"]["mean_tokens"]["value"],
        tokens_per_correct=row["all"]["tokens_per_correct"],
        left_out=row["all"]["left_out"],
        tasks={name: task["accuracy"]["value"] for name, task in row["tasks"].items() if "accuracy" in task},
    )


def rank(entries: Sequence[Entry]) -> dict[str, list[Ranked]]:
    """The entries of each suite, best first; the largest suite first."""
    suites: dict[str, list[Entry]] = {}
    for entry in entries:
        suites.setdefault(entry.suite, []).append(entry)
    ordered = sorted(suites.items(), key=lambda item: (-len(item[1]), item[0]))
    return {suite: _ranked(some) for suite, some in ordered}


def _ranked(entries: Sequence[Entry]) -> list[Ranked]:
    ordered = sorted(entries, key=lambda one: (-one.accuracy, one.mean_tokens, one.run, one.model))
    found: list[Ranked] = []
    for place, entry in enumerate(ordered, 1):
        same = bool(found) and (found[-1].entry.accuracy, found[-1].entry.mean_tokens) == (
            entry.accuracy,
            entry.mean_tokens,
        )
        better = sum(other.low > entry.high for other in ordered)
        worse = sum(other.high < entry.low for other in ordered)
        found.append(Ranked(entry, found[-1].rank if same else place, better + 1, len(ordered) - worse))
    return found


def _cells(one: Ranked) -> list[str]:
    entry = one.entry
    per_right = "-" if entry.tokens_per_correct is None else f"{entry.tokens_per_correct:.1f}"
    return [
        str(one.rank),
        str(one.best) if one.best == one.worst else f"{one.best}-{one.worst}",
        entry.model + (f" ({entry.left_out} not judged)" if entry.left_out else ""),
        entry.run,
        f"{100 * entry.accuracy:.1f}",
        f"[{100 * entry.low:.1f}, {100 * entry.high:.1f}]",
        f"{100 * entry.truncated:.1f}",
        f"{entry.mean_tokens:.1f}",
        per_right,
    ]


def table(rows: Sequence[Ranked]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells, every task a column at the end."""
    tasks = list(dict.fromkeys(name for one in rows for name in one.entry.tasks))
    shares = [
        [f"{100 * one.entry.tasks[name]:.1f}" if name in one.entry.tasks else "-" for name in tasks] for one in rows
    ]
    return [*HEADINGS, *tasks], [[*_cells(one), *more] for one, more in zip(rows, shares, strict=True)]


def _print(suites: dict[str, list[Ranked]]) -> None:
    from rich import box
    from rich.markup import escape
    from rich.measure import Measurement
    from rich.table import Table

    from eval.tables import default_console

    console = default_console()
    for suite, rows in suites.items():
        headings, cells = table(rows)
        # Tasks' columns where there is room; files have them always.
        for count in (len(headings), len(HEADINGS)):
            shown = Table(title=f"Suite {suite[:12]}", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
            for heading in headings[:count]:
                words = heading in ("model", "run")
                lines = heading.replace("_", "\n").replace(" ", "\n")
                shown.add_column(
                    escape(lines), justify="left" if words else "right", overflow="fold", no_wrap=not words
                )
            for line in cells:
                shown.add_row(*map(escape, line[:count]))
            if Measurement.get(console, console.options.update(max_width=10_000), shown).maximum <= console.width:
                break
        console.print(shown)
    if len(suites) > 1:
        console.print(f"{len(suites)} suites: other problems, prompts or sampling; not ranked against each other")


def markdown(suites: dict[str, list[Ranked]]) -> str:
    """The tables as Markdown."""
    parts = ["# Leaderboard\n"]
    for suite, rows in suites.items():
        headings, cells = table(rows)
        lines = [headings, ["---"] * len(headings), *cells]
        body = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
        parts.append(f"## Suite {suite[:12]}\n\n{body}\n")
    return "\n".join(parts)


def page(suites: dict[str, list[Ranked]]) -> str:
    """The tables as one HTML file that needs no other."""
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;margin:2rem;color:#222}table{border-collapse:collapse}"
        "th,td{padding:.3rem .6rem;border-bottom:1px solid #e4e4e4;text-align:right;font-variant-numeric:tabular-nums}"
        "td:nth-child(3),td:nth-child(4),th:nth-child(3),th:nth-child(4){text-align:left}"
    )
    parts = []
    for suite, rows in suites.items():
        headings, cells = table(rows)
        head = "".join(f"<th>{html_escape(heading)}</th>" for heading in headings)
        body = "".join("<tr>" + "".join(f"<td>{html_escape(cell)}</td>" for cell in line) + "</tr>\n" for line in cells)
        parts.append(f"<h2>Suite {html_escape(suite[:12])}</h2>\n<table>\n<tr>{head}</tr>\n{body}</table>\n")
    title = "<title>Leaderboard</title>"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">{title}<style>{style}</style></head>\n'
        f"<body>\n<h1>Leaderboard</h1>\n{''.join(parts)}</body></html>\n"
    )


def as_json(suites: dict[str, list[Ranked]]) -> dict[str, Any]:
    """Everything the tables show."""
    return {
        suite: [{"rank": one.rank, "best": one.best, "worst": one.worst} | vars(one.entry) for one in rows]
        for suite, rows in suites.items()
    }
