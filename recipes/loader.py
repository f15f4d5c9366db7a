"""Reading a recipe: YAML, `extends`, dotted overrides, then the stage's schema.

Every fault is one `InputError` that names the file, the line or the override, the key's path, what was expected
and what was found.
"""

from __future__ import annotations

import importlib
import json
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from core_model.errors import InputError
from recipes.faults import explain, shown
from recipes.schema import StageRecipe


@dataclass
class RecipeSource:
    """Where a recipe's keys come from, so that a message can point at the line: the file, then what it extends."""

    files: list[Path]
    overrides: list[str] = field(default_factory=list)

    def place(self, loc: tuple[str | int, ...]) -> tuple[Path, str]:
        """The file at fault, and "override 'a=b'", "line N, a.b" or "a.b" inside it."""
        key = ".".join(map(str, loc))
        for override in reversed(self.overrides):
            name = override.partition("=")[0].strip()
            if name == key or name.startswith(key + ".") or key.startswith(name + "."):
                return self.files[0], f"override {shown(override)}"
        for path in self.files:
            line = _line_of(path, loc)
            if line is not None:
                return path, f"line {line}, {key}"
        return self.files[0], key or "the recipe"


def load_recipe(
    path: str | Path, overrides: list[str] | tuple[str, ...] = (), schema: type[StageRecipe] | None = None
) -> Any:
    """Read, resolve and validate one stage's recipe.

    Args:
        path: a YAML file; its `extends: other.yaml` (relative to it) is merged underneath.
        overrides: `dotted.key=value`, the value in YAML; a mapping takes the place of the one that was there.
        schema: the recipe class; None takes `<stage>.recipe.Recipe` by the recipe's `stage` key.

    Raises:
        InputError: for a missing file, bad YAML, an unknown key, a wrong type or value, an unknown stage.
    """
    data, source = read_yaml(path, overrides)
    if schema is None:
        schema = stage_schema(data, source)
    return validate(schema, data, source)


def read_yaml(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> tuple[dict[str, Any], RecipeSource]:
    """A YAML mapping with `extends` and overrides merged and interpolations resolved, and where its keys come from."""
    path = Path(path)
    files: list[Path] = []
    config = _merged(path, files)
    if holds_sweep(config):  # its ${...} are wandb's, and would not resolve
        found = f"a sweep; `python -m recipes.sweep {path}` runs it"
        raise InputError(path, expected="a recipe or a pipeline", found=found)
    source = RecipeSource(files, list(overrides))
    for override in overrides:
        _apply(config, override, path)
    try:
        data = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = str(getattr(error, "full_key", "") or "")
        place, where = source.place(tuple(key.split(".")) if key else ())
        raise InputError(place, where=where, expected="a value that resolves", found=_first_line(error)) from error
    return cast(dict[str, Any], data), source


def holds_sweep(data: Any) -> bool:
    """Whether what a YAML file holds is a sweep: a mapping with `method` and `parameters`."""
    return isinstance(data, Mapping) and {"method", "parameters"} <= data.keys()


def stage_schema(data: dict[str, Any], source: RecipeSource) -> type[StageRecipe]:
    """The recipe class of the stage that `data` names."""
    stage = data.get("stage")
    if not isinstance(stage, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", stage):
        path, where = source.place(("stage",))
        raise InputError(path, where=where, expected="the stage's name, such as `stage: pretrain`", found=shown(stage))
    schema = getattr(stage_module(stage, source), "Recipe", None)
    if not (isinstance(schema, type) and issubclass(schema, StageRecipe)):
        path, where = source.place(("stage",))
        raise InputError(path, where=where, expected=f"a stage with a class {stage}.recipe.Recipe", found=shown(stage))
    return schema


def stage_module(stage: str, source: RecipeSource) -> types.ModuleType:
    """The module `<stage>.recipe`; an InputError when there is no such stage."""
    try:
        return importlib.import_module(f"{stage}.recipe")
    except ModuleNotFoundError as error:
        if error.name not in (stage, f"{stage}.recipe"):
            raise
        path, where = source.place(("stage",))
        raise InputError(
            path, where=where, expected=f"a stage: a package with {stage}/recipe.py", found=shown(stage)
        ) from error


def validate(schema: type[BaseModel], data: dict[str, Any], source: RecipeSource) -> Any:
    """`data` as an instance of `schema`.

    JSON's strict rules apply: "5" and true are no integers, but lists become tuples and strings become paths.
    """
    try:
        text = json.dumps(data)
    except (TypeError, ValueError) as error:  # a YAML date, a set, bytes
        raise InputError(
            source.files[0], expected="strings, numbers, booleans, lists and mappings", found=str(error)
        ) from error
    try:
        return schema.model_validate_json(text, strict=True)
    except ValidationError as error:
        fault = explain(schema, json.loads(text), error)
        path, where = source.place(fault.key)
        raise InputError(path, where=where, expected=fault.expected, found=fault.found) from None


def _merged(path: Path, files: list[Path]) -> DictConfig:
    """The file at `path` over what it extends; appends every file read, variant first."""
    resolved = path.resolve()
    if resolved in [file.resolve() for file in files]:
        chain = " -> ".join(str(file) for file in [*files, path])
        raise InputError(files[0], where="extends", expected="a chain of recipes that ends", found=f"a circle: {chain}")
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        where = f"extended by {files[-1]}" if files else None
        raise InputError(path, where=where, expected="a recipe (a YAML file)", found=found)
    files.append(path)
    try:
        text = path.read_text(encoding="utf-8")
        if not isinstance(yaml.compose(text, Loader=yaml.SafeLoader), yaml.MappingNode):
            raise InputError(
                path, expected="a mapping of keys", found=shown(text.strip()) if text.strip() else "nothing"
            )
        config = OmegaConf.create(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(
            path, where=f"line {line}", expected="YAML", found=error.problem or _first_line(error)
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, OmegaConfBaseException) as error:
        raise InputError(path, expected="YAML in UTF-8", found=_first_line(error)) from error
    assert isinstance(config, DictConfig)
    parent = config.pop("extends", None)
    if parent is None:
        return config
    if not isinstance(parent, str):
        raise InputError(path, where="extends", expected="the path of a recipe", found=shown(parent))
    merged = OmegaConf.merge(_merged(path.parent / parent, files), config)
    assert isinstance(merged, DictConfig)
    return merged


def _apply(config: DictConfig, override: str, path: Path) -> None:
    key, equals, _ = override.partition("=")
    where = f"override {shown(override)}"
    if not equals or not re.fullmatch(r"\s*[\w-]+(\.[\w-]+)*\s*", key):
        raise InputError(path, where=where, expected="dotted.key=value", found="no such pair")
    try:
        value = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={override.partition('=')[2]}"]))
        assert isinstance(value, dict)
        OmegaConf.update(config, key.strip(), value["value"], merge=False, force_add=True)
    except (yaml.YAMLError, OmegaConfBaseException, TypeError, ValueError, IndexError) as error:
        raise InputError(path, where=where, expected="a value that fits there", found=_first_line(error)) from error


def _line_of(path: Path, loc: tuple[str | int, ...]) -> int | None:
    """The line on which `loc` is set in the file, None when the file does not set it."""
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    line: int | None = None
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            entry = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if entry is None:
                return None
            line, node = entry[0].start_mark.line + 1, entry[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
        else:
            break
    return line


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
