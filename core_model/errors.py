"""The one exception for input that a person can mend; commands print it as one message and exit with 2."""

from __future__ import annotations

import errno
from pathlib import Path

# Faults of a disk or of the rights on it, which a person can mend; any other OSError is a fault of the program.
DISK_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


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


def disk_fault(error: OSError) -> InputError | None:
    """A full, read-only or forbidden disk as bad input from outside; None for any other error."""
    if error.errno not in DISK_FAULTS:
        return None
    place = error.filename or "the disk"
    return InputError(place, expected="a place that can be written to, with room", found=str(error.strerror))
