"""Percentiles against a stated population: how many users have which rating, on a day."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from eval.codeforces.contests import Day, read_model
from recipes.rows import Row


class Population(Row):
    """The contents of a population file. A percentile means nothing without its id: populations differ by points.

    counts: rating -> users with it.
    """

    id: str = Field(min_length=1)
    date: Day
    counts: Mapping[int, int] = Field(min_length=1)

    @model_validator(mode="after")
    def _people(self) -> Population:
        if min(self.counts.values()) < 0 or not sum(self.counts.values()):
            raise ValueError("counts: numbers of users, 0 or more, and not all 0")
        return self

    @property
    def users(self) -> int:
        """How many there are."""
        return sum(self.counts.values())

    def share_below(self, rating: float) -> float:
        """The share of users with a lower rating, those with the same one half: 0 to 1."""
        ratings = np.array(list(self.counts), dtype=np.float64)
        users = np.array(list(self.counts.values()), dtype=np.float64)
        below = users[ratings < rating].sum() + 0.5 * users[ratings == rating].sum()
        return float(below / users.sum())


def read_population(path: Path) -> Population:
    """The population in a file.

    Raises:
        InputError: no such file, or one of another form.
    """
    return read_model(path, Population, "a population: id, date, counts {rating: users}")
