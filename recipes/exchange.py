"""What `trivium export` and `trivium import` do: a model's way out to other programs, and theirs in."""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from core_model.errors import InputError
from recipes.progress import Bar, progress_bar

if TYPE_CHECKING:
    from core_model.checkpoint import Conversion, Storage

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


class Dtype(StrEnum):
    """How weights are stored; torch is not imported for a command's --help."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP8 = "fp8"


class Scale(StrEnum):
    """Of FP8 blocks: any fp32 number (V3, R1), or powers of two (V3.1)."""

    FP32 = "fp32"
    UE8M0 = "ue8m0"


def parse_size(text: str) -> int:
    """Bytes in "5GB", "500 MB" or "1.5e9"; decimal, as shard sizes are.

    Raises:
        InputError: not a size, or none above 0.
    """
    match = re.fullmatch(r"([\d.]+(?:e\d+)?)\s*([kmgt]?)b?", text.strip().lower())
    try:
        size = int(float(match[1]) * UNITS[match[2]]) if match else 0
    except (ValueError, OverflowError):
        size = 0
    if size < 1:
        raise InputError("--shard-size", expected="a size such as 5GB or 500MB", found=repr(text))
    return size


def storage_of(dtype: Dtype, scale: Scale, whole_blocks: bool = False) -> Storage:
    """The storage that options name.

    Raises:
        InputError: power-of-two scales, or whole blocks, without FP8.
    """
    import torch

    from core_model.checkpoint import Storage

    if scale is Scale.UE8M0 and dtype is not Dtype.FP8:
        raise InputError("--scale", expected="ue8m0 together with --dtype fp8", found=f"--dtype {dtype}")
    if whole_blocks and dtype is not Dtype.FP8:
        raise InputError("--whole-blocks", expected="it together with --dtype fp8", found=f"--dtype {dtype}")
    dtypes = {Dtype.FP32: torch.float32, Dtype.BF16: torch.bfloat16, Dtype.FP8: torch.float8_e4m3fn}
    return Storage(dtypes[dtype], scale is Scale.UE8M0, whole_blocks)


def convert(source: Path, out: Path, storage: Storage | None, *, mtp: bool, shard_size: str) -> None:
    """Convert one folder into another with a progress bar, and say what was written.

    Raises:
        InputError: what `convert_folder` refuses, or a folder that cannot be read or written.
    """
    from core_model.checkpoint import convert_folder

    with ExitStack() as stack:
        bar: Bar | None = None

        def show(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(progress_bar(total, "converting", done=done, unit="tensors"))
            else:
                bar.advance()

        try:
            size = parse_size(shard_size)
            written = convert_folder(source, out, storage, mtp=mtp, shard_bytes=size, on_tensors=show)
        except OSError as error:
            place = error.filename or out
            raise InputError(place, expected="files that can be read and written", found=str(error.strerror)) from error
    print(f"{out}: {_describe(written)}")
    if written.cut_off:
        print(
            f"{written.cut_off} weights have a size above 128 that 128 does not divide, as in DeepSeek's own folders: "
            "transformers reads these wrongly or refuses them; for it give --whole-blocks, or --dtype bf16",
            file=sys.stderr,
        )


def _describe(written: Conversion) -> str:
    dtype = str(written.storage.dtype).removeprefix("torch.")
    parts = [
        f"{written.tensors} weights as {dtype}{', power-of-two scales' if written.storage.power_of_two else ''}",
        f"{written.nbytes / 1e6:,.1f} MB in {written.shards} file{'s' if written.shards > 1 else ''}",
        f"{written.mtp_layers or 'no'} MTP module{'s' if written.mtp_layers > 1 else ''}",
        f"with {', '.join(written.companions)}" if written.companions else "no tokenizer in the source",
    ]
    if written.kept:
        parts.append(f"{written.kept} file{'s' if written.kept > 1 else ''} finished before")
    return "; ".join(parts)
