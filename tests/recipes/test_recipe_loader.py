"""Recipes: extends, overrides, schemas, and one clear message for each way to get one wrong."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from core_model.errors import InputError
from recipes.loader import load_recipe
from recipes.schema import InputPath, StageRecipe, StrictModel, dotted_keys, is_input


class Optimizer(StrictModel):
    learning_rate: float = Field(default=1e-3, gt=0, description="peak, per step")
    betas: tuple[float, float] = (0.9, 0.95)


class Recipe(StageRecipe):
    steps: int = Field(description="optimizer steps")
    optimizer: Optimizer = Optimizer()
    phases: tuple[Optimizer, ...] = ()
    corpus: InputPath | None = None
    size: int | tuple[int, ...] = 1
    models: dict[str, InputPath] = Field(default={})
    cache: Path | None = None


BASE = """\
stage: fake          # the package
name: base
steps: 10
optimizer:
  learning_rate: 2e-3
"""


def load(folder: Path, text: str, *overrides: str) -> Recipe:
    (folder / "recipe.yaml").write_text(text, encoding="utf-8")
    return load_recipe(folder / "recipe.yaml", list(overrides), Recipe)


def test_values_overrides_and_defaults(tmp_path):
    recipe = load(tmp_path, BASE, "optimizer.betas=[0.5,0.6]", "steps=1_000", "corpus=a b/c", "threads=null")
    assert recipe.optimizer == Optimizer(learning_rate=2e-3, betas=(0.5, 0.6))
    assert (recipe.steps, recipe.seed, recipe.corpus, recipe.threads) == (1000, 0, Path("a b/c"), None)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.steps = 3


def test_lists_are_overridden_whole_or_by_index(tmp_path):
    text = BASE + "phases: [{learning_rate: 1}, {learning_rate: 2}]\n"
    assert load(tmp_path, text, "phases.1.learning_rate=5").phases[1].learning_rate == 5
    assert load(tmp_path, text, "phases=[]").phases == ()


def test_a_variant_extends_another_recipe(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "recipe.yaml").write_text(BASE)
    (tmp_path / "middle.yaml").write_text("extends: base/recipe.yaml\nname: middle\noptimizer: {betas: [0, 0.1]}\n")
    recipe = load(tmp_path, "extends: middle.yaml\nsteps: ${seed}\nseed: 4\n")
    assert (recipe.name, recipe.steps, recipe.optimizer.learning_rate) == ("middle", 4, 2e-3)
    assert recipe.optimizer.betas == (0, 0.1)


def test_a_circle_of_extends_is_named(tmp_path):
    (tmp_path / "other.yaml").write_text("extends: recipe.yaml\n")
    with pytest.raises(
        InputError, match=r"a chain of recipes that ends; found a circle: .*recipe.yaml -> .*other.yaml"
    ):
        load(tmp_path, "extends: other.yaml\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            BASE + "setps: 3\n",
            "recipe.yaml: line 6, setps: expected a known key (did you mean 'steps'?); found the unknown key",
        ),
        (
            BASE + "  learning_rat: 3\n",
            "line 6, optimizer.learning_rat: expected a known key (did you mean 'learning_rate'?)",
        ),
        (
            BASE + "learning_rate: 3\n",
            "line 6, learning_rate: expected a known key (did you mean 'optimizer.learning_rate'?)",
        ),
        (BASE + "phases: [{}, {beta: 1}]\n", "line 6, phases.1.beta: expected a known key (did you mean 'betas'?)"),
        (BASE + "zzz: 1\n", "line 6, zzz: expected one of the keys cache, corpus, group"),
        (
            BASE.replace("steps: 10", "steps: '10'"),
            "line 3, steps: expected a valid integer (optimizer steps); found '10'",
        ),
        (
            BASE.replace("steps: 10", "steps: true"),
            "line 3, steps: expected a valid integer (optimizer steps); found True",
        ),
        (
            BASE.replace("2e-3", "-1"),
            "line 5, optimizer.learning_rate: expected greater than 0 (peak, per step); found -1",
        ),
        (
            BASE.replace("2e-3", ".nan"),
            "line 5, optimizer.learning_rate: expected a finite number (peak, per step); found nan",
        ),
        (
            BASE.replace("steps: 10\n", ""),
            "steps: expected a value for this required key (optimizer steps); found nothing",
        ),
        (
            BASE.replace("steps: 10", "stebs: 10"),
            "did you mean 'steps'?); found the unknown key 'stebs' (also wrong: steps)",
        ),
        (BASE.replace("steps: 10", "steps: ${nowhere}"), "line 3, steps: expected a value that resolves"),
        (BASE.replace("steps: 10", "steps: ???"), "line 3, steps: expected a value that resolves"),
        (BASE.replace("name: base", "name: ../../etc"), "line 2, name: expected String should match pattern"),
        (BASE + "steps: 11\n", "line 6: expected YAML; found found duplicate key steps"),
        (BASE + "x: [\n", "line 7: expected YAML"),
        ("", "expected a mapping of keys; found nothing"),
        ("hello", "expected a mapping of keys; found 'hello'"),
        ("- a\n", "expected a mapping of keys; found '- a'"),
        ("1", "expected a mapping of keys; found '1'"),
        ("a: !!python/object/apply:os.getcwd []\n", "line 1: expected YAML; found could not determine a constructor"),
        ("extends: 3\n", "extends: expected the path of a recipe; found 3"),
        ("extends: gone.yaml\n", "gone.yaml: extended by"),
        (BASE + "x: \x00\n", "expected YAML"),
    ],
)
def test_a_faulty_recipe_is_one_message(tmp_path, text, message):
    with pytest.raises(InputError) as error:
        load(tmp_path, text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_the_file_at_fault_is_named_not_the_variant(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE + "setps: 3\n")
    with pytest.raises(InputError, match=r"base.yaml: line 6, setps"):
        load(tmp_path, "extends: base.yaml\nname: variant\n")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stpes=3", "override 'stpes=3': expected a known key (did you mean 'steps'?)"),
        ("steps", "override 'steps': expected dotted.key=value; found no such pair"),
        ("=3", "expected dotted.key=value"),
        ("a..b=3", "expected dotted.key=value"),
        ("steps=[", "override 'steps=[': expected a value that fits there"),
        ("steps=", "override 'steps=': expected a valid integer (optimizer steps); found None"),
        ("optimizer=3", "override 'optimizer=3': expected an object; found 3"),
        ("phases.3.betas=[1,2]", "override 'phases.3.betas=[1,2]': expected a valid array"),
        ("size=big", "override 'size=big': expected a valid integer; found 'big'"),
        ("steps=" + "9" * 5000, "override 'steps=999"),
    ],
)
def test_a_faulty_override_is_one_message(tmp_path, override, message):
    with pytest.raises(InputError) as error:
        load(tmp_path, BASE, override)
    assert message in str(error.value)
    assert "also wrong" not in str(error.value)  # a union's members are one key
    assert len(str(error.value)) < 600


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(InputError, match=r"absent.yaml: expected a recipe \(a YAML file\); found no such file"):
        load_recipe(tmp_path / "absent.yaml", [], Recipe)
    with pytest.raises(InputError, match="found a folder"):
        load_recipe(tmp_path, [], Recipe)


@pytest.mark.parametrize("stage", ["nothere", "os", "3", "../x", "", "core_model"])
def test_a_stage_that_is_none(tmp_path, stage):
    (tmp_path / "recipe.yaml").write_text(f"name: x\nstage: '{stage}'\n")
    with pytest.raises(InputError, match=r"recipe.yaml: line 2, stage: expected"):
        load_recipe(tmp_path / "recipe.yaml")


def test_the_schema_is_found_by_the_stage(walk_recipe):
    recipe = load_recipe(walk_recipe, ["pace.length=2"])
    assert (type(recipe).__module__, recipe.pace.length) == ("walk.recipe", 2.0)


def test_input_paths_are_the_marked_ones(tmp_path):
    recipe = load(tmp_path, BASE, "corpus=c", "models={a: x/y, b: z}", "cache=k")
    assert recipe.input_paths() == {"corpus": Path("c"), "models.a": Path("x/y"), "models.b": Path("z")}
    assert [key for key, field in dotted_keys(Recipe) if is_input(field)] == ["corpus", "models"]
    assert load(tmp_path, BASE).input_paths() == {}


def test_an_override_with_a_mapping_takes_the_place_of_the_whole(tmp_path):
    given = BASE + "models: {a: x, b: y}\n"
    assert load(tmp_path, given, "models={c: z}").models == {"c": Path("z")}
    assert load(tmp_path, given, "models={}").models == {}
    assert load(tmp_path, given, "models.c=z").models == {"a": Path("x"), "b": Path("y"), "c": Path("z")}


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8), st.recursive(st.none() | st.booleans() | st.floats() | st.text(max_size=9), st.lists)
    )
)
def test_any_yaml_mapping_loads_or_is_refused_in_one_line(data):
    with tempfile.TemporaryDirectory() as folder, pytest.raises(InputError) as error:
        load(Path(folder), yaml.safe_dump(data))
    assert "recipe.yaml" in str(error.value)
