"""Long documents for context extension: the modules of one package, joined under "# file: path" headers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from core_model.tokenizer import BOS, encode_text, special_id
from pretrain.data.corpus import (
    PACKAGE_DEPTH,
    STDLIB_DEPTH,
    STDLIB_LICENCE,
    group_of,
    is_held_out,
    package_root,
    python_files,
    read_source,
    stdlib_root,
)
from pretrain.data.licences import licence_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


_CHARACTERS_PER_TOKEN = 6  # more than a token has on average, so that one try mostly does


@dataclass(frozen=True)
class ModuleGroup:
    """Modules that belong together: one package, or one sub-package of a large one."""

    name: str
    licence: str
    paths: tuple[Path, ...]
    root: Path  # paths in headers are relative to it

    @property
    def is_held_out(self) -> bool:
        """Whether the whole group is kept for validation; a group never feeds both sides."""
        return is_held_out(self.name)


def module_groups(packages: Sequence[str]) -> list[ModuleGroup]:
    """The standard library's packages and the sub-packages of `packages`, sorted by name.

    Raises:
        InputError: a package is missing or not permissively licensed.
    """
    stdlib = stdlib_root()
    groups = _grouped(stdlib, stdlib, STDLIB_DEPTH, STDLIB_LICENCE)
    for package in packages:
        root = package_root(package)
        groups += _grouped(root, root.parent, PACKAGE_DEPTH, licence_of(package))
    return sorted(groups, key=lambda group: group.name)


def long_documents(
    tokenizer: PreTrainedTokenizerFast, length: int, groups: Sequence[ModuleGroup]
) -> Iterator[tuple[ModuleGroup, list[int]]]:
    """Documents of exactly `length` tokens, bos first, no eos: each is a cut of something longer.

    One from each group in turn, so that a few documents already come from many packages. Modules follow one another
    by path; the next document begins with the next module, and what a document left of its last module is dropped.
    """
    streams = [_group_documents(tokenizer, length, group) for group in groups]
    alive = list(zip(groups, streams, strict=True))
    while alive:
        remaining = []
        for group, stream in alive:
            ids = next(stream, None)
            if ids is not None:
                yield group, ids
                remaining.append((group, stream))
        alive = remaining


def _grouped(folder: Path, root: Path, depth: int, licence: str) -> list[ModuleGroup]:
    members: dict[str, list[Path]] = {}
    for path in sorted(python_files(folder)):
        name = group_of(path.relative_to(root), depth)
        if name is not None:
            members.setdefault(name, []).append(path)
    return [ModuleGroup(name, licence, tuple(paths), root) for name, paths in members.items()]


def _group_documents(tokenizer: PreTrainedTokenizerFast, length: int, group: ModuleGroup) -> Iterator[list[int]]:
    bos = special_id(tokenizer, BOS)
    ids = [bos]
    for path in group.paths:
        text = read_source(path)
        if not text:
            continue
        header = f"# file: {path.relative_to(group.root).as_posix()}\n"
        ids += _first_tokens(tokenizer, header + text, length - len(ids))
        if len(ids) == length:
            yield ids
            ids = [bos]


def _first_tokens(tokenizer: PreTrainedTokenizerFast, text: str, count: int) -> list[int]:
    """At most `count` tokens of a text, without tokenising all of a long one."""
    characters = _CHARACTERS_PER_TOKEN * count
    while True:
        ids = encode_text(tokenizer, text[:characters])
        if len(ids) > count or characters >= len(text):
            return ids[:count]
        characters *= 2
