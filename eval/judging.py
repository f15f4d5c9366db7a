"""Verdicts on generated answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.journal import Journal
from eval.tasks import judge_answers
from eval.tasks.family import Judgement
from recipes.progress import Bar
from recipes.rows import Generation, JudgedSample, Problem, Verdict

log = logging.getLogger(__name__)

ATTEMPTS = 3  # when the machine, not the answer, is at fault


def judge(
    path: Path, problems: Mapping[str, Problem], blocks: Sequence[Sequence[Generation]], bar: Bar
) -> list[JudgedSample]:
    """Judge what the journal at `path` does not hold yet; all rows, in order.

    A row keeps its generation's key, which covers the problem and its tests. A verdict that the machine is to blame
    for is asked for again, and recorded as INFRA_ERROR only after several attempts.
    """
    journal = Journal(path, JudgedSample, [[row.key for row in block] for block in blocks])
    bar.advance(len(journal.rows))
    for block in blocks[journal.blocks_done :]:
        journal.append(judge_block([problems[row.problem_id] for row in block], block))
        bar.advance(len(block))
    lost = sum(row.verdict is Verdict.INFRA_ERROR for row in journal.rows)
    if lost:
        log.warning("%s: %d answers could not be judged; they leave the statistics", path, lost)
    return journal.rows


def judge_block(problems: Sequence[Problem], rows: Sequence[Generation]) -> list[JudgedSample]:
    """A verdict on every row: cut-off completions are TRUNCATED unseen, the others are judged."""
    judged: dict[int, Judgement] = {
        index: Judgement(Verdict.TRUNCATED) for index, row in enumerate(rows) if row.finish_reason == "length"
    }
    waiting = [index for index in range(len(rows)) if index not in judged]
    for _ in range(ATTEMPTS):
        verdicts = judge_answers([problems[index] for index in waiting], [rows[index].answer for index in waiting])
        judged |= dict(zip(waiting, verdicts, strict=True))
        waiting = [index for index in waiting if judged[index].verdict is Verdict.INFRA_ERROR]
        if not waiting:
            break
    # The judge's seconds are left out: they would make two equal runs differ.
    return [
        JudgedSample(
            **row.model_dump(),
            verdict=judged[index].verdict,
            detail=judged[index].detail,
            isolation=judged[index].isolation,
        )
        for index, row in enumerate(rows)
    ]
