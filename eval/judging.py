"""The second step: a verdict on every answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from operator import attrgetter
from pathlib import Path

from eval.journal import Journal
from eval.tasks.family import Judgement
from eval.tasks.task import Task
from recipes.progress import Bar
from recipes.rows import Generation, JudgedSample, Problem, Verdict, sha256_of, write_rows

log = logging.getLogger(__name__)

ATTEMPTS = 3  # when the machine, not the answer, is at fault


def judge(
    path: Path,
    tasks: Mapping[str, Task],
    problems: Mapping[tuple[str, str], Problem],
    rows: Sequence[Generation],
    chunk: int,
    bar: Bar,
) -> list[JudgedSample]:
    """Judge what the journal at `path` does not hold yet; all rows, in order.

    A verdict's key covers the generation, its problem and tests (in the generation's key), and what judges it. A
    verdict that the machine is to blame for is asked for again, here and whenever judging is started anew.

    Args:
        tasks, problems: by the recipe's name; by that and the problem's id.
        chunk: rows between two writes.
    """
    revisions = {name: task.revision() for name, task in tasks.items()}
    keys = [sha256_of(row.key, revisions[row.task]) for row in rows]
    journal = Journal(path, JudgedSample, keys, key=attrgetter("verdict_key"))
    lost = [key for key, row in journal.rows.items() if row.verdict is Verdict.INFRA_ERROR]
    for key in lost:
        del journal.rows[key]
    waiting = [pair for pair in zip(keys, rows, strict=True) if pair[0] not in journal.rows]
    bar.advance(len(rows) - len(waiting))
    for start in range(0, len(waiting), chunk):
        block = waiting[start : start + chunk]
        verdicts = judge_block(tasks, problems, [row for _, row in block])
        journal.append([_judged(key, row, verdict) for (key, row), verdict in zip(block, verdicts, strict=True)])
        bar.advance(len(block))
    judged = journal.select(keys)
    if lost:
        write_rows(path, judged)  # without the lines that were judged anew
    still = sum(row.verdict is Verdict.INFRA_ERROR for row in judged)
    if still:
        log.warning("%s: %d answers could not be judged; they leave the statistics", path, still)
    return judged


def judge_block(
    tasks: Mapping[str, Task], problems: Mapping[tuple[str, str], Problem], rows: Sequence[Generation]
) -> list[Judgement]:
    """A verdict on every row: cut-off completions are TRUNCATED unseen, the others are judged by their tasks."""
    judged: dict[int, Judgement] = {
        index: Judgement(Verdict.TRUNCATED) for index, row in enumerate(rows) if row.finish_reason == "length"
    }
    waiting = [index for index in range(len(rows)) if index not in judged]
    for _ in range(ATTEMPTS):
        for name in dict.fromkeys(rows[index].task for index in waiting):
            some = [index for index in waiting if rows[index].task == name]
            verdicts = tasks[name].judge(
                [problems[name, rows[index].problem_id] for index in some], [rows[index].answer for index in some]
            )
            judged |= dict(zip(some, verdicts, strict=True))
        waiting = [index for index in waiting if judged[index].verdict is Verdict.INFRA_ERROR]
        if not waiting:
            break
    return [judged[index] for index in range(len(rows))]


def _judged(key: str, row: Generation, judgement: Judgement) -> JudgedSample:
    """The judge's seconds are left out: they would make two equal runs differ."""
    return JudgedSample(
        **row.model_dump(),
        verdict_key=key,
        verdict=judgement.verdict,
        detail=judgement.detail,
        isolation=judgement.isolation,
    )
