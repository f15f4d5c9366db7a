"""What an eval run holds for an exporter: its problems with the judged samples of every model, from the rows alone."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from core_model.errors import InputError
from eval.tasks.livecodebench.selection import Window
from recipes.rows import JudgedSample, Problem, read_rows
from recipes.run import COMPLETE, read_provenance


@dataclass(frozen=True)
class Answered:
    """A problem and one model's samples of it, by index; at least one."""

    problem: Problem
    samples: tuple[JudgedSample, ...]


@dataclass(frozen=True)
class TaskAnswers:
    """One model's answers to one task, in the order of the run's problems.

    model: the name of its rows' file: a model of the recipe, or one under a budget ("rl.forced-64").
    left_out: samples that were dropped because they say nothing about the model (see `counted`).
    unasked: problems of the task without an answer where one was to be.
    """

    model: str
    task: str
    answers: tuple[Answered, ...]
    left_out: int = 0
    unasked: int = 0

    @property
    def samples(self) -> list[JudgedSample]:
        """Of all problems, in order."""
        return [sample for one in self.answers for sample in one.samples]

    @property
    def repeats(self) -> int:
        """Samples per problem; where they differ, the most."""
        return max((len(one.samples) for one in self.answers), default=0)

    def counted(self) -> TaskAnswers:
        """Without the samples whose verdict is no judgement of the model, and problems that are left with none."""
        kept = [
            Answered(one.problem, tuple(sample for sample in one.samples if sample.verdict.counts))
            for one in self.answers
        ]
        whole = tuple(one for one in kept if one.samples)
        left_out = len(self.samples) - sum(len(one.samples) for one in whole)
        return replace(self, answers=whole, left_out=self.left_out + left_out)

    def problems_sha256(self) -> str:
        """Of the problems in order, tests included: equal where two exports are about the same ones."""
        digest = hashlib.sha256()
        for one in self.answers:
            digest.update(one.problem.model_dump_json().encode() + b"\n")
        return digest.hexdigest()


@dataclass(frozen=True)
class RunRecord:
    """What the formats tell of a run, from its provenance.json. `started` is in UTC; `seconds` of work."""

    name: str
    started: datetime
    seconds: float
    seed: int
    commit: str | None
    dirty: bool | None
    versions: dict[str, str]

    @property
    def ended(self) -> datetime:
        return self.started + timedelta(seconds=self.seconds)


@dataclass(frozen=True)
class Evaluation:
    """What is to be exported. complete: whether the run has come to its end."""

    run: RunRecord
    tasks: tuple[TaskAnswers, ...]
    complete: bool = True

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(one.model for one in self.tasks))

    def of(self, model: str) -> list[TaskAnswers]:
        """A model's answers, task by task."""
        return [one for one in self.tasks if one.model == model]

    def counted(self) -> Evaluation:
        """With what counts alone; tasks that are left with nothing go too."""
        tasks = (one.counted() for one in self.tasks)
        return replace(self, tasks=tuple(one for one in tasks if one.answers))


def read(
    folder: Path, *, models: Sequence[str] = (), tasks: Sequence[str] = (), window: Window | None = None
) -> Evaluation:
    """Read an eval run's folder.

    Args:
        models: these alone, by the names of their files in samples/judged; none given: all.
        tasks: these alone, by the recipe's names for them; none given: all.
        window: problems dated in these days alone.

    Raises:
        InputError: no eval run, no such model or task, damaged rows, or nothing that is left to export.
    """
    run, complete = _read_run(folder)
    path = folder / "samples" / "problems.jsonl"
    problems = list(read_rows(path, Problem))
    _known("task", tasks, dict.fromkeys(problem.source for problem in problems), folder)
    chosen = window.select(problems) if window is not None else problems
    if tasks:
        chosen = [problem for problem in chosen if problem.source in tasks]
    judged = folder / "samples" / "judged"
    there = sorted(file.stem for file in judged.glob("*.jsonl"))
    _known("model", models, there, folder)
    found: list[TaskAnswers] = []
    for model in [name for name in there if not models or name in models]:
        samples = _read_samples(judged / f"{model}.jsonl", problems)
        found += _by_task(model, chosen, samples, complete=complete)
    if not found:
        days = f" dated {window.start} to {window.end}" if window is not None else ""
        raise InputError(folder, where="samples", expected=f"judged answers to problems{days}", found="none")
    return Evaluation(run, tuple(found), complete)


def refuse_gaps(evaluation: Evaluation, folder: Path, *, verdicts: bool) -> None:
    """Refuse a run that is not whole, since no format can tell a sample that is missing from one that never was to be.

    Args:
        verdicts: refuse too where a verdict is INFRA_ERROR or INVALID_PROBLEM, for formats that know right and wrong
            alone.

    Raises:
        InputError: which model and task, and what is missing.
    """
    for one in evaluation.tasks:
        faults = []
        if verdicts and (lost := [sample for sample in one.samples if not sample.verdict.counts]):
            names = ", ".join(sorted({str(sample.verdict) for sample in lost}))
            faults.append(f"{len(lost)} samples without a judgement of the model ({names})")
        if uneven := sum(len(answered.samples) != one.repeats for answered in one.answers):
            faults.append(f"{uneven} problems with fewer samples than others ({one.repeats})")
        if one.unasked:
            faults.append(f"{one.unasked} problems not answered yet")
        if faults:
            raise InputError(
                folder,
                where=f"{one.model}, task {one.task}",
                expected="every sample judged (the run's own command goes on with it; --allow-incomplete leaves out "
                "what is not)",
                found="; ".join(faults),
            )


def target_of(problem: Problem) -> str:
    """The answer that a problem asks for, where it is one text or number; else nothing."""
    answer = problem.verification_info.get("answer")
    return str(answer) if isinstance(answer, str | int | float) else ""


def only(values: Iterable[Any]) -> Any:
    """The value that all share; None where they differ or there is none."""
    distinct: list[Any] = []
    for value in values:
        if value not in distinct:
            distinct.append(value)
    return distinct[0] if len(distinct) == 1 else None


def _read_run(folder: Path) -> tuple[RunRecord, bool]:
    """The record, and whether the run is complete."""
    provenance = read_provenance(folder)
    if provenance is None:
        raise InputError(folder, expected="the folder of an eval run (with provenance.json)", found="none")
    recipe = provenance["recipe"]
    if not isinstance(recipe, dict) or recipe.get("stage") != "eval":
        stage = recipe.get("stage") if isinstance(recipe, dict) else recipe
        raise InputError(folder, where="stage", expected="a run of the eval stage", found=repr(stage))
    git = provenance.get("git") or {}
    try:
        record = RunRecord(
            name=str(recipe["name"]),
            started=datetime.fromisoformat(provenance["started"]),
            seconds=float(provenance["seconds"]),
            seed=int(recipe["seed"]),
            commit=git.get("commit"),
            dirty=git.get("dirty"),
            versions={name: version for name, version in (provenance.get("versions") or {}).items() if version},
        )
    except (KeyError, TypeError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
        raise InputError(folder / "provenance.json", expected="the provenance of a run", found=found) from error
    if record.started.tzinfo is None:
        found = repr(provenance["started"])
        raise InputError(folder / "provenance.json", where="started", expected="a time with its zone", found=found)
    return record, provenance["status"] == COMPLETE


def _known(what: str, wanted: Iterable[str], known: Collection[str], folder: Path) -> None:
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise InputError(folder, where=what, expected=f"one of {', '.join(known) or 'none'}", found=", ".join(unknown))


Key = tuple[str, str]  # task, problem


def _read_samples(path: Path, problems: Sequence[Problem]) -> dict[Key, dict[int, JudgedSample]]:
    """The samples of every problem by index. Of two rows of one key the later one holds, as it does in the journal."""
    sources: dict[str, list[str]] = {}
    for problem in problems:
        sources.setdefault(problem.id, []).append(problem.source)
    found: dict[Key, dict[int, JudgedSample]] = {}
    for number, row in enumerate(read_rows(path, JudgedSample), 1):
        # Rows without a task are of runs in which an id is enough.
        task = row.task or only(sources.get(row.problem_id, ())) or ""
        if task not in sources.get(row.problem_id, ()):
            raise InputError(
                path,
                where=f"line {number}",
                expected="an answer to one of samples/problems.jsonl",
                found=f"task {row.task!r}, problem {row.problem_id!r}",
            )
        samples = found.setdefault((task, row.problem_id), {})
        before = samples.get(row.index)
        if before is not None and before.key != row.key:
            place = f"line {number}, {row.problem_id}, index {row.index}"
            raise InputError(path, where=place, expected="one row a sample", found="a second one of another key")
        samples[row.index] = row
    return found


def _by_task(
    model: str, problems: Sequence[Problem], found: dict[Key, dict[int, JudgedSample]], *, complete: bool
) -> list[TaskAnswers]:
    """A problem without answers is one that the model was not to be asked, unless the run is not complete."""
    tasks: dict[str, list[Answered]] = {}
    silent: dict[str, int] = {}
    for problem in problems:
        samples = found.get((problem.source, problem.id))
        if samples:
            ordered = tuple(samples[index] for index in sorted(samples))
            tasks.setdefault(problem.source, []).append(Answered(problem, ordered))
        else:
            silent[problem.source] = silent.get(problem.source, 0) + 1
    made = []
    for task, answers in tasks.items():
        free = answers[0].samples[0].condition.mechanism == "free"  # under a budget, some of the problems are asked
        made.append(
            TaskAnswers(model, task, tuple(answers), unasked=0 if complete or not free else silent.get(task, 0))
        )
    return made
