"""Which of LiveCodeBench's problems are asked: releases as named files, windows of days, and known errata."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from core_model.errors import InputError
from eval.tasks.livecodebench.records import MOST_BYTES, LiveCodeBenchRecord, iter_records
from recipes.rows import Problem

T = TypeVar("T", LiveCodeBenchRecord, Problem)

# -- releases ------------------------------------------------------------------------------------------------------

FILES = ("test.jsonl", "test2.jsonl", "test3.jsonl", "test4.jsonl", "test5.jsonl", "test6.jsonl")


def _releases() -> dict[str, tuple[str, ...]]:
    numbers = range(1, len(FILES) + 1)
    tags = {f"release_v{last}": FILES[:last] for last in numbers}
    tags |= {f"v{one}": FILES[one - 1 : one] for one in numbers}
    return tags | {
        f"v{first}_v{last}": FILES[first - 1 : last] for first in numbers for last in numbers if first < last
    }


# Each published file holds what its version added. So "v6" is 175 problems and "release_v6" all 1055.
RELEASES = _releases()


def read_release(
    folder: Path, tag: str, window: Window | None = None, *, most_bytes: int = MOST_BYTES
) -> list[LiveCodeBenchRecord]:
    """The records of a release.

    Args:
        folder: where the published JSONL files lie under their own names.
        tag: a name in RELEASES: release_v5 (all up to it), v5 (that file alone), v4_v5 (from that to that).
        window: keep these days only; the tests of other records are not even inflated.
        most_bytes: the most the private tests of one record may come to.

    Raises:
        InputError: no such release, files of it that are missing (all are named), or a line that is no record.
    """
    if tag not in RELEASES:
        raise InputError("LiveCodeBench release", expected=f"one of {', '.join(RELEASES)}", found=repr(tag))
    missing = [name for name in RELEASES[tag] if not (folder / name).is_file()]
    if missing:
        raise InputError(
            folder, where=tag, expected=f"the files {', '.join(RELEASES[tag])}", found=f"no {', '.join(missing)}"
        )
    keep_date = window.holds if window is not None else None
    return [
        record
        for name in RELEASES[tag]
        for record in iter_records(folder / name, most_bytes=most_bytes, keep_date=keep_date)
    ]


# -- windows -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """Days from `start` to `end`, both included.

    Days are compared, not instants: the benchmark's own comparison with midnight of `end` loses that day's contests.

    Raises:
        ValueError: it ends before it starts.
    """

    start: date
    end: date

    def __post_init__(self) -> None:
        if self.end < self.start:
            raise ValueError(f"a window that ends ({self.end}) before it starts ({self.start})")

    @classmethod
    def of(cls, text: str) -> Window:
        """A window by its name in WINDOWS, or "2024-08-01..2024-11-30".

        Raises:
            InputError: neither.
        """
        if text in WINDOWS:
            return WINDOWS[text]
        start, dots, end = text.partition("..")
        try:
            if not dots:
                raise ValueError("no dots")
            return cls(date.fromisoformat(start), date.fromisoformat(end))
        except ValueError as error:
            known = ", ".join(WINDOWS)
            raise InputError(
                "window", expected=f"START..END (days, in order) or one of {known}", found=repr(text)
            ) from error

    def holds(self, contest_date: str) -> bool:
        """Whether a contest's day, as its date is written, lies in the window.

        Raises:
            ValueError: not an ISO date or time.
        """
        return self.start <= datetime.fromisoformat(contest_date).date() <= self.end

    def select(self, problems: Iterable[T]) -> list[T]:
        """Those dated within the window; what has no date is in no window."""
        return [problem for problem in problems if (day := _date(problem)) is not None and self.holds(day)]

    def describe(self, problems: Iterable[T]) -> dict[str, Any]:
        """What a result should say about the window: its days, and of the problems within how many they are and which.

        `ids_sha256` is the sha256 of their ids, sorted, joined by line feeds.
        """
        ids = sorted(_id(problem) for problem in self.select(problems))
        return {
            "start": self.start.isoformat(),
            "end": self.end.isoformat(),
            "end_inclusive": True,
            "count": len(ids),
            "ids_sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
        }


WINDOWS = {
    "deepseek-v3": Window(date(2024, 8, 1), date(2024, 11, 30)),
    "deepseek-r1": Window(date(2024, 8, 1), date(2025, 1, 31)),
    "artificial-analysis": Window(date(2024, 7, 1), date(2025, 1, 1)),
    "nemo": Window(date(2024, 8, 1), date(2025, 2, 1)),
}


def in_window(contest_date: str, start: str, end: str) -> bool:
    """Whether a contest's day lies in [start, end], both days included."""
    return Window(date.fromisoformat(start), date.fromisoformat(end)).holds(contest_date)


def select_window(problems: Iterable[T], start: str, end: str) -> list[T]:
    """The problems dated within [start, end]; those without a date are in no window."""
    return Window(date.fromisoformat(start), date.fromisoformat(end)).select(problems)


def _date(problem: LiveCodeBenchRecord | Problem) -> str | None:
    return problem.contest_date if isinstance(problem, LiveCodeBenchRecord) else problem.date


def _id(problem: LiveCodeBenchRecord | Problem) -> str:
    return problem.question_id if isinstance(problem, LiveCodeBenchRecord) else problem.id


# -- errata --------------------------------------------------------------------------------------------------------

Erratum = Literal["several-answers", "interactive", "wrong-tests"]

# From the benchmark's ERRATA.md. Its heading speaks of 12 problems with several answers, by the number of the last in
# its list; the list leaves out number 9. LeetCode's are named there by the end of their address, which is the title.
ERRATA: dict[str, Erratum] = {
    "abc311_c": "several-answers",
    "abc326_d": "several-answers",
    "abc327_b": "several-answers",
    "abc333_e": "several-answers",
    "abc343_a": "several-answers",
    "abc343_e": "several-answers",
    "abc362_c": "several-answers",
    "arc185_c": "several-answers",
    "find-words-containing-character": "several-answers",
    "find-the-peaks": "several-answers",
    "generate-binary-strings-without-adjacent-zeros": "several-answers",
    "abc337_e": "interactive",
    "abc355_e": "interactive",
    "abc350_c": "wrong-tests",
    "arc189_a": "wrong-tests",
    "apply-operations-to-make-string-empty": "wrong-tests",
    "most-frequent-ids": "wrong-tests",
}
KINDS: tuple[Erratum, ...] = ("several-answers", "interactive", "wrong-tests")


def erratum_of(problem: LiveCodeBenchRecord | Problem) -> Erratum | None:
    """What is known to be wrong with a problem: by its id, and on LeetCode (whose ids are numbers) by its title."""
    if isinstance(problem, LiveCodeBenchRecord):
        on_leetcode, title = problem.platform == "leetcode", problem.question_title
    else:
        info = problem.verification_info
        on_leetcode, title = info.get("platform") == "leetcode", info.get("title", "")
    if on_leetcode:
        return ERRATA.get(re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-"))
    return ERRATA.get(_id(problem))


def split_errata(
    problems: Sequence[T], errata: Literal["keep", "drop"] | Collection[Erratum] = "keep"
) -> tuple[list[T], list[tuple[T, Erratum]]]:
    """(Problems to be asked, problems left out with the reason), in order.

    Args:
        errata: "keep" all (the benchmark's own number), "drop" all that are known to be wrong, or the kinds to drop.

    Raises:
        InputError: a kind that there is not.
    """
    chosen: set[str] = set()
    if errata == "drop":
        chosen = set(KINDS)
    elif errata != "keep":
        chosen = {errata} if isinstance(errata, str) else set(errata)
    if unknown := chosen.difference(KINDS):
        expected = f"keep, drop, or kinds of {', '.join(KINDS)}"
        raise InputError("errata", expected=expected, found=", ".join(sorted(unknown)))
    kept: list[T] = []
    dropped: list[tuple[T, Erratum]] = []
    for problem in problems:
        kind = erratum_of(problem)
        if kind is not None and kind in chosen:
            dropped.append((problem, kind))
        else:
            kept.append(problem)
    return kept, dropped
