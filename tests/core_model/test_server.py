"""The server as its clients see it: plain HTTP, rude and many."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from serving import QUESTION, Server, text_of, wait_until

import core_model.generation.engine as engine_module
from core_model import V3Config, V3ForCausalLM
from core_model.errors import InputError
from core_model.generation import Engine, SamplingParams
from core_model.generation.batch import Batch
from core_model.generation.server import Guard, _listen, main
from core_model.generation.service import ServerSettings, Service
from core_model.tokenizer import EOS, special_id


def test_a_step_that_fails_is_told_and_the_next_request_is_served(server, monkeypatch):
    def full(*_):
        raise MemoryError("no room for a cache")

    with monkeypatch.context() as broken:
        broken.setattr(Batch, "_reserve", full)
        answer = server.http.post("/v1/completions", json={"prompt": "Think"})
        assert answer.status_code == 503 and "generation failed" in answer.json()["error"]["message"]
    assert server.http.post("/v1/completions", json={"prompt": "Think"}).status_code == 200


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
        ("completions", {"prompt": "a", "top_k": 10**400}, "top_k"),
        ("completions", {"prompt": "a", "min_p": 0.1}, "min_p is not supported"),
        ("completions", {"prompt": "a", "n": 0}, "n:"),
        ("completions", {"prompt": "a", "n": 1000}, "n:"),
        ("completions", {"prompt": "a", "stop": [""]}, "empty text"),
        ("completions", {"prompt": "a", "stop": ["a" * 300]}, "at most 256 characters"),
        ("completions", {"prompt": [True, False]}, "prompt"),
        ("completions", {"prompt": "a", "best_of": 3}, "best_of is not supported"),
        ("completions", {"prompt": "a", "logit_bias": {"5": 100}}, "logit_bias is not supported"),
        ("completions", {"prompt": "a", "logprobs": 1000}, "logprobs"),
        ("completions", {"prompt": "a", "echo": True, "stream": True}, "echo"),
        ("completions", {"prompt": "a", "stream_options": {"include_usage": True}}, "needs stream"),
        ("completions", {"prompt": "", "echo": True, "max_tokens": 0}, "0 tokens"),
        ("completions", {}, "prompt"),
        ("chat/completions", {"messages": QUESTION, "top_logprobs": 2}, "needs logprobs"),
        ("chat/completions", {"messages": []}, "messages"),
        ("chat/completions", {"messages": [{"role": "robot", "content": "a"}]}, "role"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "content"),
        ("chat/completions", {"messages": [*QUESTION, {"role": "assistant", "content": "46"}]}, "user's message"),
        ("chat/completions", {"messages": [*QUESTION, {"role": "system", "content": "late"}]}, "system message"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]}, "content"),
        ("chat/completions", {"messages": QUESTION, "tools": [{}]}, "tools is not supported"),
    ],
)
def test_what_cannot_be_is_a_400_with_a_message(server, path, body, message):
    answer = server.http.post(f"/v1/{path}", json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["code"] == 400 and "param" in error


@pytest.mark.parametrize(
    ("path", "body"), [("completions", {"prompt": "a"}), ("chat/completions", {"messages": QUESTION})]
)
def test_another_model_than_the_one_served_is_a_404(server, path, body):
    answers = [server.http.post(f"/v1/{path}", json=body | {"model": name}) for name in ("gpt-5", "nano", "", None)]
    assert [answer.status_code for answer in answers] == [404, 200, 200, 200]
    error = answers[0].json()["error"]
    assert error["message"] == "the model 'gpt-5' is not served here; expected 'nano'" and error["param"] == "model"


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
        length = draw.randint(1, 60) if draw.random() < 0.9 else draw.randint(200, 255)
        prompt = [draw.randrange(10, 300) for _ in range(length)]
        keys = {
            "max_tokens": min(256 - length, draw.choice([1, 2, 5, 12]) if draw.random() < 0.98 else 196),
            "stop": draw.choice([[], [], ["e"], ["an", "12+"]]),
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
                    await asyncio.sleep(0.01)
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
            stop=tuple(keys["stop"]),
        )
        for (_, keys, _), _ in stayed
    ]
    alone = Engine(model, tokenizer, max_batch=64)
    expected = alone.generate([prompt for (prompt, _, _), _ in stayed], params)
    pairs = [
        (text, text_of(tokenizer, sample.token_ids, keys["stop"]))
        for ((_, keys, _), texts), samples in zip(stayed, expected, strict=True)
        for text, sample in zip(texts, samples, strict=True)
    ]
    # Among others two tokens may change places where they are as good as equal; on most machines none do.
    assert len(pairs) > 500 and sum(found != text for found, text in pairs) <= 2
    wait_until(lambda: server.engine.load == (0, 0))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--host", "0.0.0.0"],
        ["--max-batch", "0"],
        ["--max-tokens", "0"],
        ["--max-waiting", "-1"],
        ["--speculative", "8"],
        ["--speculative", "-1"],
        ["--timeout", "0"],
        ["--timeout", "-3"],
        ["--timeout", "nan"],
        ["--timeout", "inf"],
        ["--body-timeout", "0"],
        ["--port", "65536"],
        ["--port", "-1"],
    ],
)
def test_settings_that_cannot_be_are_said_before_a_model_is_looked_for(arguments, monkeypatch):
    monkeypatch.delenv("TRIVIUM_API_KEY", raising=False)
    with pytest.raises(InputError, match=arguments[0]):
        main(["missing", *arguments])


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1"])  # of RFC 2606 and RFC 5737: nobody's
def test_a_host_that_is_not_this_machine_is_said(host):
    with pytest.raises(InputError, match=f"^--host: {host}: expected a name or an address of this machine; found"):
        _listen(host, 0)


def test_a_model_that_cannot_be_served_is_said(tmp_path, tokenizer):
    with pytest.raises(InputError, match="missing"):
        main(["missing"])
    bare = V3Config.preset("nano", vocab_size=300, hidden_size=32, num_hidden_layers=2, num_nextn_predict_layers=0)
    V3ForCausalLM(bare).initialize(0.2, seed=0).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="--speculative: expected 0 for a model without an MTP module"):
        main([str(tmp_path), "--speculative", "2"])
    with pytest.raises(InputError, match="--max-tokens: expected 2 to 256"):
        main([str(tmp_path), "--max-tokens", "257"])
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(InputError, match="expected a free address; found Address already in use"),
    ):
        main([str(tmp_path), "--port", str(taken.getsockname()[1])])


def test_metrics_count_every_prompt_and_time_what_was_answered(server):
    def shown(name: str) -> float:
        lines = server.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def difference(name: str, **body) -> float:
        before = shown(name)
        server.http.post("/v1/completions", json=body)
        return shown(name) - before

    prompt = [20] * 7
    prompts, seconds = 'trivium_tokens_total{kind="prompt"}', "trivium_request_seconds_count"
    assert difference(prompts, prompt=prompt, max_tokens=0, echo=True, logprobs=1) == 7
    assert difference(prompts, prompt=prompt, max_tokens=2, echo=True, logprobs=1) == 7
    assert difference(prompts, prompt=[prompt, prompt], max_tokens=2, n=3) == 14
    assert difference(prompts, prompt=[300]) == 0
    assert difference(seconds, prompt=prompt, max_tokens=2) == 1
    assert difference(seconds, prompt=[300]) == 0


@pytest.fixture
def slow_scoring(monkeypatch):
    """Every sequence is a batch of its own, and takes a tenth of a second; says how many were scored."""
    scored = []
    score = Engine._score

    def slow(engine, sequences, top):
        time.sleep(0.1)
        scored.append(sequences)
        return score(engine, sequences, top)

    monkeypatch.setattr(engine_module, "PREFILL_TOKENS", 1)
    monkeypatch.setattr(Engine, "_score", slow)
    return scored


SCORING = {"prompt": [[20, 21]] * 200, "max_tokens": 0, "echo": True, "logprobs": 0}


def test_scoring_keeps_to_the_limits_and_others_are_served_meanwhile(model, tokenizer, slow_scoring):
    server = Server(model, tokenizer, max_waiting=300, timeout=0.6)
    answers = []
    try:
        asking = threading.Thread(target=lambda: answers.append(server.http.post("/v1/completions", json=SCORING)))
        asking.start()
        wait_until(lambda: bool(slow_scoring))
        other = server.http.post("/v1/completions", json=SCORING)
        assert other.status_code == 429 and other.headers["retry-after"] == "1"
        assert "trivium_prompts_scoring 200.0" in server.http.get("/metrics").text
        meanwhile = server.http.post("/v1/completions", json={"prompt": "a", "max_tokens": 2})
        assert meanwhile.status_code == 200 and not answers
        asking.join(timeout=30)
        assert answers[0].status_code == 504 and "within 0.6 s" in answers[0].json()["error"]["message"]
        wait_until(lambda: server.http.get("/metrics").text.count("trivium_prompts_scoring 0.0") == 1)
        after = len(slow_scoring)
        few = server.http.post("/v1/completions", json=SCORING | {"prompt": [20, 21]})
        assert few.status_code == 200 and len(slow_scoring) <= after + 2  # the rest was not scored first
    finally:
        server.close()


def test_a_server_that_scores_can_be_stopped(model, tokenizer, slow_scoring):
    server = Server(model, tokenizer)
    answers = []
    asking = [
        threading.Thread(target=lambda: answers.append(server.http.post("/v1/completions", json=SCORING)))
        for _ in range(4)
    ]
    for thread in asking:
        thread.start()
    wait_until(lambda: server.service.scoring == 800)
    server.close()
    for thread in asking:
        thread.join(timeout=30)
    assert [answer.status_code for answer in answers] == [503] * 4 and len(slow_scoring) < 100
    assert "the server is stopping" in answers[0].json()["error"]["message"]


def test_a_scoring_that_fails_is_told(server, monkeypatch):
    def full(*_):
        raise MemoryError("no room for the scores")

    with monkeypatch.context() as broken:
        broken.setattr(Engine, "_score", full)
        answer = server.http.post("/v1/completions", json=SCORING)
        assert answer.status_code == 503 and "scoring failed" in answer.json()["error"]["message"]
    assert server.http.post("/v1/completions", json=SCORING).status_code == 200


def test_a_service_begins_once_and_ends_though_every_pool_is_busy(model, tokenizer):
    async def run():
        service = Service(Engine(model, tokenizer), tokenizer, ServerSettings(name="nano"))
        service.stop()  # before it has begun: nothing to end
        busy, pool = threading.Event(), ThreadPoolExecutor(1)
        loop = asyncio.get_running_loop()
        loop.set_default_executor(pool)
        blocked = loop.run_in_executor(None, busy.wait, 30)
        threads = threading.active_count()
        for _ in range(2):
            service.start()
            service.start()
            assert service.alive and not service.stopping
            assert threading.active_count() == threads + 1  # one driver
            await asyncio.wait_for(service.end(), 10)
            assert not service.alive and service.stopping
        busy.set()
        await blocked
        assert threading.active_count() == threads

    asyncio.run(run())


def raw_request(server: Server, sent: bytes) -> socket.socket:
    """A connection by which the beginning of a request has been sent, and no more."""
    connection = socket.create_connection(server.server.servers[0].sockets[0].getsockname())
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + sent)
    connection.settimeout(30)
    return connection


def test_a_body_that_does_not_arrive_is_not_waited_for(model, tokenizer):
    server = Server(model, tokenizer, body_timeout=0.2)
    try:
        with raw_request(server, b'Content-Length: 100\r\n\r\n{"prompt": ') as connection:
            answer = b"".join(iter(lambda: connection.recv(4096), b""))  # until the server closes it
        assert answer.startswith(b"HTTP/1.1 408") and b"connection: close" in answer.lower()
        assert b"did not arrive within 0.2 s" in answer
    finally:
        server.close()


def test_a_client_that_leaves_within_its_body_is_not_answered(server):
    gone = 'trivium_requests_total{path="/v1/completions",status="499"}'
    before = server.http.get("/metrics").text
    body = b'{"prompt": "a"}'
    # A whole request but for its last chunk, which says that it is the last.
    raw_request(server, b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n" % (len(body), body)).close()
    wait_until(lambda: gone in server.http.get("/metrics").text)

    def answered(shown: str) -> list[str]:
        return [line for line in shown.splitlines() if "completions" in line and "requests_total" in line]

    assert [line for line in answered(server.http.get("/metrics").text) if gone not in line] == [
        line for line in answered(before) if gone not in line
    ]
    handed_on, sent = [], []

    async def run():
        messages = [{"type": "http.request", "body": body, "more_body": True}, {"type": "http.disconnect"}]

        async def receive():
            return messages.pop(0)

        async def send(message):
            sent.append(message)

        async def app(*_):
            handed_on.append(True)

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
        await Guard(app, server.service)(scope, receive, send)

    asyncio.run(run())
    assert not handed_on and not sent
