"""A run's folder: what was run, with what, what it measured, whether it is done.

    recipe.yaml      the resolved recipe          provenance.json  code, libraries, machine, inputs, status
    metrics.jsonl    one JSON object a line       checkpoints/     see recipes/checkpoints.py

A folder belongs to one recipe and one set of inputs. Opening it with the same ones continues it; with others it is
refused. One process writes it at a time.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf
from pydantic import BaseModel

from core_model.errors import InputError
from recipes.atomic import drop_half_line, sha256_artefact, write_json, write_text
from recipes.provenance import git_state, hardware, versions
from recipes.schema import PLACEMENT_KEYS, StageRecipe
from recipes.tracking import Cell, Tracker

RUNNING, COMPLETE = "running", "complete"
PATIENCE = 5.0  # seconds to wait for a killed process to let go of the folder


class Run:
    """A stage's run folder, open for writing. Make one with `Run.open`.

    Attributes:
        path: the folder.
        recipe: the recipe it belongs to.
        writer: whether this process writes it (rank 0); on other ranks `log` and `complete` do nothing.
        provenance: what provenance.json holds.
    """

    def __init__(self, path: Path, recipe: StageRecipe, provenance: dict[str, Any], *, writer: bool = True) -> None:
        self.path, self.recipe, self.provenance, self.writer = path, recipe, provenance, writer
        self._opened = time.monotonic()
        self._lock: IO[str] | None = None
        self._metrics: IO[str] | None = None
        self._tracker = Tracker(
            path,
            provenance["wandb_run_id"],
            stage=recipe.stage,
            name=recipe.name,
            group=recipe.group,
            config=comparable(recipe),
        )
        self._tracker.reads(provenance["inputs"])

    @classmethod
    def open(cls, recipe: StageRecipe, command: list[str], inputs: dict[str, Path], *, writer: bool = True) -> Run:
        """Create the run's folder, or continue it.

        Args:
            recipe: the resolved recipe; `recipe.folder` is the run's folder.
            command: the command line, for the record.
            inputs: the artefacts the run reads, by name.
            writer: False on all ranks but the first.

        Raises:
            InputError: an input is missing, the folder belongs to another recipe or to other inputs, its files are
                damaged, or another process is writing it.
        """
        path = recipe.folder
        hashes = hash_inputs(inputs)
        lock = None
        if writer:
            _make_folder(path)
            lock = _lock(path)
        provenance = _existing(path, recipe, hashes)
        if provenance is None:
            _refuse_orphans(path)
            record = {
                "schema": 1,
                "status": RUNNING,
                "command": command,
                "started": _now(),
                "seconds": 0.0,
                "resumed": 0,
            }
            provenance = record | {"wandb_run_id": os.urandom(4).hex()} | _made_with(recipe, inputs, hashes)
            if writer:
                write_text(path / "recipe.yaml", OmegaConf.to_yaml(OmegaConf.create(recipe.model_dump(mode="json"))))
                write_json(path / "provenance.json", provenance)
        elif provenance["status"] == RUNNING and writer:
            # The numbers are this process's from here on, so the code and machine that make them are recorded anew.
            again = {"command": command, "resumed": int(provenance.get("resumed", 0)) + 1}
            provenance |= again | _made_with(recipe, inputs, hashes)
            write_json(path / "provenance.json", provenance)
            drop_half_line(path / "metrics.jsonl")
        run = cls(path, recipe, provenance, writer=writer)
        run._lock = lock
        return run

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go (see `recipes.checkpoints`)."""
        return self.path / "checkpoints"

    @property
    def is_complete(self) -> bool:
        return self.provenance["status"] == COMPLETE

    @property
    def summary(self) -> dict[str, Any] | None:
        """What the stage returned at its end; None before."""
        return self.provenance.get("summary")

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Append one line to metrics.jsonl and give wandb the same.

        A value that is not finite is written as null, since JSON has no NaN.
        """
        if "step" in metrics:
            raise ValueError("'step' is the line's own key")
        if not self.writer:
            return
        values = {name: float(value) for name, value in metrics.items()}
        line = {"step": step} | {name: value if math.isfinite(value) else None for name, value in values.items()}
        if self._metrics is None:
            self._metrics = (self.path / "metrics.jsonl").open("a", encoding="utf-8")
        self._metrics.write(json.dumps(line, allow_nan=False) + "\n")
        self._metrics.flush()
        self._tracker.log(step, values)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Give wandb a table, such as one row a problem; see `Tracker.table`. The run's folder has it elsewhere."""
        if self.writer:
            self._tracker.table(name, columns, rows)

    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl, oldest first. A half-written last line is left out."""
        return read_metrics(self.path / "metrics.jsonl")

    def rewind(self, step: int) -> None:
        """Drop the metrics logged after `step` (all of them at -1): a resumed run logs those steps again."""
        if not self.writer:
            return
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        path = self.path / "metrics.jsonl"
        if path.is_file():
            kept = [line for line in read_metrics(path) if line["step"] <= step]
            write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in kept))

    def complete(self, summary: dict[str, Any]) -> None:
        """Record the stage's results and mark the run complete. The last thing a stage does."""
        if not self.writer:
            return
        seconds = time.monotonic() - self._opened  # of this process: time lost to a kill is not known
        done = self.provenance | {"status": COMPLETE, "summary": summary, "seconds": round(seconds, 1)}
        self._tracker.made(self.path)
        self.close()
        write_json(self.path / "provenance.json", done)
        self.provenance = done

    def close(self) -> None:
        """Finish tracking and let go of the folder's files; the run stays as it is."""
        self._tracker.finish()
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def run_status(recipe: StageRecipe, inputs: dict[str, Path]) -> str | None:
    """The status of the recipe's run folder: None (not begun), "running" (begun, perhaps dead) or "complete".

    Raises:
        InputError: the folder belongs to another recipe or to other inputs, or an input is missing.
    """
    if read_provenance(recipe.folder) is None:
        return None
    provenance = _existing(recipe.folder, recipe, hash_inputs(inputs))
    return None if provenance is None else str(provenance["status"])


def comparable(recipe: StageRecipe) -> dict[str, Any]:
    """The recipe as plain data, without the keys that only say where the run is kept."""
    return recipe.model_dump(mode="json", exclude=set(PLACEMENT_KEYS))


def hash_inputs(inputs: dict[str, Path]) -> dict[str, str]:
    """The sha256 of every input artefact; an InputError for one that is missing."""
    hashes = {}
    for name, path in inputs.items():
        if not path.exists():
            raise InputError(
                path, where=f"input {name}", expected="an artefact of an earlier stage", found="no such file or folder"
            )
        hashes[name] = sha256_artefact(path)
    return hashes


def read_provenance(folder: Path) -> dict[str, Any] | None:
    """A run folder's provenance.json; None when there is none. InputError when it is damaged."""
    path = folder / "provenance.json"
    if not path.is_file():
        return None
    try:
        provenance = json.loads(path.read_text(encoding="utf-8"))
        keys = {"status", "inputs", "recipe", "wandb_run_id"}
        if not isinstance(provenance, dict) or not keys <= provenance.keys():
            raise ValueError(f"one of the keys {', '.join(sorted(keys))} is missing")
        if provenance["status"] not in (RUNNING, COMPLETE):
            raise ValueError(f"the status {provenance['status']!r}")
        inputs = provenance["inputs"]
        if not isinstance(inputs, dict) or not all(
            isinstance(one, dict) and "sha256" in one for one in inputs.values()
        ):
            raise ValueError(f"the inputs {inputs!r}")
    except ValueError as error:
        raise InputError(path, expected="the provenance of a run", found=str(error)) from error
    return provenance


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; a half-written last one (the process died) is left out.

    Raises:
        InputError: any other line is no JSON object with a step.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    # The last piece has no newline after it: "" in a whole file, half a line after a kill.
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise ValueError
        except ValueError:
            shown = line[:60] or "an empty line"
            raise InputError(path, where=f"line {number}", expected="a JSON object with a step", found=shown) from None
        rows.append(row)
    return rows


def _existing(path: Path, recipe: StageRecipe, hashes: dict[str, str]) -> dict[str, Any] | None:
    """The folder's provenance when it belongs to this recipe and these inputs, None when it is no run yet."""
    provenance = read_provenance(path)
    if provenance is None:
        return None
    remedy = "delete the folder, or give another run_dir"
    then = _completed(provenance["recipe"], comparable(recipe), recipe)
    difference = _difference(then, comparable(recipe))
    if difference is not None:
        if provenance["status"] == RUNNING and not _has_results(path):
            return None  # it ended before its first result, most likely for what has been mended since
        key, then, now = difference
        raise InputError(
            path, where=key, expected=f"the recipe this run was made with ({key}: {then!r})", found=f"{now!r}; {remedy}"
        )
    then_inputs = {name: entry["sha256"] for name, entry in provenance["inputs"].items()}
    for name in sorted(then_inputs.keys() | hashes.keys()):
        if then_inputs.get(name) != hashes.get(name):
            then, now = (str(value)[:16] if value else "none" for value in (then_inputs.get(name), hashes.get(name)))
            raise InputError(
                path,
                where=f"input {name}",
                expected=f"the artefact this run was made with (sha256 {then})",
                found=f"{now}; {remedy}",
            )
    return provenance


def _has_results(path: Path) -> bool:
    """Whether a run folder holds more than the description of its run."""
    described = {"provenance.json", "recipe.yaml", ".lock", "wandb", "metrics.jsonl"}
    metrics = path / "metrics.jsonl"
    logged = metrics.is_file() and metrics.stat().st_size > 0
    return logged or any(entry.name not in described for entry in path.iterdir())


def _completed(then: Any, now: Any, made: Any) -> Any:
    """What an older run was made with, and the keys that recipes did not have then and that are at their defaults.

    A default that depends on the machine says nothing of that time. then, now: plain data, then's and today's; made:
    what `now` is the data of.
    """
    if isinstance(made, BaseModel) and isinstance(then, dict):
        completed = dict(then)
        for name, value in now.items():
            field, inner = type(made).model_fields[name], getattr(made, name)
            if name in then:
                completed[name] = _completed(then[name], value, inner)
            elif isinstance(inner, BaseModel) and field.default_factory is type(inner):
                completed[name] = _completed({}, value, inner)
            elif not field.is_required() and field.default_factory is None and inner == field.default:
                completed[name] = value
        return completed
    if isinstance(made, list | tuple) and isinstance(then, list) and len(then) == len(made):
        return [_completed(*three) for three in zip(then, now, made, strict=True)]
    if isinstance(made, dict) and isinstance(then, dict):
        return {name: _completed(value, now.get(name), made.get(name)) for name, value in then.items()}
    return then


def _difference(then: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first key whose value differs, with both values."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in sorted(then.keys() | now.keys()):
            found = _difference(then.get(name), now.get(name), f"{key}.{name}" if key else name)
            if found is not None:
                return found
        return None
    return None if then == now else (key, then, now)


def _made_with(recipe: StageRecipe, inputs: dict[str, Path], hashes: dict[str, str]) -> dict[str, Any]:
    import torch

    return {
        "recipe": comparable(recipe),
        "seeds": {"seed": recipe.seed},
        "threads": torch.get_num_threads(),
        "inputs": {name: {"path": str(path), "sha256": hashes[name]} for name, path in inputs.items()},
        "git": git_state(),
        "versions": versions(),
        "hardware": hardware(),
    }


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(path, expected="a folder for the run", found="a file") from error
    except OSError as error:
        raise InputError(path, expected="a folder that can be written", found=str(error)) from error


def _refuse_orphans(path: Path) -> None:
    """Refuse leftovers whose recipe nobody knows: a new run would resume from another one's checkpoint."""
    for name in ("metrics.jsonl", "checkpoints"):
        if (path / name).exists():
            found = f"{name} without provenance.json; delete the folder, or give another run_dir"
            raise InputError(path, expected="an empty folder or a run's", found=found)


def _lock(path: Path) -> IO[str]:
    """Hold the folder until this process ends. A record lock: forked data workers do not keep it alive."""
    try:
        file = (path / ".lock").open("w")
    except OSError as error:
        raise InputError(path, expected="a folder that can be written", found=str(error)) from error
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except OSError:
            if time.monotonic() > deadline:
                file.close()
                raise InputError(
                    path, expected="a run that no process is writing", found="another process at work on it"
                ) from None
            time.sleep(0.1)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
