"""The keys of a recipe as `python -m <stage> --help` lists them: default, what it is, the values there are."""

from __future__ import annotations

import textwrap
import types
import typing
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from recipes.faults import tags
from recipes.schema import models_in

WIDTH = 120  # columns
LONGEST_DEFAULT = 12  # characters of a default in its own column; a longer one ends the description
NEEDED = "needed"


@dataclass(frozen=True)
class Line:
    """A key. Without a default and a description it is a heading."""

    key: str
    default: str = ""
    text: str = ""


def key_lines(schema: type[BaseModel]) -> list[str]:
    """Every described key of a schema with its default, or "needed", in lines of at most 120 columns. A group of keys
    that may be left out has theirs.

    `<name>` stands for a key of a table, `<i>` for an index of a list. The members of a union that a key tells apart
    are listed under it: what they share once, then what each has beside.
    """
    lines = list(_lines(schema, ""))
    keys = max(len(line.key) for line in lines if line.text)
    margin = " " * (2 + keys + 2 + LONGEST_DEFAULT + 2)
    shown = []
    for line in lines:
        if not line.text:
            shown.append(f"  {line.key}")
            continue
        fits = len(line.default) <= LONGEST_DEFAULT
        text = line.text if fits else f"{line.text} (default: {line.default})"
        head = f"  {line.key:<{keys}}  {line.default if fits else '':<{LONGEST_DEFAULT}}  "
        wrap = textwrap.TextWrapper(WIDTH, initial_indent=head, subsequent_indent=margin, break_on_hyphens=False)
        wrap.break_long_words = False
        shown += wrap.wrap(text)
    return shown


def _lines(schema: type[BaseModel], prefix: str, without: Collection[str] = ()) -> Iterator[Line]:
    for name, field in schema.model_fields.items():
        if name in without:
            continue
        key = prefix + name
        if field.description:
            yield Line(key, _default(field), field.description + _choices(field.annotation))
        if isinstance(field.discriminator, str):
            yield from _union_lines(key, field, field.discriminator)
            continue
        for model in models_in(field.annotation):
            yield from _lines(model, f"{key}.{_step(field.annotation)}")


def _union_lines(key: str, union: FieldInfo, discriminator: str) -> Iterator[Line]:
    members = models_in(union.annotation)
    kinds = [tag for member in members for tag in tags(member, discriminator)]
    default = NEEDED if union.is_required() else str(getattr(union.default, discriminator))
    description = members[0].model_fields[discriminator].description or "which kind"
    yield Line(f"{key}.{discriminator}", default, f"{description} [{' | '.join(kinds)}]")
    first, *others = members
    shared = [
        name
        for name in first.model_fields
        if all(_same(first.model_fields[name], member.model_fields.get(name)) for member in others)
    ]
    yield from _lines(first, f"{key}.", without=first.model_fields.keys() - shared)
    for member in members:
        own = list(_lines(member, f"{key}.", without=[*shared, discriminator]))
        if own:
            yield Line(f"with {key}.{discriminator}={tags(member, discriminator)[0]}:")
            yield from (replace(line, key=f"  {line.key}") for line in own)


def _same(one: FieldInfo, other: FieldInfo | None) -> bool:
    return other is not None and (one.description, _default(one)) == (other.description, _default(other))


def _step(annotation: Any) -> str:
    """What stands between a key and the keys inside it: nothing, a table's name or a list's index."""
    kind, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if kind is dict:
        return "<name>." + _step(inside[1])
    if kind in (list, tuple):
        return "<i>." + _step(inside[0])
    if kind in (Annotated, Union, types.UnionType):
        return max(map(_step, inside), key=len)
    return ""


def _choices(annotation: Any) -> str:
    """The values of a literal, anywhere in an annotation."""
    values = [str(value) for value in _literals(annotation)]
    return f" [{' | '.join(values)}]" if values else ""


def _literals(annotation: Any) -> Iterator[Any]:
    if typing.get_origin(annotation) is Literal:
        yield from typing.get_args(annotation)
        return
    for inside in typing.get_args(annotation):
        yield from _literals(inside)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return NEEDED
    if field.default_factory is None:
        return _flow(field.default)
    # A function finds out what suits the machine, and its description says how; a class makes what is always the same.
    return _flow(field.default_factory()) if isinstance(field.default_factory, type) else "varies"


def _flow(value: Any) -> str:
    """A value as YAML has it on one line; nothing for a group of keys at their own defaults."""
    if isinstance(value, BaseModel):
        changed = value.model_dump(mode="json", exclude_defaults=True)
        return _flow(changed) if changed else ""
    value = to_jsonable_python(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(inside)}" for key, inside in value.items()) + "}"
    return str(value) or "''"
