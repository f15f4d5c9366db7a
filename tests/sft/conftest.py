"""A model of 30,000 parameters with its tokenizer, rows to tune it on, and a recipe."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from sft_rows import make_row

from recipes.rows import SFTRow, write_rows

RECIPE = """\
stage: sft
name: test
threads: 1
init_from: {start}
data: {data}
sequence_length: 128
validation_share: 0.2
bias_speed: 0.001
compute_dtype: float32
trainer:
  max_steps: 9
  per_device_train_batch_size: 2
  gradient_accumulation_steps: 2
  learning_rate: 1.0e-2
  lr_scheduler_type: cosine_with_min_lr
  lr_scheduler_kwargs: {{min_lr_rate: 0.2}}
  warmup_steps: 2
  eval_steps: 4
  save_steps: 3
"""


@pytest.fixture(scope="session")
def rows() -> list[SFTRow]:
    generator = random.Random(0)
    return [make_row(generator.randrange(1000), generator.randrange(1000)) for _ in range(60)]


@pytest.fixture(scope="session")
def start(tmp_path_factory, rows) -> Path:
    """The folder of a fresh model."""
    from core_model import V3Config, V3ForCausalLM
    from core_model.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("start")
    tokenizer = train_tokenizer((message.content for row in rows for message in row.messages), 300)
    config = V3Config.preset(
        "nano",
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        moe_intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
        max_position_embeddings=128,
    )
    tokenizer.save_pretrained(folder)
    V3ForCausalLM(config).initialize(0.1, seed=0).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(start):
    from core_model.tokenizer import load_tokenizer

    return load_tokenizer(start)


@dataclass
class Stage:
    """A recipe's file, and the stage's command run in this process."""

    recipe: Path
    root: Path

    def tune(self, run_dir: str, *overrides: str) -> int:
        """`python -m sft RECIPE run_dir=... overrides`: its exit status."""
        from recipes.stage_main import stage_main
        from sft.stage import run_stage

        return stage_main("sft", run_stage, arguments=[str(self.recipe), f"run_dir={self.root / run_dir}", *overrides])


@pytest.fixture
def stage(tmp_path, start, rows) -> Stage:
    data = tmp_path / "rows.jsonl"
    write_rows(data, rows)
    recipe = tmp_path / "sft.yaml"
    recipe.write_text(RECIPE.format(start=start, data=data))
    return Stage(recipe, tmp_path)


@pytest.fixture
def write(tmp_path) -> Callable[..., Path]:
    """Write rows (or raw text) into a file of the test's own."""

    def write_file(content: list[SFTRow] | str) -> Path:
        path = tmp_path / "given.jsonl"
        if isinstance(content, str):
            path.write_text(content)
        else:
            write_rows(path, content)
        return path

    return write_file
