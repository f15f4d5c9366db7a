"""A model's tries, and what a contest's rules make of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from numpy.random import Generator
from pydantic import ConfigDict, Field

from core_model.errors import InputError
from eval.codeforces.contests import Contest, ContestFile, Finite, Identifier
from eval.judge.inputs import rows_once
from recipes.rows import Row, Verdict

WRONG_POINTS = 50.0  # what a wrong try takes off a problem's points
WRONG_MINUTES = 10.0  # what it adds to the penalty in a contest of ICPC's kind
LEAST_SHARE = 0.3  # Codeforces: a solved problem keeps that share of its points, however late and after many tries
TimeModel = float | Literal["none", "rows"]


class UnusableContest(Exception):
    """A contest that no rating can be estimated from; the message says why."""


class TryRow(Row):
    """A row of --results: a judged try. Other tools' keys are passed over, so that judged rows need no stripping."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    contest_id: Identifier
    problem_index: str = Field(min_length=1)
    sample: int = Field(ge=0, strict=True)
    verdict: Verdict
    minutes: Annotated[Finite, Field(ge=0)] | None = None  # from the contest's start to the try


@dataclass(frozen=True)
class Rules:
    """Args:
    tries: of a problem, at most; later samples are not looked at.
    time: when a solved problem was solved, in minutes from the start: "none": it does not matter, as in CodeElo;
        "rows": `minutes` of the accepted row; a number: that minute for all.
    """

    tries: int = 8
    time: TimeModel = "none"


@dataclass(frozen=True)
class Score:
    """A row of standings: more points are better, then less penalty."""

    points: float
    penalty: float
    solved: int


Tries = Mapping[str, Sequence[TryRow]]  # index of a problem -> tries, in order


@dataclass(frozen=True)
class ContestTries:
    """A model's tries at a contest.

    Args:
        counted: by problem, the tries that count, in the order of their samples.
        left_out: how many are not the model's fault (INFRA_ERROR, INVALID_PROBLEM).
        dead: problems that have tries, none of which counts.
        without: problems of the contest without a try.
    """

    counted: Tries
    left_out: int
    dead: Sequence[str]
    without: Sequence[str]

    def shuffled(self, rng: Generator) -> Tries:
        """The tries with the samples of every problem in another order."""
        return {index: [tries[i] for i in rng.permutation(len(tries))] for index, tries in self.counted.items()}


def read_results(path: Path, contests: Mapping[str, ContestFile], time: TimeModel) -> dict[str, ContestTries]:
    """The tries by contest.

    Raises:
        InputError: a missing or empty file, a line that is no row, a try that is there twice or of no problem of these
            contests, or, where the time is that of the rows, an accepted one without minutes.
    """
    rows: dict[str, dict[str, list[TryRow]]] = {}
    keys = "contest_id, problem_index and sample"
    for number, row in enumerate(rows_once(path, TryRow, lambda row: (row.contest_id, *_place(row)), keys), 1):
        if row.contest_id not in contests:
            where = f"line {number}, contest_id"
            raise InputError(path, where=where, expected="a contest of the folder", found=row.contest_id)
        indices = [problem.index for problem in contests[row.contest_id].contest.problems]
        if row.problem_index not in indices:
            expected = f"a problem of contest {row.contest_id} ({', '.join(indices)})"
            raise InputError(path, where=f"line {number}, problem_index", expected=expected, found=row.problem_index)
        if time == "rows" and row.verdict is Verdict.CORRECT and row.minutes is None:
            expected = "the minute of an accepted try, which this model of time is about"
            raise InputError(path, where=f"line {number}, minutes", expected=expected, found="none")
        rows.setdefault(row.contest_id, {}).setdefault(row.problem_index, []).append(row)
    if not rows:
        raise InputError(path, expected=f"rows with {keys} and verdict", found="an empty file")
    return {id: _tries(contests[id].contest, problems) for id, problems in rows.items()}


def _place(row: TryRow) -> tuple[str, int]:
    return row.problem_index, row.sample


def _tries(contest: Contest, rows: Mapping[str, Iterable[TryRow]]) -> ContestTries:
    ordered = {index: sorted(tries, key=_place) for index, tries in rows.items()}
    counted = {index: [row for row in tries if row.verdict.counts] for index, tries in ordered.items()}
    return ContestTries(
        counted=counted,
        left_out=sum(map(len, ordered.values())) - sum(map(len, counted.values())),
        dead=[index for index, tries in counted.items() if not tries],
        without=[problem.index for problem in contest.problems if problem.index not in rows],
    )


def contest_score(contest: Contest, tries: Tries, rules: Rules) -> Score:
    """What the tries are worth in the contest; a problem without any is not solved.

    Every try before the accepted one is a wrong one, answers without a program included.

    Raises:
        UnusableContest: the rules need the contest's duration, which it has not, or a try is later than its end.
    """
    points = penalty = 0.0
    solved = 0
    for problem in contest.problems:
        for wrong, row in enumerate(tries.get(problem.index, ())[: rules.tries]):
            if row.verdict is Verdict.CORRECT:
                solved += 1
                minutes = _minutes(contest, row, rules.time)
                if contest.scoring == "icpc":
                    points += 1
                    penalty += WRONG_MINUTES * wrong + (minutes or 0)
                else:
                    points += problem_points(problem.points, wrong, minutes, contest.duration_minutes)
                break
    return Score(points, penalty, solved)


def problem_points(worth: float, wrong: int, minutes: int | None, duration: float | None) -> float:
    """A solved problem's points, in a contest with points.

    Without a time, CodeElo's rule: 50 off for each wrong try, never below 0. With one, Codeforces' own: x/250 a minute
    is lost as well, in two hours (in proportion in others), and 30 % are never lost.

    Raises:
        UnusableContest: a time, but no duration.
    """
    if minutes is None:
        return max(0.0, worth - WRONG_POINTS * wrong)
    if duration is None:
        raise UnusableContest("no duration_minutes, which the model of time needs")
    lost = math.floor(120 * worth * minutes / (250 * duration))
    return max(LEAST_SHARE * worth, worth - lost - WRONG_POINTS * wrong)


def _minutes(contest: Contest, row: TryRow, time: TimeModel) -> int | None:
    """The whole minutes to the accepted try, as Codeforces counts; None where the time does not matter."""
    if time == "none":
        return None
    minutes = row.minutes if time == "rows" else float(time)
    if minutes is None:
        raise ValueError(f"a try without minutes: {row}")  # read_results refuses such a file
    if contest.duration_minutes is not None and minutes > contest.duration_minutes:
        raise UnusableContest(f"a try at minute {minutes:g}, after its end at minute {contest.duration_minutes:g}")
    return int(minutes)
