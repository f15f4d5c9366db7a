"""Checkpoints that survive a kill at any moment.

`step_00001000/` appears by one rename, after its files and, last, their manifest (sizes and sha256) are on the disk.
So a folder without a manifest is torn and is thrown away; one whose manifest does not hold has been damaged, and that
is never passed over in silence.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from core_model.manifest import MANIFEST, sync, verify_manifest, write_manifest

log = logging.getLogger(__name__)

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
    write_manifest(partial)
    partial.rename(target)
    sync(folder)
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


def _steps(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((path for path in folder.iterdir() if STEP.fullmatch(path.name)), key=step_of, reverse=True)


def _discard(path: Path) -> None:
    """Remove a checkpoint so that a kill half-way leaves it torn, never whole-looking: the manifest goes first."""
    (path / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(path)
