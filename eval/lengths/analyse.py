"""The whole analysis, from judged rows to one JSON-serialisable dict.

All shares are in 0 to 1, all lengths in tokens. An {interval} is {value, low, high} by bootstrap over problems, the
macro average over tasks unless said otherwise. The keys of what `analyse` returns:

schema, level, resamples, seed; budgets: of the hard re-scoring
headlines: "<model>: <accuracy> (truncated <share>)" each; warnings, sentences: for people, whole sentences
models: by id {label, allowed: longest completion of the free run,
  runs: [{condition, mechanism, budget, name, allowed, answers: that count, left_out, problems, and if answers:
    accuracy, mean_tokens {interval}, bounds: accuracy with truncated answers as wrong and as right, tasks:
    accuracy by task, truncated, no_answer, format_failed: macro shares, accuracy_finished: right among those
    not truncated, headline, outcomes {right, wrong, no_answer, truncated}: of all answers together,
    tokens, reasoning_tokens, answer_tokens {all, right, wrong: {mean, p50, p90, p99}},
    tokens_per_correct: all tokens by all right answers, seconds, seconds_per_correct,
    markers {version, all, right, wrong: {reflection, verification, patterns} per 1,000 tokens of thought},
    changes {answers, changed, wrong_to_right, ..., unjudged}: counts, repetition {gram, all, right, wrong,
    mostly, truncated_in_loop}: shares}],
  hard {points: [{budget, accuracy, bounds, exact, tasks, truncated, no_answer, format_failed, mean_tokens}],
    area {interval}: under accuracy over log2 budget}; a point's accuracy is OAA_B,
  mechanisms {problems: shared by all of the model's runs, free: point, hard, forced, extended, stated: [points,
    by budget]} or None, obedience {problems, budgets: [{budget, answers, mean_used, p10_used, p90_used,
    signed_error, absolute_error, over}], correlation} or None}
pareto: {problems: shared by all runs, points: [{model, condition, name, mean_tokens, accuracy, dominated}]}
quintiles: {base, of, problems, groups: [{group: 1 the most difficult, problems, pass_rate: [least, most],
  models: {accuracy, mean_tokens {interval}, a mean over problems}}]}
pairs: [{problems, after, before: {model, accuracy, mean_tokens {interval}, truncated}, difference {interval},
  bounds: of the difference, p, length_ratio {interval} or None, same_length {difference {interval}, answers,
  strata} or None, same_budget: [{budget, difference}], same_mean_tokens {cut, budget, mean_tokens,
  difference}}]; problems 0 and only the models' ids where they share none
patterns: {version, reflection, verification}; repetition: the constants of its rules
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eval.lengths.budgets import by_mechanism, hard_budgets, hard_curve
from eval.lengths.costs import pareto, run_summary
from eval.lengths.difficulty import quintiles
from eval.lengths.findings import headline, sentences, warnings
from eval.lengths.obedience import obedience
from eval.lengths.pairs import compare_pair
from eval.lengths.reflection import MARKERS_VERSION, REFLECTION, VERIFICATION, Judge
from eval.lengths.repetition import GRAM, LONGEST_BLOCK, LOOP_PIECES, LOOP_TIMES
from eval.lengths.runs import FREE, RERUNS, LengthOptions, LengthRun, Measured, measure
from recipes.rows import Problem

SCHEMA = 1


def analyse(
    runs: Sequence[LengthRun],
    problems: Sequence[Problem],
    options: LengthOptions,
    *,
    pairs: Sequence[tuple[str, str]] = (),
    judge: Judge | None = None,
) -> dict[str, Any]:
    """Length against accuracy; equal arguments give equal results.

    The keys are at the head of this file. Rows whose verdict does not count are in nothing but `left_out`.

    Args:
        runs: of any models and conditions; a model's "free" run is its ordinary evaluation, the others can be on some
            of its problems only.
        problems: all that rows are of; a row's task is its problem's source.
        pairs: (after, before) models to be compared by their free runs.
        judge: (problem id, answer) -> whether it is right, for answers changed by reflection.

    Raises:
        ValueError: see `eval.lengths.runs.measure`; a pair or `options.base` names a model without a free run.
    """
    measured = measure(runs, problems)
    budgets = hard_budgets(measured, options)
    programs = frozenset((problem.source, problem.id) for problem in problems if problem.domain == "code")
    models: dict[str, Any] = {}
    for name in dict.fromkeys(run.model for run in runs):
        own = sorted((run for run in measured if run.run.model == name), key=_place)
        free = _free(measured, name)
        models[name] = {
            "label": own[0].run.label,
            "allowed": None if free is None else free.allowed,
            "runs": [run_summary(run, options, judge, programs) for run in own],
            "hard": hard_curve(free, budgets, options),
            "mechanisms": by_mechanism(own, budgets, options),
            "obedience": obedience(own),
        }
    analysis: dict[str, Any] = {
        "schema": SCHEMA,
        "level": options.level,
        "resamples": options.resamples,
        "seed": options.seed,
        "budgets": budgets,
        "headlines": headline(list(models.values())),
        "models": models,
        "pareto": pareto(measured, options),
        "quintiles": quintiles(measured, options),
        "pairs": [_pair(measured, pair, budgets, options) for pair in pairs],
        "patterns": {"version": MARKERS_VERSION, "reflection": REFLECTION, "verification": VERIFICATION},
        "repetition": {"gram": GRAM, "loop": [LOOP_TIMES, LOOP_PIECES, LONGEST_BLOCK]},
    }
    return analysis | {"warnings": warnings(analysis), "sentences": sentences(analysis)}


def _free(runs: Sequence[Measured], model: str) -> Measured | None:
    return next((run for run in runs if run.run.model == model and run.condition.mechanism == FREE), None)


def _place(run: Measured) -> tuple[int, int]:
    """Free answers first, then mechanism by mechanism with rising budgets."""
    return (FREE, *RERUNS).index(run.condition.mechanism), run.condition.tokens or 0


def _pair(
    runs: Sequence[Measured], pair: tuple[str, str], budgets: Sequence[int], options: LengthOptions
) -> dict[str, Any]:
    sides = {}
    for side, model in zip(("after", "before"), pair, strict=True):
        free = _free(runs, model)
        if free is None:
            raise ValueError(f"{model!r} has no free run to compare")
        sides[side] = free
    found: Mapping[str, Any] = compare_pair(sides["after"], sides["before"], budgets, options) or {"problems": 0}
    named = {side: {"model": run.run.model} | found.get(side, {}) for side, run in sides.items()}
    return {**found, **named}
