"""Schedules: the published check values of V3's learning rate, and phases."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pretrain.schedule import LearningRate, Phase, Phases


@pytest.mark.parametrize(
    ("trillions", "rate"),
    [(9.99, 2.2e-4), (11, 1.947324e-4), (12.15, 1.21e-4), (13, 6.339597e-5), (14.3, 2.2e-5), (14.5, 2.2e-5)],
)
def test_published_learning_rates(trillions: float, rate: float) -> None:
    """V3 report 4.2, in steps of a billion tokens: constant to 10T, cosine over 4.3T, constant."""
    schedule = LearningRate(peak=2.2e-4, floor=2.2e-5, warmup_steps=0, decay_start=10_000, decay_steps=4_300)
    assert schedule.at(round(trillions * 1000)) == pytest.approx(rate, rel=1e-6)


def test_warm_up_starts_above_zero_and_ends_at_the_peak() -> None:
    schedule = LearningRate(peak=1.0, floor=0.1, warmup_steps=4, decay_start=6, decay_steps=4, shape="linear")
    assert [schedule.at(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [schedule.at(step) for step in (6, 8, 10, 99)] == pytest.approx([1.0, 0.55, 0.1, 0.1])


def test_phases_hold_from_their_step() -> None:
    phases = Phases(phases=(Phase(from_step=0, value=0.3), Phase(from_step=10, value=0.1)))
    assert [phases.at(step) for step in (0, 9, 10, 1000)] == [0.3, 0.3, 0.1, 0.1]


@pytest.mark.parametrize("starts", [(1,), (0, 5, 5), (0, 7, 3)])
def test_phases_must_start_at_zero_and_rise(starts: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError, match="must start at 0 and rise"):
        Phases(phases=tuple(Phase(from_step=start, value=0.1) for start in starts))
