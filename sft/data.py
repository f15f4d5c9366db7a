"""Rows -> samples -> packs: token ids, the mask of the assistant's tokens, and many samples side by side in one row.

Samples of a pack are isolated: `position_ids` start at 0 in each of them, and the model lets no document see another
(core_model/documents.py). Nothing is ever cut.

Shape suffixes: B packs, T tokens.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from core_model.errors import InputError
from core_model.tokenizer import render_training
from recipes.rows import Budget, SFTRow, read_rows

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

IGNORE = -100  # torch's convention for a label that is none
# Widths of a batch come in steps: oneDNN builds a bf16 primitive per shape.
WIDTH_MULTIPLE = 32


@dataclass(frozen=True)
class Sample:
    """One conversation. labels[i] is input_ids[i] where the assistant speaks, else IGNORE; both int32."""

    input_ids: np.ndarray
    labels: np.ndarray
    problem_id: str
    system_variant: str
    budget: Budget

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Limit:
    """How many tokens a sample may have, and what sets it."""

    tokens: int
    reason: str


def read_samples(paths: Iterable[Path], tokenizer: PreTrainedTokenizerFast, limit: Limit) -> list[Sample]:
    """Render every row of the files.

    Raises:
        InputError: a file is missing or empty, or a row is malformed, has no assistant's message, a weight other
            than 1, or more tokens than the limit. The file and the line are named.
    """
    samples: list[Sample] = []
    for path in paths:
        before = len(samples)
        for number, row in enumerate(read_rows(path, SFTRow), 1):
            samples.append(_render(row, tokenizer, limit, path, f"line {number} ({row.problem_id})"))
        if len(samples) == before:
            raise InputError(path, expected="at least one SFTRow", found="an empty file")
    return samples


def split_problems(samples: Sequence[Sample], share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Training and validation samples; all samples of a problem are on the same side.

    Which problems are held out depends on their ids and the seed alone, not on their order or number of rows.
    """
    problems = sorted({sample.problem_id for sample in samples}, key=lambda problem: _rank(problem, seed))
    count = min(max(round(share * len(problems)), 1), len(problems) - 1) if share else 0
    held_out = set(problems[:count])
    training = [sample for sample in samples if sample.problem_id not in held_out]
    return training, [sample for sample in samples if sample.problem_id in held_out]


def pack(lengths: Sequence[int], capacity: int, seed: int) -> list[list[int]]:
    """Indices of the samples of each pack: samples in a seeded random order, each put where it fits best.

    Best fit over a random order, not over decreasing lengths: that would fill packs with samples of one length, hence
    of one kind of problem, and a step's gradient would be of that kind.

    Args:
        lengths: tokens of each sample, none above `capacity`.
        capacity: tokens of a pack.
    """
    packs: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, pack), sorted
    for index in np.random.default_rng(seed).permutation(len(lengths)).tolist():
        place = bisect.bisect_left(rooms, (lengths[index], 0))
        if place < len(rooms):
            room, number = rooms.pop(place)
            packs[number].append(index)
        else:
            room, number = capacity, len(packs)
            packs.append([index])
        if room > lengths[index]:
            bisect.insort(rooms, (room - lengths[index], number))
    return packs


def to_dataset(samples: Sequence[Sample], packs: Sequence[Sequence[int]]) -> Dataset:
    """One row a pack: input_ids, labels, and the lengths of the samples in it."""
    from datasets import Dataset

    columns = {
        "input_ids": [np.concatenate([samples[index].input_ids for index in one]) for one in packs],
        "labels": [np.concatenate([samples[index].labels for index in one]) for one in packs],
        "seq_lengths": [np.array([len(samples[index]) for index in one], dtype=np.int32) for one in packs],
    }
    return Dataset.from_dict(columns).with_format("numpy")


class PackCollator:
    """Packs -> a batch of tensors [B, T], T the longest pack's tokens rounded up to a multiple of 32.

    `attention_mask` is there only when a pack is shorter than T: what fills it up belongs to no sample.
    """

    def __init__(self, pad_id: int, multiple: int = WIDTH_MULTIPLE) -> None:
        self.pad_id, self.multiple = pad_id, multiple

    def __call__(self, packs: list[dict[str, Any]]) -> dict[str, Tensor]:
        import torch

        longest = max(len(one["input_ids"]) for one in packs)
        width = -(-longest // self.multiple) * self.multiple
        shape = (len(packs), width)
        arrays = {
            "input_ids": np.full(shape, self.pad_id, dtype=np.int64),
            "labels": np.full(shape, IGNORE, dtype=np.int64),
            "position_ids": np.zeros(shape, dtype=np.int64),
            "attention_mask": np.zeros(shape, dtype=np.int64),
        }
        for row, one in enumerate(packs):
            count = len(one["input_ids"])
            arrays["input_ids"][row, :count] = one["input_ids"]
            arrays["labels"][row, :count] = one["labels"]
            arrays["position_ids"][row, :count] = positions(one["seq_lengths"])
            arrays["attention_mask"][row, :count] = 1
        if arrays["attention_mask"].all():
            del arrays["attention_mask"]
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def positions(lengths: np.ndarray) -> np.ndarray:
    """0, 1, ... within each sample, for samples of these lengths one after the other."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)


def _render(row: SFTRow, tokenizer: PreTrainedTokenizerFast, limit: Limit, path: Path, where: str) -> Sample:
    if row.weight != 1.0:
        raise InputError(
            path, where=f"{where}, weight", expected="1 (every token counts the same)", found=f"{row.weight}"
        )
    try:
        ids, mask = render_training(tokenizer, [message.model_dump() for message in row.messages])
    except ValueError as error:
        raise InputError(path, where=where, expected="a conversation", found=str(error)) from error
    if not any(mask):
        raise InputError(path, where=where, expected="an assistant's message to learn from", found="none")
    if len(ids) > limit.tokens:
        expected = f"at most {limit.tokens} tokens ({limit.reason}), since nothing is cut"
        raise InputError(path, where=where, expected=expected, found=f"{len(ids)} tokens")
    input_ids = np.array(ids, dtype=np.int32)
    labels = np.where(np.array(mask, dtype=bool), input_ids, IGNORE).astype(np.int32)
    return Sample(input_ids, labels, row.problem_id, row.system_variant, row.budget)


def _rank(problem: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{problem}".encode()).digest()
