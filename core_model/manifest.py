"""A manifest of sizes and sha256 beside the files it describes: written last, checked on load.

Whoever finds the manifest finds all of the files as they were; a folder without one was never finished.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path

from core_model.errors import InputError

MANIFEST = "manifest.json"


def sha256_file(path: Path) -> str:
    """The sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have a file's content, or a folder's entries (new names, renames), on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace the file at `path` by `text`; a reader sees the old or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync(path.parent)


def write_manifest(folder: Path, known: dict[str, str] | None = None, only: Collection[str] | None = None) -> None:
    """Describe every file below `folder`, all of it durable when this returns.

    Args:
        known: sha256 by relative name, of files that were hashed before.
        only: the names of the files that are described; None for all.
    """
    files = {}
    for path in sorted(folder.rglob("*")):
        sync(path)
        if path.is_file() and path != folder / MANIFEST:
            name = path.relative_to(folder).as_posix()
            if only is not None and name not in only:
                continue
            sha256 = (known or {}).get(name) or sha256_file(path)
            files[name] = {"size": path.stat().st_size, "sha256": sha256}
    write_text(folder / MANIFEST, json.dumps({"files": files}, indent=2, ensure_ascii=False) + "\n")


def verify_manifest(folder: Path, *, required: bool = True) -> None:
    """Check every file that the folder's manifest lists.

    Raises:
        InputError: the manifest is missing (when required) or unreadable, or a file is missing, cut short or changed.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        if required:
            found = "no such file: the folder was never finished"
            raise InputError(manifest, expected="a manifest of the folder's files", found=found)
        return
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        entries = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(manifest, expected="a manifest: files with size and sha256", found=f"{error!r}") from error
    for name, (size, sha256) in entries.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(manifest, where=name, expected="a file inside the folder", found="a path that leaves it")
        if not path.is_file():
            raise InputError(path, expected=f"a file of {size} bytes, listed in {MANIFEST}", found="no such file")
        if (actual := path.stat().st_size) != size:
            raise InputError(path, expected=f"{size} bytes, by {MANIFEST}", found=f"{actual} bytes (cut short?)")
        if (digest := sha256_file(path)) != sha256:
            expected = f"sha256 {sha256[:16]}..., by {MANIFEST}"
            raise InputError(path, expected=expected, found=f"{digest[:16]}... (damaged)")
