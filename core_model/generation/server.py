"""`trivium serve RUN`: an OpenAI-compatible server over the engine, for one model.

    POST /v1/chat/completions   thoughts as `reasoning_content`; `max_thinking_tokens`, `min_thinking_tokens`
    POST /v1/completions        with `echo` and `logprobs`; prompts as text or token ids
    GET  /v1/models, /health, /metrics (Prometheus)

One thread drives the engine; requests hand their prompts in and are told of every token. What a client no longer waits
for is aborted, and its rows serve others.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import ipaddress
import json
import os
import secrets
import socket
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core_model.errors import InputError
from core_model.generation.api import ChatRequest, CompletionRequest
from core_model.generation.request import Delta, FinishReason, Likeliest
from core_model.generation.request import Request as EngineRequest
from core_model.generation.sampling import SamplingParams
from core_model.generation.text import ReplyPart, ReplyStream, TextStream
from core_model.tokenizer import decode_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from core_model.generation.engine import Engine

PATIENCE = 0.25  # seconds between two looks at whether a client is still there
GRACE = 5  # seconds that clients have to read what they are owed when the server stops
KEY_VARIABLE = "TRIVIUM_API_KEY"


@dataclass(frozen=True)
class ServerSettings:
    """What the server allows.

    name: the model's, for clients. api_key: None lets everybody in. max_waiting: samples that may wait for a row.
    max_body: bytes of a request. timeout: seconds a request may take. speculative: drafts a pass.
    """

    name: str
    api_key: str | None = None
    max_waiting: int = 1024
    max_body: int = 4_000_000
    timeout: float = 600.0
    speculative: int = 0


class Metrics:
    """What `/metrics` shows, in a registry of its own."""

    def __init__(self, engine: Engine) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("trivium_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self.tokens = Counter("trivium_tokens", "Tokens read and generated", ["kind"], registry=self.registry)
        self.seconds = Histogram(
            "trivium_request_seconds",
            "Time until a request was answered whole",
            registry=self.registry,
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
        )
        running = Gauge("trivium_samples_running", "Samples being generated", registry=self.registry)
        running.set_function(lambda: engine.load[0])
        waiting = Gauge("trivium_samples_waiting", "Samples waiting for a row", registry=self.registry)
        waiting.set_function(lambda: engine.load[1])


class Refusal(Exception):
    """A request that is answered with an error."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error") -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind


@dataclass
class Job:
    """One HTTP request's way through the engine: its prompts, and what it is told of them.

    news: (number of the choice, what was added), put there by the engine's thread.
    """

    requests: list[EngineRequest] = field(default_factory=list)
    news: asyncio.Queue[tuple[int, Delta]] = field(default_factory=asyncio.Queue)

    @property
    def choices(self) -> int:
        return sum(request.params.n for request in self.requests)

    def abort(self) -> None:
        for request in self.requests:
            request.abort()


class Service:
    """The engine behind the endpoints."""

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerFast, settings: ServerSettings) -> None:
        self.engine, self.tokenizer, self.settings = engine, tokenizer, settings
        self.metrics = Metrics(engine)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=engine.drive, args=(self._stop,), name="engine", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End what runs and wait for the engine's thread; once more does nothing."""
        self._stop.set()
        self.engine.wake()
        self._thread.join()

    def submit(self, prompts: Sequence[list[int]], params: SamplingParams) -> Job:
        """Hand in the prompts of one request.

        Raises:
            Refusal: they do not fit into the model, or too many wait already.
        """
        if not self.alive:
            raise Refusal(503, "the engine has stopped", "server_error")
        if len(prompts) * params.n > self.settings.max_waiting:
            raise Refusal(400, f"a request asks for at most {self.settings.max_waiting} samples")
        if self.engine.load[1] + len(prompts) * params.n > self.settings.max_waiting:
            raise Refusal(
                429, f"{self.settings.max_waiting} samples are waiting already; try later", "overloaded_error"
            )
        loop, job = asyncio.get_running_loop(), Job()
        try:
            for number, prompt in enumerate(prompts):
                self.engine.check(prompt, params, f"prompt {number}: ")
        except ValueError as error:
            raise Refusal(400, str(error)) from error

        def listener(first_choice: int) -> Any:
            def tell(delta: Delta) -> None:
                with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                    loop.call_soon_threadsafe(job.news.put_nowait, (first_choice + delta.index, delta))

            return tell

        for prompt in prompts:
            job.requests.append(self.engine.submit(prompt, params, listener(job.choices)))
        return job

    async def follow(self, job: Job, client: Request | None = None) -> AsyncIterator[tuple[int, Delta]]:
        """What a job is told until all its choices have ended; it is aborted when nobody follows it any more.

        Args:
            client: looked after now and then; when it has gone, the job is aborted.

        Raises:
            Refusal: it took too long, the client left, or the server is stopping.
        """
        left, started = job.choices, time.monotonic()
        looked = started
        try:
            while left:
                now = time.monotonic()
                if now - started > self.settings.timeout:
                    raise Refusal(504, f"not finished within {self.settings.timeout:g} s", "timeout_error")
                if client is not None and now - looked > PATIENCE:
                    looked = now
                    if await client.is_disconnected():
                        raise Refusal(499, "the client has gone")
                try:
                    choice, delta = await asyncio.wait_for(job.news.get(), PATIENCE)
                except TimeoutError:
                    if not self.alive:  # it stopped between the request's coming and its being taken up
                        raise Refusal(503, "the server is stopping", "server_error") from None
                    continue
                if delta.finish_reason == "abort":
                    why = "the server is stopping" if self.stopping else "generation failed; try again, or ask for less"
                    raise Refusal(503, why, "server_error")
                self.metrics.tokens.labels("generated").inc(len(delta.token_ids))
                left -= delta.finish_reason is not None
                yield choice, delta
        finally:
            job.abort()  # without effect on what has ended

    def room_for(self, prompt: list[int], wanted: int | None) -> int:
        """New tokens for a prompt: as many as wanted, or as fit."""
        return max(1, self.engine.max_tokens - len(prompt)) if wanted is None else wanted


def create_app(engine: Engine, tokenizer: PreTrainedTokenizerFast, settings: ServerSettings) -> FastAPI:
    """The application; its lifespan starts and stops the engine's thread."""
    service = Service(engine, tokenizer, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await asyncio.to_thread(service.stop)

    app = FastAPI(title="Trivium", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service

    app.add_middleware(Guard, service=service)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return _refused(refusal)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the body"
        return _refused(Refusal(400, f"{where}: {first['msg']}"))

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        return _refused(Refusal(error.status_code, f"{request.method} {request.url.path}: {error.detail}"))

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _refused(Refusal(500, f"{type(error).__name__}", "server_error"))

    @app.get("/health")
    async def health() -> Response:
        return JSONResponse({"status": "ok" if service.alive else "stopped"}, 200 if service.alive else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(generate_latest(service.metrics.registry), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        entry = {"id": settings.name, "object": "model", "created": 0, "owned_by": "trivium"}
        return {"object": "list", "data": [entry | {"max_model_len": engine.max_tokens}]}

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Any:
        return await _Completions(service, body).answer(request)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Any:
        return await _Chat(service, body).answer(request)

    return app


class Server(uvicorn.Server):
    """uvicorn for `create_app`: asked to stop, it first ends what the engine is doing, so that every client is told."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service: Service = self.config.app.state.service  # type: ignore[union-attr]
        await asyncio.to_thread(service.stop)
        await super().shutdown(sockets)


PATHS = ("/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")


class Guard:
    """Before every endpoint: the API key, the size of the body; after it: the metrics.

    The body is read here, no more of it than allowed. (Starlette's own kind of middleware would hide from endpoints
    that a client has gone.)
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._authorise(Request(scope))
            body = await self._body(receive)
            await self._app(scope, _first(body, receive), noted)
        except Refusal as refusal:
            await _refused(refusal)(scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._service.metrics.requests.labels(path, str(status)).inc()
            if scope["method"] == "POST":
                self._service.metrics.seconds.observe(time.monotonic() - started)

    def _authorise(self, request: Request) -> None:
        key = self._service.settings.api_key
        if key is None or request.scope["path"] == "/health":
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode("latin-1"), key.encode()):
            raise Refusal(401, "a valid API key is needed: Authorization: Bearer KEY", "authentication_error")

    async def _body(self, receive: Receive) -> bytes:
        limit = self._service.settings.max_body
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limit:
                raise Refusal(413, f"a request has at most {limit} bytes")
        return bytes(body)


def _first(body: bytes, receive: Receive) -> Receive:
    """A `receive` that begins with a body that was read already."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


def _refused(refusal: Refusal) -> Response:
    headers = {"Retry-After": "1"} if refusal.status == 429 else None
    return JSONResponse(_error(refusal), refusal.status, headers)


def _error(refusal: Refusal) -> dict[str, Any]:
    return {"error": {"message": refusal.message, "type": refusal.kind, "param": None, "code": refusal.status}}


class _Endpoint(ABC):
    """What completions and chats share: submit, follow, answer at once or in pieces."""

    kind: str
    prefix: str

    def __init__(self, service: Service, body: CompletionRequest | ChatRequest) -> None:
        self.service, self.tokenizer = service, service.tokenizer
        self.stream, self.include_usage = body.stream, body.stream_options.include_usage
        self.id, self.created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())
        self.prompt_tokens = self.completion_tokens = self.reasoning_tokens = 0

    @abstractmethod
    def submit(self) -> Job:
        """Hand the prompts in."""

    @abstractmethod
    def piece(self, choice: int, delta: Delta) -> dict[str, Any]:
        """The choice of one event of a stream."""

    @abstractmethod
    def collect(self, choice: int, delta: Delta) -> None:
        """Take a delta into the answer that is given at once."""

    @abstractmethod
    def choices(self) -> list[dict[str, Any]]:
        """The choices of the answer that is given at once."""

    async def answer(self, client: Request) -> Any:
        job = self.submit()
        self.prompt_tokens = sum(len(request.prompt) for request in job.requests)
        self.service.metrics.tokens.labels("prompt").inc(self.prompt_tokens)
        if self.stream:
            return StreamingResponse(self._events(job), media_type="text/event-stream")
        async for choice, delta in self.service.follow(job, client):
            self.completion_tokens += len(delta.token_ids)
            self.collect(choice, delta)
        return JSONResponse(self._head(self.kind) | {"choices": self.choices(), "usage": self.usage()})

    async def _events(self, job: Job) -> AsyncIterator[str]:
        kind = self.kind if self.kind == "text_completion" else "chat.completion.chunk"
        try:
            async for choice, delta in self.service.follow(job):
                self.completion_tokens += len(delta.token_ids)
                yield _event(self._head(kind) | {"choices": [self.piece(choice, delta)]})
            if self.include_usage:
                yield _event(self._head(kind) | {"choices": [], "usage": self.usage()})
        except Refusal as refusal:
            yield _event(_error(refusal))
        yield "data: [DONE]\n\n"

    def usage(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.service.settings.name}


@dataclass
class _Text:
    """A completion as it grows."""

    stream: TextStream
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    top: list[Likeliest | None] = field(default_factory=list)
    finish_reason: FinishReason | None = None


class _Completions(_Endpoint):
    kind, prefix = "text_completion", "cmpl"

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        super().__init__(service, body)
        self.body = body
        try:
            self.prompts = body.prompts(self.tokenizer, service.engine.model.config.vocab_size)
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        self.texts = [_Text(TextStream(self.tokenizer, body.stop)) for _ in range(len(self.prompts) * body.n)]

    def submit(self) -> Job:
        body = self.body
        try:
            params = body.sampling(
                self.tokenizer,
                max(1, body.max_tokens),
                secrets.randbits(63),
                logprobs=body.logprobs is not None,
                top_logprobs=body.logprobs or 0,
                speculative=self.service.settings.speculative,
            )
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        return self.service.submit(self.prompts, params)

    async def answer(self, client: Request) -> Any:
        if self.body.echo:
            await self._echo()
            if self.body.max_tokens == 0:
                self.prompt_tokens = sum(map(len, self.prompts))
                for text in self.texts:
                    text.finish_reason = "length"
                return JSONResponse(self._head(self.kind) | {"choices": self.choices(), "usage": self.usage()})
        return await super().answer(client)

    async def _echo(self) -> None:
        """Put the prompts, scored where that is asked for, before their completions."""
        engine, wanted = self.service.engine, self.body.logprobs
        scores: list[list[tuple[float, Likeliest]]] = [[] for _ in self.prompts]
        if wanted is not None:
            try:
                scores = await asyncio.to_thread(engine.score, self.prompts, wanted)
            except ValueError as error:
                raise Refusal(400, str(error)) from error
        for index, text in enumerate(self.texts):
            prompt, scored = self.prompts[index // self.body.n], scores[index // self.body.n]
            text.text = decode_tokens(self.tokenizer, prompt)
            text.tokens = list(prompt)
            text.logprobs = [None, *(own for own, _ in scored)]
            text.top = [None, *(best for _, best in scored)]

    def piece(self, choice: int, delta: Delta) -> dict[str, Any]:
        text = self.texts[choice]
        new = _Text(text.stream, finish_reason=delta.finish_reason)
        self._grow(new, delta)
        return self._shown(choice, new)

    def collect(self, choice: int, delta: Delta) -> None:
        self._grow(self.texts[choice], delta)

    def _grow(self, text: _Text, delta: Delta) -> None:
        text.text += text.stream.push([t for t in delta.token_ids if t not in self._stop_ids])
        text.tokens += delta.token_ids
        text.logprobs += delta.logprobs
        text.top += delta.top_logprobs or [[] for _ in delta.token_ids]
        if delta.finish_reason is not None:
            text.text += text.stream.finish()
            text.finish_reason = delta.finish_reason

    @property
    def _stop_ids(self) -> tuple[int, ...]:
        return self.body.sampling(self.tokenizer, 1, 0).stop_ids

    def choices(self) -> list[dict[str, Any]]:
        return [self._shown(choice, text) for choice, text in enumerate(self.texts)]

    def _shown(self, choice: int, text: _Text) -> dict[str, Any]:
        logprobs = None
        if self.body.logprobs is not None:
            words = [decode_tokens(self.tokenizer, [token]) for token in text.tokens]
            offsets = [0]
            for word in words[:-1]:
                offsets.append(offsets[-1] + len(word))
            logprobs = {
                "tokens": words,
                "token_logprobs": text.logprobs,
                "top_logprobs": [self._named(best) for best in text.top],
                "text_offset": offsets[: len(words)],
            }
        return {"index": choice, "text": text.text, "logprobs": logprobs, "finish_reason": text.finish_reason}

    def _named(self, best: Likeliest | None) -> dict[str, float] | None:
        if best is None:
            return None
        named: dict[str, float] = {}
        for token, value in best:  # bytes of a broken character all read alike: the likeliest keeps the name
            named.setdefault(decode_tokens(self.tokenizer, [token]), value)
        return named


@dataclass
class _Reply:
    """An assistant's reply as it grows."""

    stream: ReplyStream
    reasoning: str = ""
    content: str = ""
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    begun: bool = False


class _Chat(_Endpoint):
    kind, prefix = "chat.completion", "chatcmpl"

    def __init__(self, service: Service, body: ChatRequest) -> None:
        super().__init__(service, body)
        self.body = body
        self.replies = [_Reply(ReplyStream(self.tokenizer, body.stop)) for _ in range(body.n)]

    def submit(self) -> Job:
        body = self.body
        try:
            prompt = body.rendered(self.tokenizer)
            params = body.sampling(
                self.tokenizer,
                self.service.room_for(prompt, body.limit),
                secrets.randbits(63),
                logprobs=body.logprobs,
                top_logprobs=body.top_logprobs if body.logprobs else 0,
                thinking=body.thinking(self.tokenizer),
                speculative=self.service.settings.speculative,
            )
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        return self.service.submit([prompt], params)

    def piece(self, choice: int, delta: Delta) -> dict[str, Any]:
        reply = self.replies[choice]
        part, logprobs = self._grow(reply, delta)
        shown: dict[str, Any] = {} if reply.begun else {"role": "assistant"}
        reply.begun = True
        if part.reasoning:
            shown["reasoning_content"] = part.reasoning
        if part.content:
            shown["content"] = part.content
        return {"index": choice, "delta": shown, "logprobs": logprobs, "finish_reason": delta.finish_reason}

    def collect(self, choice: int, delta: Delta) -> None:
        reply = self.replies[choice]
        part, logprobs = self._grow(reply, delta)
        reply.reasoning += part.reasoning
        reply.content += part.content
        reply.logprobs += logprobs["content"] if logprobs else []
        reply.finish_reason = delta.finish_reason

    def _grow(self, reply: _Reply, delta: Delta) -> tuple[ReplyPart, dict[str, Any] | None]:
        before = reply.stream.reasoning_tokens
        part = reply.stream.push(delta.token_ids)
        self.reasoning_tokens += reply.stream.reasoning_tokens - before
        if delta.finish_reason is not None:
            rest = reply.stream.finish()
            part = ReplyPart(part.reasoning + rest.reasoning, part.content + rest.content)
        if not self.body.logprobs:
            return part, None
        best = delta.top_logprobs or [[] for _ in delta.token_ids]
        content = [
            self._named(token, value) | {"top_logprobs": [self._named(*pair) for pair in likeliest]}
            for token, value, likeliest in zip(delta.token_ids, delta.logprobs, best, strict=True)
        ]
        return part, {"content": content}

    def choices(self) -> list[dict[str, Any]]:
        shown = []
        for index, reply in enumerate(self.replies):
            message: dict[str, Any] = {"role": "assistant", "content": reply.content}
            if reply.reasoning:
                message["reasoning_content"] = reply.reasoning
            logprobs = {"content": reply.logprobs} if self.body.logprobs else None
            shown.append(
                {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reply.finish_reason}
            )
        return shown

    def _named(self, token: int, value: float) -> dict[str, Any]:
        text = decode_tokens(self.tokenizer, [token])
        return {"token": text, "logprob": value, "bytes": list(text.encode())}


def _event(data: dict[str, Any]) -> str:
    # ASCII: some clients take every line separator that Unicode has for the end of an event.
    return f"data: {json.dumps(data)}\n\n"


def main(arguments: Sequence[str]) -> int:
    """Run `trivium serve` until it is interrupted; returns the exit status.

    Raises:
        InputError: no model at the given place, a damaged one, or settings that cannot be.
    """
    options = _parser().parse_args(list(arguments))
    key = options.api_key or os.environ.get(KEY_VARIABLE) or None
    if key is None and not _is_loopback(options.host):
        expected = f"an API key (--api-key or {KEY_VARIABLE}) where others than this machine can reach the server"
        raise InputError("trivium serve", where=f"--host {options.host}", expected=expected, found="none")
    app = _open(options, key)
    print(f"serving {options.model} at http://{options.host}:{options.port}/v1 (Ctrl-C stops)", flush=True)
    config = uvicorn.Config(
        app, host=options.host, port=options.port, log_level="warning", timeout_graceful_shutdown=GRACE
    )
    Server(config).run()
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _open(options: argparse.Namespace, key: str | None) -> FastAPI:
    from core_model.generation.chat import find_model
    from core_model.generation.engine import Engine
    from core_model.model import V3ForCausalLM
    from core_model.parallel.device import training_device
    from core_model.tokenizer import load_tokenizer

    for name in ("max_batch", "max_waiting", "max_body"):
        if getattr(options, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise InputError("trivium serve", where=flag, expected="1 or more", found=str(getattr(options, name)))
    folder = find_model(options.model)
    tokenizer = load_tokenizer(folder)
    model = V3ForCausalLM.from_pretrained(folder).to(training_device())  # type: ignore[arg-type]
    engine = Engine(model, tokenizer, max_batch=options.max_batch, max_tokens=options.max_tokens)
    settings = ServerSettings(
        name=options.name or options.model.resolve().name,
        api_key=key,
        max_waiting=options.max_waiting,
        max_body=options.max_body,
        timeout=options.timeout,
        speculative=options.speculative,
    )
    return create_app(engine, tokenizer, settings)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trivium serve",
        description="Serve a trained model to OpenAI's clients: /v1/chat/completions, /v1/completions, /v1/models.",
    )
    parser.add_argument("model", type=Path, metavar="RUN", help="a run folder with a model/, or a model folder")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default 127.0.0.1: this machine)")
    parser.add_argument("--port", type=int, default=8000, help="port (default 8000)")
    parser.add_argument("--api-key", metavar="KEY", help=f"what clients must send; also read from {KEY_VARIABLE}")
    parser.add_argument("--name", help="the model's name for clients (default: the folder's)")
    parser.add_argument("--max-batch", type=int, default=64, help="samples generated together (default 64)")
    parser.add_argument("--max-tokens", type=int, help="longest prompt and answer (default: what the model can take)")
    parser.add_argument("--max-waiting", type=int, default=1024, help="samples that may wait (default 1024)")
    parser.add_argument("--max-body", type=int, default=4_000_000, help="bytes of a request (default 4000000)")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds a request may take (default 600)")
    parser.add_argument("--speculative", type=int, default=0, metavar="K", help="tokens drafted a pass (default 0)")
    return parser
