"""The one exception for input that a person can mend; commands print it as one message and exit with 2."""

from __future__ import annotations

from pathlib import Path


class InputError(Exception):
    """Bad input from outside: a recipe, a file, a checkpoint.

    Args:
        path: the file or folder at fault (a recipe's path for recipe errors).
        where: the key or line inside it, when there is one.
        expected: what was expected there.
        found: what was found instead.
    """

    def __init__(self, path: str | Path, *, expected: str, found: str, where: str | None = None) -> None:
        self.path, self.where, self.expected, self.found = Path(path), where, expected, found
        place = f"{path}: {where}" if where else str(path)
        super().__init__(f"{place}: expected {expected}; found {found}")
