"""Checkpoints of a transformers Trainer in a run's folder: written aside and renamed, weights in our own format."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from transformers.trainer import TRAINER_STATE_NAME, TrainerState

from core_model.checkpoint import load_weights
from recipes.checkpoints import latest_checkpoint, save_checkpoint, step_of
from recipes.run import Run

if TYPE_CHECKING:
    from transformers import Trainer

    from core_model import V3ForCausalLM

    _Base = Trainer
else:
    _Base = object

WEIGHTS = "model"  # inside a checkpoint, beside the Trainer's own files


class RunCheckpoints(_Base):
    """Mixed into a Trainer before its class: what it saves and how it resumes.

    The Trainer's own methods would write into place, look for other file names and pass over whatever is missing.
    A subclass sets `run` and keeps its numbers between two log lines in `save_numbers` and `load_numbers`.
    """

    run: Run

    @property
    def v3(self) -> V3ForCausalLM:
        """The model that is trained."""
        return cast("V3ForCausalLM", self.model)

    def save_numbers(self, folder: Path) -> None:
        """Write what the next log line depends on, beyond the Trainer's own state."""

    def load_numbers(self, folder: Path) -> None:
        """Read what `save_numbers` wrote."""

    def start_fresh(self) -> None:
        """Called before the first step of a run that resumes from nothing."""

    def train_or_resume(self) -> None:
        """Train from the start, or from the run's newest checkpoint; the metrics go on exactly where it was taken.

        Raises:
            InputError: the newest checkpoint is damaged.
        """
        checkpoint = latest_checkpoint(self.run.checkpoints)
        if checkpoint is None:
            self.run.rewind(-1)
            self.start_fresh()
            self.train()
            return
        step = step_of(checkpoint)
        self.run.rewind(step)
        last_step = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).max_steps
        if step >= last_step:  # the Trainer would take one more step when an epoch is not over
            self.load_checkpoint(checkpoint)
        else:
            self.train(resume_from_checkpoint=str(checkpoint))

    def load_checkpoint(self, folder: Path) -> None:
        """Weights and numbers; `train` loads the optimizer, the schedule and the generators."""
        load_weights(self.v3, folder / WEIGHTS)
        self.load_numbers(folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        keep = self.args.save_total_limit or 2
        save_checkpoint(self.run.checkpoints, self.state.global_step, self._write_checkpoint, keep)

    def _write_checkpoint(self, folder: Path) -> None:
        """Everything that the next step depends on."""
        self.v3.save_pretrained(folder / WEIGHTS)
        self._save_optimizer_and_scheduler(str(folder))
        self._save_rng_state(str(folder))
        self.save_numbers(folder)
        self.state.save_to_json(str(folder / TRAINER_STATE_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.load_checkpoint(Path(resume_from_checkpoint))
