"""The figures of the length analysis (eval/lengths), in the style of the report's others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eval.figures import (
    COLOURS,
    CUT,
    FAINT,
    INK,
    MARKERS,
    RIGHT,
    WRONG,
    Drawing,
    _legend_beside,
    _panels,
    _plain_log_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Json = Mapping[str, Any]

NO_ANSWER = "#E69F00"
MECHANISMS = {  # in a legend: what it is called, its colour, its mark
    "hard": ("scored again, thought and answer", INK, ""),
    "forced": ("forced, thought alone", "#0072B2", "o"),
    "extended": ("extended, thought alone", "#009E73", "^"),
    "stated": ("stated in the prompt, thought alone", "#D55E00", "s"),
}
OUTCOMES = {
    "right": ("right", RIGHT),
    "wrong": ("wrong", "#e9b9a0"),
    "no_answer": ("no answer", NO_ANSWER),
    "truncated": ("cut off", CUT),
}
RATES = {"truncated": ("cut off", INK), "no_answer": ("no answer", NO_ANSWER), "format_failed": ("form failed", WRONG)}


def draw(analysis: Json) -> list[Drawing]:
    """Every figure there is something to draw for."""
    drawings = [
        outcomes(analysis),
        accuracy_by_budget(analysis),
        rates_by_budget(analysis),
        pareto_front(analysis),
        by_difficulty(analysis),
        stated_against_used(analysis),
        markers(analysis),
        same_budget(analysis),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def outcomes(analysis: Json) -> Drawing | None:
    """One bar per run: what became of its answers."""
    runs = [run for model in analysis["models"].values() for run in model["runs"] if run["answers"]]
    if not runs:
        return None
    figure, (axes,) = _panels(1, width=7.8, height=0.9 + 0.27 * len(runs))
    left = [0.0] * len(runs)
    for name, (label, colour) in OUTCOMES.items():
        widths = [100 * run["outcomes"][name] for run in runs]
        axes.barh(range(len(runs)), widths, 0.78, left, color=colour, linewidth=0, label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for index, run in enumerate(runs):
        share = 100 * run["outcomes"]["truncated"]
        if share >= 0.05:
            axes.text(101, index, f"{share:.1f} % cut", va="center", fontsize=8, color=INK)
    axes.set_yticks(range(len(runs)), [run["name"] for run in runs], fontsize=8)
    axes.set_ylim(len(runs) - 0.4, -0.6)  # the first run on top
    axes.set_xlim(0, 100)
    axes.set_xlabel("answers, %")
    axes.grid(False)
    figure.legend(loc="outside upper center", ncols=len(OUTCOMES), frameon=False, fontsize=8)
    caption = (
        "All answers of every run. Cut off: the limit was reached; such an answer counts as wrong, and could have"
        " become either. How many they are is written beside the bar."
    )
    return Drawing("outcomes", "What became of the answers", caption, figure)


def accuracy_by_budget(analysis: Json) -> Drawing | None:
    """One panel per model: accuracy over the budget, a line for each mechanism."""
    models = [model for model in analysis["models"].values() if _sides(model)["hard"] or model["mechanisms"]]
    if not models:
        return None
    figure, panels = _panels(len(models), width=3.6, height=3.0)
    used: set[str] = set()
    for axes, model in zip(panels, models, strict=True):
        sides = _sides(model)
        for name, points in sides.items():
            # A budget of nothing has no place on a logarithmic axis; the tables have it.
            points = [point for point in points if point["budget"] > 0]
            if points:
                used.add(name)
                _draw_mechanism(axes, name, points)
        free = next((run for run in model["runs"] if run["mechanism"] == "free" and run["answers"]), None)
        level = model["mechanisms"]["free"] if model["mechanisms"] else free
        if level is not None:
            axes.axhline(100 * level["accuracy"]["value"], color=CUT, linestyle="--", linewidth=1)
        _budget_axis(axes, model["label"], _problems(model, free))
        axes.set_ylabel("accuracy, %")
        axes.set_ylim(0, 100)
    _mechanism_legend(figure, used, ("no budget", {"color": CUT, "linestyle": "--", "linewidth": 1}))
    caption = (
        "Three ways to a budget that are not one: free answers scored again, where an answer over the budget is wrong"
        " (thought and answer together); thoughts ended or extended by force; and budgets named in the prompt (the"
        " thought alone). All lines of a panel are of the same problems."
        f" Bars and band are {100 * analysis['level']:g} % intervals over problems."
    )
    return Drawing("accuracy_by_budget", "Accuracy against the budget of tokens", caption, figure)


def _draw_mechanism(axes: Axes, name: str, points: Sequence[Json]) -> None:
    label, colour, marker = MECHANISMS[name]
    budgets = [point["budget"] for point in points]
    values, low, high = ([100 * point["accuracy"][key] for point in points] for key in ("value", "low", "high"))
    if name == "hard":
        axes.plot(budgets, values, color=colour, linewidth=1.4, marker=".", markersize=5, label=label)
        axes.fill_between(budgets, low, high, color=colour, alpha=0.13, linewidth=0)
        return
    axes.errorbar(
        budgets,
        values,
        yerr=_bars([point["accuracy"] for point in points], 100),
        color=colour,
        marker=marker,
        markersize=5,
        linewidth=1.2,
        capsize=2,
        label=label,
    )


def _bars(intervals: Sequence[Json], scale: float) -> list[list[float]]:
    """How far intervals reach below and above their values; rounding, and few resamples, can leave a value outside."""
    below = [max(0.0, scale * (one["value"] - one["low"])) for one in intervals]
    above = [max(0.0, scale * (one["high"] - one["value"])) for one in intervals]
    return [below, above]


def rates_by_budget(analysis: Json) -> Drawing | None:
    """One panel per model: answers cut off, missing or without form, over the same budgets."""
    models = [model for model in analysis["models"].values() if _sides(model)["hard"] or model["mechanisms"]]
    if not models:
        return None
    figure, panels = _panels(len(models), width=3.6, height=2.8)
    used: set[str] = set()
    for axes, model in zip(panels, models, strict=True):
        for mechanism, points in _sides(model).items():
            points = [point for point in points if point["budget"] > 0]
            for rate, (_, colour) in RATES.items():
                if not points:
                    continue
                used.add(mechanism)
                axes.plot(
                    [point["budget"] for point in points],
                    [100 * point[rate] for point in points],
                    color=colour,
                    marker=MECHANISMS[mechanism][2] or "None",
                    markersize=5,
                    fillstyle="none",
                    linewidth=1.3 if mechanism == "hard" else 0.8,
                    linestyle="-" if mechanism == "hard" else ":",
                )
        free = next((run for run in model["runs"] if run["mechanism"] == "free" and run["answers"]), None)
        _budget_axis(axes, model["label"], _problems(model, free))
        axes.set_ylabel("answers, %")
        axes.set_ylim(-3, 103)
    _rate_legend(figure, used)
    caption = (
        "Answers cut off (scored again: longer than the budget), answers in which none was found, and answers that fail"
        " the form of thought and answer. Lines: scored again; marks: real reruns at that budget."
    )
    return Drawing("rates_by_budget", "Answers cut off, missing and without form", caption, figure)


def _sides(model: Json) -> dict[str, list[Json]]:
    """A model's points by mechanism: on the problems its runs share where it has reruns, or else on all."""
    if model["mechanisms"] is None:
        return {"hard": model["hard"]["points"]}
    return {name: model["mechanisms"][name] for name in MECHANISMS}


def _problems(model: Json, free: Json | None) -> int:
    if model["mechanisms"] is not None:
        return int(model["mechanisms"]["problems"])
    return 0 if free is None else int(free["problems"])


def _budget_axis(axes: Axes, label: str, problems: int) -> None:
    axes.set_title(f"{label} ({problems:,} problems)", fontsize=10)
    axes.set_xscale("log", base=2)
    _plain_log_axis(axes)
    axes.tick_params(axis="x", which="minor", labelbottom=False)
    axes.set_xlabel("budget, tokens (log scale)")


def _mechanism_legend(figure: Figure, used: set[str], level: tuple[str, dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker=marker or ".", markersize=5, label=label)
        for name, (label, colour, marker) in MECHANISMS.items()
        if name in used
    ]
    handles.append(Line2D([], [], label=level[0], **level[1]))
    columns = 2 if len(figure.axes) == 1 else 3
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=8)


def _rate_legend(figure: Figure, used: set[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=colour, label=label) for label, colour in RATES.values()]
    for name, (label, _, marker) in MECHANISMS.items():
        if marker and name in used:
            style: dict[str, Any] = {
                "color": INK,
                "linestyle": "None",
                "fillstyle": "none",
                "marker": marker,
                "markersize": 5,
            }
            handles.append(Line2D([], [], label=label.split(",")[0], **style))
    figure.legend(handles=handles, loc="outside upper center", ncols=6, frameon=False, fontsize=8)


def pareto_front(analysis: Json) -> Drawing | None:
    """Every run by mean tokens and accuracy; those that no other run beats are joined."""
    found = analysis["pareto"]
    if found is None or len(found["points"]) < 2:
        return None
    figure, (axes,) = _panels(1, width=7.2, height=4.2)
    front = sorted(
        (max(point["mean_tokens"], 0.5), 100 * point["accuracy"]["value"])
        for point in found["points"]
        if not point["dominated"]
    )
    axes.step(*zip(*front, strict=True), where="post", color=CUT, linewidth=1, zorder=1, label="not beaten")
    colour_of = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(analysis["models"])}
    for point in found["points"]:
        mechanism = point["condition"].split("-")[0]
        axes.plot(
            [max(point["mean_tokens"], 0.5)],
            [100 * point["accuracy"]["value"]],
            linestyle="None",
            marker="*" if mechanism == "free" else MECHANISMS[mechanism][2],
            markersize=13 if mechanism == "free" else 6,
            color=colour_of[point["model"]],
            alpha=0.35 if point["dominated"] else 1,
        )
    for name in dict.fromkeys(point["model"] for point in found["points"]):
        label = analysis["models"][name]["label"]
        axes.plot([], [], linestyle="None", marker="*", markersize=13, color=colour_of[name], label=label)
    axes.set_xscale("log")
    _plain_log_axis(axes)
    axes.set_ylim(0, 100)
    axes.set_xlabel("mean length, tokens (log scale)")
    axes.set_ylabel("accuracy, %")
    _legend_beside(axes)
    caption = (
        f"Every model and condition on the {found['problems']:,} problems that all of them answered: stars are free"
        " answers, the others budgets (circle forced, triangle extended, square stated). Pale ones are beaten: another"
        " is no longer and no less accurate."
    )
    return Drawing("pareto_front", "Accuracy for tokens spent", caption, figure)


def by_difficulty(analysis: Json) -> Drawing | None:
    """Two panels: accuracy and mean length by difficulty, a line per model."""
    found = analysis["quintiles"]
    if found is None or len(found["groups"]) < 2:
        return None
    figure, panels = _panels(2, width=4.2, height=3.1)
    groups = found["groups"]
    for axes, key, scale, label in zip(
        panels, ("accuracy", "mean_tokens"), (100, 1), ("accuracy, %", "mean length, tokens"), strict=True
    ):
        for index, name in enumerate(groups[0]["models"]):
            scores = [group["models"][name][key] for group in groups]
            values = [scale * score["value"] for score in scores]
            # Side by side, so that bars of equal values do not cover each other.
            shift = 0.06 * (index - (len(groups[0]["models"]) - 1) / 2)
            axes.errorbar(
                [group["group"] + shift for group in groups],
                values,
                yerr=_bars(scores, scale),
                color=COLOURS[index % len(COLOURS)],
                marker=MARKERS[index % len(MARKERS)],
                markersize=5,
                linewidth=1.2,
                capsize=2,
                label=analysis["models"][name]["label"],
            )
        axes.set_xticks(
            [group["group"] for group in groups], [f"{group['group']}\nn={group['problems']:,}" for group in groups]
        )
        axes.set_xlabel("difficulty, 1 the most difficult")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    base = analysis["models"][found["base"]]["label"] if found["base"] else "mean of all models here"
    caption = (
        f"Problems in up to {found['of']} groups by the share of answers to them that are right ({base}); problems of"
        " equal share are in one group, so groups differ in size and some can be missing."
    )
    return Drawing("by_difficulty", "By difficulty", caption, figure)


def stated_against_used(analysis: Json) -> Drawing | None:
    """Tokens of thought that were used over those the prompt named."""
    models = [model for model in analysis["models"].values() if model["obedience"] and model["obedience"]["budgets"]]
    if not models:
        return None
    figure, (axes,) = _panels(1, width=5.6, height=3.8)
    everything: list[int] = []
    for index, model in enumerate(models):
        rows = [row for row in model["obedience"]["budgets"] if row["budget"] > 0]
        asked = [row["budget"] for row in rows]
        used = [max(row["mean_used"], 0.5) for row in rows]
        everything += asked
        colour = COLOURS[index % len(COLOURS)]
        correlation = model["obedience"]["correlation"]
        label = model["label"] + ("" if correlation is None else f" (r = {correlation:.2f})")
        axes.plot(asked, used, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=5, label=label)
        low, high = ([max(row[key], 0.5) for row in rows] for key in ("p10_used", "p90_used"))
        axes.fill_between(asked, low, high, color=colour, alpha=0.12, linewidth=0)
    if everything:
        ends = [min(everything), max(everything)]
        axes.plot(ends, ends, color=INK, linestyle="--", linewidth=1, label="as stated")
    axes.set_xscale("log", base=2)
    _plain_log_axis(axes)
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter(axes.xaxis.get_major_formatter())
    axes.set_xlabel("budget in the prompt, tokens of thought (log scale)")
    axes.set_ylabel("used, tokens of thought (log scale)")
    _legend_beside(axes)
    caption = (
        "Mean thought, and the span from the 10th to the 90th percentile. A model that heeds its budget lies on the"
        " dashed line or below it; r is the correlation over single answers."
    )
    return Drawing("stated_against_used", "Budgets stated in the prompt", caption, figure)


def markers(analysis: Json) -> Drawing | None:
    """Reflection and verification per 1,000 tokens of thought in the free answers, right and wrong."""
    runs = [
        run
        for model in analysis["models"].values()
        for run in model["runs"]
        if run["mechanism"] == "free" and run["answers"] and run["markers"]["all"]
    ]
    kinds = ("reflection", "verification")
    if not any(run["markers"]["all"][kind] for run in runs for kind in kinds):
        return None
    figure, panels = _panels(2, width=4.6, height=1.0 + 0.42 * len(runs))
    for axes, kind in zip(panels, kinds, strict=True):
        for offset, part, colour in ((-0.19, "right", RIGHT), (0.19, "wrong", WRONG)):
            values = [run["markers"][part][kind] if run["markers"][part] else 0 for run in runs]
            places = [index + offset for index in range(len(runs))]
            axes.barh(places, values, 0.36, color=colour, linewidth=0, label=f"in {part} answers")
        shown = [run["name"] for run in runs] if axes is panels[0] else [""] * len(runs)
        axes.set_yticks(range(len(runs)), shown, fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel("per 1,000 tokens of thought")
        axes.set_title(kind, fontsize=10)
        axes.grid(axis="y", visible=False)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=8)
    caption = (
        "Words of reflection (wait, alternatively, let me re-...) and of verification (check, verify, ...); the list of"
        f" patterns, version {analysis['patterns']['version']}, is in the report's JSON."
    )
    return Drawing("markers", "Reflection and verification in the thoughts", caption, figure)


def same_budget(analysis: Json) -> Drawing | None:
    """The paired difference of every pair, both scored again at each budget."""
    pairs = [pair for pair in analysis["pairs"] if pair["problems"]]
    if not pairs:
        return None
    figure, (axes,) = _panels(1, width=7.2, height=3.6)
    axes.axhline(0, color=INK, linewidth=0.8)
    for index, pair in enumerate(pairs):
        rows = pair["same_budget"]
        budgets = [row["budget"] for row in rows]
        colour = COLOURS[index % len(COLOURS)]
        values, low, high = ([100 * row["difference"][key] for row in rows] for key in ("value", "low", "high"))
        after, before = (analysis["models"][pair[side]["model"]]["label"] for side in ("after", "before"))
        axes.plot(
            budgets,
            values,
            color=colour,
            marker=MARKERS[index % len(MARKERS)],
            markersize=5,
            label=f"{after}\nagainst {before}",
        )
        axes.fill_between(budgets, low, high, color=colour, alpha=0.13, linewidth=0)
    axes.set_xscale("log", base=2)
    _plain_log_axis(axes)
    axes.set_xlabel("budget of both, tokens, thought and answer (log scale)")
    axes.set_ylabel("difference in accuracy, points")
    axes.grid(color=FAINT)
    _legend_beside(axes)
    caption = (
        "Both models' free answers scored again at the same budget, problem by problem, with"
        f" {100 * analysis['level']:g} % intervals: a gain that is there at large budgets only is bought with length."
    )
    return Drawing("same_budget", "Differences at equal budgets", caption, figure)
