"""The distill stage: problems -> a teacher's traces -> verified training rows of V3's two sample types.

For every problem whose trace passes the verifier: `<problem, short answer>`, and `<system prompt asking for reflection
and verification, problem, reasoned answer>` (V3 report, section 5.1). Rejected traces are counted, not kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill.journal import Answered, Attempt, Journal
from distill.patterns import pattern_statistics
from distill.recipe import Recipe
from distill.teacher.renderer import Renderer
from distill.teacher.trace import Teacher, generation_key
from eval.judge.shared import use_judge
from eval.tasks import get_family, judge_answers
from eval.tasks.text import prompt_messages
from recipes.atomic import write_json
from recipes.progress import progress_bar
from recipes.rows import Message, Problem, SFTRow, Verdict, write_rows
from recipes.run import Run

JUDGE_ATTEMPTS = 3  # when the machine, not the answer, is at fault


@dataclass(frozen=True)
class Task:
    """One problem to be solved; its index in the family is also the teacher's seed."""

    problem: Problem
    index: int
    key: str


def run_stage(recipe: Recipe, run: Run) -> dict[str, Any]:
    """Distil as the recipe says; continues where a killed run stopped, to the same files.

    Writes `samples/generations.jsonl` (every attempt), `samples/problems.jsonl` (distinct problems),
    `samples/short.jsonl` and `samples/reasoning.jsonl` (SFTRow, one of each per kept trace), `report.json`.

    Returns:
        The summary: per family the kept and rejected counts and the pattern statistics.
    """
    use_judge(recipe.judge, needed="code" in recipe.families)
    teacher = Renderer(recipe.teacher.mistake_share, recipe.teacher.check_share)
    tasks = list(_tasks(recipe, teacher))
    samples = run.path / "samples"
    journal = Journal(samples / "generations.jsonl")
    journal.require_keys([task.key for task in tasks])
    with progress_bar(len(tasks), "distil", done=len(journal.attempts), unit="traces") as bar:
        while len(journal.attempts) < len(tasks):
            done = len(journal.attempts)
            chunk = tasks[done : done + recipe.chunk]
            journal.append(attempt_all(teacher, chunk, journal.by_answer))
            bar.advance(len(chunk))

    kept = [
        (task, attempt)
        for task, attempt in zip(tasks, journal.attempts, strict=True)
        if attempt.verdict is Verdict.CORRECT
    ]
    write_rows(samples / "problems.jsonl", distinct(task.problem for task in tasks))
    write_rows(samples / "short.jsonl", (_short_row(task.problem, attempt) for task, attempt in kept))
    write_rows(samples / "reasoning.jsonl", (_reasoning_row(task.problem, attempt) for task, attempt in kept))
    summary = _summary(recipe, journal.attempts)
    write_json(run.path / "report.json", summary)
    run.rewind(-1)
    for step, family in enumerate(recipe.families):
        row = summary["families"][family]
        run.log(step, {f"{family}/kept": row["traces"], f"{family}/rejected": sum(row["rejected"].values())})
    return summary


def attempt_all(teacher: Teacher, tasks: Sequence[Task], known: Mapping[Answered, Attempt]) -> list[Attempt]:
    """One judged trace per task, in order.

    Args:
        known: attempts by problem and answer; what is among them is not judged again (nano's 4,500 programs are 2,094).

    Raises:
        RuntimeError: the judge could not run some answers at all; nothing is recorded of them.
    """
    traces = [teacher.generate(task.problem, task.index) for task in tasks]
    answered = [(task.problem.id, trace.answer) for task, trace in zip(tasks, traces, strict=True)]
    verdicts = {one: (known[one].verdict, known[one].detail) for one in answered if one in known}
    verdicts |= _judged({one: task.problem for one, task in zip(answered, tasks, strict=True) if one not in verdicts})
    return [
        Attempt(
            key=task.key,
            problem_id=task.problem.id,
            family=task.problem.source,
            index=task.index,
            solution=trace.solution,
            check=trace.check,
            answer=trace.answer,
            verdict=verdicts[one][0],
            detail=verdicts[one][1],
        )
        for task, trace, one in zip(tasks, traces, answered, strict=True)
    ]


def _judged(asked: dict[Answered, Problem]) -> dict[Answered, tuple[Verdict, str]]:
    """The verdict on each answer to its problem, with the detail."""
    verdicts: dict[Answered, tuple[Verdict, str]] = {}
    for _ in range(JUDGE_ATTEMPTS):
        judged = judge_answers(list(asked.values()), [answer for _, answer in asked])
        verdicts |= {one: (found.verdict, found.detail) for one, found in zip(asked, judged, strict=True)}
        asked = {one: asked[one] for one in asked if verdicts[one][0] is Verdict.INFRA_ERROR}
        if not asked:
            return verdicts
    detail = verdicts[next(iter(asked))][1]
    raise RuntimeError(f"the judge failed on {len(asked)} answers ({detail}); the same command resumes")


def distinct(problems: Iterable[Problem]) -> Iterator[Problem]:
    """Each problem once, in order of appearance."""
    seen: set[str] = set()
    for problem in problems:
        if problem.id not in seen:
            seen.add(problem.id)
            yield problem


def _tasks(recipe: Recipe, teacher: Teacher) -> Iterator[Task]:
    for name, count in recipe.families.items():
        family = get_family(name, seed=recipe.seed)
        for index in range(recipe.start, recipe.start + count):
            problem = family.problem(index, "train")
            yield Task(problem, index, generation_key(teacher, problem, index))


def _short_row(problem: Problem, attempt: Attempt) -> SFTRow:
    answer = Message(role="assistant", content=attempt.answer)
    messages = [*prompt_messages(problem, reflect=False), answer]
    return SFTRow(problem_id=problem.id, messages=messages, system_variant="none")


def _reasoning_row(problem: Problem, attempt: Attempt) -> SFTRow:
    answer = Message(role="assistant", content=attempt.answer, reasoning_content=attempt.trace.reasoning)
    messages = [*prompt_messages(problem, reflect=True), answer]
    return SFTRow(problem_id=problem.id, messages=messages, system_variant="reflect")


def _summary(recipe: Recipe, attempts: Sequence[Attempt]) -> dict[str, Any]:
    count_tokens = _token_counter(recipe)
    families = {}
    for name in recipe.families:
        mine = [attempt for attempt in attempts if attempt.family == name]
        traces = [attempt.trace for attempt in mine if attempt.verdict is Verdict.CORRECT]
        rejected = Counter(attempt.verdict.value for attempt in mine if attempt.verdict is not Verdict.CORRECT)
        families[name] = pattern_statistics(traces, count_tokens) | {"rejected": dict(sorted(rejected.items()))}
    return {
        "traces": sum(row["traces"] for row in families.values()),
        "rejected": sum(sum(row["rejected"].values()) for row in families.values()),
        "families": families,
    }


def _token_counter(recipe: Recipe) -> Callable[[Sequence[str]], list[int]] | None:
    if recipe.tokenizer is None:
        return None
    from core_model.tokenizer import encode_texts, load_tokenizer

    tokenizer = load_tokenizer(recipe.tokenizer)
    return lambda texts: list(map(len, encode_texts(tokenizer, texts)))
