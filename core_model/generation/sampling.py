"""Choosing the next token of each row of a batch, every row by its own parameters and its own random stream.

Shape suffixes: B rows, W vocabulary.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from core_model.attention import ABSORBED_QUERIES


def _integer(name: str, value: object) -> int:
    """An int of any kind of integer; numpy's overflow where Python's do not."""
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError as error:
        raise ValueError(f"{name} is an integer, not {value!r}") from error


def _tokens(name: str, values: Iterable[object]) -> tuple[int, ...]:
    if not isinstance(values, Iterable):
        raise ValueError(f"{name} holds tokens, not {values!r}")
    return tuple(_integer(f"a token of {name}", value) for value in values)


@dataclass(frozen=True)
class ThinkingBudget:
    """Limits on the tokens of the (first) thought, its two tags not counted, kept by the engine and not by the model.

    Args:
        end_id: the token that ends a thought (`</think>`).
        max_tokens: when as many have been thought, `closing` is put into the text, and the model answers.
        closing: the tokens that end a thought and ask for the answer; must contain end_id.
        min_tokens: a thought that ends before, or whose sample a stop token would end, goes on: `extending` ("Wait")
            takes that token's place.
        extending: the tokens put there; needed with min_tokens.
        start_id: the token that begins a thought (`<think>`): only what follows it is limited, and a reply that has
            none is left alone; but with max_tokens of 0 the reply begins with start_id and `closing`. None where the
            prompt has opened the thought: the first token belongs to it.

    Raises:
        ValueError: a limit that cannot be kept.
    """

    end_id: int
    max_tokens: int | None = None
    closing: tuple[int, ...] = ()
    min_tokens: int = 0
    extending: tuple[int, ...] = ()
    start_id: int | None = None

    def __post_init__(self) -> None:
        for name in ("closing", "extending"):
            object.__setattr__(self, name, _tokens(name, getattr(self, name)))
        for name in ("end_id", "max_tokens", "min_tokens", "start_id"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _integer(f"a thought's {name}", value))
        if self.start_id == self.end_id:
            raise ValueError("a thought's start_id and end_id are two tokens")
        if self.max_tokens is not None and (self.max_tokens < 0 or self.end_id not in self.closing):
            raise ValueError("a thought's max_tokens is 0 or more, and its closing contains end_id")
        if self.min_tokens and (not self.extending or self.end_id in self.extending):
            raise ValueError("a thought's min_tokens needs tokens to extend it with, end_id not among them")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise ValueError(f"a thought of at least {self.min_tokens} and at most {self.max_tokens} tokens")

    @property
    def tokens(self) -> tuple[int, ...]:
        """All that it may put into a text."""
        opening = () if self.start_id is None else (self.start_id,)
        return (*opening, self.end_id, *self.closing, *self.extending)


@dataclass(frozen=True)
class SamplingParams:
    """How one prompt is continued.

    Args:
        max_new_tokens: limit on generated tokens, stop token included.
        temperature: 0 is greedy, and so is what is below 1e-4.
        top_p, top_k: nucleus and top-k limits; 1.0 and 0 turn them off.
        n: samples of the prompt.
        seed: the random numbers of sample i depend on (seed, i) alone, not on the batch around it.
        stop_ids: tokens that end a sample; the stop token is part of the completion.
        stop: texts that end a sample; the tokens that spell them are part of the completion.
        logprobs: return the log-probability of each token under softmax(logits / temperature); greedy: under the
            model's own distribution.
        raw_logprobs: return those of the model's own distribution, softmax(logits), at every temperature.
        top_logprobs: return as many of the likeliest tokens at every place, with theirs.
        speculative: most tokens drafted by the MTP module and checked in one pass. The sample is the same without.
        thinking: limits on the thought.
        routed_experts: return the experts that every token went to.

    Raises:
        ValueError: a value out of range.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    n: int = 1
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    logprobs: bool = False
    top_logprobs: int = 0
    speculative: int = 0
    thinking: ThinkingBudget | None = None
    routed_experts: bool = False
    raw_logprobs: bool = False

    def __post_init__(self) -> None:
        for name in ("max_new_tokens", "top_k", "n", "seed", "top_logprobs", "speculative"):
            object.__setattr__(self, name, _integer(name, getattr(self, name)))
        object.__setattr__(self, "stop_ids", _tokens("stop_ids", self.stop_ids))
        if isinstance(self.stop, str) or not isinstance(self.stop, Iterable):
            raise ValueError(f"stop holds texts, and is none itself, not {self.stop!r}")
        object.__setattr__(self, "stop", tuple(self.stop))
        if not all(isinstance(text, str) for text in self.stop):
            raise ValueError(f"stop holds texts, not {self.stop!r}")
        if self.max_new_tokens < 1 or self.n < 1:
            raise ValueError(f"max_new_tokens and n must be at least 1, not {self.max_new_tokens} and {self.n}")
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.top_k >= 0):
            raise ValueError(f"temperature >= 0, 0 < top_p <= 1, top_k >= 0 are needed; got {self}")
        if not 0 <= self.speculative < ABSORBED_QUERIES:
            raise ValueError(f"from 0 to {ABSORBED_QUERIES - 1} tokens can be drafted, not {self.speculative}")
        if self.top_logprobs < 0:
            raise ValueError(f"top_logprobs is 0 or more, not {self.top_logprobs}")
        if "" in self.stop:
            raise ValueError("an empty text cannot end a sample")


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: a bijection of 64-bit words whose outputs look independent."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


GAMMA = np.uint64(0x9E3779B97F4A7C15)


def stream(seed: int, sample: int) -> np.uint64:
    """The 64-bit key of one sample's random numbers."""
    word = np.array([seed % 2**64], dtype=np.uint64)  # arrays wrap around in silence, scalars warn
    return _mix(_mix(word + GAMMA) + GAMMA * np.array([sample + 1], dtype=np.uint64))[0]


def uniforms(streams: np.ndarray, counters: np.ndarray) -> Tensor:
    """The `counters[i]`-th uniform in [0, 1) of stream i, fp64 [B]."""
    words = _mix(streams + GAMMA * (counters.astype(np.uint64) + np.uint64(1)))
    return torch.from_numpy((words >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def restrict(logits_BW: Tensor, top_p_B: Tensor, top_k_B: Tensor) -> Tensor:
    """-inf on tokens outside each row's top-k (0: all) and then outside its nucleus of mass top_p."""
    ordered, index = logits_BW.sort(dim=-1, descending=True, stable=True)
    rank = torch.arange(logits_BW.shape[-1], device=logits_BW.device)
    limit = torch.where(top_k_B > 0, top_k_B, logits_BW.shape[-1])
    ordered = ordered.masked_fill(rank >= limit[:, None], float("-inf"))
    probs = ordered.softmax(dim=-1)
    before = probs.cumsum(dim=-1) - probs  # a token stays if the mass before it has not reached top_p
    ordered = ordered.masked_fill((before >= top_p_B[:, None]) & (rank > 0), float("-inf"))
    return torch.empty_like(ordered).scatter_(1, index, ordered)


def choose(logits_BW: Tensor, temperature_B: Tensor, top_p_B: Tensor, top_k_B: Tensor, uniform_B: Tensor) -> Tensor:
    """Next token [B]. Sampling inverts the cumulative distribution at `uniform_B`, in fp64."""
    greedy_B = temperature_B == 0
    scaled = _scaled(logits_BW, temperature_B)
    kept = scaled
    if bool((top_p_B < 1).any() or (top_k_B > 0).any()):
        kept = restrict(scaled, top_p_B, top_k_B)
    cdf = kept.double().softmax(dim=-1).cumsum(dim=-1)
    drawn = torch.searchsorted(cdf, (uniform_B.to(cdf.device) * cdf[:, -1])[:, None], right=True).squeeze(1)
    return torch.where(greedy_B, scaled.argmax(dim=-1), drawn.clamp_max(logits_BW.shape[-1] - 1))


def logprobs_of(tokens_B: Tensor, logits_BW: Tensor, temperature_B: Tensor) -> Tensor:
    """Log-probability [B] of each token under softmax(logits / temperature); greedy rows use temperature 1."""
    scaled = _scaled(logits_BW, temperature_B)
    return scaled.gather(1, tokens_B[:, None]).squeeze(1) - scaled.logsumexp(dim=-1)


def likeliest(logits_BW: Tensor, temperature_B: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` likeliest tokens of every row, [B, count], and their log-probabilities, as in `logprobs_of`."""
    values, tokens = _scaled(logits_BW, temperature_B).log_softmax(dim=-1).topk(min(count, logits_BW.shape[-1]), dim=-1)
    return tokens, values


def token_scores(logits_NW: Tensor, tokens_N: Tensor, top: int) -> list[tuple[float, list[tuple[int, float]]]]:
    """The log-probability of each token under its place's logits, and the `top` likeliest there."""
    logprobs_NW = logits_NW.float().log_softmax(dim=-1)
    own = logprobs_NW.gather(1, tokens_N[:, None]).squeeze(1).tolist()
    best = pairs(*reversed(logprobs_NW.topk(min(top, logprobs_NW.shape[1]), dim=-1)))
    return list(zip(own, best, strict=True))


def _scaled(logits_BW: Tensor, temperature_B: Tensor) -> Tensor:
    return logits_BW.float() / torch.where(temperature_B == 0, 1.0, temperature_B)[:, None]


def pairs(tokens: Tensor, values: Tensor) -> list[list[tuple[int, float]]]:
    """[N, K] each, as a list of pairs for each of N places."""
    return [list(zip(*place, strict=True)) for place in zip(tokens.tolist(), values.tolist(), strict=True)]
