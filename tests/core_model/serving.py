"""A small model behind a server of its own, for the tests of the server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import httpx
import openai
import uvicorn

from core_model import V3Config, V3ForCausalLM
from core_model.generation import Engine, SamplingParams
from core_model.generation import server as server_module
from core_model.generation.server import create_app
from core_model.generation.service import ServerSettings, Service
from core_model.generation.text import TextStream
from core_model.tokenizer import EOS, special_id, train_tokenizer

QUESTION = [{"role": "user", "content": "Compute 12+34."}]


def small_tokenizer():
    return train_tokenizer(["Compute 12+34. Think step by step, Wait, the answer is 46, é 水 🐙 naïve.\n"] * 50, 300)


def small_model() -> V3ForCausalLM:
    config = V3Config.preset("nano", vocab_size=300, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
    return V3ForCausalLM(config).initialize(0.2, seed=0).eval()


class Server:
    """A server in a thread, at a port of its own."""

    def __init__(self, model, tokenizer, **keys) -> None:
        engine_keys = {key: keys.pop(key) for key in ("max_batch", "max_tokens") if key in keys}
        self.engine = Engine(model, tokenizer, **engine_keys)
        app = create_app(self.engine, tokenizer, ServerSettings(name="nano", **keys))
        self.service: Service = app.state.service
        self.server = server_module.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=2))
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        wait_until(lambda: self.server.started)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key=keys.get("api_key", "none"), max_retries=0)

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=30)
        assert not self.thread.is_alive()


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def alone(model, tokenizer, prompt: list[int], **keys) -> list[list[int]]:
    params = SamplingParams(stop_ids=(special_id(tokenizer, EOS),), **keys)
    return [one.token_ids for one in Engine(model, tokenizer).generate([prompt], params)[0]]


def text_of(tokenizer, ids: list[int], stop: Sequence[str] = ()) -> str:
    stream = TextStream(tokenizer, stop)
    return stream.push([token for token in ids if token != special_id(tokenizer, EOS)]) + stream.finish()
