"""Token shards: documents as one stream of token ids in memory-mapped files that know their own checksums.

    manifest.json     what is here: dtype, totals, and name, size and sha256 of every file; written last
    shard_00000.bin   token ids, uint16 (uint32 above 65,536 tokens), little-endian, nothing else
    shard_00000.idx   int64 little-endian [documents, 2]: where each document starts in the shard, its bytes of text

A document lies in one shard. Positions ("token 1,234,567 of the stream") count through all shards.
"""

from __future__ import annotations

import bisect
import hashlib
import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal

import numpy as np
from pydantic import ValidationError

from core_model.errors import InputError
from core_model.manifest import sha256_file
from recipes.schema import StrictModel

MANIFEST = "manifest.json"


class ShardFile(StrictModel):
    """One file of a shard."""

    name: str
    size: int  # bytes
    sha256: str


class Shard(StrictModel):
    """One shard: a file of tokens and its index."""

    tokens: int
    documents: int
    data: ShardFile
    index: ShardFile


class ShardManifest(StrictModel):
    """The contents of `manifest.json`."""

    format: Literal["trivium-token-shards/1"] = "trivium-token-shards/1"
    dtype: Literal["uint16", "uint32"]
    vocabulary_size: int
    tokens: int
    documents: int
    text_bytes: int
    shards: tuple[Shard, ...]


class ShardWriter:
    """Writes documents to `folder` one by one, straight to disk; the manifest comes last.

    Use it as a context manager: leaving it normally closes it, leaving it by an exception writes no manifest.
    """

    def __init__(self, folder: Path, vocabulary_size: int, shard_tokens: int = 50_000_000) -> None:
        self._folder, self._vocabulary_size, self._shard_tokens = Path(folder), vocabulary_size, shard_tokens
        self._dtype = np.dtype("<u2" if vocabulary_size <= 2**16 else "<u4")
        self._folder.mkdir(parents=True, exist_ok=True)
        self._finished: list[Shard] = []
        self._data: _HashedFile | None = None
        self._index: _HashedFile | None = None
        self._shard_size = self._shard_documents = self._text_bytes = 0

    def add(self, token_ids: Sequence[int] | np.ndarray, text_bytes: int) -> None:
        """Append one document.

        Raises:
            ValueError: the document is empty, or an id is outside the vocabulary.
        """
        ids = np.asarray(token_ids, dtype=np.int64)
        if ids.size == 0 or ids.min() < 0 or ids.max() >= self._vocabulary_size:
            raise ValueError(f"expected at least one token id, all in [0, {self._vocabulary_size})")
        if self._data is None or self._index is None:
            name = f"shard_{len(self._finished):05d}"
            self._data = _HashedFile(self._folder / f"{name}.bin")
            self._index = _HashedFile(self._folder / f"{name}.idx")
        self._data.write(ids.astype(self._dtype).tobytes())
        self._index.write(np.array([self._shard_size, text_bytes], dtype="<i8").tobytes())
        self._shard_size += ids.size
        self._shard_documents += 1
        self._text_bytes += text_bytes
        if self._shard_size >= self._shard_tokens:
            self._finish_shard()

    def close(self) -> ShardManifest:
        """Finish the last shard and write the manifest."""
        self._finish_shard()
        manifest = ShardManifest(
            dtype="uint16" if self._dtype.itemsize == 2 else "uint32",
            vocabulary_size=self._vocabulary_size,
            tokens=sum(shard.tokens for shard in self._finished),
            documents=sum(shard.documents for shard in self._finished),
            text_bytes=self._text_bytes,
            shards=tuple(self._finished),
        )
        write_durably(self._folder / MANIFEST, manifest.model_dump_json(indent=1).encode())
        return manifest

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            for file in (self._data, self._index):
                if file is not None:
                    file.close()

    def _finish_shard(self) -> None:
        if self._data is None or self._index is None:
            return
        self._finished.append(
            Shard(
                tokens=self._shard_size,
                documents=self._shard_documents,
                data=self._data.close(),
                index=self._index.close(),
            )
        )
        self._data = self._index = None
        self._shard_size = self._shard_documents = 0


class TokenShards:
    """Reads what `ShardWriter` wrote. Opening checks every file's size, and its sha256 unless `verify` is False.

    Attributes:
        tokens, documents, text_bytes: totals over all shards.

    Raises:
        InputError: the manifest or a file is missing, truncated or altered; the message names it.
    """

    def __init__(self, folder: Path, verify: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder / MANIFEST)
        for shard in self.manifest.shards:
            width = np.dtype(self.manifest.dtype).itemsize
            _check_file(self.folder, shard.data, shard.tokens * width, verify)
            _check_file(self.folder, shard.index, shard.documents * 16, verify)
        self.tokens, self.documents = self.manifest.tokens, self.manifest.documents
        self.text_bytes = self.manifest.text_bytes
        totals = [sum(shard.tokens for shard in self.manifest.shards), self.documents]
        if totals != [self.tokens, sum(shard.documents for shard in self.manifest.shards)]:
            expected, found = "totals that are the sums over the shards", "others"
            raise InputError(self.folder / MANIFEST, expected=expected, found=found)
        self._first_token = [0, *itertools.accumulate(shard.tokens for shard in self.manifest.shards)]
        self._first_document = [0, *itertools.accumulate(shard.documents for shard in self.manifest.shards)]
        self._maps: dict[str, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # another process maps the files itself

    def read(self, start: int, stop: int) -> np.ndarray:
        """int64 [stop - start]: the tokens at these positions of the stream, across shards."""
        if not 0 <= start <= stop <= self.tokens:
            raise IndexError(f"tokens {start}:{stop} of {self.tokens}")
        pieces = []
        for number in self._shards_between(start, stop):
            offset = self._first_token[number]
            pieces.append(self._data(number)[max(start - offset, 0) : stop - offset])
        return np.concatenate(pieces).astype(np.int64) if pieces else np.zeros(0, dtype=np.int64)

    def document_starts(self, start: int, stop: int) -> np.ndarray:
        """int64: the positions in [start, stop) at which a document begins."""
        starts = []
        for number in self._shards_between(start, stop):
            offset = self._first_token[number]
            of_shard = self._index(number)[:, 0]
            low, high = np.searchsorted(of_shard, [start - offset, stop - offset])
            starts.append(of_shard[low:high] + offset)
        return np.concatenate(starts) if starts else np.zeros(0, dtype=np.int64)

    def document(self, index: int) -> np.ndarray:
        """int64: the tokens of one document."""
        if not 0 <= index < self.documents:
            raise IndexError(f"document {index} of {self.documents}")
        number = bisect.bisect_right(self._first_document, index) - 1
        starts = self._index(number)[:, 0]
        local = index - self._first_document[number]
        stop = starts[local + 1] if local + 1 < len(starts) else None
        return self._data(number)[starts[local] : stop].astype(np.int64)

    def bits_per_byte(self, nats_per_token: float) -> float:
        """Turn a mean loss over these shards' tokens, bos and eos among them, into bits per byte of their text."""
        if self.text_bytes == 0:
            raise InputError(self.folder / MANIFEST, expected="at least one byte of text", found="none")
        return nats_per_token / math.log(2) * self.tokens / self.text_bytes

    def _shards_between(self, start: int, stop: int) -> range:
        if start >= stop:
            return range(0)
        first = bisect.bisect_right(self._first_token, start) - 1
        return range(first, bisect.bisect_left(self._first_token, stop))

    def _data(self, number: int) -> np.ndarray:
        dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        return self._map(self.manifest.shards[number].data.name, dtype)

    def _index(self, number: int) -> np.ndarray:
        return self._map(self.manifest.shards[number].index.name, np.dtype("<i8")).reshape(-1, 2)

    def _map(self, name: str, dtype: np.dtype) -> np.ndarray:
        if name not in self._maps:
            self._maps[name] = np.memmap(self.folder / name, dtype=dtype, mode="r")
        return self._maps[name]


class _HashedFile:
    """A file that is written once from start to end, hashed on the way."""

    def __init__(self, path: Path) -> None:
        self._path, self._sha256, self._size = path, hashlib.sha256(), 0
        self._file: BinaryIO = path.open("wb")

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self._size += len(data)

    def close(self) -> ShardFile:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return ShardFile(name=self._path.name, size=self._size, sha256=self._sha256.hexdigest())


def write_durably(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, and have it on the disk before returning."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _read_manifest(path: Path) -> ShardManifest:
    if not path.is_file():
        raise InputError(path, expected="the manifest of a folder of token shards", found="no such file")
    try:
        return ShardManifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or None
        raise InputError(path, where=where, expected="a manifest of token shards", found=first["msg"]) from error


def _check_file(folder: Path, file: ShardFile, size: int, verify: bool) -> None:
    path = folder / file.name
    if Path(file.name).name != file.name or file.size != size:
        expected = f"an entry of {size} bytes for {file.name!r}"
        raise InputError(folder / MANIFEST, where=file.name, expected=expected, found=f"{file.size} bytes")
    if not path.is_file():
        raise InputError(path, expected=f"a shard of {file.size} bytes", found="no such file")
    found = path.stat().st_size
    if found != file.size:
        raise InputError(path, expected=f"{file.size} bytes", found=f"{found} bytes")
    if verify and (digest := sha256_file(path)) != file.sha256:
        raise InputError(path, expected=f"sha256 {file.sha256}", found=f"sha256 {digest}")
