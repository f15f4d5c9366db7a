"""Which problem is trained on when: a fixed sequence, so that a resumed run asks what the first would have asked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eval.tasks import get_family
from eval.tasks.text import prompt_messages
from recipes.rows import Problem

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class ProblemSequence:
    """Training problems of several families, mixed by weight as evenly as whole problems allow.

    Position i always holds the same problem. Any stretch of the sequence has each family's share to within a few
    problems, so that batches differ in their problems and not in their mixture.

    Args:
        weights: shares of the families; they need not sum to 1.
        start: index of each family's first problem, past those that earlier stages trained on.
        seed: which items the families draw.
    """

    weights: Mapping[str, float]
    start: int
    seed: int
    _places: list[tuple[str, int]] = field(default_factory=list, init=False, repr=False, compare=False)

    def __getitem__(self, position: int) -> Problem:
        family, index = self.place(position)
        return get_family(family, seed=self.seed).problem(index, "train")

    def place(self, position: int) -> tuple[str, int]:
        """The family and the index in it of the problem at a position."""
        if position >= len(self._places):
            self._extend(position + 1)
        return self._places[position]

    def _extend(self, length: int) -> None:
        total = sum(self.weights.values())
        count = Counter(family for family, _ in self._places)
        while len(self._places) < length:
            # The family that lags most behind its share; the first named wins a tie.
            family = max(self.weights, key=lambda f: self.weights[f] * (len(self._places) + 1) / total - count[f])
            self._places.append((family, self.start + count[family]))
            count[family] += 1

    def prompt(self, position: int, reflect: bool) -> list[dict[str, str]]:
        """The messages that ask the problem at a position."""
        return [
            {"role": message.role, "content": message.content}
            for message in prompt_messages(self[position], reflect=reflect)
        ]

    def dataset(self, count: int, reflect: bool) -> Dataset:
        """The first `count` prompts as TRL wants them; `position` finds the problem again."""
        from datasets import Dataset

        self.place(max(count - 1, 0))
        return Dataset.from_dict(
            {"prompt": [self.prompt(i, reflect) for i in range(count)], "position": list(range(count))}
        )
