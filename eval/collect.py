"""What other stages measured, gathered into one file so that a report can be drawn again without them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from core_model.checkpoint.config_file import read_config
from core_model.errors import InputError
from eval.perplexity import TextReport, read_text_report
from eval.recipe import ModelEntry, Recipe
from recipes.rows import Row
from recipes.run import read_metrics

# Timings and learning rates are in metrics.jsonl for whoever wants them; these are what the report draws.
DRAWN = re.compile(r"loss|bits_per_byte|reward|accuracy|violation")
MOST_POINTS = 400  # per curve: more than a figure can show

Curve = list[tuple[int, float]]  # (step, value)


class Collected(Row):
    """The contents of collected.json.

    curves: label of a run -> name of a metric -> points. text: model -> losses on text. trained: model -> context.
    """

    curves: dict[str, dict[str, Curve]]
    text: dict[str, TextReport]
    trained: dict[str, int]


def collect(recipe: Recipe) -> Collected:
    """Read the runs and reports that the recipe names.

    Raises:
        InputError: one of them is missing or damaged.
    """
    return Collected(
        curves={label: read_curves(path) for label, path in recipe.curves.items()},
        text={name: read_text_report(entry.report) for name, entry in recipe.models.items() if entry.report},
        trained={
            name: entry.trained_length or _context_of(name, entry)
            for name, entry in recipe.models.items()
            if entry.needle
        },
    )


def _context_of(name: str, entry: ModelEntry) -> int:
    """The longest context by a model's config.json.

    Raises:
        InputError: it has none.
    """
    if entry.kind == "trivium" and entry.path is not None:
        return int(read_config(entry.path).max_position_embeddings)
    config = {} if entry.path is None else json.loads((entry.path / "config.json").read_text(encoding="utf-8"))
    length = config.get("max_position_embeddings")
    if not isinstance(length, int):
        raise InputError(
            f"models.{name}", where="trained_length", expected="the context it was trained to, tokens", found="none"
        )
    return length


def read_curves(path: Path) -> dict[str, Curve]:
    """The metrics of a metrics.jsonl that the report draws, thinned evenly where there are too many points."""
    if not path.is_file():
        raise InputError(path, expected="the metrics of a run", found="no such file")
    curves: dict[str, Curve] = {}
    for row in read_metrics(path):
        for name, value in row.items():
            if DRAWN.search(name) and isinstance(value, int | float):
                curves.setdefault(name, []).append((row["step"], float(value)))
    return {name: list(_thinned(curve)) for name, curve in curves.items()}


def _thinned(curve: Curve) -> Iterable[tuple[int, float]]:
    """At most `MOST_POINTS` of the points, the first and the last among them."""
    if len(curve) <= MOST_POINTS:
        return curve
    last = len(curve) - 1
    return [curve[round(i * last / (MOST_POINTS - 1))] for i in range(MOST_POINTS)]


def read_collected(path: Path) -> Collected:
    """What `collect` gave, from disk.

    Raises:
        InputError: no such file, or one of another form.
    """
    if not path.is_file():
        raise InputError(path, expected="what the eval stage collected from other runs", found="no such file")
    try:
        return Collected.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first: dict[str, Any] = dict(error.errors()[0])
        where = ".".join(map(str, first["loc"]))
        raise InputError(path, where=where, expected="collected curves and losses", found=first["msg"]) from error
