"""What a reader must not miss, in sentences: warnings, and one line of findings for each pair of models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

TRUNCATED = 0.01  # shares of a model's free answers from which on something is said
NO_ANSWER = FORMAT_FAILED = 0.05
UNDER_BUDGET = 0.05  # of its answers under budgets, of which the worst is named
UNEVEN = 0.05  # between the truncated shares of two models that are compared

Json = Mapping[str, Any]


def warnings(analysis: Json) -> list[str]:
    """The most serious first: answers cut off, comparisons this makes doubtful, answers left out or without form."""
    models = list(analysis["models"].values())
    runs = [run for model in models for run in model["runs"]]
    free = [run for run in runs if run["mechanism"] == "free" and run["answers"]]
    cut = sorted((run for run in free if run["truncated"] >= TRUNCATED), key=lambda run: -run["truncated"])
    return [
        *(_cut(run) for run in cut),
        *(sentence for pair in analysis["pairs"] for sentence in _uneven(pair, analysis["models"])),
        *(_cut(run) for run in _worst(models, "truncated")),
        *(
            f"{run['name']}: {run['left_out']} of {run['answers'] + run['left_out']} answers could not be judged and"
            " are in none of the numbers."
            for run in runs
            if run["left_out"]
        ),
        *(f"{run['name']}: no answer that counts." for run in runs if not run["answers"]),
        *(
            f"{run['name']}: {_percent(run['no_answer'])} of answers hold no answer that could be judged."
            for run in [run for run in free if run["no_answer"] >= NO_ANSWER] + _worst(models, "no_answer")
        ),
        *(
            f"{run['name']}: {_percent(run['format_failed'])} of answers fail the form of thought and answer."
            for run in [run for run in free if run["format_failed"] >= FORMAT_FAILED] + _worst(models, "format_failed")
        ),
    ]


def _worst(models: Sequence[Json], rate: str) -> list[Json]:
    """Of each model's runs under budgets the one with the highest rate, where that is worth a warning."""
    found = []
    for model in models:
        budgeted = [run for run in model["runs"] if run["mechanism"] != "free" and run["answers"]]
        worst = max(budgeted, key=lambda run: float(run[rate]), default=None)
        if worst is not None and worst[rate] >= UNDER_BUDGET:
            found.append(worst)
    return found


def _cut(run: Json) -> str:
    low, high = run["bounds"]
    return (
        f"{run['name']}: {_percent(run['truncated'])} of answers were cut off at the limit; accuracy lies between"
        f" {100 * low:.1f} and {100 * high:.1f} %."
    )


def _uneven(pair: Json, models: Json) -> Iterator[str]:
    """Truncation that differs between the sides of a pair can fake a difference, or hide one."""
    if pair["problems"] == 0:
        return
    low, high = pair["bounds"]
    known = pair["difference"]["low"] > 0 or pair["difference"]["high"] < 0
    undone = known and low <= 0 <= high
    if abs(pair["after"]["truncated"] - pair["before"]["truncated"]) < UNEVEN and not undone:
        return
    sides = ("after", "before")
    shares = " and ".join(
        f"{_percent(pair[side]['truncated'])} of {models[pair[side]['model']]['label']}" for side in sides
    )
    limits = [models[pair[side]["model"]]["allowed"] for side in sides]
    uneven = f" (limits of {limits[0]} and {limits[1]} tokens)" if limits[0] != limits[1] else ""
    yield (
        f"{_versus(pair, models)}: {shares} were cut off{uneven}; the difference lies between {100 * low:+.1f} and"
        f" {100 * high:+.1f} points."
    )


def sentences(analysis: Json) -> list[str]:
    """One line for each pair: accuracy and length before and after, and whether the difference is more than chance."""
    return [_verdict(pair, analysis) for pair in analysis["pairs"] if pair["problems"]]


def _verdict(pair: Json, analysis: Json) -> str:
    before, after, difference = pair["before"], pair["after"], pair["difference"]
    ratio = pair["length_ratio"]
    times = "" if ratio is None else f" (x {ratio['value']:.2f})"
    # The interval decides: it is of the quantity itself.
    low, high = 100 * difference["low"], 100 * difference["high"]
    known = "more than chance" if low > 0 or high < 0 else "no difference that these problems can tell from chance"
    return (
        f"{_versus(pair, analysis['models'])}: accuracy {100 * before['accuracy']['value']:.1f} to"
        f" {100 * after['accuracy']['value']:.1f} %, mean length {before['mean_tokens']['value']:.1f} to"
        f" {after['mean_tokens']['value']:.1f} tokens{times}; {100 * difference['value']:+.1f} points,"
        f" {100 * analysis['level']:g} % interval {low:+.1f} to {high:+.1f}, p {pair['p']:.4f},"
        f" {pair['problems']} problems: {known}."
    )


def _versus(pair: Json, models: Json) -> str:
    after, before = (models[pair[side]["model"]]["label"] for side in ("after", "before"))
    return f"{after} against {before}"


def headline(models: Sequence[Json]) -> list[str]:
    """A line for each free run: accuracy, and how much of it was cut off."""
    return [
        f"{run['name']}: {run['headline']}"
        for model in models
        for run in model["runs"]
        if run["mechanism"] == "free" and run["answers"]
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
