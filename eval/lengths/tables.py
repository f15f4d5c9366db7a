"""The analysis as flat tables for CSV files: one line for each thing measured, shares in 0 to 1, lengths in tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Cell = str | float | int
Json = Mapping[str, Any]

PARTS = ("all", "right", "wrong")
SUMMARY = ("mean", "p50", "p90", "p99")
INTERVAL = ("value", "low", "high")
DIRECTIONS = ("wrong_to_right", "right_to_wrong", "wrong_to_wrong", "right_to_right", "unjudged")
RUN_COLUMNS = (
    *("model", "condition", "mechanism", "budget", "problems", "answers", "left_out", "allowed"),
    *("accuracy", "accuracy_low", "accuracy_high", "accuracy_if_truncated_right", "accuracy_finished"),
    *("mean_tokens", "mean_tokens_low", "mean_tokens_high", "truncated", "no_answer", "format_failed"),
    *("tokens_per_correct", "seconds", "seconds_per_correct"),
)
LENGTH_COLUMNS = ("model", "condition", "of", "part", *SUMMARY)
CURVE_COLUMNS = (
    *("model", "problems_of", "mechanism", "budget", "accuracy", "low", "high", "accuracy_if_truncated_right", "exact"),
    *("truncated", "no_answer", "format_failed", "mean_tokens"),
)
TASK_COLUMNS = ("model", "problems_of", "mechanism", "budget", "task", "accuracy")
AREA_COLUMNS = ("model", "from", "to", "area", "low", "high")
PARETO_COLUMNS = ("model", "condition", "mean_tokens", "accuracy", "low", "high", "dominated")
QUINTILE_COLUMNS = (
    *("group", "problems", "pass_rate_least", "pass_rate_most", "model", "accuracy", "low", "high"),
    *("mean_tokens", "mean_tokens_low", "mean_tokens_high"),
)
OBEDIENCE_COLUMNS = (
    *("model", "budget", "answers", "mean_used", "p10_used", "p90_used", "signed_error", "absolute_error", "over"),
    "correlation",
)
MARKER_COLUMNS = ("model", "condition", "part", "marker", "per_1000_tokens")
CHANGE_COLUMNS = ("model", "condition", "answers", "changed", *DIRECTIONS)
REPETITION_COLUMNS = ("model", "condition", "all", "right", "wrong", "mostly", "truncated_in_loop")
PAIR_COLUMNS = (
    *("after", "before", "problems", "accuracy_before", "accuracy_after", "mean_tokens_before", "mean_tokens_after"),
    *("difference", "low", "high", "p", "bound_low", "bound_high", "length_ratio", "ratio_low", "ratio_high"),
)
CONTROLLED_COLUMNS = ("after", "before", "held_equal", "tokens", "difference", "low", "high")
STRATUM_COLUMNS = (
    *("after", "before", "shortest", "longest"),
    *("answers_after", "accuracy_after", "answers_before", "accuracy_before"),
)


def csv_tables(analysis: Json) -> dict[str, list[list[Cell]]]:
    """File name -> lines, the first one the columns' names. A number that there is not is an empty cell; tables of
    which there is no line are left out."""
    tables: dict[str, tuple[Sequence[str], Iterator[list[Any]]]] = {
        "pairs.csv": (PAIR_COLUMNS, _pairs(analysis)),
        "runs.csv": (RUN_COLUMNS, _runs(analysis)),
        "accuracy_by_budget.csv": (CURVE_COLUMNS, _curves(analysis)),
        "accuracy_by_budget_and_task.csv": (TASK_COLUMNS, _tasks(analysis)),
        "area.csv": (AREA_COLUMNS, _areas(analysis)),
        "lengths.csv": (LENGTH_COLUMNS, _lengths(analysis)),
        "pareto.csv": (PARETO_COLUMNS, _pareto(analysis)),
        "quintiles.csv": (QUINTILE_COLUMNS, _quintiles(analysis)),
        "obedience.csv": (OBEDIENCE_COLUMNS, _obedience(analysis)),
        "markers.csv": (MARKER_COLUMNS, _markers(analysis)),
        "changes.csv": (CHANGE_COLUMNS, _changes(analysis)),
        "repetition.csv": (REPETITION_COLUMNS, _repetition(analysis)),
        "same_length.csv": (CONTROLLED_COLUMNS, _controlled(analysis)),
        "length_strata.csv": (STRATUM_COLUMNS, _strata(analysis)),
    }
    found: dict[str, list[list[Cell]]] = {}
    for name, (columns, lines) in tables.items():
        rows: list[list[Cell]] = [["" if cell is None else cell for cell in line] for line in lines]
        if rows:
            found[name] = [list(columns), *rows]
    return found


def answered_runs(analysis: Json) -> Iterator[tuple[str, Json]]:
    """Every run that has answers, with its model's id."""
    for name, model in analysis["models"].items():
        for run in model["runs"]:
            if run["answers"]:
                yield name, run


def curves(analysis: Json) -> Iterator[tuple[str, str, str, Json]]:
    """Model, which problems, mechanism, point: the hard curves over all problems, then each model's mechanisms over
    the problems that its runs share."""
    for name, model in analysis["models"].items():
        for point in model["hard"]["points"]:
            yield name, "all", "hard", point
        for mechanism in ("hard", "forced", "extended", "stated"):
            for point in (model["mechanisms"] or {}).get(mechanism, ()):
                yield name, "shared", mechanism, point


def _span(interval: Json) -> list[float]:
    return [interval[key] for key in INTERVAL]


def _pairs(analysis: Json) -> Iterator[list[Any]]:
    for pair in analysis["pairs"]:
        if not pair["problems"]:
            continue
        after, before, ratio = pair["after"], pair["before"], pair["length_ratio"]
        yield [
            *(after["model"], before["model"], pair["problems"]),
            *(side["accuracy"]["value"] for side in (before, after)),
            *(side["mean_tokens"]["value"] for side in (before, after)),
            *(*_span(pair["difference"]), pair["p"], *pair["bounds"]),
            *([None] * 3 if ratio is None else _span(ratio)),
        ]


def _runs(analysis: Json) -> Iterator[list[Any]]:
    for model, run in answered_runs(analysis):
        yield [
            *(model, *(run[key] for key in RUN_COLUMNS[1:8])),
            *(*_span(run["accuracy"]), run["bounds"][1], run["accuracy_finished"]),
            *(*_span(run["mean_tokens"]), run["truncated"], run["no_answer"], run["format_failed"]),
            *(run["tokens_per_correct"], run["seconds"], run["seconds_per_correct"]),
        ]


def _curves(analysis: Json) -> Iterator[list[Any]]:
    for model, problems, mechanism, point in curves(analysis):
        yield [
            *(model, problems, mechanism, point["budget"], *_span(point["accuracy"]), point["bounds"][1]),
            *(int(point["exact"]) if "exact" in point else None, *(point[key] for key in CURVE_COLUMNS[9:])),
        ]


def _tasks(analysis: Json) -> Iterator[list[Any]]:
    for model, problems, mechanism, point in curves(analysis):
        for task, accuracy in point["tasks"].items():
            yield [model, problems, mechanism, point["budget"], task, accuracy]


def _areas(analysis: Json) -> Iterator[list[Any]]:
    for name, model in analysis["models"].items():
        if model["hard"]["area"] is not None:
            yield [name, analysis["budgets"][0], analysis["budgets"][-1], *_span(model["hard"]["area"])]


def _lengths(analysis: Json) -> Iterator[list[Any]]:
    for model, run in answered_runs(analysis):
        for of in ("tokens", "reasoning_tokens", "answer_tokens"):
            for part in PARTS:
                yield [model, run["condition"], of, part, *(run[of][part][key] for key in SUMMARY)]


def _pareto(analysis: Json) -> Iterator[list[Any]]:
    for point in (analysis["pareto"] or {"points": []})["points"]:
        yield [
            *(point["model"], point["condition"], point["mean_tokens"]),
            *(*_span(point["accuracy"]), int(point["dominated"])),
        ]


def _quintiles(analysis: Json) -> Iterator[list[Any]]:
    for group in (analysis["quintiles"] or {"groups": []})["groups"]:
        for model, scores in group["models"].items():
            yield [
                *(group["group"], group["problems"], *group["pass_rate"], model),
                *(*_span(scores["accuracy"]), *_span(scores["mean_tokens"])),
            ]


def _obedience(analysis: Json) -> Iterator[list[Any]]:
    for name, model in analysis["models"].items():
        found = model["obedience"] or {"budgets": []}
        for row in found["budgets"]:
            yield [name, *(row[key] for key in OBEDIENCE_COLUMNS[1:-1]), found["correlation"]]


def _markers(analysis: Json) -> Iterator[list[Any]]:
    for model, run in answered_runs(analysis):
        for part in PARTS:
            rates = run["markers"][part]
            if rates is not None:
                kinds = {kind: rates[kind] for kind in ("reflection", "verification")}
                for marker, rate in (kinds | rates["patterns"]).items():
                    yield [model, run["condition"], part, marker, rate]


def _changes(analysis: Json) -> Iterator[list[Any]]:
    for model, run in answered_runs(analysis):
        yield [model, run["condition"], *(run["changes"][key] for key in CHANGE_COLUMNS[2:])]


def _repetition(analysis: Json) -> Iterator[list[Any]]:
    for model, run in answered_runs(analysis):
        yield [model, run["condition"], *(run["repetition"][key] for key in REPETITION_COLUMNS[2:])]


def _controlled(analysis: Json) -> Iterator[list[Any]]:
    for pair in analysis["pairs"]:
        if not pair["problems"]:
            continue
        names = [pair["after"]["model"], pair["before"]["model"]]
        if pair["same_length"] is not None:
            yield [*names, "length of answers", None, *_span(pair["same_length"]["difference"])]
        means = pair["same_mean_tokens"]
        yield [*names, "mean tokens", means["mean_tokens"], *_span(means["difference"])]
        for row in pair["same_budget"]:
            yield [*names, "budget", row["budget"], *_span(row["difference"])]


def _strata(analysis: Json) -> Iterator[list[Any]]:
    for pair in analysis["pairs"]:
        for row in (pair.get("same_length") or {"strata": []})["strata"]:
            sides = [row[side][key] for side in ("after", "before") for key in ("answers", "accuracy")]
            yield [pair["after"]["model"], pair["before"]["model"], row["shortest"], row["longest"], *sides]
