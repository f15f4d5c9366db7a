"""Numbers that follow the step: the learning rate, and values that change in phases.

Source: V3 report §4.2 (warm-up, constant, cosine decay, constant; bias speed and MTP weight in phases).
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from recipes.schema import StrictModel


class LearningRate(StrictModel):
    """Linear warm-up, constant, decay to a floor, constant at the floor."""

    peak: float = Field(gt=0, description="learning rate after the warm-up (V3: 2.2e-4)")
    floor: float = Field(ge=0, description="learning rate after the decay (V3: 2.2e-5)")
    warmup_steps: int = Field(default=0, ge=0, description="steps from 0 to the peak (V3: 2000)")
    decay_start: int = Field(ge=0, description="step at which the decay begins")
    decay_steps: int = Field(ge=0, description="steps the decay takes; 0: none")
    shape: Literal["cosine", "linear"] = Field(default="cosine", description="of the decay (V3: cosine)")

    def at(self, step: int) -> float:
        """The learning rate of the update that ends step `step`, counted from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.decay_steps == 0 or step < self.decay_start:
            return self.peak
        progress = min((step - self.decay_start) / self.decay_steps, 1.0)
        share = (1 + math.cos(math.pi * progress)) / 2 if self.shape == "cosine" else 1 - progress
        return self.floor + (self.peak - self.floor) * share


class Phase(StrictModel):
    """A value that holds from a step on."""

    from_step: int = Field(ge=0, description="first step of the phase")
    value: float = Field(ge=0, description="value during the phase")


class Phases(StrictModel):
    """A piecewise constant schedule; the first phase starts at step 0."""

    phases: tuple[Phase, ...] = Field(min_length=1, description="phases in order of from_step")

    @model_validator(mode="after")
    def _ordered(self) -> Phases:
        starts = [phase.from_step for phase in self.phases]
        if starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"from_step must start at 0 and rise, not {starts}")
        return self

    def at(self, step: int) -> float:
        return [phase.value for phase in self.phases if phase.from_step <= step][-1]
