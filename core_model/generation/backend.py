"""Who answers in a chat: an engine in this process, or a server that speaks OpenAI's API over HTTP.

Both are asked with the `ChatRequest` that Trivium's own server takes, so that limits mean the same in both, and both
answer in pieces.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from core_model.errors import InputError
from core_model.generation.api import ChatRequest
from core_model.generation.request import Delta
from core_model.generation.text import ReplyPart, ReplyStream

if TYPE_CHECKING:
    import httpx

    from core_model.generation.engine import Engine

CONNECT_SECONDS, SILENT_SECONDS = 10, 600  # until a server is reached; until its next piece comes
LONGEST_LINE = 10_000_000  # bytes of one event
LONGEST_ERROR = 65_536  # bytes read of an answer that is an error
SHOWN_ERROR = 500  # characters shown of it


@dataclass(frozen=True)
class Usage:
    """Tokens that a reply took; completion_tokens are thought and answer, reasoning_tokens the thought's, if known."""

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int | None = None


@dataclass(frozen=True)
class ReplyChunk:
    """A piece of a reply.

    reasoning_tokens: of the whole thought so far, where the backend counts them as they come.
    finish_reason: `stop` or `length`, in one chunk; no text comes after it. usage: in that one or after it.
    """

    reasoning: str = ""
    content: str = ""
    reasoning_tokens: int | None = None
    finish_reason: str | None = None
    usage: Usage | None = None


class Backend(Protocol):
    """Answers one request at a time. name: what is shown for it."""

    name: str

    def reply(self, request: ChatRequest) -> Generator[ReplyChunk, None, None]:
        """The reply, piece by piece. A generator: closed, or interrupted, it aborts the reply at its source.

        Raises:
            InputError: the question does not fit, or the reply did not come to its end.
        """

    def close(self) -> None:
        """Let go of what is held."""


class EngineBackend:
    """An engine in this process.

    A thread of its own takes the engine's steps: an interruption (Ctrl-C comes to the main thread) never falls into the
    middle of one.
    """

    def __init__(self, engine: Engine, name: str) -> None:
        self.name, self._engine = name, engine
        self._stop = threading.Event()
        self._driver = threading.Thread(target=engine.drive, args=(self._stop,), name="engine", daemon=True)
        self._driver.start()

    def reply(self, request: ChatRequest) -> Generator[ReplyChunk, None, None]:
        engine, tokenizer = self._engine, self._engine.tokenizer
        prompt = request.rendered(tokenizer)
        room = engine.max_tokens - len(prompt)
        if room < 1:
            raise InputError(
                "the question",
                expected=f"fewer than {engine.max_tokens} tokens, the model's context",
                found=f"{len(prompt)} tokens",
            )
        limit = room if request.limit is None else min(room, request.limit)
        params = request.sampling(tokenizer, limit, seed=0, thinking=request.thinking(tokenizer))
        news: SimpleQueue[Delta] = SimpleQueue()
        running = engine.submit(prompt, params, news.put)
        stream, tokens = ReplyStream(tokenizer), 0
        try:
            while True:
                delta = news.get()
                if delta.finish_reason == "abort":
                    raise InputError("the model", expected="a reply", found="a failure of the engine, logged above")
                tokens += len(delta.token_ids)
                part = stream.push(delta.token_ids)
                if delta.finish_reason is None:
                    yield ReplyChunk(part.reasoning, part.content, stream.reasoning_tokens)
                    continue
                rest = stream.finish()
                part = ReplyPart(part.reasoning + rest.reasoning, part.content + rest.content)
                thought = stream.reasoning_tokens
                usage = Usage(len(prompt), tokens, thought)
                yield ReplyChunk(part.reasoning, part.content, thought, delta.finish_reason, usage)
                return
        finally:
            running.abort()  # without effect on what has ended

    def close(self) -> None:
        self._stop.set()
        self._engine.wake()
        self._driver.join()


class _Details(BaseModel):
    reasoning_tokens: int | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    completion_tokens_details: _Details | None = None


class _Delta(BaseModel):
    content: str | None = None
    # DeepSeek's, SGLang's and our name for it, and the one that newer vLLM has.
    reasoning: str | None = Field(default=None, validation_alias=AliasChoices("reasoning_content", "reasoning"))


class _Choice(BaseModel):
    delta: _Delta = Field(default_factory=lambda: _Delta.model_validate({}))
    finish_reason: str | None = None


class _Error(BaseModel):
    message: str


class _Event(BaseModel):
    """What is read of an event of a stream. Servers agree on these fields only."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | str | None = None


class _Model(BaseModel):
    id: str


class _Models(BaseModel):
    data: list[_Model] = Field(min_length=1)


class _Failure(BaseModel):
    """An answer that is an error: OpenAI's form, and those of frameworks."""

    error: _Error | str | None = None
    message: str | None = None
    detail: str | None = None

    @property
    def text(self) -> str | None:
        own = self.error.message if isinstance(self.error, _Error) else self.error
        return own or self.message or self.detail


class ServerBackend:
    """A server that speaks OpenAI's API: `trivium serve`, or another's.

    Args:
        url: as OpenAI's clients take it, mostly ending in `/v1`, which is filled in where there is no path.
        api_key: sent as a bearer token.
        model: its name at the server; None asks the server, and takes the first.

    Raises:
        InputError: no such address, nobody there, or a server that is none of OpenAI's kind.
    """

    def __init__(self, url: str, api_key: str | None = None, model: str | None = None) -> None:
        import httpx

        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip()):
            raise InputError("the API key", expected="printable ASCII characters", found="others, or none")
        try:
            address = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise InputError(url, expected="an address such as http://127.0.0.1:8000/v1", found=str(error)) from error
        if not address.host:
            raise InputError(url, expected="an address such as http://127.0.0.1:8000/v1", found="no host in it")
        self.url = str(address.copy_with(path="/v1") if address.path.strip("/") == "" else address).rstrip("/")
        self._client = httpx.Client(
            headers={} if api_key is None else {"Authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(SILENT_SECONDS, connect=CONNECT_SECONDS),
        )
        try:
            self.model = self._first_model() if model is None else model
        except BaseException:
            self._client.close()
            raise
        self.name = f"{self.model} at {self.url}"

    def reply(self, request: ChatRequest) -> Generator[ReplyChunk, None, None]:
        body = request.model_dump(exclude_unset=True) | {
            "model": self.model,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        ended = False
        with self._faults(), self._client.stream("POST", f"{self.url}/chat/completions", json=body) as response:
            self._accept(response)
            for line in _event_lines(response.iter_bytes(), self.url):
                chunk = self._chunk(line)
                ended = ended or chunk.finish_reason is not None
                yield chunk
        if not ended:
            raise InputError(self.url, expected="a reply as a stream of events", found="no end of it")

    def close(self) -> None:
        self._client.close()

    def _first_model(self) -> str:
        with self._faults(), self._client.stream("GET", f"{self.url}/models", timeout=CONNECT_SECONDS) as response:
            self._accept(response)
            content = _beginning(response, LONGEST_LINE)
        try:
            return _Models.model_validate_json(content).data[0].id
        except ValidationError as error:
            expected = "a server that lists its models as OpenAI's do (or --model NAME)"
            raise InputError(f"{self.url}/models", expected=expected, found=_shown(content)) from error

    def _chunk(self, line: bytes) -> ReplyChunk:
        """An event's data.

        Raises:
            InputError: the server says that it failed, or something that is no event.
        """
        try:
            event = _Event.model_validate_json(line)
        except ValidationError as error:
            raise InputError(self.url, expected="events as OpenAI's servers send", found=_shown(line)) from error
        if event.error is not None:
            message = event.error if isinstance(event.error, str) else event.error.message
            raise InputError(self.url, expected="a reply", found=_shown(message.encode()))
        usage = None
        if event.usage is not None:
            details = event.usage.completion_tokens_details or _Details()
            usage = Usage(event.usage.prompt_tokens, event.usage.completion_tokens, details.reasoning_tokens)
        choice = event.choices[0] if event.choices else _Choice()
        return ReplyChunk(
            reasoning=choice.delta.reasoning or "",
            content=choice.delta.content or "",
            reasoning_tokens=None if usage is None else usage.reasoning_tokens,
            finish_reason=choice.finish_reason,
            usage=usage,
        )

    def _accept(self, response: httpx.Response) -> None:
        """Let a good answer pass.

        Raises:
            InputError: the answer is an error, with the server's own message.
        """
        if response.status_code == 200:
            return
        content = _beginning(response, LONGEST_ERROR)
        try:
            message = _Failure.model_validate_json(content).text or ""
        except ValidationError:  # no JSON, such as a proxy's page
            message = content.decode(errors="replace")
        expected = {401: "a valid key (--api-key or TRIVIUM_API_KEY)", 404: "OpenAI's API, which mostly ends in /v1"}
        raise InputError(
            self.url,
            expected=expected.get(response.status_code, "a reply"),
            found=_shown(f"{response.status_code} {response.reason_phrase}: {message}".rstrip(": ").encode()),
        )

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Faults of the network as one message."""
        import httpx

        try:
            yield
        except httpx.ConnectError as error:
            raise InputError(self.url, expected="a running server", found=str(error) or "nobody there") from error
        except httpx.TimeoutException as error:
            raise InputError(self.url, expected="an answer in time", found=type(error).__name__) from error
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise InputError(self.url, expected="an answer to its end", found=_shown(str(error).encode())) from error


def _event_lines(pieces: Iterable[bytes], url: str) -> Iterator[bytes]:
    """The data of every event up to `[DONE]`.

    Lines end at \\n only: httpx's own lines end at every separator that Unicode has, which JSON may contain.

    Raises:
        InputError: a line that does not end.
    """
    rest = b""
    for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            field, _, data = line.strip().partition(b":")
            if field == b"data" and data.strip() == b"[DONE]":
                return
            if field == b"data":
                yield data
        if len(rest) > LONGEST_LINE:
            raise InputError(url, expected=f"events of at most {LONGEST_LINE} bytes", found="a longer one")


def _beginning(response: httpx.Response, limit: int) -> bytes:
    """What fits into `limit` bytes of an answer."""
    content = b""
    for piece in response.iter_bytes():
        content += piece
        if len(content) >= limit:
            break
    return content[:limit]


def _shown(content: bytes) -> str:
    """What a server sent, in a message: one line, not too long, without codes that steer a terminal."""
    text = " ".join(content.decode(errors="replace").split())[:SHOWN_ERROR]
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text) or "nothing"
