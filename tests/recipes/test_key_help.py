"""The keys that a stage's help lists: their defaults, their values, unions by kind."""

from __future__ import annotations

import importlib
from typing import Annotated, Literal

import pytest
from pydantic import Field

from recipes import stage_main
from recipes.key_help import WIDTH, key_lines
from recipes.schema import StrictModel


class Walk(StrictModel):
    kind: Literal["walk"] = Field(default="walk", description="how one moves")
    speed: float = Field(default=1.5, description="metres a second")


class Ride(StrictModel):
    kind: Literal["ride"] = Field(description="how one moves")
    speed: float = Field(default=1.5, description="metres a second")
    horse: str = Field(description="its name")


class Stop(StrictModel):
    place: str = Field(default="", description="where")
    meals: tuple[Literal["lunch", "tea"], ...] = Field(default=("lunch", "tea"), description="what is eaten")


class Journey(StrictModel):
    days: int = Field(description="how many")
    rain: bool | None = Field(default=None, description="whether it rains")
    start: Stop = Field(default=Stop(), description="the first")
    end: Stop = Field(default=Stop(place="home"), description="the last")
    stops: tuple[Stop, ...] = Field(default=(), description="between")
    known: dict[str, Stop] = Field(default_factory=dict, description="by name")
    coat: str = Field(default_factory=lambda: "wool", description="by the weather")
    move: Annotated[Walk | Ride, Field(discriminator="kind")] = Field(default=Walk(), description="the way")


LINES = """\
  days                needed        how many
  rain                null          whether it rains
  start                             the first
  start.place         ''            where
  start.meals         [lunch, tea]  what is eaten [lunch | tea]
  end                               the last (default: {place: home})
  end.place           ''            where
  end.meals           [lunch, tea]  what is eaten [lunch | tea]
  stops               []            between
  stops.<i>.place     ''            where
  stops.<i>.meals     [lunch, tea]  what is eaten [lunch | tea]
  known               {}            by name
  known.<name>.place  ''            where
  known.<name>.meals  [lunch, tea]  what is eaten [lunch | tea]
  coat                varies        by the weather
  move                              the way
  move.kind           walk          how one moves [walk | ride]
  move.speed          1.5           metres a second
  with move.kind=ride:
    move.horse        needed        its name
"""


def test_every_key_has_its_default_and_its_values() -> None:
    assert key_lines(Journey) == LINES.splitlines()


@pytest.mark.parametrize("stage", ["pretrain", "distill", "sft", "rl", "eval"])
def test_help_of_a_stage_is_readable(stage: str) -> None:
    schema = importlib.import_module(f"{stage}.recipe").Recipe
    text = stage_main._parser(stage, schema, None).format_help()
    assert max(map(len, text.splitlines())) <= WIDTH
    article = "a" if stage in ("pretrain", "distill") else "an"
    assert f"keys of {article} {stage} recipe" in text
    assert text.count("  length.weight ") == (stage == "rl")
