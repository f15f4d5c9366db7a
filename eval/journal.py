"""Rows of finished work in an append-only file that survives being killed.

A row counts by its key, the sha256 of everything that determined it: what is on the disk under a key that is wanted is
never made again, and what is there under another key (made from another model, problem or setting) is dropped.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Collection, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from recipes.rows import Row, write_rows

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Row)


class Journal(Generic[R]):
    """The rows of a piece of work. `rows` holds those that are done, by key.

    Args:
        path: the file; made when absent.
        kind: the rows' class.
        wanted: the keys of all rows to be done; None keeps whatever is there.
        key: a row's key.
        writer: whether this process writes the file; others read it and hold what they are given.
    """

    def __init__(
        self,
        path: Path,
        kind: type[R],
        wanted: Collection[str] | None = None,
        *,
        key: Callable[[R], str] = attrgetter("key"),
        writer: bool = True,
    ) -> None:
        self.path, self.key, self.writer = path, key, writer
        self.rows: dict[str, R] = {}
        known = None if wanted is None else frozenset(wanted)
        dropped = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
            row = _whole_row(line, kind)
            if row is None or (known is not None and key(row) not in known):
                dropped += 1
                continue
            dropped += key(row) in self.rows  # the later one holds: work that was done anew
            self.rows[key(row)] = row
        if writer:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            if dropped:
                log.warning("%s: %d unfinished or outdated rows are dropped", path, dropped)
                write_rows(path, self.rows.values())

    def holds(self, keys: Sequence[str]) -> bool:
        """Whether all of these are done."""
        return all(key in self.rows for key in keys)

    def select(self, keys: Sequence[str]) -> list[R]:
        """The rows of these keys, in this order.

        Raises:
            KeyError: one is not done.
        """
        return [self.rows[key] for key in keys]

    def append(self, rows: Sequence[R]) -> None:
        """Write rows through to the disk; those that are there already are left as they are."""
        new = [row for row in rows if self.key(row) not in self.rows]
        if self.writer and new:
            with self.path.open("ab") as file:
                file.write("".join(row.model_dump_json() + "\n" for row in new).encode())
                file.flush()
                os.fsync(file.fileno())
        self.rows |= {self.key(row): row for row in new}


def _whole_row(line: bytes, kind: type[R]) -> R | None:
    """The row in a line of the file; None for one that is torn or of another kind."""
    if not line.endswith(b"\n"):
        return None
    try:
        return kind.model_validate_json(line)
    except ValidationError:
        return None
