"""The judge command's files: what a verdict's row says, what its key covers, and a file of rows that grows one at a
time, in whatever order they come, and survives being killed at any moment."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Generic, TypeVar

from pydantic import ConfigDict, Field, ValidationError, model_validator

from core_model.errors import InputError
from core_model.manifest import sync
from eval.judge.case import JUDGE_VERSION, Limits, Mode, Test
from eval.judge.languages import LANGUAGES
from recipes.rows import Row, Verdict, sha256_of

log = logging.getLogger(__name__)

SYNC_SECONDS = 1.0  # between two fsyncs: what a crash of the machine, not of the process, may cost


class GenerationRow(Row):
    """A row of --generations. Keys that are not ours are passed over: other tools write tokens, seeds, latencies."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    question_id: str = Field(min_length=1)
    sample: int = Field(ge=0, strict=True)
    code: str | None = None
    text: str | None = None
    finish_reason: str | None = None
    language: str = "python"

    @model_validator(mode="after")
    def _says_something(self) -> GenerationRow:
        if self.code is None and self.text is None:
            raise ValueError("neither `code` nor `text`")
        if self.language not in LANGUAGES:
            raise ValueError(f"language: one of {', '.join(LANGUAGES)}, not {self.language!r}")
        if self.language != "python" and self.code is None:
            raise ValueError(f"a program in {self.language} is given as `code`: policies find Python in texts")
        return self


class ProgramRow(Row):
    """A row of --references."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    question_id: str = Field(min_length=1)
    code: str


class IsolationRow(Row):
    """What kept the program in; level 0: it never ran."""

    level: int
    layers: list[str]
    missing: dict[str, str]


class VerdictRow(Row):
    """A row of --out.

    `lcb_results` and `error_code` are LiveCodeBench's. `extraction` is the id of the policy that found the program in
    the answer's text; None: the program was given. `no_code`: there was none.
    """

    question_id: str
    sample: int
    verdict: Verdict
    detail: str
    passed: bool
    lcb_results: list[bool | int]
    error_code: int | None
    isolation: IsolationRow
    extraction: str | None
    no_code: bool
    seconds: float  # CPU time of all tests that were run
    memory_mb: float | None
    mode: Mode
    key: str


class ReferenceRow(Row):
    """What a reference solution took. Kept beside the verdicts, so that limits are measured once and stay the same."""

    question_id: str
    verdict: Verdict
    detail: str
    slowest_seconds: float  # CPU time of the slowest test
    key: str


def sha256_of_tests(tests: Iterable[Test]) -> str:
    """The sha256 of what a problem's tests read and expect, in order."""
    digest = hashlib.sha256()
    for test in tests:
        for text in (test.input, test.output):
            data = text.encode(errors="surrogatepass")
            digest.update(b"%d:" % len(data))
            digest.update(data)
    return digest.hexdigest()


def verdict_key(
    code: str, tests_sha256: str, entry: str | None, mode: Mode, limits: Limits | None, language: str = "python"
) -> str:
    """The sha256 of everything that determines a verdict, the machine aside.

    Args:
        limits: None: it is not judged, because the problem's reference fails.
    """
    of_limits = None if limits is None else asdict(limits)
    return sha256_of(code, tests_sha256, entry, language, JUDGE_VERSION, mode, of_limits)


K = TypeVar("K", bound=Row)


class RowFile(Generic[K]):
    """Rows of finished work, one for each of a number of pieces; no other process writes the file while this is open.

    A row is on its way to the disk when `append` returns, and on it within about a second. Use it as a context manager:
    `read` first, `append` what is missing, and `finish` puts the rows in order, all at once. What ends before leaves
    the rows so far; a row that was being written is dropped by the next `read`.

    Raises:
        InputError: another process has it open, or it holds something else than such rows; it is left as it is.
    """

    def __init__(self, path: Path, kind: type[K]) -> None:
        if path.exists() and not path.is_file():
            raise InputError(path, expected="a file to write to, or a new name", found="something else of that name")
        self.path, self.kind = path.resolve(), kind  # a rename would replace a link, not what it points to
        self.rows: dict[int, K] = {}
        self._order: list[int] = []  # of the rows in the file
        self._others = 0  # rows in it that count for nothing
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(path, expected="a file in a folder", found=f"{error.filename} is no folder") from error
        self._file = self._lock()
        self._size = os.fstat(self._file).st_size
        self._synced = time.monotonic()
        try:
            self._refuse_others()
        except BaseException:
            os.close(self._file)
            raise

    def _lock(self) -> int:
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(file)
                found = "another run at work on it; start again when it has ended: its rows are kept"
                raise InputError(self.path, expected="a file that no other run is writing", found=found) from None
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(self.path)):
                    return file
            os.close(file)  # the run before replaced or removed it between our two calls

    def _refuse_others(self) -> None:
        """A file that begins with a line of something else is not ours to write."""
        with self.path.open("rb") as file:
            line = file.readline()
        try:
            self.kind.model_validate_json(line)
        except ValidationError as error:
            if not line.endswith(b"\n") and not _is_json(line):  # nothing yet, or a first row that was cut off
                return
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"]) or "the line"
            expected = f"a {self.kind.__name__}, as this command writes them (or no such file)"
            raise InputError(self.path, where=f"line 1, {key}", expected=expected, found=first["msg"]) from error

    def __enter__(self) -> RowFile[K]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let other processes have the file; one without a row is not left behind."""
        if self._size == 0:
            self.path.unlink(missing_ok=True)
        os.close(self._file)

    def read(self, count: int, place: Callable[[K], int | None]) -> None:
        """Take the rows that earlier runs left. Others stay in the file until `finish`: a run with a wrong option that
        is stopped again has cost nothing.

        Args:
            count: how many pieces of work there are.
            place: which of them a row is the result of; None: of none, or of one that is to be done again.
        """
        self.count = count
        ended = True
        with self.path.open("rb") as file:
            for line in file:
                ended = line.endswith(b"\n")
                try:
                    row = self.kind.model_validate_json(line)
                except ValidationError:
                    if ended:
                        self._others += 1
                    else:  # torn when the run before was killed
                        self._size -= len(line)
                    continue
                index = place(row)
                if index is None or index in self.rows:
                    self._others += 1
                else:
                    self.rows[index] = row
                    self._order.append(index)
        if self._others:
            log.warning("%s: %d rows are outdated or to be judged again", self.path, self._others)
        if not ended:
            os.ftruncate(self._file, self._size)
            if self._size and os.pread(self._file, 1, self._size - 1) != b"\n":
                self._size += _write(self._file, b"\n")

    def append(self, index: int, row: K) -> None:
        """Write the result of a piece of work.

        Raises:
            OSError: the disk is full, say; the file ends with a whole row all the same.
        """
        if index in self.rows or not 0 <= index < self.count:
            raise ValueError(f"a row for piece {index} of {self.count}, which is done or none")
        line = _line(row)
        try:
            _write(self._file, line)
            now = time.monotonic()
            if now - self._synced >= SYNC_SECONDS:
                os.fsync(self._file)
                self._synced = now
        except OSError as error:
            with contextlib.suppress(OSError):  # then the next `read` drops the part
                os.ftruncate(self._file, self._size)
            raise self._named(error) from error
        self._size += len(line)
        self.rows[index] = row
        self._order.append(index)

    def finish(self) -> list[K]:
        """Put the file in the order of the work, which must be complete; all rows."""
        order = list(range(self.count))
        if len(self.rows) != self.count:
            raise ValueError(f"{len(self.rows)} rows of {self.count}")
        if self._others or self._order != order:
            self._replace(order)
        else:
            os.fsync(self._file)
        return [self.rows[index] for index in order]

    def _replace(self, order: Sequence[int]) -> None:
        """Write the file anew: a reader sees the old or the new one, and either is locked."""
        partial = self.path.with_name(self.path.name + ".partial")
        try:
            file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                size = sum(_write(file, _line(self.rows[index])) for index in order)
                os.fsync(file)
                fcntl.flock(file, fcntl.LOCK_EX)
                partial.replace(self.path)
            except BaseException:
                os.close(file)
                partial.unlink(missing_ok=True)
                raise
        except OSError as error:
            raise self._named(error) from error
        os.close(self._file)
        self._file, self._size, self._order, self._others = file, size, list(order), 0
        sync(self.path.parent)

    def _named(self, error: OSError) -> OSError:
        """The error with the file's name, which calls on open files leave out."""
        return OSError(error.errno, error.strerror, str(self.path))


def _line(row: Row) -> bytes:
    return row.model_dump_json().encode() + b"\n"


def _write(file: int, data: bytes) -> int:
    """All of the data, however many calls it takes; returns its length."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]
    return len(data)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
