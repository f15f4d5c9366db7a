"""How well running text is predicted."""

from __future__ import annotations

from pydantic import Field

from core_model.errors import InputError
from eval.haystack import read_filler
from eval.tasks.choice import TextTask
from recipes.rows import Problem
from recipes.schema import InputPath


class Text(TextTask):
    """Bits per byte of running text: a text file, JSONL with `text`, or a folder of them."""

    path: InputPath = Field(description="a text file, JSONL with `text`, or a folder")
    megabytes: float = Field(default=1.0, gt=0, description="how much of it, from its beginning, MB")

    def problems(self) -> list[Problem]:
        texts = [text for text in read_filler(self.path, self.megabytes) if text.strip()]
        if not texts:
            raise InputError(self.path, expected="text", found="none")
        return [
            Problem(
                id=str(number), source="text", domain="knowledge", messages=[], verifier="none",
                verification_info={"text": text},
            )
            for number, text in enumerate(texts)
        ]  # fmt: skip
