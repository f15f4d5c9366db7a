"""The wandb side of a run. Offline unless WANDB_MODE says otherwise; nothing here may stop a stage."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.lineage import Artefact, Input, inputs_of, outputs_of

if TYPE_CHECKING:
    import wandb

log = logging.getLogger(__name__)

PROJECT = "trivium"
MAX_ROWS = 2_000  # of a table; wandb shows 10,000 at most, and a browser is slow long before
MAX_TEXT = 4_000  # characters of a table's cell

Cell = str | int | float | bool | None


class Tracker:
    """One wandb run, started when there is first something to record.

    Args:
        folder: wandb's files go into `folder/wandb`.
        run_id: kept over resumes, so that the pieces of a killed run are one run.
        stage: the run's job type, and an alias of what it makes.
        name, group, config: as in `wandb.init`.
        mode: "offline", "online" or "disabled"; None takes WANDB_MODE, else "offline".
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        *,
        stage: str,
        name: str,
        group: str | None,
        config: dict[str, Any],
        mode: str | None = None,
    ) -> None:
        self.mode = mode or os.environ.get("WANDB_MODE") or "offline"
        self.stage = stage
        # An absolute folder: wandb's service is a process of its own, with a working directory of its own.
        self._start = {
            "dir": str(folder.absolute()),
            "id": run_id,
            "job_type": stage,
            "name": name,
            "group": group,
            "config": config,
        }
        self._inputs: Mapping[str, Input] = {}
        self._run: wandb.Run | None = None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Record numbers at a step."""
        self._record(lambda run: run.log(metrics, step=step))

    def reads(self, inputs: Mapping[str, Input]) -> None:
        """Declare what the run reads; recorded as soon as wandb starts.

        wandb starts late on purpose: its threads would be there when a stage forks its data workers.
        """
        self._inputs = inputs

    def made(self, folder: Path) -> None:
        """Record what the run has made in its folder, with the run's id and the stage as aliases."""
        self._record(lambda run: self._log_outputs(run, folder))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
        """Record a table at the last logged step: at most `MAX_ROWS` rows, evenly spaced, texts cut at `MAX_TEXT`.

        How many rows there are goes beside it as `<name>/rows`, and how many of them are shown as `<name>/rows_shown`.
        """
        self._record(lambda run: _log_table(run, name, columns, rows))

    def finish(self) -> None:
        """End wandb's run, so that what it has is whole; also one that was given up, or the next would go on in it."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish()
        except Exception as error:
            self._give_up(error)

    def _record(self, write: Callable[[wandb.Run], None]) -> None:
        if self.mode == "disabled":
            return
        try:
            if self._run is None:
                self._run = self._init()
                for artefact in inputs_of(self._inputs):
                    _use(self._run, artefact)
            write(self._run)
        except Exception as error:  # tracking is a convenience: metrics.jsonl and provenance.json have everything
            self._give_up(error)

    def _init(self) -> wandb.Run:
        import wandb

        # Its tracing of language models' calls has no part in a training run, but advertises itself into its output.
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, x_disable_meta=True, x_disable_stats=True
        )
        return wandb.init(project=PROJECT, mode=self.mode, resume="allow", settings=settings, **self._start)  # type: ignore[arg-type]

    def _log_outputs(self, run: wandb.Run, folder: Path) -> None:
        read = {entry["sha256"] for entry in self._inputs.values()}
        for artefact in outputs_of(folder):
            if artefact.sha256 not in read:  # what it passes on unchanged, another run has made
                run.log_artifact(_reference(artefact), aliases=[run.id, self.stage])

    def _give_up(self, error: Exception) -> None:
        if self.mode != "disabled":
            log.warning("wandb is off for the rest of this run (metrics.jsonl is not affected): %s", error)
        self.mode = "disabled"


def _use(run: wandb.Run, artefact: Artefact) -> None:
    """Declare an artefact as an input.

    `run.use_artifact` refuses to work offline, since it waits for the server. The record that it writes for an artefact
    the server has not seen yet can be written offline too: "log this, then use it"; `wandb sync` carries both out. One
    content is one version on the server, so that is its maker's artefact, if its maker was synced before.
    """
    run._log_artifact(_reference(artefact), aliases=[], is_user_created=True, use_after_commit=True)


def _reference(artefact: Artefact) -> wandb.Artifact:
    """An artefact of wandb's with one entry, whose digest is the sha256 and whose content stays where it is.

    `add_reference` takes no digest: it would read every weight again for an MD5, or digest the path, by which the same
    model in two places would be two.
    """
    import wandb
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry
    from wandb.sdk.lib.paths import LogicalPath

    about = {
        "sha256": artefact.sha256, "path": str(artefact.path), "files": artefact.files, "bytes": artefact.size,
        "keys": list(artefact.keys),
    }  # fmt: skip
    made = wandb.Artifact(artefact.name, artefact.kind, metadata=about)
    reference = artefact.path.resolve().as_uri()
    made.manifest.add_entry(
        ArtifactManifestEntry(
            path=LogicalPath(artefact.kind), digest=artefact.sha256, ref=reference, size=artefact.size
        )
    )
    return made


def _log_table(run: wandb.Run, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    import wandb

    shown = min(len(rows), MAX_ROWS)
    if shown < len(rows):
        log.info(
            "table %s: wandb gets %d of its %d rows, evenly spaced; the run's folder has all", name, shown, len(rows)
        )
    data = [[_cell(value) for value in rows[index * len(rows) // shown]] for index in range(shown)]
    table = wandb.Table(columns=list(columns), data=data, allow_mixed_types=True)
    run.log({name: table, f"{name}/rows": len(rows), f"{name}/rows_shown": shown}, step=run.step)


def _cell(value: Cell) -> Cell:
    """A cell that JSON can hold (it has no NaN) and a browser can show."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return f"{value[:MAX_TEXT]}... ({len(value) - MAX_TEXT} more characters)"
    return value
