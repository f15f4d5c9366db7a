"""A request to an engine: what was asked, what has come back, and the samples on their way."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from core_model.generation.sampling import SamplingParams, ThinkingBudget

log = logging.getLogger(__name__)

FinishReason = Literal["stop", "length", "abort"]
Likeliest = list[tuple[int, float]]  # tokens and their log-probabilities, the likeliest first
Scores = list[tuple[float, Likeliest]]  # of every token but the first: its log-probability, the likeliest there


@dataclass(frozen=True)
class Completion:
    """One sample.

    token_ids: stop token included. logprobs: theirs, when asked for. top_logprobs: at every place the likeliest tokens,
    when asked for. finish_reason: a stop token or text, the limit, or `abort`. accepted_drafts of proposed_drafts came
    from the MTP module. routed_experts: int16 [positions, MoE layers, K], of the prompt and all tokens but the last,
    when asked for.
    """

    token_ids: list[int]
    logprobs: list[float] | None
    finish_reason: FinishReason
    accepted_drafts: int = 0
    proposed_drafts: int = 0
    routed_experts: np.ndarray | None = None
    top_logprobs: list[Likeliest] | None = None


@dataclass(frozen=True)
class Delta:
    """What one pass added to sample `index` of a request, the log-probabilities if it asked for them.

    The last one of a sample has its finish_reason.
    """

    index: int
    token_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason | None
    top_logprobs: list[Likeliest] = field(default_factory=list)


Listener = Callable[[Delta], None]


class Request:
    """A prompt on its way through an engine; `Engine.submit` makes it.

    May be used by another thread than the engine's.
    """

    def __init__(
        self, prompt: list[int], params: SamplingParams, advance: Callable[[], bool | None], stream: bool | Listener
    ) -> None:
        """
        Args:
            advance: makes the engine take a step, and says whether there was one to take; None where another thread
                does that.
            stream: whether `stream` will be read; or who is told, by the thread that takes the steps.
        """
        self.prompt, self.params = prompt, params
        self.completions: list[Completion | None] = [None] * params.n
        self.aborted = False
        self._advance = advance
        self._news: queue.SimpleQueue[Delta] | None = queue.SimpleQueue() if stream is True else None
        self._listener: Listener | None = stream if callable(stream) else self._news.put if self._news else None
        self._left = params.n  # samples that have not ended
        self._told = 0  # samples whose end `stream` has given out
        self._finished = threading.Event()

    @property
    def done(self) -> bool:
        """Whether every sample has ended."""
        return self._left == 0

    def abort(self) -> None:
        """End all samples at the engine's next step, or when their prompt has been read; their rows serve others."""
        self.aborted = True

    def stream(self) -> Iterator[Delta]:
        """What is generated, pass by pass, until every sample has ended.

        Raises:
            ValueError: the request was not submitted to be streamed.
        """
        if self._news is None:
            raise ValueError("submit the request with stream=True to read it as it grows")
        while self._told < self.params.n:
            while self._news.empty() and self._step(ended=False):
                pass
            delta = self._news.get()
            self._told += delta.finish_reason is not None
            yield delta

    def result(self) -> list[Completion]:
        """The completions, waited for."""
        while not self.done and self._step(ended=True):
            pass
        self._finished.wait()
        return [completion for completion in self.completions if completion is not None]

    def _step(self, ended: bool) -> bool:
        """Make the engine take a step; False where another thread does that, which is then waited for.

        Raises:
            RuntimeError: it has nothing left to do, and yet the samples have not `ended`, or there are no news.
        """
        advanced = self._advance()
        if advanced is False and (not self.done if ended else self._news is not None and self._news.empty()):
            raise RuntimeError("the engine has nothing to do and yet owes completions")
        return advanced is not None

    @property
    def streams(self) -> bool:
        return self._listener is not None

    def tell(self, delta: Delta) -> None:
        if self._listener is None:
            return
        try:
            self._listener(delta)
        except Exception:  # its fault alone: others are in the same step
            log.exception("a listener failed; its request is aborted")
            self._listener = None
            self.abort()

    def finish(self, index: int, completion: Completion) -> None:
        self.completions[index] = completion
        self._left -= 1
        if self.done:
            self._finished.set()


@dataclass(eq=False)
class Sample:
    """Sample `index` of a request while it is generated.

    decode: tokens -> text, for stop texts.
    """

    request: Request
    index: int
    decode: Callable[[list[int]], str] | None = None
    unopened: bool = False  # the budget waits for the token that begins the thought
    thinking: bool = False
    thought: int = 0  # tokens of the thought so far
    closing: bool = False  # the budget is ending it
    forced: deque[int] = field(default_factory=deque)
    tail: list[int] = field(default_factory=list)  # the latest tokens, as many as a stop text can take
    routed: list[np.ndarray] = field(default_factory=list)  # [positions, layers, K] each
    top: list[Likeliest] = field(default_factory=list)

    def __post_init__(self) -> None:
        budget = self.params.thinking
        self.unopened = budget is not None and budget.start_id is not None
        self.thinking = budget is not None and budget.start_id is None

    @property
    def params(self) -> SamplingParams:
        return self.request.params

    @property
    def watched(self) -> bool:
        """Whether its tokens have to be looked at one by one."""
        return self.unopened or self.thinking or bool(self.forced) or bool(self.params.stop)

    def settle(self, chosen: int) -> int:
        """The token that follows, given the one the model chose: the same, or one that the budget puts there."""
        budget = self.params.thinking
        if budget is None:
            return chosen
        token = self._budgeted(chosen, budget)
        if self.unopened:
            self.unopened = token != budget.start_id
            self.thinking = not self.unopened
        elif self.thinking:
            self.thinking = token != budget.end_id
            self.thought += self.thinking
        return token

    def _budgeted(self, chosen: int, budget: ThinkingBudget) -> int:
        if self.unopened and budget.start_id is not None and budget.max_tokens == 0 and not self.closing:
            # No thought at all: an empty one stands first, so that the model answers and does not begin one later.
            self.closing, self.forced = True, deque((budget.start_id, *budget.closing))
        elif self.thinking and not self.closing:
            ends = chosen == budget.end_id or chosen in self.params.stop_ids
            if budget.max_tokens is not None and self.thought >= budget.max_tokens:
                self.closing, self.forced = True, deque(budget.closing)
            elif not self.forced and ends and self.thought < budget.min_tokens:
                self.forced.extend(budget.extending)
        return self.forced.popleft() if self.forced else chosen

    def ends_with_stop(self, token: int) -> bool:
        """Whether the text, with this token, has come to spell a stop text."""
        if not self.params.stop or self.decode is None:
            return False
        # A token spells at least a byte, a character at most four.
        longest = 4 * max(len(text) for text in self.params.stop)
        self.tail = [*self.tail, token][-longest - 4 :]
        text = self.decode(self.tail)
        return any(stop in text for stop in self.params.stop)
