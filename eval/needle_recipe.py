"""The needle grid's keys, and the axes of the V3 report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from eval.tasks.vocabulary import PLACES
from recipes.schema import InputPath, StrictModel

V3_POINTS = 15
V3_LONGEST = 131_072
V3_SHORTEST_SHARE = 64  # 128K / 2K


def v3_axes(longest: int = V3_LONGEST) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """The 15 lengths (tokens) and 15 depths (0 to 1) of the V3 report's figure 8, scaled to a longest context.

    Lengths run evenly from longest / 64 to `longest`: 2K, 11K, ..., 128K as published. Depths are whole percents:
    0, 7, 14, 21, 29, ..., 100.
    """
    steps = V3_POINTS - 1
    shortest = longest / V3_SHORTEST_SHARE
    lengths = tuple(round(shortest + (longest - shortest) * step / steps) for step in range(V3_POINTS))
    return lengths, tuple(round(100 * step / steps) / 100 for step in range(V3_POINTS))


class NeedleTokens(StrictModel):
    """Tokens kept free for the answer, as part of a context's length."""

    base: int | None = Field(default=None, ge=1, description="in base mode; null: four more than the number has digits")
    chat: int = Field(default=32, ge=1, description="in chat mode")
    reasoning: int = Field(default=256, ge=1, description="in reasoning mode, thoughts included")


class NeedleRecipe(StrictModel):
    """The grid of lengths and depths (V3 report, figure 8)."""

    axes: Literal["v3"] | None = Field(
        default=None, description="v3: the 15 lengths and 15 depths of V3's figure 8; null: `lengths` and `depths`"
    )
    max_length: int = Field(
        default=V3_LONGEST, ge=1024, description="longest context of axes v3, tokens; the others scale with it"
    )
    lengths: tuple[int, ...] = Field(
        default=(256, 1024, 2048, 4096, 8192), min_length=1, description="contexts, tokens: prompt and answer"
    )
    depths: tuple[float, ...] = Field(
        default=(0.0, 0.25, 0.5, 0.75, 1.0), min_length=1, description="where the needle lies, 0 (start) to 1 (end)"
    )
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="documents per cell, one for each")
    distractors: int = Field(
        default=0, ge=0, lt=len(PLACES), description="needles about other places in the same document"
    )
    digits: Literal[4, 7] = Field(default=4, description="of the needle's number")
    boundary: Literal["line", "sentence"] = Field(
        default="line",
        description="where a needle can go: between lines, as pre-training shows it, or between sentences of the text",
    )
    control: bool = Field(
        default=False, description="ask for a needle that is not there too, once per length and seed: the guess rate"
    )
    filler: InputPath | None = Field(
        default=None,
        description="text that hides the needle: a text file, JSONL with `text`, or a folder of them; null: generated",
    )
    filler_seed: int = Field(default=0, ge=0, description="of the generated text")
    filler_mb: float = Field(default=1.0, gt=0, description="how much of it is used, from its beginning, MB")
    batch_tokens: int = Field(default=16_384, ge=1, description="prompt tokens read at once")
    new_tokens: NeedleTokens = Field(default=NeedleTokens(), description="room for the answer by mode, tokens")
    tokenizer: InputPath | None = Field(
        default=None, description="folder of the tokenizer that an endpoint's documents are measured in; it needs one"
    )

    @model_validator(mode="after")
    def _spell_out_axes(self) -> NeedleRecipe:
        if self.axes == "v3":
            for name, values in zip(("lengths", "depths"), v3_axes(self.max_length), strict=True):
                # A resolved recipe holds both, and they agree.
                if name in self.model_fields_set and getattr(self, name) != values:
                    raise ValueError(f"{name}: axes v3 sets them; leave {name} out, or axes")
                object.__setattr__(self, name, values)  # frozen for everybody else
        return self

    @model_validator(mode="after")
    def _is_a_grid(self) -> NeedleRecipe:
        if not all(0 <= depth <= 1 for depth in self.depths):
            raise ValueError(f"a depth is between 0 and 1, not {list(self.depths)}")
        for name in ("lengths", "depths", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name}: each value once, not {list(values)}")
        return self

    @property
    def documents_per_length(self) -> int:
        """The cells' and the control's."""
        return (len(self.depths) + self.control) * len(self.seeds)

    @property
    def documents(self) -> int:
        """Of the whole grid: so many rows a model has when it is through."""
        return len(self.lengths) * self.documents_per_length

    def answer_room(self, mode: Literal["base", "chat", "reasoning"]) -> int:
        """Tokens kept free for the answer; in base mode a space, the digits, and what ends a sentence."""
        if mode == "base":
            return self.digits + 4 if self.new_tokens.base is None else self.new_tokens.base
        return self.new_tokens.chat if mode == "chat" else self.new_tokens.reasoning
