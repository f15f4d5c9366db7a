"""Saved contests: one JSON file each, with what a rating is estimated from, so that nothing is fetched at run time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from core_model.errors import InputError
from recipes.rows import Row

Scoring = Literal["points", "icpc"]
ParticipantType = Literal["CONTESTANT", "PRACTICE", "VIRTUAL", "MANAGER", "OUT_OF_COMPETITION"]
OFFICIAL: ParticipantType = "CONTESTANT"


def _iso_day(text: str) -> str:
    if date.fromisoformat(text).isoformat() != text:  # it reads other forms, such as 20240131, as well
        raise ValueError("a day such as 2024-01-31")
    return text


Day = Annotated[str, AfterValidator(_iso_day)]
Identifier = Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]  # Codeforces' are numbers
Finite = Annotated[float, Field(allow_inf_nan=False)]


class ContestProblem(Row):
    """A problem of the contest. `points`: its full worth; 1 in a contest of ICPC's kind."""

    index: str = Field(min_length=1)  # A, B, C1, ...
    points: Finite = Field(gt=0)


class StandingsRow(Row):
    """A competitor's result. `penalty`: minutes, in a contest of ICPC's kind; it has no meaning in the other."""

    handle: str = Field(min_length=1)
    points: Finite
    penalty: Finite = 0.0
    participant_type: ParticipantType


class RatingChange(Row):
    """`old_rating`: before the contest; None where it is not known."""

    handle: str = Field(min_length=1)
    old_rating: Finite | None


class Contest(Row):
    """The contents of a contest file.

    Args:
        scoring: "points": a problem's worth less 50 for each wrong try; "icpc": problems solved, then penalty.
        duration_minutes: needed by models of time, in contests with points.
        standings: of all participants; only the official ones (CONTESTANT) count.
    """

    id: Identifier
    name: str
    date: Day
    scoring: Scoring
    duration_minutes: Annotated[Finite, Field(gt=0)] | None = None
    problems: list[ContestProblem] = Field(min_length=1)
    standings: list[StandingsRow]
    rating_changes: list[RatingChange]

    @model_validator(mode="after")
    def _each_once(self) -> Contest:
        _refuse_twice("problems", (problem.index for problem in self.problems))
        _refuse_twice("official rows", (row.handle for row in self.official))
        _refuse_twice("rating_changes", (change.handle for change in self.rating_changes))
        if self.scoring == "icpc" and any(problem.points != 1 for problem in self.problems):
            raise ValueError('problems: points are 1 each where scoring is "icpc"')
        return self

    @property
    def official(self) -> list[StandingsRow]:
        """The rows of official participants."""
        return [row for row in self.standings if row.participant_type == OFFICIAL]


def _refuse_twice(place: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{place}: {name} is there twice")
        seen.add(name)


M = TypeVar("M", bound=BaseModel)


def read_model(path: Path, kind: type[M], what: str) -> M:
    """A JSON file as a pydantic model.

    Args:
        what: what the file should be, for the message.

    Raises:
        InputError: the file is missing or of another form (the key is named).
    """
    if not path.is_file():
        raise InputError(path, expected=what, found="no such file")
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or None
        raise InputError(path, where=where, expected=what, found=first["msg"]) from error


@dataclass(frozen=True)
class ContestFile:
    """A contest and the file that it was read from."""

    path: Path
    contest: Contest


def read_contests(folder: Path) -> Mapping[str, ContestFile]:
    """The contests of a folder (its *.json) by id, in the order of their days.

    Raises:
        InputError: no folder, no files, a file that is no contest, or a contest that is there twice.
    """
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not paths:
        found = "no *.json in it" if folder.is_dir() else "no such folder"
        raise InputError(folder, expected="a folder of contest files, one JSON each", found=found)
    files: dict[str, ContestFile] = {}
    for path in paths:
        contest = read_model(path, Contest, "a contest file (docs/codeforces.md)")
        if contest.id in files:
            found = f"contest {contest.id} again, which {files[contest.id].path.name} has"
            raise InputError(path, where="id", expected="each contest once", found=found)
        files[contest.id] = ContestFile(path, contest)
    return dict(sorted(files.items(), key=lambda item: (item[1].contest.date, item[0])))
