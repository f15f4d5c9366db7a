"""What a run read and what it made, as artefacts named by their content.

A model that one stage writes and the next one reads has the same sha256, so it has the same name in both runs, wherever
it lies: from that alone wandb draws data -> model -> evaluation. Nothing is copied; an artefact is a sha256, a size and
a file:// reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypedDict

from core_model.manifest import sha256_file

Kind = Literal["corpus", "dataset", "model", "report"]

DIGITS = 16  # of the sha256 in a name: 64 bits; the whole of it is the digest of the artefact's one entry


class Input(TypedDict):
    """An entry of `inputs` in provenance.json."""

    path: str
    sha256: str


@dataclass(frozen=True)
class Artefact:
    """A file or a folder as a node of the lineage.

    Attributes:
        kind: what it is, by `kind_of`.
        sha256: of its content, as `recipes.atomic.sha256_artefact` takes it.
        path: where it lay.
        files, size: how many files, and their bytes together.
        keys: the recipe's keys it was read under, or its place in the run's folder.
    """

    kind: Kind
    sha256: str
    path: Path
    files: int
    size: int
    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        """The same for the same content of the same kind: "model-3f8a91c2d4e5b607"."""
        return f"{self.kind}-{self.sha256[:DIGITS]}"


def kind_of(path: Path) -> Kind:
    """What an artefact is, from what it holds, so that its maker and its readers say the same.

    A folder with a config.json is a model; one with a corpus.json is a corpus, and so is what lies in it; a JSON file
    or a metrics.jsonl is a report; anything else is a dataset.
    """
    if path.is_dir() and (path / "config.json").is_file():
        return "model"
    if (path / "corpus.json").is_file() or (path.parent / "corpus.json").is_file():
        return "corpus"
    if path.is_file() and (path.suffix == ".json" or path.name == "metrics.jsonl"):
        return "report"
    return "dataset"


def inputs_of(inputs: Mapping[str, Input]) -> list[Artefact]:
    """The artefacts a run reads, each once.

    Args:
        inputs: dotted key of the recipe -> path and sha256, as in provenance.json; the files are not read again.
    """
    found: dict[str, Artefact] = {}
    for key, entry in sorted(inputs.items()):
        path = Path(entry["path"])
        kind, sizes = kind_of(path), [file.stat().st_size for file in _files(path)]
        artefact = Artefact(kind, entry["sha256"], path, len(sizes), sum(sizes), (key,))
        known = found.get(artefact.name)
        found[artefact.name] = artefact if known is None else replace(known, keys=(*known.keys, key))
    return list(found.values())


def outputs_of(folder: Path) -> list[Artefact]:
    """The artefacts a run has made: its files are read once, to be hashed.

    They are model/, corpus/ and what lies in it, what lies in samples/, report.json and metrics.jsonl: the grain at
    which later stages take them (`distill/samples/short.jsonl`, `pretrain/corpus/tokenizer`).
    """
    whole = [folder / name for name in ("model", "corpus", "report.json", "metrics.jsonl")]
    made = [artefact for path in whole if path.exists() for artefact in _hashed(path, folder)]
    samples = folder / "samples"
    inside = sorted(samples.iterdir()) if samples.is_dir() else []
    return made + [_hashed(path, folder)[0] for path in inside]


def _hashed(path: Path, folder: Path) -> list[Artefact]:
    """A file or a folder and, of a corpus, each entry inside it, from one reading of every file."""
    digests = {file: sha256_file(file) for file in _files(path)}
    inside = sorted(path.iterdir()) if kind_of(path) == "corpus" and path.is_dir() else []
    return [_part(part, digests, folder) for part in [path, *inside]]


def _part(path: Path, digests: Mapping[Path, str], folder: Path) -> Artefact:
    """The artefact at `path`, given the sha256 of every file in it."""
    files = _files(path)
    if path.is_dir():
        lines = (f"{file.relative_to(path).as_posix()}\0{digests[file]}\n" for file in files)
        sha256 = hashlib.sha256("".join(lines).encode()).hexdigest()
    else:
        sha256 = digests[path]
    size = sum(file.stat().st_size for file in files)
    return Artefact(kind_of(path), sha256, path, len(files), size, (path.relative_to(folder).as_posix(),))


def _files(path: Path) -> list[Path]:
    """The files under `path` in the order in which `sha256_artefact` takes them; a file is its own only one."""
    return sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
