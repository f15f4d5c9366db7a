"""Convert a model folder into another: BF16, FP8 or FP32, shards of any size, with or without MTP.

Memory holds one tensor at a time: the one being read, an fp32 copy (two where edges are padded) and what is written of
it. So at most 12 bytes for each number of the largest tensor, whatever the size of the model, of its files and shards.

A conversion that is killed goes on with the same command. It works in `.partial-OUT` beside OUT; a shard appears there
by a rename once it is on the disk, and `.partial-OUT.json` records its sha256. Going on, finished shards are checked
against that record and kept. OUT itself appears by one rename, after the manifest. Two processes cannot work on one
OUT: the first holds a lock on `.partial-OUT`, under which alone anything is read or changed there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from core_model.checkpoint.config_file import CONFIG, disk_config, read_config, write_config
from core_model.checkpoint.names import layer_of, mtp_copies, shapes_on_disk
from core_model.checkpoint.storage import SCALE, STORED, Declared, Storage, is_cut_off
from core_model.checkpoint.tensor_file import TensorWriter
from core_model.checkpoint.weights import INDEX, WEIGHTS, StoredWeights
from core_model.config import V3Config
from core_model.errors import InputError
from core_model.manifest import MANIFEST, sha256_file, sync, verify_manifest, write_manifest, write_text
from core_model.precision.fp8 import E4M3

log = logging.getLogger(__name__)

SHARD_BYTES = 5_000_000_000
# What travels with the weights: the tokenizer in its several forms, the chat template, sampling defaults.
COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)


@dataclass(frozen=True)
class Shard:
    """A file of weights, by their names, and everything it declares (scales as well)."""

    file: str
    names: tuple[str, ...]
    declared: dict[str, Declared]

    @property
    def nbytes(self) -> int:
        return sum(_nbytes(declared) for declared in self.declared.values())

    @property
    def cut_off(self) -> int:
        """Weights whose last blocks are cut off, while the first are not."""
        return sum(is_cut_off(shape) for dtype, shape in self.declared.values() if dtype == E4M3.dtype)


@dataclass(frozen=True)
class Conversion:
    """What was written.

    tensors: how many weights. kept: shards that were there from an earlier start. mtp_layers: MTP modules written.
    cut_off: FP8 weights with a size above 128 that 128 does not divide, whose blocks other programs take for smaller
    ones or refuse.
    """

    storage: Storage
    tensors: int
    shards: int
    kept: int
    nbytes: int
    mtp_layers: int
    companions: tuple[str, ...]
    cut_off: int


def _nbytes(declared: Declared) -> int:
    dtype, shape = declared
    return torch.Size(shape).numel() * dtype.itemsize


def plan_shards(shapes: dict[str, tuple[int, ...]], storage: Storage, limit: int) -> list[Shard]:
    """Fill shards in order up to `limit` bytes; a weight that is larger has one of its own."""
    groups: list[dict[str, dict[str, Declared]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        declared = storage.declare(name, shape)
        added = sum(_nbytes(one) for one in declared.values())
        if groups[-1] and size + added > limit:
            groups.append({})
            size = 0
        groups[-1][name] = declared
        size += added
    files = [f"model-{i:05d}-of-{len(groups):05d}.safetensors" for i in range(1, len(groups) + 1)]
    return [
        Shard(file, tuple(group), {part: declared for parts in group.values() for part, declared in parts.items()})
        for file, group in zip([WEIGHTS] if len(groups) == 1 else files, groups, strict=True)
    ]


class _Journal:
    """`.partial-OUT.json`: which conversion is under way, and the sha256 of its finished shards."""

    def __init__(self, out: Path, fingerprint: str) -> None:
        out = out.resolve()
        self.folder = out.with_name(f".partial-{out.name}")
        self.path = out.with_name(f".partial-{out.name}.json")
        self.fingerprint = fingerprint
        self.finished: dict[str, str] = {}

    @contextmanager
    def begun(self) -> Iterator[None]:
        """Make the folder and hold it, then read the record; a folder that no record describes is emptied.

        Raises:
            InputError: another process holds it, or another conversion was begun there.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.folder, os.O_RDONLY)
        try:
            if not self._held(lock):
                found = "another process at work on it"
                raise InputError(self.folder, expected="a conversion that no process is at", found=found)
            try:
                self._read()
                yield
            finally:
                if self._is_folder(lock):
                    with suppress(OSError):
                        self.folder.rmdir()  # where nothing was written
        finally:
            os.close(lock)

    def _held(self, lock: int) -> bool:
        """Take the lock; False if another process has it, or had it and gave the folder its name or removed it."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return self._is_folder(lock)

    def _is_folder(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.folder.stat())
        except FileNotFoundError:
            return False

    def _read(self) -> None:
        if not self.path.is_file():
            for path in self.folder.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            return
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            begun, self.finished = content["fingerprint"], dict(content["finished"])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(self.path, expected="a record of a conversion", found=f"{error!r}") from error
        if begun != self.fingerprint:
            expected = "the conversion that this command describes"
            found = "one from another source or with other options: give these again, remove it, or choose another OUT"
            raise InputError(self.path, expected=expected, found=found)

    def holds(self, shard: Shard) -> bool:
        """Whether a shard is finished and as it was written."""
        path = self.folder / shard.file
        if shard.file not in self.finished or not path.is_file():
            return False
        if sha256_file(path) == self.finished[shard.file]:
            return True
        log.warning("writing %s again: it has changed since it was written", path)
        return False

    def record(self, shard: Shard) -> None:
        self.finished[shard.file] = sha256_file(self.folder / shard.file)
        self.write()

    def write(self) -> None:
        content = {"fingerprint": self.fingerprint, "finished": self.finished}
        write_text(self.path, json.dumps(content, indent=2) + "\n")


def convert_folder(
    source: Path,
    out: Path,
    storage: Storage | None = None,
    *,
    mtp: bool = True,
    shard_bytes: int = SHARD_BYTES,
    on_tensors: Callable[[int, int], None] = lambda done, total: None,
) -> Conversion:
    """Write `source`'s model into the new folder `out`.

    Args:
        source: a folder in DeepSeek's format, ours or another program's. One whose config.json claims MTP modules
            that its weights lack (transformers writes such) is taken without them.
            MTP modules' copies of embedding and head are written anew; where they were none, a warning says so.
        storage: of the result; None takes the type of the source's head, and makes BF16 of FP8.
        mtp: write the MTP modules.
        on_tensors: called with the number of weights done and their total, first when the work begins.

    Raises:
        InputError: the source is damaged or no V3 model, or a companion lies elsewhere or is no regular file; `out`
            is there already or has another conversion under way, or this one in another process; the disk is too full.
    """
    verify_manifest(source, required=False)  # folders of other programs have none
    plan = _plan(StoredWeights(source), storage, mtp, shard_bytes)
    journal = _Journal(out, plan.fingerprint())
    result = Conversion(
        plan.storage,
        tensors=plan.tensors,
        shards=len(plan.shards),
        kept=0,
        nbytes=sum(shard.nbytes for shard in plan.shards),
        mtp_layers=plan.config.num_nextn_predict_layers,
        companions=_companions(source),
        cut_off=sum(shard.cut_off for shard in plan.shards),
    )
    with journal.begun():
        if out.exists():
            if not (journal.finished and (out / MANIFEST).is_file()):
                raise InputError(out, expected="a folder that is not there yet", found="one that is")
            journal.path.unlink(missing_ok=True)  # killed between its last two steps, or about to take the last
            return replace(result, kept=result.shards)
        kept = [shard for shard in plan.shards if journal.holds(shard)]
        missing = [shard for shard in plan.shards if shard not in kept]
        _refuse_full_disk(out, sum(shard.nbytes for shard in missing))
        journal.write()
        plan.weights.warn_of_other_copies(plan.config)
        done = sum(len(shard.names) for shard in kept)
        on_tensors(done, plan.tensors)
        for shard in missing:
            for written, _ in enumerate(_write_shard(shard, plan, journal.folder), 1):
                on_tensors(done + written, plan.tensors)
            done += len(shard.names)
            journal.record(shard)
        _finish(source, out, plan, result, journal)
    return replace(result, kept=len(kept))


@dataclass(frozen=True)
class _Plan:
    """What is read, and what becomes of it."""

    weights: StoredWeights
    config: V3Config
    storage: Storage
    shards: list[Shard]

    @property
    def tensors(self) -> int:
        return sum(len(shard.names) for shard in self.shards)

    def fingerprint(self) -> str:
        """What makes two conversions the same: the source's files as they are, and all that decides on the result."""
        stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in self.weights.files()]
        source, shards = str(self.weights.folder.resolve()), [(shard.file, shard.names) for shard in self.shards]
        described = [source, stats, disk_config(self.config, self.storage), str(asdict(self.storage)), shards]
        return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _plan(weights: StoredWeights, storage: Storage | None, mtp: bool, shard_bytes: int) -> _Plan:
    """Settle what is to be written, after checking that the source has it all."""
    config = _config(weights, mtp)
    storage = storage or _storage_of(weights)
    weights.check_count(config)
    shapes = shapes_on_disk(config)
    weights.check(shapes, config)
    return _Plan(weights, config, storage, plan_shards(shapes, storage, shard_bytes))


def _config(weights: StoredWeights, mtp: bool) -> V3Config:
    """The source's configuration, without the MTP modules that are not wanted or not there."""
    config = read_config(weights.folder)
    layers = (layer_of(name) for name in weights.places)
    if mtp and any(layer is not None and layer >= config.num_hidden_layers for layer in layers):
        return config
    return read_config(weights.folder, {"num_nextn_predict_layers": 0})


def _storage_of(weights: StoredWeights) -> Storage:
    """The type of the source's head; BF16 for FP8, FP32 where weights are of a type in which none are stored."""
    if weights.scales:
        return Storage(torch.bfloat16)
    dtype = weights.places["lm_head.weight"].entry.dtype if "lm_head.weight" in weights.places else None
    return Storage(dtype if dtype in STORED else torch.float32)


def _companions(source: Path) -> tuple[str, ...]:
    """Which companions the source has.

    Raises:
        InputError: one that is no regular file, or a link to what is not the source's: a folder from elsewhere must
            not have a file of the reader's own, a key for instance, published as its tokenizer.
    """
    folder = source.resolve()
    owned = [folder]
    if folder.parent.name == "snapshots":  # Hugging Face's cache: snapshots/REVISION/FILE -> ../../blobs/HASH
        owned.append(folder.parent.with_name("blobs"))
    names = tuple(name for name in COMPANIONS if os.path.lexists(source / name))
    for name in names:
        path = source / name
        if not path.is_file():
            found = "a link to none" if path.is_symlink() else "something else"
            raise InputError(path, expected="a regular file", found=found)
        if not any((real := path.resolve()).is_relative_to(place) for place in owned):
            raise InputError(path, expected="a file of the source's own", found=f"a link to {real}")
    return names


def _refuse_full_disk(out: Path, nbytes: int) -> None:
    place = next(parent for parent in out.resolve().parents if parent.exists())
    if (free := shutil.disk_usage(place).free) < nbytes:
        raise InputError(place, expected=f"{nbytes / 1e9:.1f} GB of free space", found=f"{free / 1e9:.1f} GB")


def _write_shard(shard: Shard, plan: _Plan, folder: Path) -> Iterator[str]:
    """Write a shard under its name, whole or not at all; yields each weight's name when it is done."""
    partial = folder / f"{shard.file}.partial"
    copies = mtp_copies(plan.config)
    with TensorWriter(partial, shard.declared) as writer:
        for name in shard.names:
            for part, tensor in _encode(name, copies.get(name, name), plan.weights, plan.storage).items():
                writer.write(part, tensor)
            yield name
    sync(partial)
    partial.rename(folder / shard.file)
    sync(folder)


def _encode(name: str, stored_as: str, weights: StoredWeights, storage: Storage) -> dict[str, Tensor]:
    """A weight as the result stores it; FP8 with scales that will do is copied byte by byte.

    Raises:
        InputError: inf or NaN where FP8 is asked for.
    """
    fine = weights.scale_format == "ue8m0" or not storage.power_of_two
    if stored_as in weights.scales and storage.quantises(name, tuple(weights.places[stored_as].entry.shape)) and fine:
        return {name: weights.read_bytes(stored_as), name + SCALE: weights.read_scale(stored_as)}
    try:
        return storage.encode(name, weights.read(stored_as))
    except ValueError as error:
        path = weights.places[stored_as].path
        raise InputError(path, where=stored_as, expected="finite weights", found=str(error)) from error


def _finish(source: Path, out: Path, plan: _Plan, result: Conversion, journal: _Journal) -> None:
    """Index, tokenizer, configuration and manifest; then the folder gets its name."""
    if len(plan.shards) > 1:
        weight_map = {name: shard.file for shard in plan.shards for name in shard.declared}
        index = {"metadata": {"total_size": result.nbytes}, "weight_map": weight_map}
        (journal.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name in result.companions:
        shutil.copyfile(source / name, journal.folder / name)
    write_config(plan.config, plan.storage, journal.folder, plan.storage.left_out(shapes_on_disk(plan.config)))
    wanted = {*journal.finished, *result.companions, CONFIG, *([INDEX] if len(plan.shards) > 1 else [])}
    for path in journal.folder.iterdir():
        if path.name not in wanted:  # what an earlier start left behind
            path.unlink()
    write_manifest(journal.folder, known=journal.finished)
    journal.folder.rename(out)
    sync(out.parent)
    journal.path.unlink(missing_ok=True)  # a process that starts now finds the folder finished and does this itself
