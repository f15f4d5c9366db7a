"""Losses on held-out text, as the stages that train on text report them: the eval stage collects, it does not measure.

A stage's report.json has the sections `before` and `after` its training; each holds the loss on short text and, in an
extension stage, the loss by position in long documents.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core_model.errors import InputError


class _Section(BaseModel):
    """A part of another stage's report: what is not read here is that stage's own affair."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class ShortText(_Section):
    """Loss on text as long as the base model's context."""

    bits_per_byte: float = Field(ge=0)


class LongText(_Section):
    """Mean loss, nats a token, in stretches of long documents: loss[i] over positions edges[i] to edges[i + 1]."""

    edges: tuple[int, ...]
    loss: tuple[float, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits(self) -> LongText:
        if len(self.edges) != len(self.loss) + 1 or list(self.edges) != sorted(set(self.edges)):
            raise ValueError("edges rise and are one more than losses")
        return self


class TextLoss(_Section):
    """What was measured at one moment."""

    short: ShortText
    long: LongText | None = None


class TextReport(_Section):
    """A stage's losses on text before and after its training."""

    before: TextLoss
    after: TextLoss


def read_text_report(path: Path) -> TextReport:
    """The losses in a stage's report.json.

    Raises:
        InputError: no such file, no losses on text in it, or losses of another form.
    """
    if not path.is_file():
        raise InputError(path, expected="a stage's report.json", found="no such file")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(path, expected="JSON", found=str(error)) from error
    try:
        return TextReport.model_validate(report)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or None
        raise InputError(path, where=where, expected="losses on text before and after", found=first["msg"]) from error
