"""The wandb side of a run. Offline unless WANDB_MODE says otherwise; nothing here may stop a stage."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

PROJECT = "trivium"


class Tracker:
    """One wandb run, started at the first log.

    Args:
        folder: wandb's files go into `folder/wandb`.
        run_id: kept over resumes, so that the pieces of a killed run are one run.
        name, group, config: as in `wandb.init`.
        mode: "offline", "online" or "disabled"; None takes WANDB_MODE, else "offline".
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        *,
        name: str,
        group: str | None,
        config: dict[str, Any],
        mode: str | None = None,
    ) -> None:
        self.mode = mode or os.environ.get("WANDB_MODE") or "offline"
        self._start = {"dir": str(folder), "id": run_id, "name": name, "group": group, "config": config}
        self._run: Any = None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self.mode == "disabled":
            return
        try:
            if self._run is None:
                self._run = self._init()
            self._run.log(metrics, step=step)
        except Exception as error:  # tracking is a convenience: metrics.jsonl has everything
            self._give_up(error)

    def finish(self) -> None:
        if self._run is None:
            return
        try:
            self._run.finish()
        except Exception as error:
            self._give_up(error)
        self._run = None

    def _init(self) -> Any:
        import wandb

        # Its tracing of language models' calls has no part in a training run, but advertises itself into its output.
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        settings = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False, x_disable_meta=True, x_disable_stats=True
        )
        return wandb.init(project=PROJECT, mode=self.mode, resume="allow", settings=settings, **self._start)  # type: ignore[arg-type]

    def _give_up(self, error: Exception) -> None:
        log.warning("wandb is off for the rest of this run (metrics.jsonl is not affected): %s", error)
        self.mode, self._run = "disabled", None
