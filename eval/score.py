"""From rows to numbers: everything that report.json holds, and nothing that a second run would change."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.metrics import Array, Interval, bootstrap_means, length_summary, paired_difference, pass_at_k
from eval.needle_grid import NeedleRow, grid_scores
from eval.perplexity import TextReport
from eval.recipe import Comparison, ModelEntry, Recipe
from eval.tasks import best_constant
from recipes.rows import JudgedSample, Problem, Verdict, sha256_of

SCHEMA = 1
DIGITS = 6  # decimals kept: below that is rounding, not measurement
HISTOGRAM_BINS = 24


@dataclass(frozen=True)
class Samples:
    """The judged rows of a run, and what else its report is made from."""

    problems: Sequence[Problem]
    judged: Mapping[str, Sequence[JudgedSample]]  # by model
    needle: Mapping[str, Sequence[NeedleRow]] = field(default_factory=dict)
    trained: Mapping[str, int] = field(default_factory=dict)
    text: Mapping[str, TextReport] = field(default_factory=dict)


def score(recipe: Recipe, samples: Samples) -> dict[str, Any]:
    """The report: protocol, problems, models, comparisons, needle grid, text."""
    families: dict[str, list[Problem]] = defaultdict(list)
    for problem in samples.problems:
        families[problem.source].append(problem)
    grouped = {name: by_family(rows, families) for name, rows in samples.judged.items()}
    constants = {name: best_constant(problems) for name, problems in families.items()}
    report = {
        "schema": SCHEMA,
        "name": recipe.name,
        "seed": recipe.seed,
        "protocol": _protocol(recipe, samples.problems),
        "families": {
            name: {"problems": len(problems), "best_constant": _constant(constants[name])} | _dates(problems)
            for name, problems in families.items()
        },
        "best_constant": _mean([accuracy for _, accuracy in constants.values()]),
        "models": {
            name: _model(recipe, name, grouped[name]) if name in grouped else _unasked(recipe, name)
            for name in recipe.models
        },
        "comparisons": [
            pair.model_dump(mode="json") | compare(recipe, pair, grouped[pair.better], grouped[pair.baseline])
            for pair in recipe.comparisons
        ],
        "needle": _needle(recipe, samples),
        "text": _text(recipe, samples.text),
    }
    return rounded(report)


Grouped = dict[str, dict[str, list[JudgedSample]]]  # family -> problem id -> samples that count and those that do not


def by_family(rows: Sequence[JudgedSample], families: Mapping[str, Sequence[Problem]]) -> Grouped:
    """Rows by family and problem, both in the problems' order."""
    of_problem: dict[str, list[JudgedSample]] = defaultdict(list)
    for row in rows:
        of_problem[row.problem_id].append(row)
    return {name: {p.id: of_problem[p.id] for p in problems} for name, problems in families.items()}


def problem_means(samples: Mapping[str, Sequence[JudgedSample]]) -> dict[str, tuple[float, float]]:
    """Accuracy and mean tokens of each problem over its samples that count; problems without any are left out."""
    means = {}
    for problem_id, rows in samples.items():
        counted = [row for row in rows if row.verdict.counts]
        if counted:
            right = sum(row.verdict is Verdict.CORRECT for row in counted)
            means[problem_id] = (right / len(counted), sum(map(tokens, counted)) / len(counted))
    return means


def tokens(row: JudgedSample) -> int:
    """A completion's length: thoughts and answer, without tags and stop token."""
    return row.reasoning_tokens + row.answer_tokens


def _model(recipe: Recipe, name: str, grouped: Grouped) -> dict[str, Any]:
    means = {family: problem_means(samples) for family, samples in grouped.items()}
    families = {}
    for family, samples in grouped.items():
        rows = [row for of_problem in samples.values() for row in of_problem]
        families[family] = _counts(rows) | _pass_at(recipe, samples)
        if means[family]:
            accuracy, length = _intervals(recipe, name, family, [np.array(list(means[family].values()))])
            families[family] |= {"accuracy": _interval(accuracy), "mean_tokens": _interval(length)}
    everything = [row for samples in grouped.values() for of_problem in samples.values() for row in of_problem]
    found = _entry(recipe, name) | {"families": families, "all": _counts(everything), "lengths": _histogram(everything)}
    arrays = [np.array(list(of_family.values())) for of_family in means.values() if of_family]
    if arrays:
        accuracy, length = _intervals(recipe, name, "macro", arrays)
        found["macro"] = {"accuracy": _interval(accuracy), "mean_tokens": _interval(length)}
    return found


def _unasked(recipe: Recipe, name: str) -> dict[str, Any]:
    return _entry(recipe, name) | {"families": {}}


def _entry(recipe: Recipe, name: str) -> dict[str, Any]:
    entry: ModelEntry = recipe.models[name]
    return {"label": recipe.label(name), "mode": entry.mode}


def _intervals(recipe: Recipe, name: str, what: str, arrays: list[Array]) -> tuple[Interval, Interval]:
    statistics = recipe.statistics
    seed = int(sha256_of("interval", recipe.seed, name, what)[:12], 16)
    accuracy, length = bootstrap_means(arrays, statistics.resamples, seed, statistics.level)
    return accuracy, length


def _counts(rows: Sequence[JudgedSample]) -> dict[str, Any]:
    """What became of the samples, and how long they are. Rates are of the samples that count."""
    counted = [row for row in rows if row.verdict.counts]
    verdicts = Counter(row.verdict for row in rows)
    right, lengths = verdicts[Verdict.CORRECT], [tokens(row) for row in counted]
    return {
        "samples": len(counted),
        "left_out": len(rows) - len(counted),
        "verdicts": {verdict.value: verdicts[verdict] for verdict in Verdict if verdicts[verdict]},
        "correct": _share(right, counted),
        "truncated": _share(verdicts[Verdict.TRUNCATED], counted),
        "no_answer": _share(verdicts[Verdict.NO_ANSWER], counted),
        # The headline counts a truncated answer as wrong; this is what it would be had all of them been right.
        "correct_or_truncated": _share(right + verdicts[Verdict.TRUNCATED], counted),
        "tokens": length_summary(lengths),
        "reasoning_tokens": length_summary([row.reasoning_tokens for row in counted]),
        "answer_tokens": length_summary([row.answer_tokens for row in counted]),
        "tokens_per_correct": sum(lengths) / right if right else None,
    }


def _pass_at(recipe: Recipe, samples: Mapping[str, Sequence[JudgedSample]]) -> dict[str, Any]:
    """pass@k over the problems of which enough samples count to estimate it."""
    found: dict[str, float | None] = {}
    for k in recipe.sampling.pass_at:
        values = []
        for rows in samples.values():
            counted = [row for row in rows if row.verdict.counts]
            if len(counted) >= k:
                right = sum(row.verdict is Verdict.CORRECT for row in counted)
                values.append(pass_at_k(len(counted), right, k))
        found[str(k)] = _mean(values)
    return {"pass_at": found}


def _histogram(rows: Sequence[JudgedSample]) -> dict[str, Any]:
    """Lengths of right and of wrong answers in common bins of whole tokens."""
    counted = [row for row in rows if row.verdict.counts]
    longest = max(map(tokens, counted), default=0)
    width = max(1, -(-(longest + 1) // HISTOGRAM_BINS))
    edges = np.arange(0, longest + 1 + width, width)
    parts = {
        "right": [tokens(row) for row in counted if row.verdict is Verdict.CORRECT],
        "wrong": [tokens(row) for row in counted if row.verdict not in (Verdict.CORRECT, Verdict.TRUNCATED)],
        "truncated": [tokens(row) for row in counted if row.verdict is Verdict.TRUNCATED],
    }
    return {"edges": edges.tolist()} | {name: np.histogram(part, edges)[0].tolist() for name, part in parts.items()}


def compare(recipe: Recipe, pair: Comparison, better: Grouped, baseline: Grouped) -> dict[str, Any]:
    """Two models on the problems that count for both, per family and over all of them."""
    names = (pair.better, pair.baseline)
    paired: dict[str, Array] = {}
    for family in pair.families or better:
        a, b = problem_means(better[family]), problem_means(baseline[family])
        shared = [problem_id for problem_id in a if problem_id in b]
        if shared:
            paired[family] = np.array([[a[i][0], b[i][0], a[i][1], b[i][1]] for i in shared])
    found: dict[str, Any] = {family: _paired(recipe, (*names, family), [array]) for family, array in paired.items()}
    macro = _paired(recipe, (*names, "macro"), list(paired.values())) if paired else None
    return {"families": found, "macro": macro}


def _paired(recipe: Recipe, what: tuple[str, ...], arrays: list[Array]) -> dict[str, Any]:
    statistics = recipe.statistics
    result = paired_difference(
        arrays,
        resamples=statistics.resamples,
        flips=statistics.flips,
        seed=int(sha256_of("paired", recipe.seed, what)[:12], 16),
        level=statistics.level,
    )
    return {
        "problems": sum(map(len, arrays)),
        "accuracy": _interval(result.difference),
        "p": result.p,
        "length_ratio": None if result.ratio is None else _interval(result.ratio),
    }


def _needle(recipe: Recipe, samples: Samples) -> dict[str, Any] | None:
    if not samples.needle:
        return None
    grid = recipe.needle
    return {
        "lengths": list(grid.lengths),
        "depths": list(grid.depths),
        "documents_per_cell": len(grid.seeds),
        "models": {name: grid_scores(rows, grid, samples.trained[name]) for name, rows in samples.needle.items()},
    }


def _text(recipe: Recipe, reports: Mapping[str, TextReport]) -> dict[str, Any]:
    """Each model's loss on text, beside the first one's bits per byte."""
    found: dict[str, Any] = {}
    first = next((report.after.short.bits_per_byte for report in reports.values()), 0.0)
    for name, report in reports.items():
        bits = report.after.short.bits_per_byte
        found[name] = {"bits_per_byte": bits, "relative": bits / first if first else None, "long": None}
        before, after = report.before.long, report.after.long
        if after is not None:
            same = before is not None and before.edges == after.edges
            found[name]["long"] = after.model_dump(mode="json") | {
                "before": list(before.loss) if same and before else None
            }
    return found


def _protocol(recipe: Recipe, problems: Sequence[Problem]) -> dict[str, Any]:
    return {
        "split": recipe.problems.split,
        "problems_sha256": sha256_of([problem.model_dump(mode="json") for problem in problems]),
        "sampling": recipe.sampling.model_dump(mode="json"),
        "statistics": recipe.statistics.model_dump(mode="json"),
        "dtype": recipe.dtype,
    }


def _dates(problems: Sequence[Problem]) -> dict[str, Any]:
    """The window the problems lie in, where they are dated."""
    days = sorted(problem.date for problem in problems if problem.date is not None)
    return {"window": [days[0], days[-1]]} if days else {}


def _constant(found: tuple[str, float]) -> dict[str, Any]:
    return {"answer": found[0], "accuracy": found[1]}


def _interval(interval: Interval) -> dict[str, float]:
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def _share(count: int, of: Sequence[Any]) -> float | None:
    return count / len(of) if of else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def rounded(value: Any) -> Any:
    """`value` with every float in it rounded to `DIGITS` decimals."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return value
