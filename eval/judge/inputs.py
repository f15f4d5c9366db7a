"""What the judge command reads: generations, with the programs in them, and the problems that they are of."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from core_model.errors import InputError
from eval.judge.case import Test
from eval.judge.extract import extract, get_policy
from eval.judge.verdict_file import GenerationRow
from eval.tasks.livecodebench import RELEASES, LiveCodeBenchRecord, Window, iter_records, split_errata, to_cases
from recipes.rows import Row, Verdict, read_rows


@dataclass(frozen=True)
class Answer:
    """A generation: its program, and the verdict on it where it has none.

    Args:
        extraction: the id of the policy that found the program; None: it was given.
    """

    question_id: str
    sample: int
    code: str
    extraction: str | None
    failure: Verdict | None
    language: str = "python"


@dataclass
class Problems:
    """Args:
    files: where they are.
    known: the ids that were read so far.
    tests: of the problems that answers ask for: the tests, and the function to be called.
    left_out: ids outside the window, or dropped as errata.
    notes: what the selection was, a line each.
    """

    files: Sequence[Path]
    known: set[str] = field(default_factory=set)
    tests: dict[str, tuple[tuple[Test, ...], str | None]] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def require(self, ids: Iterable[str], path: Path) -> None:
        """Make sure that there are problems of these ids, selected or not; a file named them.

        Raises:
            InputError: there are none.
        """
        ids = set(ids)
        if not ids <= self.known:  # only now: what a window passed over has no record
            outside = _ids(self.files) - self.known
            self.known |= outside
            self.left_out |= outside
        if unknown := sorted(ids - self.known):
            raise InputError(
                path,
                where="question_id",
                expected=f"ids of problems in {', '.join(map(str, self.files))}",
                found=", ".join(unknown[:5]) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""),
            )


def read_answers(path: Path, policy: str) -> list[Answer]:
    """The generations, their programs extracted.

    Raises:
        InputError: a missing or empty file, a line that is no row, or an answer that is there twice.
    """
    get_policy(policy)  # a name that is none is found out here, whether or not a row needs it
    answers = []
    for row in rows_once(path, GenerationRow, lambda row: (row.question_id, row.sample), "question_id and sample"):
        truncated, extraction = row.finish_reason == "length", None
        code = row.code
        if code is None:
            found = extract(row.text or "", policy)
            code, extraction, truncated = found.code, found.policy, truncated or found.truncated
        failure = None
        if not code.strip():
            failure = Verdict.TRUNCATED if truncated else Verdict.NO_ANSWER
        answers.append(Answer(row.question_id, row.sample, code, extraction, failure, row.language))
    if not answers:
        raise InputError(path, expected="rows with question_id, sample, and code or text", found="an empty file")
    return answers


R = TypeVar("R", bound=Row)


def rows_once(path: Path, kind: type[R], name: Callable[[R], object], keys: str) -> Iterator[R]:
    lines: dict[object, int] = {}
    for number, row in enumerate(read_rows(path, kind), 1):
        first = lines.setdefault(name(row), number)
        if first != number:
            raise InputError(
                path,
                where=f"line {number}, {keys}",
                expected="each once",
                found=f"{name(row)} again, which line {first} has",
            )
        yield row


def read_problems(
    source: Path, wanted: Collection[str], *, release: str | None, window: Window | None, errata: str | Collection[str]
) -> Problems:
    """The problems that are asked for, of those that the window and the errata leave.

    Args:
        source: a file, or a folder for the release.
        wanted: ids; the tests of other problems are not kept.
        errata: as for `split_errata`.

    Raises:
        InputError: files that are missing, a line that is no record, or a problem that is there twice.
    """
    problems, records = Problems(problem_files(source, release)), []
    for path in problems.files:
        for record in iter_records(path, keep_date=None if window is None else window.holds):
            if record.question_id in problems.known:
                raise InputError(path, where="question_id", expected="each once", found=f"{record.question_id} again")
            problems.known.add(record.question_id)
            if record.question_id in wanted:
                problems.tests[record.question_id] = _tests_of(record, path)
            # All tests of a release are gigabytes: those that nobody asks for go with their record.
            records.append(record.model_copy(update={"public_test_cases": "[]", "private_test_cases": "[]"}))
    kept, dropped = split_errata(records, errata)  # type: ignore[arg-type]  # it says which kinds there are
    problems.left_out = {record.question_id for record, _ in dropped}
    if window is not None:
        told = window.describe(kept)
        problems.notes.append(
            f"window {told['start']}..{told['end']}, both days included: {told['count']} problems, "
            f"sha256 of their ids {told['ids_sha256']}"
        )
    if dropped:
        problems.notes.append("errata dropped: " + ", ".join(f"{one.question_id} ({kind})" for one, kind in dropped))
    if unanswered := len({record.question_id for record in kept} - set(wanted)):
        problems.notes.append(f"{unanswered} of {len(kept)} problems have no generation")
    return problems


def problem_files(source: Path, release: str | None) -> list[Path]:
    """The file, or the folder's files that make up the release.

    Raises:
        InputError: a folder and no release or one it has not, or a release and no folder.
    """
    if not source.is_dir():
        if release is not None:
            raise InputError(source, expected=f"a folder, for --release {release}", found="no folder")
        return [source]
    if release not in RELEASES:
        expected = f"with a folder, --release and one of {', '.join(RELEASES)}"
        raise InputError(source, expected=expected, found=release or "no --release")
    files = [source / name for name in RELEASES[release]]
    if missing := [file.name for file in files if not file.is_file()]:
        expected = f"the files {', '.join(RELEASES[release])}"
        raise InputError(source, where=release, expected=expected, found=f"no {', '.join(missing)}")
    return files


def _tests_of(record: LiveCodeBenchRecord, path: Path) -> tuple[tuple[Test, ...], str | None]:
    try:
        return to_cases(record)
    except InputError as error:  # it says which record and key, not which file
        where = f"question_id {record.question_id}" + (f", {error.where}" if error.where else "")
        raise InputError(path, where=where, expected=error.expected, found=error.found) from error


def _ids(files: Sequence[Path]) -> set[str]:
    """All ids in the files; that they are records was seen, but for their tests."""
    ids = set()
    for path in files:
        with path.open("rb") as file:
            ids |= {str(json.loads(line).get("question_id")) for line in file}
    return ids
