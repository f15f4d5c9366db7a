"""A batched generation engine: one prefill per distinct prompt, absorbed decoding, continuous batching.

Shape suffixes: B rows in use, T tokens, W vocabulary.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from core_model.cache import LatentCache
from core_model.generation.sampling import SamplingParams, choose, stream, uniforms
from core_model.model import V3ForCausalLM


@dataclass(frozen=True)
class Completion:
    """One sample: its tokens (stop token included), their log-probabilities when asked for, and why it ended."""

    token_ids: list[int]
    logprobs: list[float] | None
    finish_reason: Literal["stop", "length"]


@dataclass(frozen=True)
class _Sample:
    """One sample still to be generated: of request `request`, its `index`-th."""

    request: int
    index: int
    params: SamplingParams


class _Rows:
    """The samples being generated, row i of every array belonging to row i of the cache."""

    def __init__(self, max_rows: int, max_new: int) -> None:
        self.samples: list[_Sample] = []
        self.length = np.zeros(max_rows, dtype=np.int64)  # tokens in the sequence, prompt included
        self.made = np.zeros(max_rows, dtype=np.int64)
        self.streams = np.zeros(max_rows, dtype=np.uint64)
        self.limit = np.zeros(max_rows, dtype=np.int64)
        self.settings = np.zeros((max_rows, 3), dtype=np.float32)  # temperature, top_p, top_k
        self.tokens = np.zeros((max_rows, max_new), dtype=np.int64)
        self.logprobs = np.zeros((max_rows, max_new), dtype=np.float32)

    def __len__(self) -> int:
        return len(self.samples)

    def add(self, sample: _Sample, prompt_length: int) -> None:
        row, params = len(self.samples), sample.params
        self.samples.append(sample)
        self.length[row], self.made[row], self.limit[row] = prompt_length, 0, params.max_new_tokens
        self.streams[row] = stream(params.seed, sample.index)
        self.settings[row] = params.temperature, params.top_p, params.top_k

    def move(self, source: int, target: int) -> None:
        self.samples[target] = self.samples[source]
        for array in (self.length, self.made, self.streams, self.limit, self.settings, self.tokens, self.logprobs):
            array[target] = array[source]

    def completion(self, row: int) -> Completion:
        made, params = int(self.made[row]), self.samples[row].params
        tokens = self.tokens[row, :made].tolist()
        return Completion(
            tokens,
            self.logprobs[row, :made].tolist() if params.logprobs else None,
            "stop" if tokens[-1] in params.stop_ids else "length",
        )


class Engine:
    """Generates with a `V3ForCausalLM`, many samples at once.

    Args:
        model: shared, not copied, when `dtype` is its own; then weights are always current.
        tokenizer: kept for callers; the engine works on token ids.
        max_batch: rows decoded together.
        max_tokens: longest sequence, prompt included; default the model's max_position_embeddings.
        dtype: of activations and cache; default the parameters' own. Another dtype makes a copy of the weights,
            which `refresh_weights` renews.
        device: default the model's own.
        deterministic: one row at a time, so that a sample is bitwise the same whatever else is generated; slow.
    """

    def __init__(
        self,
        model: V3ForCausalLM,
        tokenizer: Any = None,
        *,
        max_batch: int = 64,
        max_tokens: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        deterministic: bool = False,
    ) -> None:
        self.source, self.tokenizer = model, tokenizer
        self.dtype = dtype or model.dtype
        self.device = torch.device(device) if device is not None else model.device
        self.max_batch = 1 if deterministic else max_batch
        self.max_tokens = max_tokens or model.config.max_position_embeddings
        shared = self.dtype == model.dtype and self.device == model.device
        self.model = model if shared else copy.deepcopy(model).to(self.device)  # type: ignore[arg-type]
        self.refresh_weights()
        self._cache: LatentCache | None = None

    def refresh_weights(self) -> None:
        """Take over the source model's weights and routing biases after an update."""
        if self.model is not self.source:
            self.model.load_state_dict(self.source.state_dict())
            for name, parameter in self.model.named_parameters():
                if "norm" not in name and not name.endswith("gate.weight"):
                    parameter.data = parameter.data.to(self.dtype)

    @contextmanager
    def _inference(self) -> Iterator[None]:
        training, compute = self.model.training, self.model.compute_dtype
        self.model.eval()
        self.model.compute_dtype = self.dtype
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(training)
            self.model.compute_dtype = compute

    def generate(
        self, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]
    ) -> list[list[Completion]]:
        """Continue every prompt; result[i] holds the `n` samples of prompt i.

        Raises:
            ValueError: an empty prompt, a prompt that leaves no room below `max_tokens`, or lists of unequal length.
        """
        settings = params if isinstance(params, list) else [params] * len(prompts)
        self._check(prompts, settings)
        results: list[list[Completion | None]] = [[None] * p.n for p in settings]
        waiting = deque(
            _Sample(i, j, p)
            for i, p in sorted(enumerate(settings), key=lambda x: len(prompts[x[0]]))
            for j in range(p.n)
        )
        if not waiting:
            return []
        longest = max(len(prompt) + p.max_new_tokens for prompt, p in zip(prompts, settings, strict=True))
        with self._inference():
            cache = self._reserve(min(self.max_batch, len(waiting)), longest)
            rows = _Rows(self.max_batch, max(p.max_new_tokens for p in settings))
            logits = torch.empty(0)
            while waiting or len(rows):
                free = self.max_batch - len(rows)
                if waiting and (len(rows) == 0 or free >= max(1, self.max_batch // 4)):
                    taken = [waiting.popleft() for _ in range(min(free, len(waiting)))]
                    fresh = self._prefill(cache, rows, taken, prompts)
                    logits = torch.cat((logits, fresh)) if len(logits) else fresh
                self._advance(rows, logits)
                for sample, completion in self._retire(cache, rows):
                    results[sample.request][sample.index] = completion
                logits = self._decode(cache, rows) if len(rows) else torch.empty(0)
        return [[c for c in completions if c is not None] for completions in results]

    def _check(self, prompts: list[list[int]], settings: list[SamplingParams]) -> None:
        if len(prompts) != len(settings):
            raise ValueError(f"{len(prompts)} prompts but {len(settings)} sampling parameters")
        for i, (prompt, params) in enumerate(zip(prompts, settings, strict=True)):
            if not prompt:
                raise ValueError(f"prompt {i} is empty")
            if len(prompt) + params.max_new_tokens > self.max_tokens:
                raise ValueError(
                    f"prompt {i}: {len(prompt)} tokens and {params.max_new_tokens} new ones exceed {self.max_tokens}"
                )

    def _reserve(self, rows: int, positions: int) -> LatentCache:
        """The cache, kept between calls while it is large enough."""
        kept = self._cache
        if kept is None or kept.buffer_LBSC.shape[1] < rows or kept.buffer_LBSC.shape[2] < positions:
            rows = max(rows, kept.buffer_LBSC.shape[1]) if kept else rows
            positions = max(positions, kept.buffer_LBSC.shape[2]) if kept else positions
            self._cache = LatentCache(self.model.config, rows, positions, self.dtype, self.device)
        assert self._cache is not None
        return self._cache

    def _forward(self, cache: LatentCache, first_row: int, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Normed states [B, T, D] of rows from `first_row` on, their latents stored."""
        cache.begin(first_row, position_ids)
        return self.model.model(input_ids, position_ids=position_ids, past_key_values=cache).last_hidden_state

    def _prefill(self, cache: LatentCache, rows: _Rows, taken: list[_Sample], prompts: list[list[int]]) -> Tensor:
        """Admit samples: one row each, one forward per distinct prompt; logits [len(taken), W] of the next token."""
        first = len(rows)
        distinct: dict[tuple[int, ...], int] = {}
        for sample in taken:
            distinct.setdefault(tuple(prompts[sample.request]), len(distinct))
        longest = max(map(len, distinct))
        input_ids = torch.zeros(len(distinct), longest, dtype=torch.long)
        for prompt, i in distinct.items():
            input_ids[i, : len(prompt)] = torch.tensor(prompt)
        last = torch.tensor([len(prompt) - 1 for prompt in distinct], device=self.device)
        position_ids = torch.arange(longest, device=self.device).expand(len(distinct), -1)
        hidden = self._forward(cache, first, input_ids.to(self.device), position_ids)
        logits = self.model.lm_head(hidden[torch.arange(len(distinct), device=self.device), last]).float()
        source = torch.tensor([distinct[tuple(prompts[s.request])] for s in taken], device=self.device)
        if len(distinct) < len(taken):  # samples of one prompt: copy its row
            filled = cache.buffer_LBSC[:, first : first + len(taken), :longest]
            filled.copy_(cache.buffer_LBSC[:, first + source, :longest])
        for sample in taken:
            rows.add(sample, len(prompts[sample.request]))
        return logits[source]

    def _advance(self, rows: _Rows, logits_BW: Tensor) -> None:
        """Choose one token for every row."""
        count = len(rows)
        settings = torch.from_numpy(rows.settings[:count]).to(logits_BW.device)
        uniform = uniforms(rows.streams[:count], rows.made[:count])
        tokens, logprobs = choose(logits_BW, settings[:, 0], settings[:, 1], settings[:, 2].long(), uniform)
        index = np.arange(count)
        rows.tokens[index, rows.made[:count]] = tokens.cpu().numpy()
        rows.logprobs[index, rows.made[:count]] = logprobs.cpu().numpy()
        rows.made[:count] += 1

    def _retire(self, cache: LatentCache, rows: _Rows) -> Iterator[tuple[_Sample, Completion]]:
        """Yield finished samples and close their gaps with the last rows."""
        for row in reversed(range(len(rows))):
            token = rows.tokens[row, rows.made[row] - 1]
            if rows.made[row] < rows.limit[row] and token not in rows.samples[row].params.stop_ids:
                continue
            yield rows.samples[row], rows.completion(row)
            last = len(rows) - 1
            if row != last:
                rows.move(last, row)
                cache.move(last, row)
            rows.samples.pop()

    def _decode(self, cache: LatentCache, rows: _Rows) -> Tensor:
        """One token further for every row; logits [B, W]."""
        count = len(rows)
        newest = rows.tokens[np.arange(count), rows.made[:count] - 1]
        input_ids = torch.from_numpy(newest[:, None]).to(self.device)
        position_ids = torch.from_numpy(rows.length[:count, None].copy()).to(self.device)
        rows.length[:count] += 1
        return self.model.lm_head(self._forward(cache, 0, input_ids, position_ids)[:, 0]).float()
