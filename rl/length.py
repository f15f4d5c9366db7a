"""Length control: what a group's lengths add to its rewards.

The second of two tiers. The first (`rl.rewards`) pays each sample for itself; these see all samples of a prompt at
once, [prompts, G], after the ranks' samples are gathered, and count tokens, never characters. All are bounded, do not
depend on the order of the samples in a group, and give 0 to samples whose verdict does not count.

Shape suffixes: P prompts, G samples of a prompt.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from recipes.schema import StrictModel


class LengthReward(StrictModel):
    """One way of paying for length. `bounds` are those of `bonus`, before the weight."""

    bounds: ClassVar[tuple[float, float]]

    weight: float = Field(default=1.0, ge=0, description="what the length reward is multiplied by, in units of reward")
    start_step: int = Field(
        default=0, ge=0, description="first optimiser step that pays for length; Kimi k1.5 begins without"
    )

    @abstractmethod
    def bonus(self, lengths_PG: Tensor, correct_PG: Tensor, counts_PG: Tensor) -> Tensor:
        """The reward before its weight, fp32 [P, G]; arbitrary where a sample does not count.

        Args:
            lengths_PG: fp32, tokens of each completion, stop token included.
            correct_PG: bool, the answer is right.
            counts_PG: bool, the verdict counts; the others must not move anybody's reward.
        """

    def shape(self, lengths_PG: Tensor, correct_PG: Tensor, counts_PG: Tensor, step: int = 0) -> Tensor:
        """What to add to the sample rewards at an optimiser step, fp32 [P, G], 0 where a sample does not count."""
        if step < self.start_step or self.weight == 0:
            return torch.zeros_like(lengths_PG)
        return torch.where(counts_PG, self.weight * self.bonus(lengths_PG, correct_PG, counts_PG), 0.0)


class NoLength(LengthReward):
    """Length is free."""

    kind: Literal["none"] = Field(default="none", description="the way of paying for length")
    bounds = (0.0, 0.0)

    def bonus(self, lengths_PG: Tensor, correct_PG: Tensor, counts_PG: Tensor) -> Tensor:
        return torch.zeros_like(lengths_PG)


class Kimi(LengthReward):
    """Shorter than the group's longest earns, wrong answers only lose (Kimi k1.5, section 2.3.3).

    lambda = 1/2 - (length - min) / (max - min) over the group; lambda if correct, else min(0, lambda); 0 where all
    lengths are equal.
    """

    kind: Literal["kimi"] = Field(description="the way of paying for length")
    bounds = (-0.5, 0.5)

    def bonus(self, lengths_PG: Tensor, correct_PG: Tensor, counts_PG: Tensor) -> Tensor:
        shortest = lengths_PG.masked_fill(~counts_PG, math.inf).amin(dim=1, keepdim=True)
        longest = lengths_PG.masked_fill(~counts_PG, -math.inf).amax(dim=1, keepdim=True)
        span = longest - shortest  # -inf in a group without a sample that counts
        share = torch.where(span > 0, 0.5 - (lengths_PG - shortest) / span.clamp_min(1.0), 0.0)
        return torch.where(correct_PG, share, share.clamp_max(0.0))


class Cosine(LengthReward):
    """A half cosine over the length, from one value at 0 tokens to another at `limit` and beyond.

    Right answers earn less the longer they are, wrong ones lose less (they should think more). The published
    values, +1 to +0.5 and -1 to -0.5, contain the accuracy reward; the defaults are meant beside one.
    """

    kind: Literal["cosine"] = Field(description="the way of paying for length")
    limit: int = Field(ge=1, description="tokens at which the curve ends")
    correct: tuple[float, float] = Field(default=(0.5, 0.0), description="right answers: reward at 0 tokens, at limit")
    wrong: tuple[float, float] = Field(default=(-0.5, 0.0), description="wrong answers: reward at 0 tokens, at limit")
    bounds = (-1.0, 1.0)

    @model_validator(mode="after")
    def _are_ordered(self) -> Cosine:
        if not 1 >= self.correct[0] >= self.correct[1] >= self.wrong[1] >= self.wrong[0] >= -1:
            raise ValueError("1 >= correct[0] >= correct[1] >= wrong[1] >= wrong[0] >= -1 must hold")
        return self

    def bonus(self, lengths_PG: Tensor, correct_PG: Tensor, counts_PG: Tensor) -> Tensor:
        # Clamped: beyond the limit an unclamped cosine would climb back, and pay twice the limit as much as nothing.
        fall = 0.5 * (1 + torch.cos(math.pi * (lengths_PG / self.limit).clamp_max(1.0)))
        right, wrong = (end + (start - end) * fall for start, end in (self.correct, self.wrong))
        return torch.where(correct_PG, right, wrong)


class SoftOverlong(LengthReward):
    """0 up to limit - margin, then linearly down to -1 at the limit (DAPO, Eq. 13); the answer does not matter."""

    kind: Literal["overlong"] = Field(description="the way of paying for length")
    limit: int = Field(ge=1, description="tokens at which the penalty is whole (DAPO: the longest completion)")
    margin: int = Field(ge=1, description="tokens before the limit over which the penalty grows")
    bounds = (-1.0, 0.0)

    @model_validator(mode="after")
    def _fits(self) -> SoftOverlong:
        if self.margin > self.limit:
            raise ValueError(f"margin {self.margin} exceeds limit {self.limit}")
        return self

    def bonus(self, lengths_PG: Tensor, correct_PG: Tensor, counts_PG: Tensor) -> Tensor:
        return ((self.limit - self.margin - lengths_PG) / self.margin).clamp(-1.0, 0.0)


class LinearTarget(LengthReward):
    """-slope * |length - target|, at worst -1 (L1's LCPO-Exact, which has 0.0003 a token), for any answer.

    `upper_only` asks for at most `target` tokens instead of exactly as many.
    """

    kind: Literal["target"] = Field(description="the way of paying for length")
    target: int = Field(ge=1, description="tokens asked for")
    slope: float = Field(default=0.0003, gt=0, description="reward lost per token off the target")
    upper_only: bool = Field(default=False, description="whether shorter than the target is as good as on it")
    bounds = (-1.0, 0.0)

    def bonus(self, lengths_PG: Tensor, correct_PG: Tensor, counts_PG: Tensor) -> Tensor:
        excess = lengths_PG - self.target
        off = excess.clamp_min(0.0) if self.upper_only else excess.abs()
        return (-self.slope * off).clamp_min(-1.0)


AnyLengthReward = Annotated[NoLength | Kimi | Cosine | SoftOverlong | LinearTarget, Field(discriminator="kind")]
