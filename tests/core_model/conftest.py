"""A small model behind a server, one for each test file that asks for it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving import Server, small_model, small_tokenizer

from core_model import V3ForCausalLM


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
