"""Files that are whole or absent, whenever the process dies: written aside, fsynced, renamed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from core_model.manifest import sha256_file, sync


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`; a reader sees the old or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sha256_artefact(path: Path) -> str:
    """The sha256 of a file's bytes, or of a folder's relative names and contents (its own name is not part of it).

    Raises:
        FileNotFoundError: there is nothing at `path`.
    """
    if not path.is_dir():
        return sha256_file(path)
    digest = hashlib.sha256()
    for file in sorted(item for item in path.rglob("*") if item.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256_file(file)}\n".encode())
    return digest.hexdigest()
