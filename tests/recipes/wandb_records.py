"""The records of an offline run's .wandb file.

The file is LevelDB's log format (chunks of a checksum, a length and a type, in blocks of 32 KiB) after seven bytes of
header; each record is a protobuf message. wandb reads it in Go only, so the frame is read here and the messages by
wandb's own classes.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record  # type: ignore[attr-defined]  # it comes by a star

BLOCK, CHUNK, HEADER = 32_768, 7, 7
PATIENCE = 30.0  # seconds for wandb's service to write a run's end
FULL, FIRST, LAST = 1, 2, 4


def records(folder: Path) -> list[Record]:
    """Every record of the finished offline runs in `folder/wandb`, in the order in which they were started.

    `finish` returns before wandb's service has written the last of them (it is waited for when the process ends), so
    this waits for each file's last one.
    """
    folders = sorted((folder / "wandb").glob("offline-run-*"))  # named by the second they were started in
    return [record for path in folders for record in _finished(path)]


def _finished(run: Path) -> list[Record]:
    deadline = time.monotonic() + PATIENCE
    while True:
        found = [record for file in run.glob("*.wandb") for record in _records(file.read_bytes())]
        if any(record.HasField("exit") for record in found):
            return found
        assert time.monotonic() < deadline, (
            f"{run} has no end: {[record.WhichOneof('record_type') for record in found]}"
        )
        time.sleep(0.01)


def _records(data: bytes) -> Iterator[Record]:
    if not data:
        return
    assert data[:4] == b":W&B"
    at, whole = HEADER, b""
    while at + CHUNK <= len(data):
        if BLOCK - at % BLOCK < CHUNK:  # no room for a chunk's head: the rest of the block is padding
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + CHUNK])
        if kind == 0:
            at += BLOCK - at % BLOCK
            continue
        piece = data[at + CHUNK : at + CHUNK + length]
        if len(piece) < length:  # it is still being written
            return
        whole = piece if kind in (FULL, FIRST) else whole + piece
        if kind in (FULL, LAST):
            record = Record()
            record.ParseFromString(whole)
            yield record
        at += CHUNK + length
