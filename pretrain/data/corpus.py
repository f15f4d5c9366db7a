"""Documents from what is already on the machine, each with its source, path and licence.

Files are read in an order given by the hash of their relative path: the same on every machine with the same
packages, and a source that is cut at its size is then a cross-section, not the letters A to F.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
import os
import sysconfig
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from core_model.errors import InputError
from pretrain.data.config import CorpusConfig
from pretrain.data.dedup import content_digest, hash_fraction
from pretrain.data.licences import licence_of

STDLIB_LICENCE = "PSF-2.0"
OWN_LICENCE = "Apache-2.0"  # text that this project's own generators write
SHORTEST_DOCSTRING = 200  # characters
STDLIB_DEPTH, PACKAGE_DEPTH = 1, 2  # folders that name a group of modules: json/, numpy/linalg/
HELD_OUT_PACKAGES = 0.1  # share of those groups

# Tests repeat themselves, encodings and pydoc_data are tables; site-packages has licences of its own.
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "testing", "idle_test", "encodings", "pydoc_data"}
    | {"__pycache__", "lib-dynload", "ensurepip"}
)
_PROBLEMS_PER_DOCUMENT = 8  # about one base context of 256 tokens
_PROBLEMS_PER_CALL = 256


@dataclass(frozen=True)
class Document:
    """One document: `source` names where it came from, `path` the place in it, relative."""

    text: str
    source: str
    path: str
    licence: str

    def to_json(self) -> str:
        """One line of `documents.jsonl`."""
        meta = {"source": self.source, "path": self.path, "licence": self.licence}
        return json.dumps({"text": self.text, "meta": meta}, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> Document:
        """The document that `to_json` wrote."""
        row = json.loads(line)
        return cls(row["text"], **row["meta"])


def corpus_documents(config: CorpusConfig) -> Iterator[Document]:
    """Every document of the corpus, source after source; short ones and duplicates still among them.

    Raises:
        InputError: a package is missing or not permissively licensed, or a task family is unknown.
    """
    yield from up_to(config.stdlib_mb, stdlib_documents())
    yield from up_to(config.docstrings_mb, docstring_documents(config.docstring_packages))
    yield from task_documents(config.task_families, config.tasks_mb)


def stdlib_documents(root: Path | None = None) -> Iterator[Document]:
    """The standard library's Python sources, without tests, tables and held-out packages."""
    root = root or stdlib_root()
    for path in python_files(root):
        if is_held_out(group_of(path.relative_to(root), STDLIB_DEPTH)):
            continue
        text = read_source(path)
        if text is not None:
            yield Document(text, "stdlib", path.relative_to(root).as_posix(), STDLIB_LICENCE)


def docstring_documents(packages: Sequence[str]) -> Iterator[Document]:
    """Docstrings of more than 200 characters, a file of each package in turn; nothing is imported."""
    roots = [(package, package_root(package), licence_of(package)) for package in packages]
    for paths in _in_turn([python_files(root) for _, root, _ in roots]):
        for (package, root, licence), path in zip(roots, paths, strict=True):
            if path is None or is_held_out(group_of(path.relative_to(root.parent), PACKAGE_DEPTH)):
                continue
            relative = path.relative_to(root.parent).as_posix()
            for name, text in _docstrings(path):
                yield Document(text, f"docstrings/{package}", f"{relative}:{name}", licence)


def task_documents(families: Sequence[str] | None, megabytes: float) -> Iterator[Document]:
    """Questions with short answers from the training split, several to a document, no question twice."""
    from eval import tasks

    names = tuple(tasks.family_names()) if families is None else families
    for name in names:
        yield from up_to(megabytes / len(names), _family_documents(name))


def group_of(relative: Path, depth: int) -> str | None:
    """The package a module belongs to: the first `depth` folders of its path; None for a module above them."""
    return "/".join(relative.parts[:depth]) if len(relative.parts) > depth else None


def is_held_out(group: str | None) -> bool:
    """Whether a whole package is kept for the validation rows of context extension, out of every training text."""
    return group is not None and hash_fraction(content_digest(group), "held-out packages") < HELD_OUT_PACKAGES


def stdlib_root() -> Path:
    """The folder of the running Python's standard library."""
    return Path(sysconfig.get_paths()["stdlib"])


def package_root(package: str) -> Path:
    """The folder of an installed package, found without importing it.

    Raises:
        InputError: there is no such package.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(package, expected="an installed package", found="no such package")
    return Path(next(iter(spec.submodule_search_locations)))


def python_files(root: Path) -> list[Path]:
    """The Python files under `root` that may enter a corpus, in the order of their path's hash."""
    paths = []
    for folder, below, names in os.walk(root):
        below[:] = [name for name in below if _is_wanted_folder(name)]
        paths += [Path(folder, name) for name in names if _is_wanted_file(name)]
    return sorted(paths, key=lambda path: hashlib.sha256(path.relative_to(root).as_posix().encode()).digest())


def read_source(path: Path) -> str | None:
    """The text of a file, or None where it is not UTF-8."""
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return None


def _is_wanted_folder(name: str) -> bool:
    return name not in _SKIPPED_FOLDERS and not name.startswith("config-")


def _is_wanted_file(name: str) -> bool:
    # The build's own configuration (config-3.11-..., _sysconfigdata...) is full of one machine's paths.
    return name.endswith(".py") and not name.startswith(("_sysconfigdata", "test_"))


def _docstrings(path: Path) -> Iterator[tuple[str, str]]:
    source = read_source(path)
    if source is None or ('"""' not in source and "'''" not in source):
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return  # a template, or Python of another version
    pending: deque[ast.AST] = deque([tree])
    while pending:
        node = pending.popleft()
        for block in ("body", "orelse", "handlers", "finalbody"):  # statements only: docstrings are nowhere else
            pending.extend(getattr(node, block, ()))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text is not None and len(text) > SHORTEST_DOCSTRING and _is_utf8(text):
                yield getattr(node, "name", "module"), text


def _is_utf8(text: str) -> bool:
    # A docstring may spell a lone surrogate with an escape; no UTF-8 file can hold it.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _in_turn(lists: Sequence[Sequence[Path]]) -> Iterator[list[Path | None]]:
    for index in range(max(map(len, lists), default=0)):
        yield [paths[index] if index < len(paths) else None for paths in lists]


def _family_documents(name: str) -> Iterator[Document]:
    from eval import tasks
    from eval.tasks.text import question_answer_text

    seen: set[bytes] = set()
    pending: list[str] = []
    start = written = 0
    while True:
        family = tasks.get_family(name)
        before = len(seen)
        for problem in tasks.problems(name, "train", _PROBLEMS_PER_CALL, start=start):
            text = question_answer_text(problem, family.reference_answer(problem))
            digest = hashlib.sha256(text.encode()).digest()
            if digest not in seen:
                seen.add(digest)
                pending.append(text)
        start += _PROBLEMS_PER_CALL
        exhausted = len(seen) - before < _PROBLEMS_PER_CALL // 4
        while len(pending) >= _PROBLEMS_PER_DOCUMENT or (exhausted and pending):
            text = "".join(pending[:_PROBLEMS_PER_DOCUMENT])
            del pending[:_PROBLEMS_PER_DOCUMENT]
            yield Document(text, f"tasks/{name}", f"{name}/{written}", OWN_LICENCE)
            written += 1
        if exhausted:  # a small family has been drawn nearly whole
            return


def up_to(megabytes: float, documents: Iterable[Document]) -> Iterator[Document]:
    """Documents until their size is reached; the one that reaches it is the last."""
    left = megabytes * 1e6
    if left <= 0:
        return
    for document in documents:
        yield document
        left -= len(document.text.encode())
        if left <= 0:
            return
