"""Files of problems and generations for the judge command, and the command on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fake_judge import FakeJudge

from eval.judge import command
from eval.judge.verdict_file import VerdictRow
from recipes.rows import read_rows

DATES = {"a": "2024-08-03T10:30:00", "b": "2024-08-31T10:30:00", "c": "2024-09-01T00:00:00"}


def record(question_id: str, outputs: tuple[str, ...] = ("1\n",), entry: str | None = None) -> dict[str, str]:
    kind = "stdin" if entry is None else "functional"
    tests = [{"input": f"{number}", "output": output, "testtype": kind} for number, output in enumerate(outputs)]
    return {
        "question_title": f"Problem {question_id}",
        "question_content": "Print it.",
        "platform": "atcoder",
        "question_id": question_id,
        "contest_id": "one",
        "contest_date": DATES[question_id],
        "starter_code": "" if entry is None else "class Solution:",
        "difficulty": "easy",
        "public_test_cases": json.dumps(tests[:1]),
        "private_test_cases": json.dumps(tests[1:]),
        "metadata": json.dumps({} if entry is None else {"func_name": entry}),
    }


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


def answer(question_id: str, sample: int, code: str | None = None, **other: Any) -> dict[str, Any]:
    return {"question_id": question_id, "sample": sample} | ({} if code is None else {"code": code}) | other


class Work:
    """Files of problems and generations, and the command on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "V.jsonl"
        write(folder / "P.jsonl", [record(one) for one in DATES])
        self.answers([answer("a", 0, "right"), answer("b", 0, "wrong")])

    def answers(self, rows: list[dict[str, Any]]) -> None:
        write(self.folder / "G.jsonl", rows)

    def arguments(self, *more: str) -> list[str]:
        files = {"--problems": "P.jsonl", "--generations": "G.jsonl", "--out": "V.jsonl"}
        return [part for option, name in files.items() for part in (option, str(self.folder / name))] + list(more)

    def run(self, *more: str) -> int:
        FakeJudge.judged.clear()
        FakeJudge.made.clear()
        return command.main(self.arguments(*more))

    def rows(self) -> list[VerdictRow]:
        return list(read_rows(self.out, VerdictRow))

    def judged(self) -> list[str]:
        return sorted(case.source for case in FakeJudge.judged)


def references(work: Work, **codes: str) -> list[str]:
    path = write(work.folder / "R.jsonl", [{"question_id": name, "code": code} for name, code in codes.items()])
    return ["--references", str(path)]
