"""The languages a program may be written in, as a table: how it is built and how it is started."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin"  # the programs a sandbox shows


@dataclass(frozen=True)
class Language:
    """Args:
    source_name: the file the compiler reads.
    build: its command, {source} and {binary} replaced; None: Python, which the fork server runs itself.
    """

    source_name: str
    build: tuple[str, ...] | None = None

    def missing(self) -> str | None:
        """The compiler that this machine lacks; None when there is nothing to miss."""
        if self.build is None or shutil.which(self.build[0], path=SEARCH_PATH) is not None:
            return None
        return self.build[0]


LANGUAGES = {
    "python": Language("main.py"),
    "cpp": Language("main.cpp", ("g++", "-O2", "-std=gnu++20", "-o", "{binary}", "{source}")),
    "c": Language("main.c", ("gcc", "-O2", "-std=gnu17", "-o", "{binary}", "{source}", "-lm")),
    "rust": Language("main.rs", ("rustc", "-O", "--edition", "2021", "-o", "{binary}", "{source}")),
}
