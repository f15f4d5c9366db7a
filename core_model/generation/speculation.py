"""Whether drafting pays: what passes with drafts bring, and what they cost.

The draft tokens come from the MTP module, and each position's random number decides both its draft and its token, so
that a sample is the same with drafts and without (V3 report §2.2: MTP serves speculative decoding). What is left to
decide is speed: a pass over 1 + k tokens and k drafts against one over a single token.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

MEASURES = 3  # passes that are timed before a number is believed
FORGET = 0.1  # weight of the newest pass in the averages
AGAIN = 64  # rows that go without drafts before one size of batch is tried anew


@dataclass
class SpeculationReport:
    """What the drafts of an engine have come to.

    proposed, accepted: by depth, first draft first. passes: over rows that had drafts. tokens: settled in them.
    """

    proposed: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    passes: int = 0
    tokens: int = 0

    @property
    def acceptance(self) -> list[float]:
        """Share of the drafts of each depth that became tokens, those after a rejected one counted as rejected."""
        return [a / p if p else 0.0 for a, p in zip(self.accepted, self.proposed, strict=True)]

    @property
    def tokens_per_pass(self) -> float:
        return self.tokens / self.passes if self.passes else 1.0

    def add(self, proposed_B: np.ndarray, accepted_B: np.ndarray, taken_B: np.ndarray) -> None:
        """Note one pass: drafts, accepted ones and tokens of each row."""
        for depth in range(int(proposed_B.max(initial=0))):
            if depth == len(self.proposed):
                self.proposed.append(0)
                self.accepted.append(0)
            self.proposed[depth] += int((proposed_B > depth).sum())
            self.accepted[depth] += int((accepted_B > depth).sum())
        self.passes += int((proposed_B > 0).sum())
        self.tokens += int(taken_B[proposed_B > 0].sum())


@dataclass
class _Balance:
    """Averages for one size of batch and one number of drafts."""

    plain: float = 0.0  # seconds of a pass without drafts
    drafted: float = 0.0  # seconds of a pass with drafts, theirs included
    tokens: float = 0.0  # per row and drafted pass
    plain_passes: int = 0
    drafted_passes: int = 0
    declined: int = 0


class SpeculationSwitch:
    """Turns drafting off where the tokens it wins do not pay for its time; sizes of batches are powers of two."""

    def __init__(self) -> None:
        self._balances: dict[tuple[int, int], _Balance] = defaultdict(_Balance)

    def needs_plain(self, rows: int, drafts: int) -> bool:
        """Whether the cost of a pass without drafts is still to be measured."""
        return self._of(rows, drafts).plain_passes < MEASURES

    def plain(self, rows: int, drafts: int, seconds: float) -> None:
        balance = self._of(rows, drafts)
        balance.plain_passes += 1
        # The quickest: what else the machine does only ever adds.
        balance.plain = seconds if balance.plain_passes == 1 else min(balance.plain, seconds)

    def drafted(self, rows: int, drafts: int, seconds: float, tokens: float) -> None:
        balance = self._of(rows, drafts)
        weight = max(FORGET, 1 / (balance.drafted_passes + 1))
        balance.drafted_passes += 1
        balance.drafted += weight * (seconds - balance.drafted)
        balance.tokens += weight * (tokens - balance.tokens)

    def pays(self, rows: int, drafts: int) -> bool:
        """Whether rows in such a batch should be drafted for; unknown ones should, to find out."""
        balance = self._of(rows, drafts)
        if min(balance.plain_passes, balance.drafted_passes) < MEASURES:
            return True
        return balance.tokens * balance.plain > balance.drafted

    def declined(self, rows: int, drafts: int) -> None:
        """A row went without; after some, the question is asked again."""
        balance = self._of(rows, drafts)
        balance.declined += 1
        if balance.declined >= AGAIN:
            self._balances[self._key(rows, drafts)] = _Balance(plain=balance.plain, plain_passes=balance.plain_passes)

    def _of(self, rows: int, drafts: int) -> _Balance:
        return self._balances[self._key(rows, drafts)]

    def _key(self, rows: int, drafts: int) -> tuple[int, int]:
        return rows.bit_length(), drafts
