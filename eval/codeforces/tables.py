"""The report on the terminal: a line for each contest, then rating and percentiles."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from eval.codeforces.estimate import CodeforcesReport, Estimate
from eval.tables import default_console

CLAMPED_NOTE = {"first": "at least", "last": "at most"}


def print_report(report: CodeforcesReport, console: Console | None = None) -> None:
    """Print the tables and all that a reader of the numbers has to know beside them."""
    console = console or default_console()
    console.print(contest_table(report))
    console.print(summary_table(report))
    for line in notes(report):
        console.print(escape(line))


def contest_table(report: CodeforcesReport) -> Table:
    """A line for each contest."""
    table = Table(title="Contests", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for heading in ("contest", "day"):
        table.add_column(heading)
    for heading in ("competitors", "solved", "points", "penalty", "rank", "rating", "beaten %"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.contests:
        rating = f"{row.rating:.0f}" if row.clamped is None else f"{CLAMPED_NOTE[row.clamped]} {row.rating:.0f}"
        table.add_row(
            escape(f"{row.id} {row.name}"),
            row.date,
            f"{row.competitors:,}",
            f"{row.solved}/{row.problems}",
            f"{row.points:g}",
            f"{row.penalty:g}" if row.scoring == "icpc" else "-",
            f"{row.rank:,.1f}",
            rating,
            f"{100 * row.beaten:.1f}",
        )
    return table


def summary_table(report: CodeforcesReport) -> Table:
    """Rating and percentiles with their intervals."""
    level = 100 * report.protocol.level
    table = Table(title="Rating and percentiles", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.add_column("quantity")
    table.add_column("value", justify="right")
    table.add_column(f"{level:g} % interval", justify="right")
    rating = report.rating
    table.add_row("rating, contests pooled", *_cells(rating.pooled, 1, 0, rating.clamped))
    table.add_row("rating, mean over contests", *_cells(rating.contest_mean, 1, 0))
    table.add_row("competitors beaten in contests, %", *_cells(report.beaten, 100, 1))
    if population := report.population:
        name = escape(f"{population.id}, {population.date}, {population.users:,} users")
        table.add_row(f"percentile of the pooled rating ({name})", *_cells(population.pooled, 100, 1))
        table.add_row("percentile of the mean rating (the same)", *_cells(population.contest_mean, 100, 1))
    return table


def _cells(found: Estimate, times: float, digits: int, clamped: str | None = None) -> tuple[str, str]:
    value = f"{times * found.value:.{digits}f}"
    if clamped is not None:
        value = f"{CLAMPED_NOTE[clamped]} {value}"
    if found.low is None or found.high is None:
        return value, "-"
    return value, f"[{times * found.low:.{digits}f}, {times * found.high:.{digits}f}]"


def notes(report: CodeforcesReport) -> Iterator[str]:
    """What qualifies the numbers, a line each."""
    rating, rows = report.rating, report.contests
    if len(rows) == 1:
        yield "One contest: there is nothing to draw an interval from."
    if rating.clamped_contests:
        yield (
            f"{rating.clamped_contests} of {len(rows)} contests ended at the first or last rank: their ratings are "
            "bounds, and so is the mean."
        )
    if rating.clamped_resamples:
        yield f"{rating.clamped_resamples:.1%} of the resamples are at the first or last rank: the interval is a bound."
    if lost := sum(row.tries_left_out for row in rows):
        yield f"{lost} tries could not be judged and are left out."
    if without := [f"{row.id} {', '.join(row.without_tries)}" for row in rows if row.without_tries]:
        yield f"No tries, taken as not solved: {'; '.join(without)}"
    if new := sum(row.newcomers for row in rows):
        what = "are compared with as if that were a rating" if report.protocol.newcomers == "keep" else "are left out"
        yield f"{new} competitors had a rating of 0 (new accounts); they {what}."
    if unmatched := sum(row.unmatched for row in rows):
        yield f"{unmatched} official rows have no known rating and are left out."
    if report.not_attempted:
        yield f"{len(report.not_attempted)} contests of the folder have no results and are left out."
    for one in report.skipped:
        yield f"Skipped contest {one.id}: {one.reason}"
