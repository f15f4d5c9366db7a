"""`trivium serve RUN`: an OpenAI-compatible server over the engine, for one model.

    POST /v1/chat/completions   thoughts as `reasoning_content`; `max_thinking_tokens`, `min_thinking_tokens`
    POST /v1/completions        with `echo` and `logprobs`; prompts as text or token ids
    GET  /v1/models, /health, /metrics (Prometheus)

Log-probabilities are of the model's own distribution, whatever the temperature: those of an echoed prompt and those of
what is generated mean the same. This file is the application and the command line; `endpoints` is what it answers,
`service` the engine behind it.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import hmac
import ipaddress
import math
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core_model.attention import ABSORBED_QUERIES
from core_model.errors import InputError
from core_model.generation.api import ChatRequest, CompletionRequest
from core_model.generation.endpoints import Chat, Completions, error_object
from core_model.generation.service import Refusal, ServerSettings, Service

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from core_model.generation.engine import Engine

GRACE = 5  # seconds that clients have to read what they are owed when the server stops
KEY_VARIABLE = "TRIVIUM_API_KEY"


def create_app(engine: Engine, tokenizer: PreTrainedTokenizerFast, settings: ServerSettings) -> FastAPI:
    """The application; its lifespan starts and stops the engine's thread."""
    service = Service(engine, tokenizer, settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        try:
            yield
        finally:
            await service.end()

    app = FastAPI(title="Trivium", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.service = service

    app.add_middleware(Guard, service=service)

    @app.exception_handler(Refusal)
    async def refused(request: Request, refusal: Refusal) -> Response:
        return _refused(refusal)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        # Of a body that is no JSON, the place is a number.
        where = ".".join(str(part) for part in first["loc"][1:] if first["type"] != "json_invalid")
        return _refused(Refusal(400, f"{where or 'the body'}: {first['msg']}", param=where or None))

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
    async def completions(body: CompletionRequest, request: Request) -> Response:
        return await Completions(service, body).answer(request)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        return await Chat(service, body).answer(request)

    return app


class Server(uvicorn.Server):
    """uvicorn for `create_app`: asked to stop, it first ends what the engine is doing, so that every client is told."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service: Service = self.config.app.state.service  # type: ignore[union-attr]
        await service.end()
        await super().shutdown(sockets)


PATHS = ("/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")


class Guard:
    """Before every endpoint: the API key, the size of the body and its time; after it: the metrics.

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
            if body is None:
                status = 499  # nobody is there to be answered
            else:
                await self._app(scope, _first(body, receive), noted)
        except Refusal as refusal:
            await _refused(refusal)(scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self._service.metrics.requests.labels(path, str(status)).inc()
            if scope["method"] == "POST" and status < 400:
                self._service.metrics.seconds.observe(time.monotonic() - started)

    def _authorise(self, request: Request) -> None:
        key = self._service.settings.api_key
        if key is None or request.scope["path"] == "/health":
            return
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode("latin-1"), key.encode()):
            raise Refusal(401, "a valid API key is needed: Authorization: Bearer KEY", "authentication_error")

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None where the client has gone before its end.

        Raises:
            Refusal: it is too long, or too slow.
        """
        seconds = self._service.settings.body_timeout
        try:
            async with asyncio.timeout(seconds):
                return await self._whole_body(receive)
        except TimeoutError:
            raise Refusal(408, f"the request did not arrive within {seconds:g} s", "timeout_error") from None

    async def _whole_body(self, receive: Receive) -> bytes | None:
        limit = self._service.settings.max_body
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
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


# 408: the rest of the body may still come, and is not to be taken for a request.
HEADERS = {408: {"Connection": "close"}, 429: {"Retry-After": "1"}}


def _refused(refusal: Refusal) -> Response:
    return JSONResponse(error_object(refusal), refusal.status, HEADERS.get(refusal.status))


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
    _check(options)
    app = _open(options, key)
    with _listen(options.host, options.port) as listener:
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if listener.family == socket.AF_INET6 else host
        print(f"serving {options.model} at http://{shown}:{port}/v1 (Ctrl-C stops)", flush=True)
        Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE)).run([listener])
    return 0


def _listen(host: str, port: int) -> socket.socket:
    """A socket that listens, so that what is printed is so.

    Raises:
        InputError: nobody can listen there.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        # Python adds the address to the system's words, where these are an errno's and not a name server's.
        found = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            expected = "a name or an address of this machine"
            raise InputError("--host", where=host, expected=expected, found=found) from error
        raise InputError("--port", where=f"{host}:{port}", expected="a free address", found=found) from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check(options: argparse.Namespace) -> None:
    """
    Raises:
        InputError: a number out of its range.
    """
    ranges = {
        "port": (0, 65535),
        "max_batch": (1, math.inf),
        "max_tokens": (1, math.inf),
        "max_waiting": (1, math.inf),
        "max_body": (1, math.inf),
        "speculative": (0, ABSORBED_QUERIES - 1),
    }
    for name, (least, most) in ranges.items():
        value = getattr(options, name)
        if value is not None and not least <= value <= most:
            expected = f"{least} or more" if most == math.inf else f"{least} to {most}"
            raise InputError("trivium serve", where=_flag(name), expected=expected, found=str(value))
    for name in ("timeout", "body_timeout"):
        if not 0 < getattr(options, name) < math.inf:
            found = str(getattr(options, name))
            raise InputError("trivium serve", where=_flag(name), expected="seconds, more than 0", found=found)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _open(options: argparse.Namespace, key: str | None) -> FastAPI:
    from core_model.generation.chat import find_model
    from core_model.generation.engine import Engine
    from core_model.model import V3ForCausalLM
    from core_model.parallel.device import training_device
    from core_model.tokenizer import load_tokenizer

    folder = find_model(options.model)
    tokenizer = load_tokenizer(folder)
    model = V3ForCausalLM.from_pretrained(folder).to(training_device())  # type: ignore[arg-type]
    if options.speculative and not model.config.num_nextn_predict_layers:
        expected = "0 for a model without an MTP module to draft with"
        raise InputError(folder, where=_flag("speculative"), expected=expected, found=str(options.speculative))
    longest = model.config.max_position_embeddings
    if options.max_tokens is not None and not 2 <= options.max_tokens <= longest:
        expected = f"2 to {longest}, what the model was trained for"
        raise InputError(folder, where=_flag("max_tokens"), expected=expected, found=str(options.max_tokens))
    engine = Engine(model, tokenizer, max_batch=options.max_batch, max_tokens=options.max_tokens)
    settings = ServerSettings(
        name=options.name or options.model.resolve().name,
        api_key=key,
        max_waiting=options.max_waiting,
        max_body=options.max_body,
        timeout=options.timeout,
        body_timeout=options.body_timeout,
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
    parser.add_argument(
        "--body-timeout", type=float, default=30.0, help="seconds a request's body may take to arrive (default 30)"
    )
    parser.add_argument("--speculative", type=int, default=0, metavar="K", help="tokens drafted a pass (default 0)")
    return parser
