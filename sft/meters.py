"""What a training step measures, added up until the next log line; survives a checkpoint exactly."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

LOSSES = ("loss", "lm_loss", "mtp_loss", "balance_loss")
COUNTS = ("tokens", "trained_tokens")


class Meters:
    """Means over the optimiser steps since the last `drain`, and totals since the run's start.

    loss and its parts are those of the whole batch: lm_loss and mtp_loss in nats per trained token.
    """

    def __init__(self) -> None:
        self.totals = dict.fromkeys(COUNTS, 0)
        self._sums = dict.fromkeys(LOSSES, 0.0)
        self._steps = 0
        self._pending: list[Tensor] = []

    def add(self, losses: list[Tensor], tokens: Tensor, trained_tokens: Tensor) -> None:
        """Note one micro-batch.

        Args:
            losses: its shares of the batch's losses, in the order of LOSSES; scalars.
            tokens: of its samples, padding left out.
            trained_tokens: those that are targets.
        """
        values = [*losses, tokens, trained_tokens]
        self._pending.append(torch.stack([value.detach().to(losses[0].device, torch.float64) for value in values]))

    def end_step(self) -> dict[str, float]:
        """Close an optimiser step; returns its losses. One transfer from the device a step."""
        values = torch.stack(self._pending).sum(0).tolist()
        self._pending.clear()
        losses = dict(zip(LOSSES, values, strict=False))
        for name, value in losses.items():
            self._sums[name] += value
        for name, value in zip(COUNTS, values[len(LOSSES) :], strict=True):
            self.totals[name] += int(value)
        self._steps += 1
        return losses

    def drain(self) -> dict[str, float]:
        """Means since the last call, and totals."""
        means = {name: value / max(self._steps, 1) for name, value in self._sums.items()}
        self._sums, self._steps = dict.fromkeys(LOSSES, 0.0), 0
        return means | self.totals

    def save(self, path: Path) -> None:
        """Write the state between two steps. JSON keeps floats exactly."""
        state = {"totals": self.totals, "sums": self._sums, "steps": self._steps}
        path.write_text(json.dumps(state) + "\n", encoding="utf-8")

    def load(self, path: Path) -> None:
        state = json.loads(path.read_text(encoding="utf-8"))
        self.totals, self._sums, self._steps = state["totals"], state["sums"], state["steps"]
