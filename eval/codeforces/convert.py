"""What Codeforces' API answers, saved to two files, turned into a contest file.

Source of the shapes: codeforces.com/apiHelp, methods contest.standings and contest.ratingChanges.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core_model.errors import InputError
from eval.codeforces.contests import (
    OFFICIAL,
    Contest,
    ContestProblem,
    ParticipantType,
    RatingChange,
    Scoring,
    StandingsRow,
    read_model,
)

SCORING: dict[str, Scoring] = {"CF": "points", "ICPC": "icpc"}


class ApiObject(BaseModel):
    """An object of the API: it has many more keys than are needed here, and gets new ones."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ApiContest(ApiObject):
    id: int
    name: str
    type: Literal["CF", "IOI", "ICPC"]
    phase: str
    duration_seconds: int = Field(alias="durationSeconds")
    start_seconds: int = Field(alias="startTimeSeconds")


class ApiProblem(ApiObject):
    index: str
    points: float | None = None


class ApiMember(ApiObject):
    handle: str


class ApiParty(ApiObject):
    members: list[ApiMember]
    participant_type: ParticipantType = Field(alias="participantType")


class ApiRow(ApiObject):
    party: ApiParty
    points: float
    penalty: float


class ApiStandings(ApiObject):
    contest: ApiContest
    problems: list[ApiProblem]
    rows: list[ApiRow]


class ApiRatingChange(ApiObject):
    contest_id: int = Field(alias="contestId")
    handle: str
    old_rating: float | None = Field(None, alias="oldRating")


T = TypeVar("T")


class ApiResponse(ApiObject, Generic[T]):
    status: Literal["OK", "FAILED"]
    comment: str = ""
    result: T | None = None


def read_api(standings_path: Path, changes_path: Path) -> tuple[Contest, list[str]]:
    """The contest in two saved responses, and what is to be told of it.

    Raises:
        InputError: a file that is no such response, a failed one, a contest that is not over, has no ratings or is of
            a kind that is not scored here, or files of two contests.
    """
    standings = _result(standings_path, ApiResponse[ApiStandings], "contest.standings")
    changes = _result(changes_path, ApiResponse[list[ApiRatingChange]], "contest.ratingChanges")
    about = standings.contest
    if about.type not in SCORING:
        expected = f"a contest of type {' or '.join(SCORING)}"
        raise InputError(standings_path, where="result.contest.type", expected=expected, found=about.type)
    if about.phase != "FINISHED":
        raise InputError(standings_path, where="result.contest.phase", expected="FINISHED", found=about.phase)
    if not changes:
        raise InputError(changes_path, where="result", expected="the rating changes of a rated contest", found="none")
    if others := {change.contest_id for change in changes} - {about.id}:
        found = f"contest {min(others)}"
        raise InputError(changes_path, where="result", expected=f"contest {about.id}, as in the standings", found=found)
    alone = [row for row in standings.rows if len(row.party.members) == 1]
    teams = sum(row.party.participant_type == OFFICIAL and len(row.party.members) != 1 for row in standings.rows)
    notes = [f"{teams} official rows of teams are left out: a team has no rating"] if teams else []
    return _contest(standings, alone, changes, standings_path), notes


def _contest(standings: ApiStandings, rows: list[ApiRow], changes: list[ApiRatingChange], path: Path) -> Contest:
    about, scoring = standings.contest, SCORING[standings.contest.type]
    for problem in standings.problems:
        if scoring == "points" and not problem.points:
            where = f"result.problems, {problem.index}"
            raise InputError(path, where=where, expected="its points", found=str(problem.points))
    try:
        return Contest(
            id=str(about.id),
            name=about.name,
            date=datetime.fromtimestamp(about.start_seconds, UTC).date().isoformat(),
            scoring=scoring,
            duration_minutes=about.duration_seconds / 60,
            problems=[
                ContestProblem(index=problem.index, points=(problem.points or 1) if scoring == "points" else 1)
                for problem in standings.problems
            ],
            standings=[
                StandingsRow(
                    handle=row.party.members[0].handle,
                    points=row.points,
                    penalty=row.penalty,
                    participant_type=row.party.participant_type,
                )
                for row in rows
            ],
            rating_changes=[RatingChange(handle=change.handle, old_rating=change.old_rating) for change in changes],
        )
    except ValidationError as error:
        found = error.errors()[0]["msg"]
        raise InputError(
            path, where="result", expected="a contest whose rows and problems agree", found=found
        ) from error


def _result(path: Path, kind: type[ApiResponse[T]], method: str) -> T:
    response = read_model(path, kind, f"Codeforces' response to {method}")
    if response.status != "OK" or response.result is None:
        found = response.comment or f"status {response.status} without a result"
        raise InputError(path, expected=f"a response to {method} with status OK", found=found)
    return response.result
