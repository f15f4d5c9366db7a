"""Contests and tries made up by hand, and the Codeforces command on files of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from eval.codeforces.command import main
from eval.codeforces.estimate import CodeforcesReport
from eval.codeforces.scoring import TryRow


def contest(id: str | int = "1", rows: int = 10, **changes: Any) -> dict[str, Any]:
    """A contest: rows competitors with 100 points and 100 of rating more from one to the next, from 100 and 1000 on."""
    handles = [f"user{i}" for i in range(rows)]
    return {
        "id": id,
        "name": f"Round {id}",
        "date": "2024-03-09",
        "scoring": "points",
        "duration_minutes": 120,
        "problems": [{"index": "A", "points": 500}, {"index": "B", "points": 1000}],
        "standings": [
            {"handle": handle, "points": 100 * (i + 1), "participant_type": "CONTESTANT"}
            for i, handle in enumerate(handles)
        ],
        "rating_changes": [{"handle": handle, "old_rating": 1000 + 100 * i} for i, handle in enumerate(handles)],
    } | changes


def tries(verdicts: str, index: str = "A", id: str = "1", minutes: float | None = None) -> list[dict[str, Any]]:
    """A row for each letter: C right, W wrong, N no answer, I infrastructure."""
    names = {"C": "CORRECT", "W": "WRONG_ANSWER", "N": "NO_ANSWER", "I": "INFRA_ERROR"}
    at = {} if minutes is None else {"minutes": minutes}
    return [
        {"contest_id": id, "problem_index": index, "sample": i, "verdict": names[letter]} | at
        for i, letter in enumerate(verdicts)
    ]


def rows_of(*groups: list[dict[str, Any]]) -> dict[str, list[TryRow]]:
    rows = [TryRow.model_validate(row) for group in groups for row in group]
    return {row.problem_index: [other for other in rows if other.problem_index == row.problem_index] for row in rows}


class Work:
    """A folder with contests, results and a population."""

    def __init__(self, folder: Path) -> None:
        self.contests, self.results, self.out = folder / "contests", folder / "tries.jsonl", folder / "out" / "r.json"
        self.contests.mkdir()

    def write(self, contests: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
        for one in contests:
            (self.contests / f"{one['id']}.json").write_text(json.dumps(one))
        self.results.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(self, *options: str) -> int:
        needed = ["--contests", str(self.contests), "--results", str(self.results), "--json", str(self.out)]
        return main([*needed, "--minimum-rows", "5", "--resamples", "50", *options])

    def report(self) -> CodeforcesReport:
        return CodeforcesReport.model_validate_json(self.out.read_bytes())
