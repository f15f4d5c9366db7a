"""What is wrong with a recipe, in the words of a message: which key, what was expected there, what was found."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from recipes.schema import KeyFault, dotted_keys, models_in

MAX_SHOWN = 80  # characters of a faulty value that a message quotes


def shown(value: Any) -> str:
    """A value as messages quote it."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ " (did you mean 'steps'?)" where a known name is close to a mistyped one, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def explain(schema: type[BaseModel], data: Any, error: ValidationError) -> KeyFault:
    """The first fault that pydantic found; the others are named at its end.

    Args:
        data: what was validated, as JSON has it.
    """
    problems = error.errors(include_url=False)
    # A mistyped key often also makes a required one missing: the mistyped key is the cause.
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    faults = [_fault(schema, data, problem) for problem in problems]
    first = faults[0]
    others = sorted({".".join(map(str, fault.key)) for fault in faults[1:] if fault.key != first.key})
    if not others:
        return first
    also = f" (also wrong: {', '.join(others[:5])}{', ...' if len(others) > 5 else ''})"
    return KeyFault(first.key, expected=first.expected, found=first.found + also)


def _fault(schema: type[BaseModel], data: Any, problem: Any) -> KeyFault:
    key, models, field = _resolve(schema, data, problem)
    described = f" ({field.description})" if field is not None and field.description else ""
    kind, cause = problem["type"], problem.get("ctx", {}).get("error")
    if isinstance(cause, KeyFault):  # a validator's own words, of a key inside what it was given
        return KeyFault((*key, *cause.key), expected=cause.expected, found=cause.found)
    if kind == "extra_forbidden":
        expected, found = _known_key(schema, models, key), f"the unknown key {key[-1]!r}"
    elif kind == "missing":
        expected, found = "a value for this required key" + described, "nothing"
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        name = problem["ctx"]["discriminator"].strip("'")
        expected = "one of " + ", ".join(tag for model in models for tag in tags(model, name))
        if kind == "union_tag_invalid":
            found = shown(problem["ctx"]["tag"])
        else:
            expected, found = f"the key {name}, {expected}", "none"
        key = (*key, name)
    elif kind == "value_error" and isinstance(problem["input"], dict):  # keys that do not go together
        expected, found = "settings that go together", problem["msg"].removeprefix("Value error, ")
    else:
        message = problem["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
        expected, found = message + described, shown(problem["input"])
    return KeyFault(key, expected=expected, found=found)


def _resolve(
    schema: type[BaseModel], data: Any, problem: Any
) -> tuple[tuple[str | int, ...], list[type[BaseModel]], FieldInfo | None]:
    """A problem's key as a file spells it; the models that can stand there, or around it; the innermost field.

    pydantic's location also has parts that stand in no file: the tag of a union's member, or a type's name.
    """
    key: list[str | int] = []
    models, innermost, node, tag_of = [schema], None, data, ""
    for position, part in enumerate(problem["loc"]):
        if tag_of:
            models = [model for model in models if part in tags(model, tag_of)]
            tag_of = ""
            continue
        fields = [model.model_fields[str(part)] for model in models if part in model.model_fields]
        innermost = fields[0] if fields else innermost
        inner = [model for field in fields for model in models_in(field.annotation)]
        models = inner or models  # a list's index and a dict's key stay at the same models
        tag_of = next((field.discriminator for field in fields if isinstance(field.discriminator, str)), "")
        there = isinstance(node, dict) and part in node
        there = there or (isinstance(node, list) and isinstance(part, int) and part < len(node))
        if there or (problem["type"] == "missing" and position == len(problem["loc"]) - 1):
            key.append(part)
            node = node[part] if there else None
    return tuple(key), models, innermost


def tags(model: type[BaseModel], discriminator: str) -> tuple[str, ...]:
    """The values of its discriminator that stand for a union's member."""
    return typing.get_args(model.model_fields[discriminator].annotation)


def _known_key(schema: type[BaseModel], models: list[type[BaseModel]], key: tuple[str | int, ...]) -> str:
    """What may stand where an unknown key stands, with the likeliest meant."""
    here = sorted({name for model in models for name in model.model_fields})
    # Right word, wrong level: `learning_rate` for `optimizer.learning_rate`.
    elsewhere = [other for other, _ in dotted_keys(schema) if other.rpartition(".")[2] == key[-1]]
    elsewhere = [other for other in elsewhere if other != ".".join(map(str, key))]
    hint = did_you_mean(str(key[-1]), here) or (f" (did you mean {elsewhere[0]!r}?)" if elsewhere else "")
    return f"a known key{hint}" if hint else f"one of the keys {', '.join(here)}"
