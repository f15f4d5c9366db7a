"""A policy small enough to train in seconds: one MoE layer, a vocabulary of little more than bytes."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from core_model import V3Config, V3ForCausalLM
from core_model.tokenizer import END_THINK, EOS, THINK, encode_text, special_id, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Think step by step, check your work, then answer.",
    "Compute 31 - 20 + 45. So it is 56. Write 12 in binary: 1100. The greatest common divisor is 6.",
]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS * 9, 300)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> V3ForCausalLM:
    """A V3 with every part: a dense layer, a routed one, MTP, groups."""
    config = V3Config.preset(
        "nano",
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        max_position_embeddings=160,
    )
    model = V3ForCausalLM(config).initialize(0.1, 0)
    # Routing biases that matter: a rollout that lost them would choose other experts.
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.copy_(torch.linspace(-0.05, 0.05, len(buffer)))
    return model


@pytest.fixture
def model_folder(model: V3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """The tiny model as an earlier stage would have left it."""
    folder = tmp_path / "start"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def spell(tokenizer: PreTrainedTokenizerFast) -> Callable[..., list[int]]:
    """Token ids of a completion; "<think>" and "</think>" in the text are the special tokens."""

    def ids_of(text: str, *, stop: bool = True) -> list[int]:
        ids: list[int] = []
        for piece in re.split(f"({THINK}|{END_THINK})", text):
            if piece:
                ids += [special_id(tokenizer, piece)] if piece in (THINK, END_THINK) else encode_text(tokenizer, piece)
        return [*ids, special_id(tokenizer, EOS)] if stop else ids

    return ids_of


class RecordingRun:
    """What the trainer needs of a run: a place for metrics and checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, []

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.lines.append({"step": step} | metrics)


@pytest.fixture
def make_trainer(model: V3ForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Callable[..., Any]:
    """A trainer of the tiny model on sums: `make_trainer(rewards or judge, pay, **keys of GRPOConfig)`."""
    from core_model.generation import Engine
    from rl.length import NoLength
    from rl.problems import ProblemSequence
    from rl.rewards import RewardRecipe, SampleRewards
    from rl.rollouts import Rollouts
    from rl.trainer import Policy, V3GRPOTrainer
    from rl.trainer_config import build_config, prompts_needed

    def make(
        rewards: SampleRewards | None = None,
        judge: Any = None,
        pay: RewardRecipe | None = None,
        engine_dtype: torch.dtype | None = None,
        policy: dict[str, Any] | None = None,
        **trainer: Any,
    ) -> V3GRPOTrainer:
        if rewards is None:
            rewards = SampleRewards(tokenizer, pay or RewardRecipe(), **({} if judge is None else {"judge": judge}))
        rollouts = Rollouts(Engine(model, tokenizer, dtype=engine_dtype), tokenizer, seed=0)
        terms = {"length": NoLength()} | (policy or {})
        keys = {"per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 12, "max_steps": 1}
        config = build_config(keys | trainer, seed=0, folder=tmp_path)
        return V3GRPOTrainer(
            Policy(model, rollouts, rewards, **terms),
            config,
            RecordingRun(tmp_path),
            ProblemSequence({"chain_sum": 1.0, "gcd": 1.0}, 0, 0),
            prompts=prompts_needed(config),
        )

    return make
