"""The report's figures, each drawn from the report or from the collected curves; none where there is nothing to draw.

matplotlib is imported inside: it costs a second, and only a report needs it.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from eval.collect import Collected, Curve

# Okabe and Ito's palette: distinct to colour-blind readers as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8A6D3B", "#000000")
RIGHT, WRONG, CUT, INK, FAINT = "#009E73", "#D55E00", "#8c8c8c", "#222222", "#e4e4e4"
MARKERS = "osD^vPX*"
METRICS = {  # what the metrics of a run are called in a legend
    "lm_loss": "next token",
    "mtp_loss": "MTP",
    "validation/loss": "next token, held out",
    "reward/mean": "mean reward",
}


@dataclass(frozen=True)
class Drawing:
    """A figure for the report."""

    name: str
    title: str
    caption: str
    figure: Figure


def draw_all(report: Mapping[str, Any], collected: Collected) -> list[Drawing]:
    """Every figure there is something to draw for, in the report's order."""
    drawings = [
        accuracy_against_length(report),
        length_histograms(report),
        loss_curves(collected.curves),
        router_balance(collected.curves),
        needle_heat_maps(report),
        loss_by_position(report),
    ]
    return [drawing for drawing in drawings if drawing is not None]


def to_svg(drawing: Drawing) -> str:
    """The figure as an SVG file; equal figures give equal bytes."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": drawing.name, "svg.fonttype": "path"}):
        drawing.figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    return buffer.getvalue()


def accuracy_against_length(report: Mapping[str, Any]) -> Drawing | None:
    """One point per model: macro accuracy over mean tokens, with both intervals."""
    models = {name: row for name, row in report["models"].items() if row.get("macro")}
    if not models:
        return None
    figure, (axes,) = _panels(1, width=7.2, height=4.4)
    for index, row in enumerate(models.values()):
        length, accuracy = row["macro"]["mean_tokens"], row["macro"]["accuracy"]
        axes.errorbar(
            max(length["value"], 0.5),
            100 * accuracy["value"],
            xerr=[[length["value"] - length["low"]], [length["high"] - length["value"]]],
            yerr=[[100 * (accuracy["value"] - accuracy["low"])], [100 * (accuracy["high"] - accuracy["value"])]],
            fmt=MARKERS[index % len(MARKERS)],
            color=COLOURS[index % len(COLOURS)],
            markersize=8,
            capsize=3,
            label=row["label"],
        )
    if report["best_constant"] is not None:
        axes.axhline(
            100 * report["best_constant"], color=INK, linestyle="--", linewidth=1, label="best constant answer"
        )
    axes.set_xscale("log")
    _plain_log_axis(axes)
    axes.set_ylim(0, 100)
    axes.set_xlabel("mean length, tokens (log scale)")
    axes.set_ylabel("accuracy, % (mean of tasks)")
    _legend_beside(axes)
    level = 100 * report["protocol"]["statistics"]["level"]
    caption = (
        f"Every model on the same held-out problems. Bars are {level:g} % bootstrap intervals over problems; the dashed"
        " line is what always giving each task's most frequent answer would score."
    )
    return Drawing("accuracy_against_length", "Accuracy against length", caption, figure)


def length_histograms(report: Mapping[str, Any]) -> Drawing | None:
    """One panel per model: lengths of right, wrong and truncated answers."""
    models = [row for row in report["models"].values() if row.get("lengths") and row["all"]["samples"]]
    if not models:
        return None
    figure, panels = _panels(len(models), width=3.6, height=2.7)
    for axes, row in zip(panels, models, strict=True):
        edges = row["lengths"]["edges"]
        bottom = [0] * (len(edges) - 1)
        for part, colour in (("right", RIGHT), ("wrong", WRONG), ("truncated", CUT)):
            counts = row["lengths"][part]
            widths = [b - a for a, b in itertools.pairwise(edges)]
            axes.bar(edges[:-1], counts, widths, bottom, align="edge", color=colour, linewidth=0, label=part)
            bottom = [a + b for a, b in zip(bottom, counts, strict=True)]
        axes.set_title(row["label"], fontsize=10)
        axes.set_xlabel("length, tokens")
        axes.set_ylabel("answers")
        axes.set_xlim(0, edges[-1])
    panels[0].legend(frameon=False, fontsize=8)
    caption = "Answers by length in tokens, thoughts included, stacked: right, wrong, and cut off at the limit."
    return Drawing("length_histograms", "Lengths of right and wrong answers", caption, figure)


def loss_curves(curves: Mapping[str, Mapping[str, Curve]]) -> Drawing | None:
    """One panel per run: its losses, bits per byte on an axis of their own; reinforcement learning's rewards."""
    chosen = {label: _main_curves(metrics) for label, metrics in curves.items()}
    chosen = {label: metrics for label, metrics in chosen.items() if metrics}
    if not chosen:
        return None
    figure, panels = _panels(len(chosen), width=3.9, height=2.8)
    for axes, (label, metrics) in zip(panels, chosen.items(), strict=True):
        for index, (name, curve) in enumerate(metrics.items()):
            axes.plot(
                *_xy(curve), color=COLOURS[index % len(COLOURS)], linewidth=1.3, label=_words(name), **_marks(curve)
            )
        bits = [(name, curve) for name, curve in curves[label].items() if "bits_per_byte" in name]
        if bits:
            _draw_bits_per_byte(axes, bits[0][1])
        axes.set_title(_words(label), fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel(
            "loss, nats a token" if any("loss" in name for name in metrics) else "reward, accuracy (0 to 1)"
        )
        axes.legend(frameon=False, fontsize=7, loc="best")
    caption = (
        "Every stage by optimiser step. Pre-training and extension: losses on training text, and on held-out text in"
        " bits per byte (black, right axis). Reinforcement learning: accuracy and mean reward of its rollouts."
    )
    return Drawing("loss_curves", "Loss by stage", caption, figure)


def _draw_bits_per_byte(axes: Axes, curve: Curve) -> None:
    right = axes.twinx()
    right.plot(*_xy(curve), color=INK, linewidth=1, linestyle="--", **_marks(curve))
    right.set_ylabel("held-out bits a byte", fontsize=8)
    right.tick_params(labelsize=8)
    right.spines[["top", "left"]].set_visible(False)


def router_balance(curves: Mapping[str, Mapping[str, Curve]]) -> Drawing | None:
    """One panel per run: the largest violation of balance of each router over steps."""
    chosen = {
        label: {name: curve for name, curve in metrics.items() if "violation" in name}
        for label, metrics in curves.items()
    }
    chosen = {label: metrics for label, metrics in chosen.items() if metrics}
    if not chosen:
        return None
    figure, panels = _panels(len(chosen), width=3.6, height=2.7)
    for axes, (label, metrics) in zip(panels, chosen.items(), strict=True):
        for index, (name, curve) in enumerate(metrics.items()):
            shown = _words(name.replace("max_violation", "").removeprefix("router/").strip("/_. ")) or "all layers"
            axes.plot(*_xy(curve), color=COLOURS[index % len(COLOURS)], linewidth=1.1, label=shown, **_marks(curve))
        axes.set_title(_words(label), fontsize=10)
        axes.set_xlabel("step")
        axes.set_ylabel("max violation (0 is even)")
        axes.set_ylim(bottom=0)
        if len(metrics) <= 8:
            axes.legend(frameon=False, fontsize=7)
    caption = "How far the busiest expert of each layer is above the mean load: (largest load - mean) / mean."
    return Drawing("router_balance", "Router balance", caption, figure)


def needle_heat_maps(report: Mapping[str, Any]) -> Drawing | None:
    """One map per model, lengths by depths."""
    needle = report["needle"]
    if not needle:
        return None
    lengths, depths = needle["lengths"], needle["depths"]
    figure, panels = _panels(len(needle["models"]), width=3.3, height=3.0, columns=3)
    for axes, (name, grid) in zip(panels, needle["models"].items(), strict=True):
        shares = [[grid["shares"][x][y] for x in range(len(lengths))] for y in range(len(depths))]
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
        axes.vlines([x - 0.5 for x in range(1, len(lengths))], -0.5, len(depths) - 0.5, color="white", linewidth=1)
        axes.hlines([y - 0.5 for y in range(1, len(depths))], -0.5, len(lengths) - 0.5, color="white", linewidth=1)
        for y, line in enumerate(shares):
            for x, share in enumerate(line):
                colour = "white" if share > 0.6 else INK
                axes.text(x, y, f"{100 * share:.0f}", ha="center", va="center", fontsize=8, color=colour)
        inside = sum(length <= grid["trained_length"] for length in lengths)
        if 0 < inside < len(lengths):
            axes.axvline(inside - 0.5, color=WRONG, linewidth=2.5)
        axes.set_title(f"{report['models'][name]['label']} (trained to {grid['trained_length']:,})", fontsize=10)
        axes.set_xticks(range(len(lengths)), [_short(length) for length in lengths])
        axes.set_yticks(range(len(depths)), [f"{100 * depth:g}" for depth in depths])
        axes.set_xlabel("context, tokens")
        axes.set_ylabel("depth of the needle, %")
        axes.grid(False)
    caption = (
        f"Right answers in %, {needle['documents_per_cell']} document(s) a cell, greedy. Left of the orange line the"
        " context is no longer than the model was trained to."
    )
    return Drawing("needle_grid", "Needle in a haystack", caption, figure)


def loss_by_position(report: Mapping[str, Any]) -> Drawing | None:
    """Per extension stage: loss over the position in long documents, before and after it."""
    rows = {name: row["long"] for name, row in report["text"].items() if row["long"]}
    if not rows:
        return None
    figure, (axes,) = _panels(1, width=7.2, height=3.8)
    for index, (name, row) in enumerate(rows.items()):
        style: dict[str, Any] = {
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 5,
        }
        middles = [(start + stop) / 2 for start, stop in itertools.pairwise(row["edges"])]
        label = report["models"][name]["label"]
        if row["before"]:
            axes.plot(middles, row["before"], linestyle=":", fillstyle="none", label=f"before {label}", **style)
        axes.plot(middles, row["loss"], label=f"after {label}", **style)
    axes.set_xscale("log", base=2)
    _plain_log_axis(axes)
    axes.set_xlabel("position in the document, tokens (log scale)")
    axes.set_ylabel("loss, nats a token")
    _legend_beside(axes)
    caption = (
        "Held-out long documents in equal stretches, before (dotted) and after each stage of context extension. A model"
        " that uses its context predicts later tokens better."
    )
    return Drawing("loss_by_position", "Loss by position in long documents", caption, figure)


def _main_curves(metrics: Mapping[str, Curve]) -> dict[str, Curve]:
    """What says how a stage went: reinforcement learning's accuracy and reward, the others' losses in nats a token."""
    rewards = {name: curve for name, curve in metrics.items() if name in ("accuracy", "reward", "reward/mean")}
    losses = {name: curve for name, curve in metrics.items() if "loss" in name and "balance" not in name}
    if "lm_loss" in losses:
        losses.pop("loss", None)  # the weighted sum: its parts say more
    return rewards or losses


def _words(metric: str) -> str:
    return METRICS.get(metric, metric.replace("_", " "))


def _panels(count: int, width: float, height: float, columns: int = 3) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels in rows; sizes in inches, per panel."""
    from matplotlib.figure import Figure

    across = min(count, columns)
    down = math.ceil(count / across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    grid: Sequence[Axes] = figure.subplots(down, across, squeeze=False).ravel().tolist()
    for axes in grid[count:]:
        axes.remove()
    for axes in grid[:count]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=8)
    return figure, list(grid[:count])


def _legend_beside(axes: Axes) -> None:
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5))


def _plain_log_axis(axes: Axes) -> None:
    """Numbers as people write them, not powers; minor ones too where the axis spans little."""
    from matplotlib.ticker import FuncFormatter

    low, high = axes.get_xlim()
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    narrow = high / max(low, 1e-9) < 30
    axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}" if narrow else ""))


def _marks(curve: Curve) -> dict[str, Any]:
    """Few points would be lost as a bare line."""
    return {"marker": ".", "markersize": 4} if len(curve) <= 40 else {}


def _xy(curve: Curve) -> tuple[list[int], list[float]]:
    return [step for step, _ in curve], [value for _, value in curve]


def _short(length: int) -> str:
    return f"{length // 1024}K" if length % 1024 == 0 else str(length)
