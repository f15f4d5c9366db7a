"""The samples being generated, as arrays: row i of each belongs to row i of the cache.

Shape suffixes: B rows in use, K drafts, J = K + 1 tokens that one pass can settle.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from core_model.generation.request import Completion, FinishReason, Sample
from core_model.generation.sampling import stream

COLDEST = 1e-4  # temperature below which sampling is greedy
LARGEST_TOP_K = 2**24  # fp32 has every whole number up to it, and no vocabulary is larger


class Rows:
    """State of up to `max_rows` samples."""

    def __init__(self, max_rows: int) -> None:
        self.samples: list[Sample] = []
        self.length = np.zeros(max_rows, dtype=np.int64)  # tokens whose latents are in the cache
        self.made = np.zeros(max_rows, dtype=np.int64)
        self.limit = np.zeros(max_rows, dtype=np.int64)
        self.streams = np.zeros(max_rows, dtype=np.uint64)
        self.settings = np.zeros((max_rows, 3), dtype=np.float32)  # temperature, top_p, top_k
        self.tokens = np.zeros((max_rows, 0), dtype=np.int64)
        self.logprobs = np.zeros((max_rows, 0), dtype=np.float32)
        self.wanted = np.zeros(max_rows, dtype=np.int64)  # drafts a pass, 0 once drafting is given up
        self.drafts = np.zeros((max_rows, 0), dtype=np.int64)  # -1 where there is none
        self.accepted = np.zeros(max_rows, dtype=np.int64)
        self.proposed = np.zeros(max_rows, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.samples)

    def make_room(self, new_tokens: int, drafts: int) -> None:
        """Make the arrays wide enough for samples of `new_tokens` and as many drafts a pass."""
        if not self.samples:  # what earlier samples wanted is let go
            self.drafts = self.drafts[:, :0]
        self.tokens = _widened(self.tokens, new_tokens, 0)
        self.logprobs = _widened(self.logprobs, new_tokens, 0)
        self.drafts = _widened(self.drafts, drafts, -1)

    def add(self, sample: Sample) -> None:
        """The next row, its prompt in the cache."""
        row, params = len(self.samples), sample.params
        self.samples.append(sample)
        self.length[row], self.made[row], self.limit[row] = len(sample.request.prompt), 0, params.max_new_tokens
        self.streams[row] = stream(params.seed, sample.index)
        # Dividing by less overflows: so cold, only the likeliest token is left.
        temperature = params.temperature if params.temperature >= COLDEST else 0.0
        self.settings[row] = temperature, params.top_p, min(params.top_k, LARGEST_TOP_K)
        self.wanted[row], self.accepted[row], self.proposed[row] = params.speculative, 0, 0
        self.drafts[row] = -1

    def pop(self, row: int) -> tuple[Sample, int]:
        """Take a sample out and put the last row in its place; returns it and the row that was moved."""
        sample, last = self.samples[row], len(self.samples) - 1
        if row != last:
            self.samples[row] = self.samples[last]
            for array in self._arrays():
                array[row] = array[last]
        self.samples.pop()
        return sample, last

    def completion(self, row: int, reason: FinishReason) -> Completion:
        made, sample = int(self.made[row]), self.samples[row]
        routed = np.concatenate(sample.routed)[: len(sample.request.prompt) + made - 1] if sample.routed else None
        return Completion(
            self.tokens[row, :made].tolist(),
            self.logprobs[row, :made].tolist() if sample.params.logprobs else None,
            reason,
            int(self.accepted[row]),
            int(self.proposed[row]),
            routed,
            sample.top if sample.params.top_logprobs else None,
        )

    def newest(self) -> np.ndarray:
        """[B]: the latest token of every row, the one that is not in the cache yet."""
        count = len(self)
        return self.tokens[np.arange(count), self.made[:count] - 1]

    def append(self, tokens_BJ: np.ndarray, logprobs_BJ: np.ndarray, taken_B: np.ndarray) -> None:
        """Add the first `taken_B` of each row's tokens."""
        for column in range(tokens_BJ.shape[1]):
            rows = np.flatnonzero(taken_B > column)
            self.tokens[rows, self.made[rows] + column] = tokens_BJ[rows, column]
            self.logprobs[rows, self.made[rows] + column] = logprobs_BJ[rows, column]
        self.made[: len(self)] += taken_B

    def stop_tokens(self, tokens_BJ: np.ndarray) -> np.ndarray:
        """bool [B, J]: which of these tokens end their row's sample."""
        stops = np.zeros(tokens_BJ.shape, dtype=bool)
        alike: dict[tuple[int, ...], list[int]] = {}
        for row, sample in enumerate(self.samples):
            alike.setdefault(sample.params.stop_ids, []).append(row)
        for stop_ids, rows in alike.items():
            if stop_ids:
                stops[rows] = np.isin(tokens_BJ[rows], stop_ids)
        return stops

    def on_device(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Temperature, top_p and top_k, [B] each."""
        settings = torch.from_numpy(self.settings[: len(self)]).to(device)
        return settings[:, 0], settings[:, 1], settings[:, 2].long()

    def _arrays(self) -> Iterator[np.ndarray]:
        yield from (self.length, self.made, self.limit, self.streams, self.settings, self.tokens, self.logprobs)
        yield from (self.wanted, self.drafts, self.accepted, self.proposed)


def _widened(array: np.ndarray, columns: int, fill: int) -> np.ndarray:
    if array.shape[1] >= columns:
        return array
    wider = np.full((array.shape[0], columns), fill, dtype=array.dtype)
    wider[:, : array.shape[1]] = array
    return wider


def abort_not_finite(logits: Tensor, samples: Sequence[Sample]) -> None:
    """Abort the requests of samples, one for each row of [B, ..., W], whose logits are not finite: tokens would come of
    them, and look like any others.

    Raises:
        FloatingPointError: some were not; the engine's next step goes on with the rest.
    """
    finite = logits.amax(dim=-1).isfinite().reshape(len(samples), -1).all(dim=1).tolist()
    requests = [sample.request for sample, sound in zip(samples, finite, strict=True) if not sound]
    failed = [request for request in requests if not request.aborted]
    for request in failed:
        request.abort()
    if failed:
        raise FloatingPointError("logits are not finite: the model's weights are not, or its states overflow")
