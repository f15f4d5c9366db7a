"""The report's tables on the terminal: stages by accuracy and length, paired differences, needles, text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table

WIDTH = 120  # columns where there is no terminal to ask
NARROWEST = 80
FIRST_COLUMN = 18  # widest column of names; longer ones are folded

Report = Mapping[str, Any]


def print_tables(report: Report, console: Console | None = None) -> None:
    """Print all tables of a report."""
    console = console or default_console()
    for table in tables(report, console.width):
        console.print(table)


def default_console() -> Console:
    """As wide as the terminal; elsewhere `WIDTH`, so that logs and pipes show the same everywhere."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def tables(report: Report, width: int) -> Iterator[Table]:
    """The tables, none wider than `width` (80 at least)."""
    width = max(width, NARROWEST)
    if any(row.get("macro") for row in report["models"].values()):
        yield from accuracy_tables(report, width)
    if report["comparisons"]:
        yield from difference_tables(report, width)
    if report.get("choices"):
        yield choice_table(report)
    if report.get("texts"):
        yield running_text_table(report)
    if report["needle"]:
        yield needle_table(report)
    if report["text"]:
        yield text_table(report)


def accuracy_tables(report: Report, width: int) -> list[Table]:
    """Stage x accuracy x length; tasks that do not fit beside the summary follow in tables of their own."""
    level = 100 * report["protocol"]["statistics"]["level"]
    samples = report["protocol"]["sampling"]["samples"]
    counts = sorted({task["problems"] for task in report["tasks"].values()})
    per_task = str(counts[0]) if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    title = f"Accuracy in %, {per_task} problems a task, {_times(samples, 'answer')} each"

    def build(tasks: Sequence[str], first: bool, gap: int) -> Table:
        table = _table(title if first else "Accuracy in %, continued", "stage", tasks, gap)
        constants = [cell(report["tasks"][task]["best_constant"]["accuracy"]) for task in tasks]
        summary = ["mean", f"{level:g} % interval", "mean\ntokens", "p90\ntokens", "cut\n%"] if first else []
        _add_columns(table, summary)
        constants += [cell(report["best_constant"]), *[""] * (len(summary) - 1)] if first else []
        table.add_row("best constant", *constants, style="dim", end_section=True)
        for row in report["models"].values():
            if row.get("macro"):
                cells = [_task_cell(row, task) for task in tasks]
                table.add_row(escape(row["label"]), *cells, *(_summary_cells(row) if first else []))
        table.caption = _left_out(report) if first else None
        return table

    return _fitting(build, list(report["tasks"]), width)


def difference_tables(report: Report, width: int) -> list[Table]:
    """Paired differences in points, with the interval of their mean over tasks."""
    level = 100 * report["protocol"]["statistics"]["level"]

    def build(tasks: Sequence[str], first: bool, gap: int) -> Table:
        title = "Paired differences in points, same problems" + ("" if first else ", continued")
        table = _table(title, "stage over baseline", tasks, gap)
        _add_columns(table, ["mean", f"{level:g} % interval", "p", "length\nratio"] if first else [])
        for pair in report["comparisons"]:
            better, baseline = (report["models"][pair[side]]["label"] for side in ("better", "baseline"))
            cells = [_difference(pair["tasks"].get(task)) for task in tasks]
            rest = _paired_cells(pair["macro"]) if first else []
            table.add_row(escape(f"{better} over {baseline}"), *cells, *rest)
        return table

    return _fitting(build, list(report["tasks"]), width)


def choice_table(report: Report) -> Table:
    """Multiple choice by log-likelihood."""
    table = _table("Multiple choice in %, by log-likelihood", "stage", ["task", "problems", "accuracy", "interval"])
    _add_columns(table, ["by byte", "interval"])
    for name, found in report["choices"].items():
        for task, row in found["tasks"].items():
            cells = [task, str(row["problems"])]
            for key in ("accuracy", "accuracy_norm"):
                cells += [cell(row[key]["value"]), interval_text(row[key])]
            table.add_row(escape(report["models"][name]["label"]), *map(escape, cells))
    return table


def running_text_table(report: Report) -> Table:
    """Bits per byte of running text."""
    table = _table("Running text", "stage", ["task", "bits a byte", "interval", "words' perplexity"])
    for name, found in report["texts"].items():
        for task, row in found["tasks"].items():
            bits, words = row["bits_per_byte"], row["word_perplexity"]
            span = f"[{bits['low']:.4f}, {bits['high']:.4f}]"
            perplexity = "-" if words is None else f"{words:.4g}"
            cells = [task, f"{bits['value']:.4f}", span, perplexity]
            table.add_row(escape(report["models"][name]["label"]), *map(escape, cells))
    return table


def needle_table(report: Report) -> Table:
    """Right answers by context length, and within the trained length."""
    needle = report["needle"]
    columns = [f"{length:,}" for length in needle["lengths"]]
    table = _table("Needles found in %, by context in tokens (all depths)", "stage", columns)
    table.add_column("trained to", justify="right")
    table.add_column("within", justify="right")
    for name, grid in needle["models"].items():
        shares = [cell(share) for share in grid["by_length"]]
        label = escape(report["models"][name]["label"])
        table.add_row(label, *shares, f"{grid['trained_length']:,}", cell(grid["within"]))
    return table


def text_table(report: Report) -> Table:
    """Bits per byte on short text, and the loss early and late in long documents."""
    table = _table("Held-out text", "stage", ["bits a byte,\nshort text", "relative\nto first"])
    _add_columns(table, ["loss early in\nlong documents", "loss late in\nlong documents", "late, before\nthe stage"])
    for name, row in report["text"].items():
        relative = "-" if row["relative"] is None else f"{row['relative']:.3f}"
        label = escape(report["models"][name]["label"])
        table.add_row(label, f"{row['bits_per_byte']:.3f}", relative, *_long_cells(row["long"]))
    return table


def _long_cells(long: Report | None) -> list[str]:
    if long is None:
        return ["-"] * 3
    edges = long["edges"]
    early = f"{long['loss'][0]:.3f} (to {edges[1]:,})"
    late = f"{long['loss'][-1]:.3f} (to {edges[-1]:,})"
    return [early, late, f"{long['before'][-1]:.3f}" if long["before"] else "-"]


def cell(share: float | None) -> str:
    """A share as a percentage with one decimal, "-" for none."""
    return "-" if share is None else f"{100 * share:.1f}"


def interval_text(interval: Mapping[str, float] | None, sign: str = "") -> str:
    """`[low, high]` in per cent; `sign` "+" shows a plus."""
    if interval is None:
        return "-"
    return f"[{100 * interval['low']:{sign}.1f}, {100 * interval['high']:{sign}.1f}]"


def _table(title: str, first: str, columns: Sequence[str], gap: int = 2) -> Table:
    """A table whose columns are `gap` apart (the box itself puts one space between them)."""
    style = {"title_justify": "left", "title_style": "bold", "caption_justify": "left", "box": box.SIMPLE_HEAD}
    table = Table(title=title, padding=(0, gap - 1, 0, 0), **style)  # type: ignore[arg-type]
    table.add_column(first, max_width=FIRST_COLUMN)
    _add_columns(table, [_heading(column) for column in columns])
    return table


def _heading(name: str) -> str:
    """A task's name in lines of a word each: columns are as narrow as their numbers allow."""
    return escape(name.replace("_", "\n"))


def _add_columns(table: Table, headings: Sequence[str]) -> None:
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)


def _fitting(build: Callable[[Sequence[str], bool, int], Table], tasks: list[str], width: int) -> list[Table]:
    """Tables that together show all tasks and are no wider than `width`.

    Args:
        build: (tasks, whether it is the first table and has the summary, gap between columns) -> a table.
    """
    for gap in (2, 1):  # closer columns are better than a second table
        if _width(build(tasks, True, gap)) <= width:
            return [build(tasks, True, gap)]
    fitting: list[Table] = []
    while tasks:
        first = not fitting
        count = len(tasks)
        while count > 1 and _width(build(tasks[:count], first, gap)) > width:
            count -= 1
        fitting.append(build(tasks[:count], first, gap))
        tasks = tasks[count:]
    return fitting


def _width(table: Table) -> int:
    """The columns a table takes when nothing forces it to fold."""
    wide = Console(width=10_000)
    return Measurement.get(wide, wide.options, table).maximum


def _task_cell(row: Report, task: str) -> str:
    accuracy = row["tasks"].get(task, {}).get("accuracy")
    return "-" if accuracy is None else cell(accuracy["value"])


def _left_out(report: Report) -> str | None:
    """What is not in the numbers, if anything."""
    rows = [row for row in report["models"].values() if row.get("all", {}).get("left_out")]
    if not rows:
        return None
    counts = ", ".join(f"{row['all']['left_out']} of {escape(row['label'])}" for row in rows)
    return f"Left out, since they could not be judged: {counts}"


def _summary_cells(row: Report) -> list[str]:
    accuracy, length = row["macro"]["accuracy"], row["macro"]["mean_tokens"]
    p90 = row["all"]["tokens"]["p90"]
    return [
        cell(accuracy["value"]),
        interval_text(accuracy),
        f"{length['value']:.1f}",
        f"{p90:.0f}",
        cell(row["all"]["truncated"]),
    ]


def _paired_cells(macro: Report | None) -> list[str]:
    if macro is None:
        return ["-"] * 4
    ratio = macro["length_ratio"]
    p = f"{macro['p']:.4f}" if macro["p"] >= 0.001 else "<0.001"
    accuracy = macro["accuracy"]
    length = "-" if ratio is None else f"{ratio['value']:.2f}"
    return [f"{100 * accuracy['value']:+.1f}", interval_text(accuracy, "+"), p, length]


def _difference(paired: Report | None) -> str:
    return "-" if paired is None else f"{100 * paired['accuracy']['value']:+.1f}"


def _times(count: int, thing: str) -> str:
    return f"{count} {thing}" + ("s" if count != 1 else "")
