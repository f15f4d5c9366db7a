"""An engine that answers as a test says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from core_model.generation import Completion, SamplingParams
from core_model.tokenizer import END_THINK, EOS, THINK, encode_text, special_id
from recipes.rows import Problem

Parts = tuple[str | None, str] | None  # thoughts, answer; or a thought that never ends


class ScriptedEngine:
    """Answers with what `script(problem, sample)` gives: (thoughts or None, answer), or None for endless thoughts."""

    def __init__(
        self, tokenizer: Any, problems: Mapping[tuple[int, ...], Problem], script: Callable[[Problem, int], Parts]
    ) -> None:
        self.tokenizer, self.problems, self.script = tokenizer, problems, script

    def generate(self, prompts: Sequence[list[int]], params: list[SamplingParams]) -> list[list[Completion]]:
        return [
            [self.completion(self.script(self.problems[tuple(prompt)], index), each) for index in range(each.n)]
            for prompt, each in zip(prompts, params, strict=True)
        ]

    def completion(self, parts: Parts, params: SamplingParams) -> Completion:
        ids = completion_ids(self.tokenizer, parts)
        return Completion(ids[: params.max_new_tokens], None, "stop" if len(ids) <= params.max_new_tokens else "length")


def completion_ids(tokenizer: Any, parts: Parts) -> list[int]:
    """<think> thoughts </think> answer eos; for None a thought that never ends."""
    if parts is None:
        return [special_id(tokenizer, THINK)] + encode_text(tokenizer, "a ") * 4000
    thoughts, answer = parts
    opening = [] if thoughts is None else [special_id(tokenizer, THINK), *encode_text(tokenizer, thoughts)]
    closing = [] if thoughts is None else [special_id(tokenizer, END_THINK)]
    return [*opening, *closing, *encode_text(tokenizer, answer), special_id(tokenizer, EOS)]
