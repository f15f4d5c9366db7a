"""The server as its clients see it: OpenAI's own, plain HTTP, rude and many."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
import torch
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from core_model import V3Config, V3ForCausalLM
from core_model.generation import Engine, SamplingParams
from core_model.generation import server as server_module
from core_model.generation.batch import Batch
from core_model.generation.server import ServerSettings, create_app, main
from core_model.generation.text import ReplyStream, TextStream
from core_model.tokenizer import (
    END_THINK,
    EOS,
    THINK,
    decode_tokens,
    encode_text,
    render_prompt,
    special_id,
    train_tokenizer,
)

QUESTION = [{"role": "user", "content": "Compute 12+34."}]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["Compute 12+34. Think step by step, Wait, the answer is 46, é 水 🐙 naïve.\n"] * 50, 300)


@pytest.fixture(scope="module")
def model() -> V3ForCausalLM:
    config = V3Config.preset("nano", vocab_size=300, hidden_size=32, num_hidden_layers=2, intermediate_size=48)
    return V3ForCausalLM(config).initialize(0.2, seed=0).eval()


class Server:
    """A server in a thread, at a port of its own."""

    def __init__(self, model, tokenizer, **keys) -> None:
        engine_keys = {key: keys.pop(key) for key in ("max_batch", "max_tokens") if key in keys}
        self.engine = Engine(model, tokenizer, **engine_keys)
        app = create_app(self.engine, tokenizer, ServerSettings(name="nano", **keys))
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


@pytest.fixture(scope="module")
def server(model, tokenizer) -> Iterator[Server]:
    server = Server(model, tokenizer, max_batch=16, speculative=2)
    yield server
    server.close()


def alone(model, tokenizer, prompt: list[int], **keys) -> list[list[int]]:
    params = SamplingParams(stop_ids=(special_id(tokenizer, EOS),), **keys)
    return [one.token_ids for one in Engine(model, tokenizer).generate([prompt], params)[0]]


def text_of(tokenizer, ids: list[int]) -> str:
    stream = TextStream(tokenizer)
    return stream.push([token for token in ids if token != special_id(tokenizer, EOS)]) + stream.finish()


def test_openais_client_completes(server, model, tokenizer):
    prompt = encode_text(tokenizer, "Compute 12")
    done = server.openai.completions.create(model="nano", prompt="Compute 12", max_tokens=20, n=3, seed=7)
    expected = alone(model, tokenizer, prompt, max_new_tokens=20, n=3, seed=7)
    assert [c.text for c in done.choices] == [text_of(tokenizer, ids) for ids in expected]
    assert [c.index for c in done.choices] == [0, 1, 2]
    assert done.usage.completion_tokens == sum(map(len, expected))
    assert done.usage.prompt_tokens == len(prompt)
    many = server.openai.completions.create(model="nano", prompt=[prompt, prompt[:2]], max_tokens=5, temperature=0)
    for choice, ids in zip(many.choices, (prompt, prompt[:2]), strict=True):
        [best] = alone(model, tokenizer, ids, max_new_tokens=5, temperature=0.0)
        assert choice.text == text_of(tokenizer, best)


def test_openais_client_streams_the_same(server):
    settings = {"model": "nano", "prompt": "Think", "max_tokens": 40, "n": 2, "seed": 3}
    whole = server.openai.completions.create(**settings)
    texts, ends = {0: "", 1: ""}, {}
    usage = None
    for event in server.openai.completions.create(**settings, stream=True, stream_options={"include_usage": True}):
        usage = event.usage or usage
        for choice in event.choices:
            texts[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    assert [texts[0], texts[1]] == [choice.text for choice in whole.choices]
    assert [ends[0], ends[1]] == [choice.finish_reason for choice in whole.choices]
    assert usage == whole.usage


def test_openais_client_chats(server, model, tokenizer):
    settings = {"model": "nano", "messages": QUESTION, "max_tokens": 30, "seed": 5, "logprobs": True, "top_logprobs": 2}
    done = server.openai.chat.completions.create(**settings)
    [ids] = alone(model, tokenizer, render_prompt(tokenizer, QUESTION), max_new_tokens=30, seed=5)
    stream = ReplyStream(tokenizer)
    parts = [stream.push(ids), stream.finish()]
    assert done.choices[0].message.content == "".join(part.content for part in parts)
    content = done.choices[0].logprobs.content
    assert [entry.token for entry in content] == [decode_tokens(tokenizer, [token]) for token in ids]
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in content)
    events = list(server.openai.chat.completions.create(**settings, stream=True))
    assert events[0].choices[0].delta.role == "assistant"
    text = "".join(event.choices[0].delta.content or "" for event in events)
    assert text == done.choices[0].message.content
    assert events[-1].choices[0].finish_reason == done.choices[0].finish_reason


def test_a_thought_is_apart_and_can_be_limited(server, tokenizer):
    def ask(**extra):
        return server.openai.chat.completions.create(
            model="nano", messages=QUESTION, max_tokens=40, seed=1, extra_body=extra
        )

    none = ask(max_thinking_tokens=0)
    assert getattr(none.choices[0].message, "reasoning_content", None) is None
    assert none.usage.completion_tokens_details.reasoning_tokens == 0
    assert THINK not in none.choices[0].message.content and END_THINK not in none.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="at least 7 and at most 4"):
        ask(max_thinking_tokens=3, min_thinking_tokens=6)


def test_a_prompt_is_echoed_with_its_scores(server, model, tokenizer):
    prompt = encode_text(tokenizer, "the answer is 46")
    done = server.openai.completions.create(model="nano", prompt=prompt, max_tokens=1, echo=True, logprobs=2, seed=0)
    logprobs = done.choices[0].logprobs
    with torch.no_grad():
        exact = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    assert logprobs.token_logprobs[0] is None and len(logprobs.tokens) == len(prompt) + 1
    for place, token in enumerate(prompt[1:]):
        assert logprobs.token_logprobs[place + 1] == pytest.approx(float(exact[place, token]), abs=1e-4)
        assert max(logprobs.top_logprobs[place + 1].values()) == pytest.approx(float(exact[place].max()), abs=1e-4)
    assert done.choices[0].text.startswith("the answer is 46")
    assert [done.choices[0].text[offset:].startswith(word) for word, offset in
            zip(logprobs.tokens, logprobs.text_offset, strict=True)] == [True] * (len(prompt) + 1)  # fmt: skip
    only = server.openai.completions.create(
        model="nano", prompt=[prompt, prompt[:3]], max_tokens=0, echo=True, logprobs=0
    )
    assert only.choices[0].text == "the answer is 46" and only.usage.completion_tokens == 0
    assert only.choices[1].logprobs.token_logprobs[1:] == pytest.approx(only.choices[0].logprobs.token_logprobs[1:3])


def test_the_coldest_temperatures_are_greedy(server):
    settings = {"model": "nano", "prompt": "Think", "max_tokens": 6, "logprobs": 2}
    greedy = server.openai.completions.create(**settings, temperature=0)
    assert server.openai.completions.create(**settings, temperature=1e-40).choices[0] == greedy.choices[0]


def test_a_step_that_fails_is_told_and_the_next_request_is_served(server, monkeypatch):
    def full(*_):
        raise MemoryError("no room for a cache")

    with monkeypatch.context() as broken:
        broken.setattr(Batch, "_reserve", full)
        answer = server.http.post("/v1/completions", json={"prompt": "Think"})
        assert answer.status_code == 503 and "generation failed" in answer.json()["error"]["message"]
    assert server.http.post("/v1/completions", json={"prompt": "Think"}).status_code == 200


def test_a_stop_text_ends_the_answer_and_is_not_in_it(server):
    settings = {"model": "nano", "prompt": "Think", "max_tokens": 60, "seed": 11}
    free = server.openai.completions.create(**settings).choices[0].text
    stop = free[7:9]
    for stream in (False, True):
        done = server.openai.completions.create(**settings, stop=[stop, "never there"], stream=stream)
        choices = [event.choices[0] for event in done] if stream else done.choices
        assert "".join(choice.text for choice in choices) == free[: free.index(stop)]
        assert choices[-1].finish_reason == "stop"


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("completions", {"prompt": ""}, "the prompt is empty"),
        ("completions", {"prompt": []}, "prompts, not 0"),
        ("completions", {"prompt": [[]]}, "the prompt is empty"),
        ("completions", {"prompt": [300]}, "tokens are 0 to 299"),
        ("completions", {"prompt": [-1]}, "tokens are 0 to 299"),
        ("completions", {"prompt": {"a": 1}}, "prompt"),
        ("completions", {"prompt": "a", "max_tokens": 100_000}, "exceed"),
        ("completions", {"prompt": "a" * 5000}, "exceed"),
        ("completions", {"prompt": "a", "max_tokens": 0}, "echo"),
        ("completions", {"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ("completions", {"prompt": "a", "temperature": -0.1}, "temperature"),
        ("completions", {"prompt": "a", "temperature": "hot"}, "temperature"),
        ("completions", {"prompt": "a", "top_p": 0}, "top_p"),
        ("completions", {"prompt": "a", "n": 0}, "n:"),
        ("completions", {"prompt": "a", "n": 1000}, "n:"),
        ("completions", {"prompt": "a", "stop": [""]}, "empty text"),
        ("completions", {"prompt": "a", "stop": ["a" * 300]}, "at most 256 characters"),
        ("completions", {"prompt": [True, False]}, "prompt"),
        ("completions", {"prompt": "a", "best_of": 3}, "best_of is not supported"),
        ("completions", {"prompt": "a", "logit_bias": {"5": 100}}, "logit_bias is not supported"),
        ("completions", {"prompt": "a", "logprobs": 1000}, "logprobs"),
        ("completions", {"prompt": "a", "echo": True, "stream": True}, "echo"),
        ("completions", {}, "prompt"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": [{"role": "robot", "content": "a"}]}, "role"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "content"),
        ("chat/completions", {"messages": [*QUESTION, {"role": "assistant", "content": "46"}]}, "user's message"),
        ("chat/completions", {"messages": [*QUESTION, {"role": "system", "content": "late"}]}, "system message"),
        ("chat/completions", {"messages": QUESTION, "tools": [{}]}, "tools is not supported"),
    ],
)
def test_what_cannot_be_is_a_400_with_a_message(server, path, body, message):
    answer = server.http.post(f"/v1/{path}", json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b"null", b'{"prompt": NaN}'])
def test_broken_bodies_are_a_400(server, body):
    answer = server.http.post("/v1/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["message"]


def test_the_rest_of_http(server):
    assert server.http.get("/v1/models").json()["data"][0]["id"] == "nano"
    assert server.http.get("/health").json() == {"status": "ok"}
    assert server.http.get("/nothing").status_code == 404
    assert server.http.get("/v1/completions").status_code == 405
    shown = server.http.get("/metrics").text
    assert 'trivium_requests_total{path="/v1/completions",status="400"}' in shown
    assert "trivium_samples_running 0.0" in shown
    assert server.http.get("/docs").status_code == 404


def test_keys_sizes_and_queues_are_limited(model, tokenizer):
    server = Server(model, tokenizer, api_key="secret", max_body=2000, max_waiting=3, timeout=1.0, max_batch=1)
    try:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            answer = server.http.post("/v1/completions", json={"prompt": "a"}, headers=headers)
            assert answer.status_code == 401
        assert server.http.get("/health").status_code == 200
        assert server.http.get("/metrics").status_code == 401
        server.http.headers["authorization"] = "Bearer secret"
        assert server.http.post("/v1/completions", json={"prompt": "a" * 3000}).status_code == 413
        chunks = (b"x" * 1000 for _ in range(5))
        assert server.http.post("/v1/completions", content=chunks).status_code == 413
        assert server.http.post("/v1/completions", json={"prompt": "a", "n": 9}).status_code == 400
        late = server.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 250, "n": 3, "seed": 1})
        if late.status_code != 200:  # a quick machine may be done
            assert late.status_code == 504 and "within 1 s" in late.json()["error"]["message"]
        wait_until(lambda: server.engine.load == (0, 0))
    finally:
        server.close()


def test_clients_that_leave_free_their_rows(server):
    body = {"prompt": "Think", "max_tokens": 250, "n": 100, "seed": 2}
    for stream in (False, True):
        asked = time.monotonic()
        with httpx.Client(base_url=server.url, timeout=5) as client:
            request = client.build_request("POST", "/v1/completions", json=body | {"stream": stream})
            if stream:
                answer = client.send(request, stream=True)
                next(answer.iter_lines())
                answer.close()
            else:
                with pytest.raises(httpx.TimeoutException):
                    client.send(client.build_request("POST", "/v1/completions", json=body, timeout=0.1))
        wait_until(lambda: server.engine.load == (0, 0))
        assert time.monotonic() - asked < 20  # all of it would have taken minutes


def test_a_stopped_server_tells_its_clients(model, tokenizer):
    server = Server(model, tokenizer, max_batch=2)
    lines: list[str] = []

    def read():
        body = {"prompt": "Think", "max_tokens": 240, "n": 64, "stream": True}
        with server.http.stream("POST", "/v1/completions", json=body) as answer:
            lines.extend(line for line in answer.iter_lines() if line)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: server.engine.load[0] > 0)
    server.close()
    reader.join(timeout=30)
    assert not reader.is_alive() and server.engine.load == (0, 0)
    assert "the server is stopping" in lines[-2] and lines[-1] == "data: [DONE]"


def test_many_requests_at_once_are_neither_lost_nor_mixed_up(server, model, tokenizer):
    """Of all kinds, some leaving, some reading slowly; every answer is the one it would have been alone."""
    draw = random.Random(0)
    asked = []
    for _ in range(200):
        prompt = [draw.randrange(10, 300) for _ in range(draw.randint(1, 60))]
        keys = {
            "max_tokens": draw.choice([1, 2, 5, 12]) if draw.random() < 0.98 else 196,
            "n": draw.randint(1, 8),
            "seed": draw.randrange(10**6),
            "temperature": draw.choice([0.0, 0.7, 1.0]),
            "top_p": draw.choice([1.0, 0.9]),
        }
        asked.append((prompt, keys, draw.choice(["at once", "stream", "slow", "leave"])))

    async def ask(client: httpx.AsyncClient, prompt, keys, manner):
        body = {"prompt": prompt, **keys}
        if manner == "at once":
            answer = await client.post("/v1/completions", json=body)
            return [choice["text"] for choice in answer.json()["choices"]]
        texts = [""] * keys["n"]
        async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                if manner == "leave":
                    return None
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    texts[choice["index"]] += choice["text"]
                if manner == "slow":
                    await asyncio.sleep(0.002)
        return texts

    async def all_at_once():
        limits = httpx.Limits(max_connections=40)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            return await asyncio.gather(*(ask(client, *one) for one in asked))

    answers = asyncio.run(all_at_once())
    stayed = [(one, texts) for one, texts in zip(asked, answers, strict=True) if one[2] != "leave"]
    params = [
        SamplingParams(
            keys["max_tokens"],
            temperature=keys["temperature"],
            top_p=keys["top_p"],
            n=keys["n"],
            seed=keys["seed"],
            stop_ids=(special_id(tokenizer, EOS),),
        )
        for (_, keys, _), _ in stayed
    ]
    expected = Engine(model, max_batch=64).generate([prompt for (prompt, _, _), _ in stayed], params)
    pairs = [
        (text, text_of(tokenizer, sample.token_ids))
        for (_, texts), samples in zip(stayed, expected, strict=True)
        for text, sample in zip(texts, samples, strict=True)
    ]
    # Among others two tokens may change places where they are as good as equal.
    assert len(pairs) > 500 and sum(found != text for found, text in pairs) <= len(pairs) // 100
    wait_until(lambda: server.engine.load == (0, 0))


def test_settings_that_cannot_be_are_said(tmp_path, capsys):
    from core_model.errors import InputError

    for arguments in (["missing"], ["missing", "--max-batch", "0"], ["missing", "--host", "0.0.0.0"]):
        with pytest.raises(InputError):
            main(arguments)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_text_comes_out_whole_however_it_is_cut(tokenizer, data):
    text = data.draw(st.text(alphabet="ab 水🐙é\n", max_size=30))
    ids = encode_text(tokenizer, text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    stops = data.draw(st.lists(st.text(alphabet="ab水🐙", min_size=1, max_size=3), max_size=2))
    stream, pieces = TextStream(tokenizer, stops), []
    for start, end in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        pieces.append(stream.push(ids[start:end]))
    pieces.append(stream.finish())
    places = [text.find(stop) for stop in stops if stop in text]
    # Of two stop texts, the one that is spelt out first may begin later.
    if len(places) <= 1 or not stream.stopped:
        assert "".join(pieces) == (text[: min(places)] if places else text)
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


def test_a_reply_is_split_at_its_tags(tokenizer):
    think, end, eos = (special_id(tokenizer, token) for token in (THINK, END_THINK, EOS))
    words = encode_text(tokenizer, "step 🐙")
    for ids, reasoning, content, thought in (
        ([think, *words, end, *words, eos], "step 🐙", "step 🐙", len(words)),
        ([*words, eos], "", "step 🐙", 0),
        ([think, *words], "step 🐙", "", len(words)),
        ([think, end, *words], "", "step 🐙", 0),
        ([think, *words, end, *words, think, *words], "step 🐙", "step 🐙step 🐙", len(words)),
    ):
        stream = ReplyStream(tokenizer)
        parts = [*(stream.push([token]) for token in ids), stream.finish()]
        assert "".join(part.reasoning for part in parts) == reasoning
        assert "".join(part.content for part in parts) == content
        assert stream.reasoning_tokens == thought
