"""Every recipe in the repository: it loads, its pipeline holds together, and every key says what it is."""

from __future__ import annotations

import importlib
import re
from collections.abc import Set
from pathlib import Path
from typing import Any, get_args, get_origin

import pytest
import yaml

from recipes import stage_main
from recipes.catalogue import check_file, find_recipes, first_comment
from recipes.loader import load_recipe, read_yaml, stage_schema
from recipes.pipeline import plan_pipeline
from recipes.schema import dotted_keys
from recipes.sweep import is_sweep

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FILES = sorted(RECIPES.rglob("*.yaml"))


def tables_of(path: Path) -> set[str]:
    """The keys that hold a table, such as numbers by family: one comment describes all its entries."""
    if is_sweep(path):
        return set()
    data, source = read_yaml(path)
    if "stage" not in data:
        return {
            "stages.inputs",
            "stages.recipe",
            "stages.overrides",
        }  # a pipeline's stages: the comment stands beside each id
    fields = dotted_keys(stage_schema(data, source))
    annotations = {key: field.annotation for key, field in fields}
    # dict[str, Any] is no table but somebody else's configuration: each key says what it is.
    return {key for key, kind in annotations.items() if get_origin(kind) is dict and get_args(kind)[1] is not Any}


def uncommented_keys(path: Path, tables: Set[str] = frozenset()) -> list[str]:
    """The keys that have no comment: none on their line, none on the line right above.

    A key that only opens a mapping needs none when the keys inside have theirs; a value in brackets is its key's;
    what a pipeline's stage takes and runs is said beside its id.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    found: list[str] = []

    def visit(node: yaml.Node, prefix: str) -> None:
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                visit(item, prefix)
        elif isinstance(node, yaml.MappingNode) and not node.flow_style:
            for key, value in node.value:
                if prefix + key.value in tables and (prefix == "stages." or commented(key.start_mark, key.end_mark)):
                    continue
                if isinstance(value, yaml.MappingNode | yaml.SequenceNode) and not value.flow_style:
                    visit(value, f"{prefix}{key.value}.")
                elif not commented(key.start_mark, value.end_mark):
                    found.append(f"line {key.start_mark.line + 1}: {prefix}{key.value}")

    def commented(start: yaml.Mark, end: yaml.Mark) -> bool:
        above = start.line > 0 and lines[start.line - 1].lstrip().startswith("#")
        # A block scalar ends at the beginning of the line after it.
        return above or any(" #" in line for line in lines[start.line : end.line + (end.column > 0)])

    visit(yaml.compose("\n".join(lines), Loader=yaml.SafeLoader), "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_key_has_a_comment(path):
    assert uncommented_keys(path, tables_of(path)) == []


@pytest.mark.parametrize("path", sorted(find_recipes(RECIPES)), ids=lambda path: str(path.relative_to(RECIPES)))
def test_every_recipe_passes_its_check(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check_file(path, [])[0] == []
    assert first_comment(path)


@pytest.mark.parametrize("path", sorted(find_recipes(RECIPES)), ids=lambda path: str(path.relative_to(RECIPES)))
def test_what_list_shows_of_a_recipe_is_a_whole_sentence(path):
    first, second = path.read_text(encoding="utf-8").splitlines()[:2]
    assert first == f"# {first_comment(path)}"
    assert first.endswith(".") or not second.startswith("#")


def test_recipes_run_alone_read_what_the_pipelines_leave(repository, monkeypatch):
    monkeypatch.chdir(repository)
    nano = RECIPES / "nano"
    plans = [plan_pipeline(nano / f"{name}.yaml") for name in ("pipeline", "claims")]
    left = {stage.recipe.folder for plan in plans for stage in plan.stages}
    recipes = {stage.recipe_path: load_recipe(stage.recipe_path) for plan in plans for stage in plan.stages}
    places = {place for recipe in recipes.values() for place in recipe.input_paths().values()}
    assert {place for place in places if not left & set(place.parents)} == set()
    # What a recipe goes on from is what one of the pipelines gives it.
    for path, recipe in recipes.items():
        starts = [stage.recipe for plan in plans for stage in plan.stages if stage.recipe_path == path]
        assert getattr(recipe, "init_from", None) in [getattr(start, "init_from", None) for start in starts], path


def test_the_comment_rule_sees_what_it_should(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "# what it is\nstage: a\n\nname: b\nsteps: 3  # steps\noptimizer:\n  rate: 1.0\n  # per step\n  decay: 0\n"
        "stages:\n  - {id: x, recipe: y}  # flow\n  - id: z  # it\n    recipe: w\ntables:  # numbers\n  a: 1\n"
        "url: a#b\nlong: [1,\n  2]  # two\n"
    )
    found = ["line 4: name", "line 7: optimizer.rate", "line 13: stages.recipe", "line 15: tables.a", "line 16: url"]
    assert uncommented_keys(path) == found
    assert uncommented_keys(path, {"tables"}) == [line for line in found if "tables" not in line]


@pytest.mark.parametrize("stage", ["pretrain", "distill", "sft", "rl", "eval"])
def test_recipes_that_help_names_are_there(stage, repository):
    schema = importlib.import_module(f"{stage}.recipe").Recipe
    named = set(re.findall(r"recipes/\S+\.yaml", stage_main._parser(stage, schema, None).format_help()))
    assert len(named) == 2 and all((repository / name).is_file() for name in named)
