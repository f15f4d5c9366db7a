"""Who answers in a chat: an engine in this process, our own server, and servers of all kinds of manners."""

from __future__ import annotations

import io
import itertools
import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import uvicorn

from core_model import V3Config, V3ForCausalLM
from core_model.errors import InputError
from core_model.generation import Engine, Request, SamplingParams
from core_model.generation import server as server_module
from core_model.generation.api import ChatRequest
from core_model.generation.backend import Backend, EngineBackend, ReplyChunk, ServerBackend, Usage
from core_model.generation.chat import Conversation, Reply, Settings, main
from core_model.generation.request import Sample
from core_model.generation.server import create_app
from core_model.generation.service import ServerSettings
from core_model.tokenizer import EOS, THINK, render_prompt, special_id, split_completion, train_tokenizer

KEY = "secret"


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Compute 12+34. Think step by step, Wait, the answer is 46, é 水 🐙 naïve.\n"] * 50, 300)


@pytest.fixture(scope="module")
def model(tokenizer) -> V3ForCausalLM:
    """Untrained; its likeliest token never ends a reply, and never begins a thought."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "max_position_embeddings": 4096}
    model = V3ForCausalLM(V3Config.preset("nano", vocab_size=300, **sizes)).initialize(0.2, seed=0).eval()
    model.lm_head.weight.data[[special_id(tokenizer, token) for token in (EOS, THINK)]] = 0.0
    return model


def wait_until(holds: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Watched(Engine):
    """An engine that keeps the requests it was given."""

    def __init__(self, *arguments, **keys) -> None:
        super().__init__(*arguments, **keys)
        self.requests: list[Request] = []

    def submit(self, prompt: list[int], params: SamplingParams, stream=False) -> Request:
        self.requests.append(super().submit(prompt, params, stream))
        return self.requests[-1]


@pytest.fixture(scope="module")
def served(model, tokenizer) -> Iterator[tuple[Watched, str]]:
    """Our server in a thread: its engine and its address."""
    engine = Watched(model, tokenizer, max_batch=4)
    app = create_app(engine, tokenizer, ServerSettings(name="nano", api_key=KEY))
    server = server_module.Server(uvicorn.Config(app, port=0, log_level="error", timeout_graceful_shutdown=2))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    yield engine, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    server.should_exit = True
    thread.join(timeout=30)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def local(model, tokenizer) -> Iterator[tuple[Watched, EngineBackend]]:
    engine = Watched(model, tokenizer, max_batch=1)
    with closing(EngineBackend(engine, "here")) as backend:
        yield engine, backend


@pytest.fixture(params=["engine", "server"])
def asked(request) -> Iterator[tuple[Watched, Backend]]:
    """Either backend, with the engine that works for it."""
    if request.param == "engine":
        yield request.getfixturevalue("local")
        return
    engine, url = request.getfixturevalue("served")
    with closing(ServerBackend(url, KEY)) as backend:
        yield engine, backend


def test_both_stream_what_the_engine_generates(asked, model, tokenizer):
    _, backend = asked
    settings = Settings(temperature=0.9, seed=5, limit=40)
    chunks: list[ReplyChunk] = []
    reply = Conversation(backend, settings).ask("Compute 12+34.", chunks.append)
    messages = [{"role": "system", "content": settings.system_prompt}, {"role": "user", "content": "Compute 12+34."}]
    prompt = render_prompt(tokenizer, messages)
    params = SamplingParams(max_new_tokens=40, temperature=0.9, seed=5, stop_ids=(special_id(tokenizer, EOS),))
    [alone] = Engine(model, tokenizer).generate([prompt], params)[0]
    assert special_id(tokenizer, THINK) not in alone.token_ids
    assert reply.answer == split_completion(tokenizer, alone.token_ids).answer_text
    assert reply.finish_reason == alone.finish_reason
    assert reply.usage == Usage(len(prompt), len(alone.token_ids), 0)
    assert len([chunk for chunk in chunks if chunk.content]) > 5


def test_budgets_reach_the_engine(asked):
    engine, backend = asked
    for settings in (Settings(most_thought=9, least_thought=4, limit=5), Settings(most_thought=0, limit=5)):
        Conversation(backend, settings).ask("Compute 12+34.")
    request = ChatRequest(messages=[{"role": "user", "content": "x"}], max_thinking_tokens=9, min_thinking_tokens=4)
    limited, none = (one.params.thinking for one in engine.requests[-2:])
    assert limited == request.thinking(engine.tokenizer)
    assert none is not None and none.max_tokens == 0


def test_a_thought_is_apart_from_the_answer(asked, monkeypatch, tokenizer):
    """A model that begins with a thought, which the budget ends."""
    _, backend = asked
    settle = Sample.settle
    begun: set[int] = set()

    def think_first(sample: Sample, chosen: int) -> int:
        token = settle(sample, chosen if id(sample) in begun else special_id(tokenizer, THINK))
        begun.add(id(sample))
        return token

    monkeypatch.setattr(Sample, "settle", think_first)
    chunks: list[ReplyChunk] = []
    reply = Conversation(backend, Settings(most_thought=6, limit=30)).ask("Compute 12+34.", chunks.append)
    assert reply.reasoning and reply.answer and reply.finish_reason == "length"
    assert reply.usage is not None and reply.usage.reasoning_tokens == reply.reasoning_tokens == 6
    kinds = [bool(chunk.reasoning) for chunk in chunks if chunk.reasoning or chunk.content]
    assert kinds == sorted(kinds, reverse=True) and kinds.count(True) > 1


def test_a_reply_that_is_left_is_aborted(asked):
    engine, backend = asked
    with closing(backend.reply(Conversation(backend, Settings(limit=3000))._request("Compute"))) as chunks:
        next(chunks)
        left = engine.requests[-1]
        assert not left.done
    wait_until(lambda: left.done)
    assert left.completions[0].finish_reason == "abort"
    assert Conversation(backend, Settings(limit=4)).ask("and now").usage.completion_tokens <= 4


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C as a program finds it, however the tests were started."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_aborts_the_reply_and_the_next_is_whole(asked, monkeypatch, interruptible):
    """It comes while the main thread waits for the next piece, as nearly always."""
    engine, backend = asked
    conversation = Conversation(backend, Settings(limit=3000))
    shown: list[ReplyChunk] = []
    steps, step, caught = itertools.count(), engine.batch.step, threading.Event()

    def interrupt() -> bool:
        if next(steps) == 6:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            assert caught.wait(30)
        return step()

    monkeypatch.setattr(engine.batch, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        conversation.ask("Compute", shown.append)
    caught.set()
    left = engine.requests[-1]
    wait_until(lambda: left.done)
    assert left.completions[0].finish_reason == "abort" and conversation.turns == [] and len(shown) < 10
    conversation.settings = Settings(limit=4)
    assert conversation.ask("Compute").usage.completion_tokens == 4 and len(conversation.turns) == 2


def test_a_question_too_long(asked):
    engine, backend = asked
    with pytest.raises(InputError, match=str(engine.max_tokens)):
        Conversation(backend, Settings(limit=8)).ask("7 " * engine.max_tokens)


def test_an_engine_that_fails_says_so_and_goes_on(local, monkeypatch, caplog):
    engine, backend = local
    step, faults = engine.batch.step, [RuntimeError("no memory")]

    def fail_once() -> bool:
        if faults:
            raise faults.pop()
        return step()

    monkeypatch.setattr(engine.batch, "step", fail_once)
    with pytest.raises(InputError, match="failure of the engine"):
        Conversation(backend).ask("Compute")
    assert "no memory" in caplog.text
    assert Conversation(backend, Settings(limit=4)).ask("Compute").usage.completion_tokens <= 4


def test_a_pipe_to_a_server(served, monkeypatch, capsys):
    _, url = served
    monkeypatch.setenv("TRIVIUM_API_KEY", KEY)
    printed = []
    for place in (url, url.removesuffix("/v1"), url + "/"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Compute 12+34.")))
        assert main([place, "--max-new-tokens", "9", "--json"]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[0] == printed[1] == printed[2] and printed[0]["usage"]["completion_tokens"] <= 9


def test_a_key_is_needed_where_the_server_wants_one(served):
    _, url = served
    for key in (None, "wrong"):
        with pytest.raises(InputError, match=r"a valid key \(--api-key or TRIVIUM_API_KEY\); found 401"):
            ServerBackend(url, key)
    with pytest.raises(InputError, match="printable ASCII"):
        ServerBackend(url, "clé\n")


def test_nobody_there():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, not listening: nobody else takes the port
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
        with pytest.raises(InputError, match=f"{url}: expected a running server; found .*refused"):
            ServerBackend(url)


@pytest.mark.parametrize("url", ["http://", "http://:99999/v1", "http:///v1", "http://[::1/v1"])
def test_what_is_no_address(url):
    with pytest.raises(InputError, match="expected an address such as"):
        ServerBackend(url)


class Manners(BaseHTTPRequestHandler):
    """Answers with the bytes that its server was given, and keeps what it was asked."""

    def do_GET(self) -> None:
        self._answer(b"")

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes) -> None:
        self.server.asked.append(json.loads(body) if body else None)
        self.send_response(self.server.status)
        if self.server.length is not None:
            self.send_header("Content-Length", str(self.server.length))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, *arguments: object) -> None:
        """Nothing is written."""


@pytest.fixture
def other() -> Iterator[ThreadingHTTPServer]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Manners) as server:
        server.status, server.length, server.asked = 200, None, []
        server.url = f"http://127.0.0.1:{server.server_port}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: ThreadingHTTPServer, answer: bytes) -> Reply:
    server.answer = answer
    with closing(ServerBackend(server.url, model="m")) as backend:
        return Conversation(backend).ask("q")


def test_a_stream_of_another_server(other):
    reply = ask(
        other,
        b': a comment\r\n\r\nevent: x\r\ndata: {"choices":[{"delta":{"role":"assistant","content":null}}]}\r\n\r\n'
        b'data:{"choices":[{"delta":{"reasoning":"h"}}],"usage":null}\n\n'
        b'data: {"choices":[{"delta":{"reasoning_content":"m","extra":[1]}}]}\n\n'
        + 'data: {"choices":[{"delta":{"content":"4\u2028\x85é"}}]}\n\n'.encode()
        + b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4}}\n\ndata: [DONE]\n\ndata: {never\n\n',
    )
    assert (reply.reasoning, reply.answer, reply.finish_reason) == ("hm", "4\u2028\x85é", "stop")
    assert reply.usage == Usage(3, 4, None) and reply.reasoning_tokens is None
    [body] = other.asked
    assert body["stream"] is True and body["model"] == "m" and "max_thinking_tokens" not in body


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (b"", "no end of it"),
        (b'data: {"choices":[{"delta":{"content":"4"}}]}\n\ndata: [DONE]\n\n', "no end of it"),
        (b"<html>\x1b[2J</html>", "no end of it"),
        (b"data: <html>\x1b[2J</html>\n\n", "events as OpenAI's servers send; found <html>\ufffd"),
        (b'data: {"choices":[{"delta":{"content":7}}]}\n\n', "events as OpenAI's"),
        (b'data: {"choices":{}}\n\n', "events as OpenAI's"),
        (b"data: " + b"[" * 100_000 + b"\n\n", "events as OpenAI's"),
        (b"data: \xff\xfe\n\n", "events as OpenAI's"),
        (b'data: {"error":{"message":"out of\\n \\u001b[2Jmemory"}}\n\n', "a reply; found out of \ufffd.2Jmemory"),
        (b'data: {"error":"gone"}\n\n', "a reply; found gone"),
    ],
)
def test_what_is_no_reply_is_one_message(other, answer, found):
    with pytest.raises(InputError, match=found) as caught:
        ask(other, answer)
    message = str(caught.value)
    assert message.startswith(other.url) and message.isprintable() and len(message) < 700


@pytest.mark.parametrize(
    ("status", "answer", "found"),
    [
        (400, b'{"error":{"message":"too many tokens","code":400}}', "a reply; found 400 Bad Request: too many tokens"),
        (422, b'{"detail":"no field"}', "422 Unprocessable .*: no field"),
        (422, b'{"detail":[{"msg":"no field"}]}', "422 .*no field"),
        (404, b"<html>nothing</html>", "mostly ends in /v1; found 404 Not Found: <html>nothing</html>"),
        (500, b"", "found 500 Internal Server Error$"),
        (302, b"\x1b[2J" + b"x" * 10**6, "found 302 Found: \ufffd"),
    ],
)
def test_an_error_of_the_server_is_one_message(other, status, answer, found):
    other.status = status
    with pytest.raises(InputError, match=found) as caught:
        ask(other, answer)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 700


def test_a_connection_that_breaks(other):
    other.length = 1000
    with pytest.raises(InputError, match="expected an answer to its end"):
        ask(other, b'data: {"choices":[{"delta":{"content":"4"},"finish_reason":"stop"}]}\n\n')


def test_an_event_without_end(other, monkeypatch):
    monkeypatch.setattr("core_model.generation.backend.LONGEST_LINE", 1000)
    with pytest.raises(InputError, match="events of at most 1000 bytes"):
        ask(other, b"data: " + b"x" * 200_000)


def test_the_first_model_is_taken(other):
    other.answer = b'{"object":"list","data":[{"id":"one","max_model_len":9},{"id":"two"}]}'
    with closing(ServerBackend(other.url)) as backend:
        assert backend.model == "one" and backend.name == f"one at {other.url}"


@pytest.mark.parametrize("answer", [b"", b"{}", b'{"data":[]}', b"<html>", b'{"data":[{"id":7}]}'])
def test_a_server_that_lists_no_models(other, answer):
    other.answer = answer
    with pytest.raises(InputError, match="/models: expected a server that lists its models"):
        ServerBackend(other.url)
