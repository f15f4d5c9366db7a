"""What a family of problems is: it draws items, keeps its splits apart, and judges answers.

A split is a property of an item's content, not of a seed: sha256(family, canonical content) decides it, so no seed,
count or knob can put a held-out item into training. Items of the training split are drawn independently (any index at
once); those of the held-out splits are distinct, so that a test set of n problems has n of them.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar, Literal

from core_model.errors import InputError
from recipes.rows import Message, Problem, Verdict, sha256_of

Split = Literal["train", "validation", "test"]
Domain = Literal["math", "code", "logic", "retrieval"]
Item = dict[str, Any]

TEST_SHARE, VALIDATION_SHARE = 1 / 8, 1 / 16
EXHAUSTED_AFTER = 20_000  # draws in a row without a new item before a held-out split is called exhausted


@dataclass(frozen=True)
class Judgement:
    """The verdict on one answer, with what the judge has to say about it."""

    verdict: Verdict
    detail: str = ""
    seconds: float = 0.0
    isolation: str = "none"


@dataclass
class _Drawn:
    """The items of one split in their order, as far as they have been drawn."""

    items: list[Item] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class Family(ABC):
    """A family of problems with an exact verifier. Its knobs are dataclass fields.

    Args:
        seed: which items are drawn, and in which order; never in which split an item lies.
    """

    name: ClassVar[str]
    domain: ClassVar[Domain]
    description: ClassVar[str]
    split_name: ClassVar[str] = ""  # families that ask about the same items share one, so that their splits agree

    seed: int = 0
    _drawn: dict[str, _Drawn] = field(default_factory=dict, init=False, repr=False, compare=False)

    @abstractmethod
    def draw(self, rng: Random, split: Split) -> Item | None:
        """One item as JSON-serialisable content; None when this attempt gave none. The caller checks its split;
        `split` is a hint for families whose items are dear to draw."""

    @abstractmethod
    def canonical(self, item: Item) -> Any:
        """The content that two splits must not share: equal where one item's solution would give the other's away."""

    @abstractmethod
    def build(self, item: Item, split: Split) -> Problem:
        """The problem for an item."""

    @abstractmethod
    def judge_many(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Judgement]:
        """Judge one answer to each problem; never raises for anything an answer contains."""

    @abstractmethod
    def reference_answer(self, problem: Problem) -> str:
        """The short answer: what a model should print when it does not reason."""

    def right_for(self, answer: str, problems: Sequence[Problem]) -> int:
        """For how many of these problems an answer, the reference answer of one of them, is right."""
        return sum(self.reference_answer(problem) == answer for problem in problems)

    def space(self) -> Sequence[Item] | None:
        """Every item there is, where that is a small number; None where items are drawn from a large space."""
        return None

    def problem(self, index: int, split: Split) -> Problem:
        """The `index`-th problem of a split; the same for the same knobs and seed, always.

        Raises:
            InputError: a held-out split has not as many distinct items.
        """
        if index < 0:
            raise ValueError(f"a problem's index is 0 or more, not {index}")
        item = self._train_item(index) if split == "train" else self._held_out_item(index, split)
        return self.build(item, split)

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """The verdict on one answer."""
        return self.judge_many([problem], [answer])[0].verdict

    def split_of(self, item: Item) -> Split:
        """The split an item belongs to by its content."""
        content = json.dumps([self.split_name or self.name, self.canonical(item)], sort_keys=True).encode()
        share = int.from_bytes(hashlib.sha256(content).digest()[:8], "big") / 2**64
        if share < TEST_SHARE:
            return "test"
        return "validation" if share < TEST_SHARE + VALIDATION_SHARE else "train"

    def problem_id(self, item: Item) -> str:
        """Equal for equal items, whatever seed or index drew them."""
        return f"{self.name}-{sha256_of(self.name, item)[:16]}"

    def _train_item(self, index: int) -> Item:
        if self.space() is not None:
            members = self._members("train").items
            return members[index % len(members)]
        rng = self._rng("train", index)
        while True:
            item = self.draw(rng, "train")
            if item is not None and self.split_of(item) == "train":
                return item

    def _held_out_item(self, index: int, split: Split) -> Item:
        if self.space() is not None:
            drawn = self._members(split)
        else:
            drawn = self._drawn.setdefault(split, _Drawn())
            while len(drawn.items) <= index and self._draw_one_more(drawn, split):
                pass
        if index >= len(drawn.items):
            raise InputError(
                f"task family {self.name}",
                where=f"{split} split",
                expected=f"at most {len(drawn.items)} problems asked for, since it has no more distinct ones",
                found=str(index + 1),
            )
        return drawn.items[index]

    def _members(self, split: Split) -> _Drawn:
        """All items of a small space that lie in `split`, shuffled by the seed."""
        if split not in self._drawn:
            items = [item for item in self.space() or () if self.split_of(item) == split]
            self._rng(split, 0).shuffle(items)
            self._drawn[split] = _Drawn(items)
        return self._drawn[split]

    def _draw_one_more(self, drawn: _Drawn, split: Split) -> bool:
        """Append the next distinct item; the sequence does not depend on how far it is asked for at a time."""
        rng = self._rng(split, len(drawn.items))
        for _ in range(EXHAUSTED_AFTER):
            item = self.draw(rng, split)
            if item is None or self.split_of(item) != split:
                continue
            key = self.problem_id(item)
            if key not in drawn.seen:
                drawn.seen.add(key)
                drawn.items.append(item)
                return True
        return False

    def _rng(self, split: Split, index: int) -> Random:
        digest = hashlib.sha256(f"{self.name}|{self.seed}|{split}|{index}".encode()).digest()
        return Random(int.from_bytes(digest[:8], "big"))


def ask(text: str) -> list[Message]:
    """A problem's messages: one question of the user's."""
    return [Message(role="user", content=text)]
