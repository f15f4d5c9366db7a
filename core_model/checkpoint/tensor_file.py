"""Safetensors files one tensor at a time, so that memory holds a tensor and never a file.

The library's reader maps the file, whose pages then count as the process's memory, and its writer wants every tensor
of a file at once. The format is small: eight bytes with the header's length, a JSON header
{name: {dtype, shape, data_offsets}}, then the tensors' bytes.
Source: huggingface/safetensors, README, section "Format".
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

from core_model.errors import InputError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
HEADER_LIMIT = 100_000_000  # bytes; the library's own


class Entry(NamedTuple):
    """A tensor in a file: its type and shape, and at which byte of the file its data starts."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(path: Path) -> dict[str, Entry]:
    """The tensors of a file, by name.

    Raises:
        InputError: no such file, no safetensors file, one that is cut short, or tensors that overlap or leave holes.
    """
    if not path.is_file():
        raise InputError(path, expected="the model's weights", found="no such file")
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, HEADER_LIMIT):
            found = f"{size} bytes with a header of {length}" if size >= 8 else f"{size} bytes"
            raise InputError(path, expected="a safetensors file", found=f"{found} (cut short?)")
        content = file.read(length)
    try:
        header = json.loads(content)
        header.pop("__metadata__", None)
        entries = {name: _entry(fields, 8 + length) for name, fields in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(path, expected="the header of a safetensors file", found=f"{error!r}") from error
    end = 8 + length
    # Without holes and overlaps, as the library demands: bytes that belong to no tensor, or to two, are no weights.
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start != end:
            found = f"{entry.start}, {'a hole' if entry.start > end else 'an overlap'}"
            raise InputError(path, where=name, expected=f"its data from byte {end} on, without gap", found=found)
        end += entry.nbytes
    if end != size:
        found = f"{size} bytes" + (" (cut short?)" if size < end else "")
        raise InputError(path, expected=f"{end} bytes, by its header", found=found)
    return entries


def _entry(fields: dict, data_start: int) -> Entry:
    shape, (start, end) = tuple(fields["shape"]), fields["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, start, end)):
        raise ValueError(f"negative or broken numbers: {fields}")
    entry = Entry(DTYPES[fields["dtype"]], shape, data_start + start)
    if end - start != entry.nbytes:
        raise ValueError(f"{end - start} bytes for {fields['dtype']} {list(shape)}")
    return entry


def read_tensor(path: Path, entry: Entry) -> Tensor:
    """One tensor, in memory of its own.

    Raises:
        InputError: the file ends before the tensor does.
    """
    tensor = torch.empty(entry.shape, dtype=entry.dtype)
    with path.open("rb") as file:
        file.seek(entry.start)
        if (found := file.readinto(_bytes(tensor))) != entry.nbytes:
            raise InputError(path, expected=f"{entry.nbytes} bytes from {entry.start} on", found=f"{found}")
    return tensor


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


class TensorWriter:
    """Write a file's tensors in any order, after declaring all of them; a context manager.

    Args:
        path: the file, made or overwritten.
        declared: type and shape of every tensor.

    Raises:
        ValueError: on leaving, a tensor that was declared and not written.
    """

    def __init__(self, path: Path, declared: dict[str, tuple[torch.dtype, tuple[int, ...]]]) -> None:
        header: dict[str, dict] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
        self.entries: dict[str, Entry] = {}
        offset = 0
        # Wide types first: readers that view the mapped file as tensors need each aligned to its type.
        for name, (dtype, shape) in sorted(declared.items(), key=lambda item: -item[1][0].itemsize):
            entry = Entry(dtype, tuple(shape), offset)
            offsets = [offset, offset + entry.nbytes]
            header[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": offsets}
            self.entries[name] = entry
            offset += entry.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        self.head = text + b" " * (-len(text) % 8)
        self.size = 8 + len(self.head) + offset
        self.missing = set(declared)
        self.path, self.file = path, None

    file: IO[bytes] | None

    def __enter__(self) -> TensorWriter:
        self.file = self.path.open("wb")
        self.file.write(len(self.head).to_bytes(8, "little") + self.head)
        self.file.truncate(self.size)  # so that empty tensors at the end leave no shorter file
        return self

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor, on any device and of any layout, of the declared type and shape."""
        entry = self.entries[name]
        if (tensor.dtype, tuple(tensor.shape)) != (entry.dtype, entry.shape):
            raise ValueError(f"{name}: declared {entry}, given {tensor.dtype} {tuple(tensor.shape)}")
        assert self.file is not None
        self.file.seek(8 + len(self.head) + entry.start)
        self.file.write(_bytes(tensor.detach().to("cpu").contiguous()))
        self.missing.discard(name)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        assert self.file is not None
        self.file.close()
        if kind is None and self.missing:
            raise ValueError(f"{self.path}: never written: {sorted(self.missing)[:3]}")
