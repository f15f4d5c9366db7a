"""A small model behind a server, one for each test file that asks for it, and folders that were converted once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from folders import SHARD, WIDE
from reference import YARN_TINY, random_model, tiny_config
from serving import Server, small_model, small_tokenizer

from core_model import V3ForCausalLM
from core_model.checkpoint import Storage, convert_folder
from core_model.native import training


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


@pytest.fixture(scope="module")
def model() -> V3ForCausalLM:
    return small_model()


@pytest.fixture(scope="module")
def server(model, tokenizer) -> Iterator[Server]:
    server = Server(model, tokenizer, max_batch=16, speculative=2)
    yield server
    server.close()


@pytest.fixture(scope="session")
def wide(tmp_path_factory) -> Path:
    """An fp32 folder with MTP, groups, negative biases and blocks that do not fill up."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    random_model(tiny_config(**WIDE, rope_scaling=YARN_TINY)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "modeling_deepseek.py").write_text("raise SystemExit('code does not travel')")
    (folder / "manifest.json").unlink()
    return folder


@pytest.fixture(scope="session")
def converted(wide):
    """Folders made from `wide` one after the other, each once: converted(BF16, FP8) is its BF16 folder in FP8."""
    made: dict[tuple[Storage, ...], Path] = {(): wide}

    def make(*steps: Storage) -> Path:
        if steps not in made:
            source, out = make(*steps[:-1]), wide.parent / f"converted_{len(made)}"
            convert_folder(source, out, steps[-1], shard_bytes=SHARD)
            made[steps] = out
        return made[steps]

    return make


@pytest.fixture
def wherever_it_compiles(monkeypatch) -> None:
    """Also where operations are faster: without bf16 products, bf16 gives the same sums more slowly."""
    monkeypatch.setattr(training, "reason_against", lambda dtype: None if dtype in training.KINDS else "no such kind")
