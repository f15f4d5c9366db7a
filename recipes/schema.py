"""What a recipe is: one frozen, fully described configuration object per stage.

Each stage package defines `<stage>/recipe.py` with `class Recipe(StageRecipe)`. Unknown keys are refused, every
field carries a description with its unit, and a field typed `InputPath` names an artefact that the stage reads:
the run folder records its sha256, and a pipeline may fill it in from an earlier stage.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo


class KeyFault(ValueError):
    """One key that is at fault. A validator raises it to name a key inside the value that it was given.

    Args:
        key: the key's parts, from where the validator stands; () is that value itself.
        expected: what was expected there.
        found: what was found instead.
    """

    def __init__(self, key: tuple[str | int, ...], *, expected: str, found: str) -> None:
        self.key, self.expected, self.found = key, expected, found
        super().__init__(f"{'.'.join(map(str, key))}: expected {expected}; found {found}")


class StrictModel(BaseModel):
    """The base of every configuration object: frozen, no unknown keys, no infinities or NaNs, defaults checked too."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class InputArtefact:
    """The marker that makes a path field an input artefact."""


InputPath = Annotated[Path, InputArtefact()]

# core_model.recompute's policies, spelt out here since importing it would import torch.
RecomputePolicy = Annotated[
    Literal["none", "v3", "layer"],
    Field(description="made again in backward: nothing, norms and MLA up-projections (V3, 3.2.3), whole layers"),
]


def _fastest_dtype() -> str:
    from core_model.parallel.device import training_device
    from core_model.precision import fastest_dtype

    return str(fastest_dtype(training_device())).removeprefix("torch.")


# recipe.yaml holds what it was; a machine that computes otherwise refuses to go on with that run.
ComputeDtype = Annotated[
    Literal["bfloat16", "float32"],
    Field(
        default_factory=_fastest_dtype,
        description="dtype of activations and products, the weights stay fp32; default: bfloat16 where the processor"
        " multiplies it, else float32",
    ),
]

# What decides where a run is kept and how it is shown, but not a number of it: left out when two recipes are compared.
PLACEMENT_KEYS = frozenset({"run_dir", "group"})


class StageRecipe(StrictModel):
    """The keys every stage's recipe has."""

    stage: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="the package that runs it, as in `python -m <stage>`")
    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="the run's name: its folder is runs/<name> unless run_dir says otherwise",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seeds every random number generator of the run")
    threads: int | None = Field(default=None, ge=1, description="torch threads; null: as many as torch chooses")
    run_dir: Path | None = Field(default=None, description="the run's folder; null: runs/<name>")
    group: str | None = Field(
        default=None, description="the group the run is shown under in wandb; a pipeline sets its name"
    )

    @property
    def folder(self) -> Path:
        """Where the run is kept."""
        return self.run_dir if self.run_dir is not None else Path("runs") / self.name

    def machine_faults(self) -> list[KeyFault]:
        """What this machine lacks for the run. A stage that needs more than a processor says so here."""
        return []

    def input_paths(self) -> dict[str, Path]:
        """The artefacts this recipe reads: dotted key -> path, for every `InputPath` field that is set."""
        return dict(_input_paths(self, ""))


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The pydantic models that occur anywhere in a type annotation (optional, list, union, ...)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in typing.get_args(annotation) for model in models_in(argument)]


def dotted_keys(schema: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a schema, nested ones as dotted paths, with its field."""
    for name, field in schema.model_fields.items():
        yield prefix + name, field
        for model in models_in(field.annotation):
            yield from dotted_keys(model, f"{prefix}{name}.")


def is_input(field: FieldInfo) -> bool:
    """Whether a field is typed `InputPath`, or holds such paths (`InputPath | None`, `list[InputPath]`)."""
    return any(isinstance(mark, InputArtefact) for mark in field.metadata) or _marked(field.annotation)


def _marked(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return False
    marks = getattr(annotation, "__metadata__", ())
    return any(isinstance(mark, InputArtefact) for mark in marks) or any(map(_marked, typing.get_args(annotation)))


def _input_paths(model: BaseModel, prefix: str) -> Iterator[tuple[str, Path]]:
    for name, field in type(model).model_fields.items():
        yield from _paths_under(getattr(model, name), prefix + name, is_input(field))


def _paths_under(value: Any, key: str, marked: bool) -> Iterator[tuple[str, Path]]:
    if isinstance(value, BaseModel):
        yield from _input_paths(value, key + ".")
    elif isinstance(value, Path):
        if marked:
            yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _paths_under(item, f"{key}.{name}", marked)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _paths_under(item, f"{key}.{index}", marked)
