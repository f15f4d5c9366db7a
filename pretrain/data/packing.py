"""Samples of `sequence_length + 1` tokens from shards, by number, in a seeded order.

The order is a function of (seed, epoch, number of samples) alone. A trainer that counts global samples therefore
sees the same data with any number of processes and any batch size, and resumes exactly from that one count.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod

import torch

from core_model.errors import InputError
from pretrain.data.shards import TokenShards

_ROUNDS = 8
_MASK = 2**64 - 1


class SampleOrder:
    """A permutation of range(count) that is computed item by item: no memory, whatever the size of the corpus.

    A Feistel network permutes the smallest range of 4^k numbers that holds `count`; numbers that fall outside are
    permuted again until they do not (cycle walking), which keeps it one-to-one.
    """

    def __init__(self, count: int, seed: int, epoch: int) -> None:
        self._count = count
        self._half_bits = max(1, (max(count - 1, 1).bit_length() + 1) // 2)
        digest = hashlib.shake_256(f"sample order/{seed}/{epoch}".encode()).digest(8 * _ROUNDS)
        self._keys = [int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8)]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, position: int) -> int:
        if not 0 <= position < self._count:
            raise IndexError(f"sample {position} of {self._count}")
        index = self._permute(position)
        while index >= self._count:
            index = self._permute(index)
        return index

    def _permute(self, number: int) -> int:
        mask = (1 << self._half_bits) - 1
        left, right = number >> self._half_bits, number & mask
        for key in self._keys:
            left, right = right, left ^ (_mix(right + key) & mask)
        return left << self._half_bits | right


class SampleDataset(ABC):
    """Samples by number: `dataset[index]` is a LongTensor [T + 1], inputs `[:-1]` and targets `[1:]`."""

    def __init__(self, shards: TokenShards, sequence_length: int) -> None:
        self.shards, self.sequence_length = shards, sequence_length

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _span(self, index: int) -> tuple[int, int]:
        """Where the sample lies in the stream: first position, and one past the last."""

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.shards.read(*self._checked_span(index)))

    def document_starts(self, index: int) -> torch.Tensor:
        """LongTensor: the places in [0, T] of a sample at which a document begins; place 0 only if one does."""
        start, stop = self._checked_span(index)
        return torch.from_numpy(self.shards.document_starts(start, stop) - start)

    def position_ids(self, index: int) -> torch.Tensor:
        """LongTensor [T]: positions of the inputs that restart with each document, to isolate packed documents.

        V3 does not (report 4.1: packing without cross-sample masking); a trainer that does passes these.
        """
        places = torch.arange(self.sequence_length)
        begins = torch.zeros_like(places)
        starts = self.document_starts(index)
        starts = starts[starts < self.sequence_length]
        begins[starts] = starts
        return places - torch.cummax(begins, dim=0).values

    def order(self, seed: int, epoch: int) -> SampleOrder:
        """The order of the samples in one epoch."""
        return SampleOrder(len(self), seed, epoch)

    def sample(self, number: int, seed: int) -> torch.Tensor:
        """LongTensor [T + 1]: the sample that global count `number` meets, epoch after epoch."""
        epoch, position = divmod(number, len(self))
        return self[self.order(seed, epoch)[position]]

    def _checked_span(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self._span(index)


class PackedDataset(SampleDataset):
    """The stream of documents (`bos text eos bos text eos ...`) cut into windows of T + 1 tokens, T apart.

    Neighbours share one token, the last target of one and the first input of the next, so that every token but the
    stream's first is a target exactly once. Fewer than T tokens at the end belong to no sample.

    Raises:
        InputError: there is not one whole sample.
    """

    def __init__(self, shards: TokenShards, sequence_length: int) -> None:
        super().__init__(shards, sequence_length)
        if len(self) == 0:
            expected = f"at least {sequence_length + 1} tokens"
            raise InputError(shards.folder, expected=expected, found=f"{shards.tokens} tokens")

    def __len__(self) -> int:
        return max(0, (self.shards.tokens - 1) // self.sequence_length)

    def _span(self, index: int) -> tuple[int, int]:
        start = index * self.sequence_length
        return start, start + self.sequence_length + 1


class RowDataset(SampleDataset):
    """Shards in which every document is one sample of exactly T + 1 tokens: the rows of context extension.

    Raises:
        InputError: there is no row, or the rows are of another length.
    """

    def __init__(self, shards: TokenShards, sequence_length: int) -> None:
        super().__init__(shards, sequence_length)
        width = sequence_length + 1
        if shards.documents == 0 or any(s.tokens != s.documents * width for s in shards.manifest.shards):
            found = f"{shards.documents} documents with {shards.tokens} tokens"
            raise InputError(shards.folder, expected=f"documents of {width} tokens each", found=found)

    def __len__(self) -> int:
        return self.shards.documents

    def _span(self, index: int) -> tuple[int, int]:
        start = index * (self.sequence_length + 1)
        return start, start + self.sequence_length + 1


def _mix(number: int) -> int:
    """splitmix64's finaliser: every input bit reaches every output bit."""
    number &= _MASK
    number = (number ^ number >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    number = (number ^ number >> 27) * 0x94D049BB133111EB & _MASK
    return number ^ number >> 31
