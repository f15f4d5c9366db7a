"""Checkpoints that survive a kill at any moment.

`step_00001000/` appears by one rename, after its files and, last, their manifest (sizes and sha256) are on the disk.
So a folder without a manifest is torn and is thrown away; one whose manifest does not hold has been damaged, and that
is never passed over in silence.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from core_model.errors import InputError
from recipes.atomic import sha256_file, sync_folder, sync_tree, write_json

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
PARTIAL = ".partial-"
STEP = re.compile(r"step_(\d{8,})")


def save_checkpoint(folder: Path, step: int, write: Callable[[Path], None], keep: int = 2) -> Path:
    """Save one checkpoint and prune the older ones.

    Args:
        folder: the run's checkpoints folder (`Run.checkpoints`); made when absent.
        step: the step the checkpoint was taken after, >= 0.
        write: writes the checkpoint's files into the (empty) folder it is given.
        keep: how many checkpoints stay, the new one included, >= 1.

    Returns:
        The folder `step_00001000`. A whole checkpoint of that step that is already there stays: runs are
        deterministic, so it holds the same, and replacing it would leave a moment with neither.
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step must be >= 0 and keep >= 1, not {step} and {keep}")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step_{step:08d}"
    if (target / MANIFEST).is_file():
        return target
    if target.exists():
        _discard(target)
    partial = folder / f"{PARTIAL}{target.name}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    write(partial)
    sync_tree(partial)
    write_manifest(partial)
    partial.rename(target)
    sync_folder(folder)
    for old in _steps(folder)[keep:]:
        if old != target:
            _discard(old)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint under `folder`, None when there is none.

    Torn ones and leftovers are removed with a log line.

    Raises:
        InputError: a checkpoint's files do not match its manifest.
    """
    if not folder.is_dir():
        return None
    for leftover in sorted(folder.glob(f"{PARTIAL}*")):
        log.warning("removing %s: its writing was interrupted", leftover)
        _discard(leftover)
    for path in _steps(folder):
        if (path / MANIFEST).is_file():
            verify_manifest(path)
            return path
        log.warning("removing %s: torn (it has no %s)", path, MANIFEST)
        _discard(path)
    return None


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint folder's name."""
    match = STEP.fullmatch(checkpoint.name)
    if match is None:
        raise ValueError(f"{checkpoint} is not named like a checkpoint")
    return int(match.group(1))


def write_manifest(folder: Path) -> None:
    """Write `manifest.json`: size and sha256 of every file under `folder`."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MANIFEST
    }
    write_json(folder / MANIFEST, {"files": files})


def verify_manifest(folder: Path) -> None:
    """Check every file that the folder's manifest lists.

    Raises:
        InputError: the manifest or a file is missing, cut short or changed.
    """
    manifest = folder / MANIFEST
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        entries = {str(name): (int(entry["size"]), str(entry["sha256"])) for name, entry in files.items()}
    except FileNotFoundError:
        raise InputError(manifest, expected="a manifest of the folder's files", found="no such file") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(manifest, expected="a manifest: files with size and sha256", found=f"{error!r}") from error
    for name, (size, sha256) in entries.items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(manifest, where=name, expected="a file inside the folder", found="a path that leaves it")
        if not path.is_file():
            raise InputError(path, expected=f"a file of {size} bytes, listed in {MANIFEST}", found="no such file")
        if path.stat().st_size != size:
            raise InputError(
                path, expected=f"{size} bytes, by {MANIFEST}", found=f"{path.stat().st_size} bytes (cut short?)"
            )
        if (actual := sha256_file(path)) != sha256:
            raise InputError(
                path, expected=f"sha256 {sha256[:16]}..., by {MANIFEST}", found=f"{actual[:16]}... (damaged)"
            )


def _steps(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((path for path in folder.iterdir() if STEP.fullmatch(path.name)), key=step_of, reverse=True)


def _discard(path: Path) -> None:
    """Remove a checkpoint so that a kill half-way leaves it torn, never whole-looking: the manifest goes first."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)
