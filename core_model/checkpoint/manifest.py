"""A manifest of sizes and sha256 beside the files it describes, written last and checked on load."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from core_model.errors import InputError

MANIFEST = "manifest.json"


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Make a file's content, or a folder's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(folder: Path) -> None:
    """Describe every file below `folder`; whoever finds the manifest finds all of them as they were."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            fsync(path)
            files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(json.dumps({"files": files}, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    fsync(partial)
    partial.replace(folder / MANIFEST)
    fsync(folder)


def verify_manifest(folder: Path, *, required: bool = True) -> None:
    """Check every file of a folder against its manifest.

    Raises:
        InputError: the manifest is missing (when required) or unreadable, or a file is missing, short or changed.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        if required:
            raise InputError(folder, expected=f"a folder with a {MANIFEST}", found="none, so it was never finished")
        return
    try:
        entries = json.loads(manifest.read_text(encoding="utf-8"))["files"].items()
        files = [(name, int(entry["bytes"]), str(entry["sha256"])) for name, entry in entries]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        expected = "a JSON object whose 'files' give 'bytes' and 'sha256' by name"
        raise InputError(manifest, expected=expected, found=f"{type(error).__name__}: {error}") from error
    for name, expected_size, expected_digest in files:
        path = folder / name
        if not path.is_file():
            raise InputError(path, expected=f"a file of {expected_size} bytes (its folder's manifest)", found="no file")
        size = path.stat().st_size
        if size != expected_size:
            raise InputError(path, expected=f"{expected_size} bytes (its folder's manifest)", found=f"{size} bytes")
        digest = file_sha256(path)
        if digest != expected_digest:
            expected = f"sha256 {expected_digest[:16]}… (manifest)"
            raise InputError(path, expected=expected, found=f"{digest[:16]}…: damaged")
