"""What the endpoints answer: completions and chats, at once or in pieces, as OpenAI's clients read them.

The shapes are those of vLLM's and SGLang's servers too: a thought is `reasoning_content`, its tokens are counted in
`usage.completion_tokens_details.reasoning_tokens`, and a stream that was asked for its usage ends with a piece that has
it and no choices. Log-probabilities, of prompts and of what was generated, are of the model's own distribution,
whatever the temperature.
"""

from __future__ import annotations

import json
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from core_model.generation.api import ChatRequest, CompletionRequest
from core_model.generation.request import Delta, FinishReason, Likeliest
from core_model.generation.sampling import SamplingParams
from core_model.generation.service import Job, Refusal, Service, Watch
from core_model.generation.text import ReplyPart, ReplyStream, TextStream
from core_model.tokenizer import decode_tokens

Body = TypeVar("Body", CompletionRequest, ChatRequest)


def error_object(refusal: Refusal) -> dict[str, Any]:
    return {"error": {"message": refusal.message, "type": refusal.kind, "param": refusal.param, "code": refusal.status}}


class _Endpoint(ABC, Generic[Body]):
    """What completions and chats share: submit, follow, answer at once or in pieces."""

    kind: str
    piece_kind: str  # of one event of a stream
    prefix: str

    def __init__(self, service: Service, body: Body) -> None:
        """
        Raises:
            Refusal: another model than the one served, or prompts or parameters that cannot be.
        """
        served = service.settings.name
        if body.model not in ("", served):  # a client at the wrong server would take its answers for another model's
            raise Refusal(404, f"the model {body.model!r} is not served here; expected {served!r}", param="model")
        self.service, self.tokenizer = service, service.tokenizer
        self.body: Body = body
        self.id, self.created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())
        self.completion_tokens = self.reasoning_tokens = 0
        try:
            self.prompts, self.params = self.read()
        except ValueError as error:
            raise Refusal(400, str(error)) from error

    @abstractmethod
    def read(self) -> tuple[list[list[int]], SamplingParams]:
        """The prompts and parameters that the body asks for.

        Raises:
            ValueError: what cannot be.
        """

    @abstractmethod
    def piece(self, choice: int, delta: Delta) -> dict[str, Any]:
        """The choice of one event of a stream."""

    @abstractmethod
    def collect(self, choice: int, delta: Delta) -> None:
        """Take a delta into the answer that is given at once."""

    @abstractmethod
    def choices(self) -> list[dict[str, Any]]:
        """The choices of the answer that is given at once."""

    async def begin(self, watch: Watch) -> Job:
        """Hand the prompts in.

        Raises:
            Refusal: they cannot be taken.
        """
        return self.service.submit(self.prompts, self.params)

    async def answer(self, client: Request) -> Response:
        """
        Raises:
            Refusal: there is no answer.
        """
        # Who sends a stream looks after its client.
        watch = Watch(self.service.settings.timeout, None if self.body.stream else client)
        job = await self.begin(watch)
        self.service.metrics.tokens.labels("prompt").inc(self.prompt_tokens)
        if self.body.stream:
            return StreamingResponse(self._events(job, watch), media_type="text/event-stream")
        async for choice, delta in self.service.follow(job, watch):
            self.completion_tokens += len(delta.token_ids)
            self.collect(choice, delta)
        return JSONResponse(self._head(self.kind) | {"choices": self.choices(), "usage": self.usage()})

    async def _events(self, job: Job, watch: Watch) -> AsyncIterator[str]:
        try:
            async for choice, delta in self.service.follow(job, watch):
                self.completion_tokens += len(delta.token_ids)
                yield _event(self._head(self.piece_kind) | {"choices": [self.piece(choice, delta)]})
            if self.body.stream_options.include_usage:
                yield _event(self._head(self.piece_kind) | {"choices": [], "usage": self.usage()})
        except Refusal as refusal:
            yield _event(error_object(refusal))
        yield "data: [DONE]\n\n"

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.prompts))

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
class _Piece:
    """Tokens of a completion, and the text that they settled.

    offsets: where in the text each of them begins.
    """

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    top: list[Likeliest | None] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def add(self, more: _Piece) -> None:
        self.text += more.text
        self.tokens += more.tokens
        self.logprobs += more.logprobs
        self.top += more.top
        self.offsets += more.offsets
        self.finish_reason = more.finish_reason


@dataclass
class _Text:
    """A completion as it grows.

    stream: its text. places: the same, stop texts and all; `length` characters of it have been settled.
    """

    stream: TextStream
    places: TextStream
    length: int = 0
    whole: _Piece = field(default_factory=_Piece)

    def locate(self, tokens: Sequence[int], shown: Sequence[bool]) -> list[int]:
        """Where the next tokens begin in the text; those of one character all begin with it."""
        offsets = []
        for token, is_shown in zip(tokens, shown, strict=True):
            offsets.append(self.length)
            if is_shown:
                self.length += len(self.places.push([token]))
        return offsets


class Completions(_Endpoint[CompletionRequest]):
    kind = piece_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, service: Service, body: CompletionRequest) -> None:
        super().__init__(service, body)
        self.texts = [
            _Text(TextStream(self.tokenizer, body.stop), TextStream(self.tokenizer))
            for _ in range(len(self.prompts) * body.n)
        ]

    def read(self) -> tuple[list[list[int]], SamplingParams]:
        body = self.body
        prompts = body.prompts(self.tokenizer, self.service.engine.model.config.vocab_size)
        params = body.sampling(
            self.tokenizer,
            max(1, body.max_tokens),
            secrets.randbits(63),
            logprobs=body.logprobs is not None,
            top_logprobs=body.logprobs or 0,
            speculative=self.service.settings.speculative,
        )
        return prompts, params

    async def begin(self, watch: Watch) -> Job:
        only_echo = self.body.max_tokens == 0
        self.service.check(self.prompts, None if only_echo else self.params)
        if self.body.echo:
            await self._echo(watch)
        if not only_echo:
            return await super().begin(watch)
        for text in self.texts:
            text.whole.finish_reason = "length"
        return Job()

    async def _echo(self, watch: Watch) -> None:
        """Put the prompts, scored where that is asked for, before their completions."""
        wanted = self.body.logprobs
        scores = None if wanted is None else await self.service.score(self.prompts, wanted, watch)
        for index, text in enumerate(self.texts):
            prompt = self.prompts[index // self.body.n]
            text.whole.text = decode_tokens(self.tokenizer, prompt)
            if scores is None:
                continue
            scored = scores[index // self.body.n]
            text.whole.add(
                _Piece(
                    tokens=prompt,
                    logprobs=[None, *(own for own, _ in scored)],
                    top=[None, *(best for _, best in scored)],
                    offsets=text.locate(prompt, [True] * len(prompt)),
                )
            )
            # A character that the prompt leaves unfinished stays so, in the text too.
            text.length, text.places = len(text.whole.text), TextStream(self.tokenizer)

    def piece(self, choice: int, delta: Delta) -> dict[str, Any]:
        return self._shown(choice, self._grown(self.texts[choice], delta))

    def collect(self, choice: int, delta: Delta) -> None:
        text = self.texts[choice]
        text.whole.add(self._grown(text, delta))

    def _grown(self, text: _Text, delta: Delta) -> _Piece:
        shown = [token not in self.params.stop_ids for token in delta.token_ids]
        settled = text.stream.push([t for t, is_shown in zip(delta.token_ids, shown, strict=True) if is_shown])
        if delta.finish_reason is not None:
            settled += text.stream.finish()
        piece = _Piece(settled, finish_reason=delta.finish_reason)
        if self.params.logprobs:
            piece.tokens, piece.logprobs = delta.token_ids, [*delta.logprobs]
            piece.top = [*delta.top_logprobs] or [[] for _ in delta.token_ids]
            piece.offsets = text.locate(delta.token_ids, shown)
        return piece

    def choices(self) -> list[dict[str, Any]]:
        return [self._shown(choice, text.whole) for choice, text in enumerate(self.texts)]

    def _shown(self, choice: int, piece: _Piece) -> dict[str, Any]:
        logprobs = None
        if self.params.logprobs:
            words = [decode_tokens(self.tokenizer, [token]) for token in piece.tokens]
            logprobs = {
                "tokens": words,
                "token_logprobs": piece.logprobs,
                "top_logprobs": [
                    None if best is None else self._named(best, word, own)
                    for best, word, own in zip(piece.top, words, piece.logprobs, strict=True)
                ],
                "text_offset": piece.offsets,
            }
        return {"index": choice, "text": piece.text, "logprobs": logprobs, "finish_reason": piece.finish_reason}

    def _named(self, best: Likeliest, word: str, own: float | None) -> dict[str, float | None]:
        """The likeliest tokens by their text, and the one that stands there where it is not one of them."""
        named: dict[str, float | None] = {}
        for token, value in best:  # bytes of a broken character all read alike: the likeliest keeps the name
            named.setdefault(decode_tokens(self.tokenizer, [token]), value)
        named.setdefault(word, own)
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


class Chat(_Endpoint[ChatRequest]):
    kind, piece_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, service: Service, body: ChatRequest) -> None:
        super().__init__(service, body)
        self.replies = [_Reply(ReplyStream(self.tokenizer, body.stop)) for _ in range(body.n)]

    def read(self) -> tuple[list[list[int]], SamplingParams]:
        body = self.body
        prompt = body.rendered(self.tokenizer)
        params = body.sampling(
            self.tokenizer,
            self.service.room_for(prompt, body.limit),
            secrets.randbits(63),
            logprobs=body.logprobs,
            top_logprobs=body.top_logprobs,
            thinking=body.thinking(self.tokenizer),
            speculative=self.service.settings.speculative,
        )
        return [prompt], params

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
            # Null, not left out: clients read the attribute of any reply.
            message = {"role": "assistant", "content": reply.content, "reasoning_content": reply.reasoning or None}
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
