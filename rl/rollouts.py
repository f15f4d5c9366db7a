"""Rollouts from our own engine, in the shape TRL asks for."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any

from core_model.generation import Engine, SamplingParams
from core_model.tokenizer import EOS, render_prompt, special_id
from recipes.rows import sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def rollout_seed(seed: int, step: int, prompt: int) -> int:
    """The seed of one prompt's samples; with the sample's own number it determines every random number drawn."""
    return int(sha256_of("rollout", seed, step, prompt)[:15], 16)


class Rollouts:
    """TRL's `rollout_func`: G samples a prompt, each prompt read once.

    A sample depends on the weights and on (seed, optimiser step, place of its prompt in the batch, its number in the
    group), on nothing that a killed process could have known: a resumed run draws the same ones.

    Args:
        engine: generates with the policy itself (same weights, same routing biases) or with a copy that
            `refresh_weights` renews.
        tokenizer: renders prompts; its eos ends a sample.
        seed: of the run.
    """

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.engine, self.tokenizer, self.seed = engine, tokenizer, seed
        self.stop_ids = (special_id(tokenizer, EOS),)
        self.seconds = 0.0  # that the last call took
        self._fresh_at: int | None = None  # the optimiser step whose weights the engine has

    def __call__(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        """Complete this process's prompts, in which each stands num_generations times in a row.

        Returns:
            prompt_ids, completion_ids, logprobs (of the sampling distribution), finish_reason, a list each.

        Raises:
            ValueError: a group of samples lies on two processes.
        """
        started = time.monotonic()
        if trainer.state.global_step != self._fresh_at:
            self.engine.refresh_weights()
            self._fresh_at = trainer.state.global_step
        group, process = trainer.num_generations, trainer.accelerator.process_index
        if len(prompts) % group:
            raise ValueError(f"{len(prompts)} samples on a process are not whole groups of {group}")
        asked = [render_prompt(self.tokenizer, prompt) for prompt in prompts[::group]]
        first = process * len(asked)
        completions = self.engine.generate(asked, [self._params(trainer, first + place) for place in range(len(asked))])
        flat = list(itertools.chain.from_iterable(completions))
        self.seconds = time.monotonic() - started
        return {
            "prompt_ids": [ids for ids in asked for _ in range(group)],
            "completion_ids": [completion.token_ids for completion in flat],
            "logprobs": [completion.logprobs for completion in flat],
            "finish_reason": [completion.finish_reason for completion in flat],
        }

    def _params(self, trainer: Any, place: int) -> SamplingParams:
        return SamplingParams(
            max_new_tokens=trainer.max_completion_length,
            temperature=trainer.temperature,
            top_p=trainer.top_p,
            top_k=trainer.top_k,
            n=trainer.num_generations,
            seed=rollout_seed(self.seed, trainer.state.global_step, place),
            stop_ids=self.stop_ids,
            logprobs=True,
        )
