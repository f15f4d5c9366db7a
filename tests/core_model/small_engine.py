"""A small model, prompts for it, and what plain forwards make of them: the engine's tests compare with these."""

from __future__ import annotations

import random

import torch

from core_model import V3Config, V3ForCausalLM
from core_model.generation import Engine, SamplingParams

WORDS = 13


class Letters:
    """A tokenizer of single letters."""

    backend_tokenizer = property(lambda self: self)

    def decode(self, ids: list[int], **_: object) -> str:
        return "".join(chr(ord("a") + i) for i in ids)


def small_model() -> V3ForCausalLM:
    # So few words that drafts of a random model are right now and then.
    config = V3Config.preset("nano", vocab_size=WORDS, hidden_size=32, num_hidden_layers=3, intermediate_size=48)
    return V3ForCausalLM(config).initialize(0.3, seed=0).eval()


def drawn_prompts(count: int, longest: int = 12, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(WORDS) for _ in range(draw.randint(1, longest))] for _ in range(count)]


@torch.no_grad()
def plain_greedy(model: V3ForCausalLM, prompt: list[int], count: int) -> list[int]:
    """By forwards over the whole sequence, no cache."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@torch.no_grad()
def plain_logprobs(model: V3ForCausalLM, prompt: list[int], tokens: list[int], temperature: float) -> torch.Tensor:
    logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(tokens)[:, None]).squeeze(1)


def tokens_of(engine: Engine, prompts: list[list[int]], params: SamplingParams) -> list[list[list[int]]]:
    return [[one.token_ids for one in samples] for samples in engine.generate(prompts, params)]
