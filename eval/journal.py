"""Rows of finished work in an append-only file that survives being killed.

Rows are written in blocks. What generates them works on a block at a time, and the last bits of a sample can depend on
what else is in its batch: so a block is on the disk whole or is done again whole, and a run that was killed ends with
the same rows as one that was not.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pydantic import ValidationError

log = logging.getLogger(__name__)


class Keyed(Protocol):
    """A row (see `recipes.rows`) with a key: the sha256 of everything that determined it."""

    @property
    def key(self) -> str: ...

    def model_dump_json(self) -> str: ...

    @classmethod
    def model_validate_json(cls, json_data: str | bytes) -> Keyed: ...


K = TypeVar("K", bound=Keyed)


class Journal(Generic[K]):
    """The rows of a piece of work, in order; `rows` holds those that are done.

    Args:
        path: the file; made when absent.
        kind: the rows' class.
        blocks: the keys of all rows to be done, block by block. Rows on the disk count as done up to the first block
            that is incomplete or has another key (made from another model, problem or setting): the rest is dropped.
    """

    def __init__(self, path: Path, kind: type[K], blocks: Sequence[Sequence[str]]) -> None:
        self.path, self.blocks = path, blocks
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.rows: list[K] = []
        self.blocks_done = 0
        size = 0
        lines = _whole_lines(path, kind)
        for block in blocks:
            taken = list(itertools.islice(lines, len(block)))
            if [row.key for row, _ in taken] != list(block):
                break
            self.rows += [row for row, _ in taken]
            size += sum(length for _, length in taken)
            self.blocks_done += 1
        if (dropped := path.stat().st_size - size) > 0:
            log.warning("%s: %d bytes of unfinished or outdated work are done again", path, dropped)
            os.truncate(path, size)

    @property
    def is_complete(self) -> bool:
        return self.blocks_done == len(self.blocks)

    def append(self, rows: Sequence[K]) -> None:
        """Write the next block through to the disk."""
        if [row.key for row in rows] != list(self.blocks[self.blocks_done]):
            raise ValueError(f"these rows are not block {self.blocks_done} of {self.path}")
        with self.path.open("ab") as file:
            file.write("".join(row.model_dump_json() + "\n" for row in rows).encode())
            file.flush()
            os.fsync(file.fileno())
        self.rows += rows
        self.blocks_done += 1


def _whole_lines(path: Path, kind: type[K]) -> Iterator[tuple[K, int]]:
    """Rows with their size in bytes, up to the first line that is torn or no row."""
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                yield kind.model_validate_json(line), len(line)  # type: ignore[misc]  # a protocol knows no Self here
            except ValidationError:
                return
