"""The engine behind the endpoints: one thread drives it; requests hand their prompts in and are told of every token.

What takes too long, or is no longer waited for by its client, is aborted, and its rows serve others.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from core_model.generation.generator import check_length
from core_model.generation.request import Delta, Listener, Scores
from core_model.generation.request import Request as EngineRequest
from core_model.generation.sampling import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from core_model.generation.engine import Engine

PATIENCE = 0.25  # seconds between two looks at whether a client is still there

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServerSettings:
    """What the server allows.

    name: the model's, for clients. api_key: None lets everybody in. max_waiting: samples that may wait for a row, and
    prompts for their scores. max_body: bytes of a request. timeout: seconds a request may take, once it is there.
    body_timeout: seconds its body may take to arrive. speculative: drafts a pass.
    """

    name: str
    api_key: str | None = None
    max_waiting: int = 1024
    max_body: int = 4_000_000
    timeout: float = 600.0
    body_timeout: float = 30.0
    speculative: int = 0


class Refusal(Exception):
    """A request that is answered with an error; `param` is the field at fault, where there is one."""

    def __init__(
        self, status: int, message: str, kind: str = "invalid_request_error", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param = status, message, kind, param


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


class Watch:
    """One request's time, from now on, and whether its client is still there.

    Args:
        limit: seconds it may take.
        client: looked after now and then; None where somebody else does.
    """

    def __init__(self, limit: float, client: Request | None = None) -> None:
        self._limit, self._client = limit, client
        self._started = self._looked = time.monotonic()

    async def look(self) -> None:
        """
        Raises:
            Refusal: it took too long, or the client left.
        """
        now = time.monotonic()
        if now - self._started > self._limit:
            raise Refusal(504, f"not finished within {self._limit:g} s", "timeout_error")
        if self._client is not None and now - self._looked > PATIENCE:
            self._looked = now
            if await self._client.is_disconnected():
                raise Refusal(499, "the client has gone")


class Service:
    """The engine behind the endpoints.

    Methods are for the event loop's thread, but `stop`, which is for any.
    """

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerFast, settings: ServerSettings) -> None:
        self.engine, self.tokenizer, self.settings = engine, tokenizer, settings
        self.scoring = 0  # prompts that wait for their scores
        self.metrics = Metrics(self)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._scorer: ThreadPoolExecutor | None = None

    @property
    def alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    @property
    def stopping(self) -> bool:
        return self._stop.is_set()

    def start(self) -> None:
        """Begin to serve; without effect while it serves already. After `stop` it may begin again."""
        if self.alive:
            return
        self._stop.clear()
        # One, so that it and the engine's thread take turns.
        self._scorer = ThreadPoolExecutor(1, "scorer")
        self._thread = threading.Thread(target=self.engine.drive, args=(self._stop,), name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End what runs and wait for the threads; once more does nothing."""
        self._stop.set()
        self.engine.wake()
        if self._thread is not None:
            self._thread.join()
        if self._scorer is not None:
            self._scorer.shutdown()

    async def end(self) -> None:
        """`stop`, while the event loop goes on: in a thread of its own, since those of a pool may all be busy."""
        with ThreadPoolExecutor(1, "stop") as own:
            await asyncio.get_running_loop().run_in_executor(own, self.stop)

    def check(self, prompts: Sequence[list[int]], params: SamplingParams | None) -> None:
        """Whether the prompts can be continued, or scored where there are no parameters, and there is room for that.

        Raises:
            Refusal: they do not fit into the model, or too many wait already.
        """
        try:
            for number, prompt in enumerate(prompts):
                if params is None:
                    check_length(prompt, self.engine.max_tokens, f"prompt {number}: ")
                else:
                    self.engine.check(prompt, params, f"prompt {number}: ")
        except ValueError as error:
            raise Refusal(400, str(error)) from error
        most, count = self.settings.max_waiting, len(prompts) * (params.n if params else 1)
        if not self.alive:
            raise Refusal(503, "the engine has stopped", "server_error")
        if count > most:
            raise Refusal(400, f"a request asks for at most {most} samples")
        if self.engine.load[1] + self.scoring + count > most:
            raise Refusal(429, f"{most} samples are waiting already; try later", "overloaded_error")

    def submit(self, prompts: Sequence[list[int]], params: SamplingParams) -> Job:
        """Hand in the prompts of one request.

        Raises:
            Refusal: as `check`.
        """
        self.check(prompts, params)
        loop, job = asyncio.get_running_loop(), Job()

        def listener(first_choice: int) -> Listener:
            def tell(delta: Delta) -> None:
                with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                    loop.call_soon_threadsafe(job.news.put_nowait, (first_choice + delta.index, delta))

            return tell

        for prompt in prompts:
            job.requests.append(self.engine.submit(prompt, params, listener(job.choices)))
        return job

    async def follow(self, job: Job, watch: Watch) -> AsyncIterator[tuple[int, Delta]]:
        """What a job is told until all its choices have ended; it is aborted when nobody follows it any more.

        Raises:
            Refusal: it took too long, the client left, or the server is stopping.
        """
        left = job.choices
        try:
            while left:
                await watch.look()
                try:
                    choice, delta = await asyncio.wait_for(job.news.get(), PATIENCE)
                except TimeoutError:
                    if not self.alive:  # it stopped between the request's coming and its being taken up
                        raise self._stopped() from None
                    continue
                if delta.finish_reason == "abort":
                    raise self._stopped() if self.stopping else self._failed("generation")
                self.metrics.tokens.labels("generated").inc(len(delta.token_ids))
                left -= delta.finish_reason is not None
                yield choice, delta
        finally:
            job.abort()  # without effect on what has ended

    async def score(self, prompts: Sequence[list[int]], top: int, watch: Watch) -> list[Scores]:
        """The scores of the prompts' tokens, and the `top` likeliest at every place.

        Raises:
            Refusal: as `check` and `follow`; the rest of it is then not scored.
        """
        self.check(prompts, None)
        assert self._scorer is not None  # `check` has found that it has started
        loop, given_up = asyncio.get_running_loop(), threading.Event()
        try:
            work = loop.run_in_executor(self._scorer, self._score, [*prompts], top, given_up)
        except RuntimeError as error:  # stopped since: the scorer takes no more
            raise self._stopped() from error
        self.scoring += len(prompts)
        try:
            while not work.done():
                await watch.look()
                if self.stopping:
                    raise self._stopped()
                await asyncio.wait({work}, timeout=PATIENCE)
            scores = work.result()
            if scores is None:
                raise self._stopped() if self.stopping else self._failed("scoring")
            return scores
        finally:
            given_up.set()
            self.scoring -= len(prompts)

    def _score(self, prompts: list[list[int]], top: int, given_up: threading.Event) -> list[Scores] | None:
        """The scorer's work, in its thread; None where it failed, was given up or the server is stopping."""
        scored: dict[int, Scores] = {}
        try:
            batches = self.engine.score_batches(prompts, top)
            while len(scored) < len(prompts) and not (given_up.is_set() or self.stopping):
                scored.update(next(batches))
        except Exception:
            log.exception("scoring failed; the request is refused")
            return None
        return [scored[number] for number in range(len(prompts))] if len(scored) == len(prompts) else None

    def room_for(self, prompt: list[int], wanted: int | None) -> int:
        """New tokens for a prompt: as many as wanted, or as fit."""
        return max(1, self.engine.max_tokens - len(prompt)) if wanted is None else wanted

    def _stopped(self) -> Refusal:
        return Refusal(503, "the server is stopping", "server_error")

    def _failed(self, what: str) -> Refusal:
        return Refusal(503, f"{what} failed; try again, or ask for less", "server_error")


class Metrics:
    """What `/metrics` shows, in a registry of its own."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("trivium_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self.tokens = Counter("trivium_tokens", "Tokens read and generated", ["kind"], registry=self.registry)
        self.seconds = Histogram(
            "trivium_request_seconds",
            "Time until a request was answered whole, of those that were not refused",
            registry=self.registry,
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
        )
        running = Gauge("trivium_samples_running", "Samples being generated", registry=self.registry)
        running.set_function(lambda: service.engine.load[0])
        waiting = Gauge("trivium_samples_waiting", "Samples waiting for a row", registry=self.registry)
        waiting.set_function(lambda: service.engine.load[1])
        scoring = Gauge("trivium_prompts_scoring", "Prompts waiting for their scores", registry=self.registry)
        scoring.set_function(lambda: service.scoring)
