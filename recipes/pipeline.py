"""A pipeline: stages in order, each a child process, each taking artefacts from earlier ones.

    name: nano                     # runs/nano/<stage id>/ hold the runs
    seed: 0                        # given to every stage
    stages:
      - id: pretrain
        recipe: pretrain.yaml      # relative to the pipeline's file
      - id: sft
        recipe: sft.yaml
        inputs: {model: pretrain/model}      # the recipe's key `model` <- runs/nano/pretrain/model
        overrides: ["trainer.max_steps=50"]
    tables: [eval/report.json]     # printed at the end

Stopped anywhere, the same command goes on where it stopped: complete stages are skipped, the interrupted one resumes.
"""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from pydantic import Field

from core_model.errors import InputError
from recipes.atomic import write_text
from recipes.child import run_child
from recipes.loader import RecipeSource, load_recipe, read_yaml, validate
from recipes.progress import clock
from recipes.run import COMPLETE, read_provenance, run_status
from recipes.schema import StageRecipe, StrictModel

ID = r"^[a-z][a-z0-9_-]*$"


class StageEntry(StrictModel):
    """One stage of a pipeline."""

    id: str = Field(pattern=ID, description="its name within the pipeline and of its run folder")
    recipe: Path = Field(description="its recipe, relative to the pipeline's file")
    inputs: dict[str, str] = Field(
        default={}, description="dotted key of the recipe -> <stage id>/<path in that stage's run folder>"
    )
    overrides: tuple[str, ...] = Field(default=(), description="dotted.key=value")
    needs: tuple[str, ...] = Field(default=(), description="stages that must come before, beside those in inputs")


class Pipeline(StrictModel):
    """A pipeline's file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the runs' folder and the wandb group")
    seed: int | None = Field(
        default=None, ge=0, lt=2**32, description="the seed of every stage; null: each recipe's own"
    )
    run_dir: Path | None = Field(default=None, description="the folder of the stages' runs; null: runs/<name>")
    stages: tuple[StageEntry, ...] = Field(min_length=1, description="in the order in which they run")
    tables: tuple[str, ...] = Field(default=(), description="<stage id>/<file>, printed as tables at the end")

    @property
    def folder(self) -> Path:
        return self.run_dir if self.run_dir is not None else Path("runs") / self.name


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its recipe resolved: everything needed to run it."""

    id: str
    recipe_path: Path
    overrides: tuple[str, ...]
    recipe: StageRecipe
    from_stages: frozenset[str]  # the input keys that earlier stages fill

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", self.recipe.stage, str(self.recipe_path), *self.overrides]


@dataclass(frozen=True)
class PipelinePlan:
    path: Path
    pipeline: Pipeline
    stages: tuple[PlannedStage, ...]


def is_pipeline(path: Path) -> bool:
    """Whether a YAML file is a pipeline (it has `stages`) and not a recipe. Files that cannot be read are not."""
    try:
        return "stages" in read_yaml(path)[0]
    except InputError:
        return False


def plan_pipeline(path: str | Path, overrides: Iterable[str] = ()) -> PipelinePlan:
    """Read a pipeline and resolve every stage's recipe; nothing is run.

    Args:
        path: the pipeline's file.
        overrides: `key=value` of the pipeline (name, seed, run_dir, ...) or `<stage id>.key=value` of one stage.

    Raises:
        InputError: a key is unknown, a recipe does not load, an input refers to no earlier stage, ...
    """
    path = Path(path)
    own: list[str] = []
    of_stages: list[str] = []
    for override in overrides:
        head = override.partition("=")[0].partition(".")[0].strip()
        (own if head in Pipeline.model_fields else of_stages).append(override)
    data, source = read_yaml(path, own)
    pipeline: Pipeline = validate(Pipeline, data, source)
    ids = [entry.id for entry in pipeline.stages]
    for override in of_stages:
        if override.partition(".")[0].strip() not in ids:
            expected = f"a key of the pipeline, or one that begins with a stage: {', '.join(ids)}"
            raise InputError(path, where=f"override {override!r}", expected=expected, found="neither")
    _check_references(pipeline, source)
    stages = tuple(_plan_stage(entry, pipeline, path, of_stages) for entry in pipeline.stages)
    return PipelinePlan(path, pipeline, stages)


def run_pipeline(path: str | Path, overrides: Iterable[str] = ()) -> int:
    """Run a pipeline's stages in order, from where it stopped; then print its tables.

    Returns:
        0, or the exit status of the stage that failed (128 + n when signal n killed it).

    Raises:
        InputError: as `plan_pipeline`; this machine lacks something for a stage, or an input from outside is missing
            (both before anything runs); a run folder belongs to another recipe.
    """
    plan = plan_pipeline(path, overrides)
    for stage in plan.stages:
        require_machine(stage.recipe, stage.recipe_path)
        for key, artefact in missing_inputs(stage.recipe, stage.from_stages).items():
            raise InputError(
                artefact, where=f"input {key} of stage {stage.id}", expected="a file or folder", found="nothing there"
            )
    folder = plan.pipeline.folder
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "pipeline.yaml", OmegaConf.to_yaml(OmegaConf.create(plan.pipeline.model_dump(mode="json"))))
    for number, stage in enumerate(plan.stages, 1):
        status = _run_stage(stage, f"[{number}/{len(plan.stages)}] {stage.id}")
        if status != 0:
            _say(
                f"pipeline {plan.pipeline.name}: stage {stage.id} ended with status {status}; the same command resumes",
                error=True,
            )
            return status
    for table in plan.pipeline.tables:
        _print_table(folder / table, plan.path)
    return 0


def check_recipe(recipe: StageRecipe, path: Path) -> list[InputError]:
    """What this machine lacks for a valid recipe. Inputs need not exist to be checked."""
    return [
        InputError(path, where=".".join(map(str, fault.key)), expected=fault.expected, found=fault.found)
        for fault in recipe.machine_faults()
    ]


def require_machine(recipe: StageRecipe, path: Path) -> None:
    """Make sure that a recipe can run here, or has run already.

    Raises:
        InputError: this machine lacks something for it.
    """
    provenance = read_provenance(recipe.folder)
    if provenance is not None and provenance["status"] == COMPLETE:
        return
    for fault in check_recipe(recipe, path):
        raise fault


def missing_inputs(recipe: StageRecipe, filled: Iterable[str] = ()) -> dict[str, Path]:
    """The input artefacts that are not on the disk, leaving out those in `filled` (an earlier stage makes them)."""
    return {key: path for key, path in recipe.input_paths().items() if key not in set(filled) and not path.exists()}


def _check_references(pipeline: Pipeline, source: RecipeSource) -> None:
    """Every id is new, and every reference names an earlier stage."""
    earlier: list[str] = []
    for index, entry in enumerate(pipeline.stages):
        if entry.id in earlier or entry.id in Pipeline.model_fields:
            raise _fault(source, ("stages", index, "id"), "an id that is not taken", repr(entry.id))
        for key, reference in entry.inputs.items():
            _check_reference(source, ("stages", index, "inputs", key), reference, earlier)
        for position, need in enumerate(entry.needs):
            if need not in earlier:
                raise _fault(source, ("stages", index, "needs", position), _one_of(earlier), repr(need))
        earlier.append(entry.id)
    for index, table in enumerate(pipeline.tables):
        _check_reference(source, ("tables", index), table, earlier)


def _check_reference(source: RecipeSource, loc: tuple[str | int, ...], reference: str, earlier: list[str]) -> None:
    stage, _, inside = reference.partition("/")
    if stage not in earlier:
        raise _fault(source, loc, _one_of(earlier) + " before the first slash", repr(reference))
    if not inside or ".." in Path(inside).parts or Path(inside).is_absolute():
        raise _fault(source, loc, "<stage id>/<path inside its run folder>", repr(reference))


def _plan_stage(entry: StageEntry, pipeline: Pipeline, path: Path, of_stages: list[str]) -> PlannedStage:
    recipe_path = path.parent / entry.recipe
    overrides = [] if pipeline.seed is None else [f"seed={pipeline.seed}"]
    overrides += entry.overrides
    overrides += [
        override.partition(".")[2] for override in of_stages if override.partition(".")[0].strip() == entry.id
    ]
    for key, reference in entry.inputs.items():
        overrides.append(f"{key}={_yaml_scalar(str(pipeline.folder / reference))}")
    overrides.append(f"run_dir={_yaml_scalar(str(pipeline.folder / entry.id))}")
    overrides.append(f"group={_yaml_scalar(pipeline.name)}")
    recipe: StageRecipe = load_recipe(recipe_path, overrides)
    for key in entry.inputs:
        if key not in recipe.input_paths():
            known = ", ".join(sorted(recipe.input_paths())) or "none"
            expected = f"an input of {recipe_path} (they are: {known})"
            raise InputError(
                path, where=f"stages, {entry.id}, inputs, {key}", expected=expected, found="no input of that name"
            )
    return PlannedStage(entry.id, recipe_path, tuple(overrides), recipe, frozenset(entry.inputs))


def _run_stage(stage: PlannedStage, title: str) -> int:
    recipe = stage.recipe
    status = run_status(recipe, recipe.input_paths()) if recipe.folder.exists() else None
    if status == COMPLETE:
        _say(f"{title}: already complete, in {recipe.folder}")
        return 0
    _say(f"{title}: {'starting' if status is None else 'resuming'} {stage.recipe_path}, in {recipe.folder}")
    started = time.monotonic()
    code = run_child(stage.command)
    if code != 0:
        return code
    if run_status(recipe, recipe.input_paths()) != COMPLETE:
        raise InputError(
            recipe.folder, expected="a complete run after a stage that ended well", found="an incomplete one"
        )
    _say(f"{title}: done in {clock(time.monotonic() - started)}")
    return 0


def _print_table(report: Path, path: Path) -> None:
    if not report.is_file():
        raise InputError(
            report, where=f"tables of {path}", expected="a report written by its stage", found="no such file"
        )
    # By name: the package that knows reports stands above this one.
    importlib.import_module("eval.report").print_table(report)


def _yaml_scalar(text: str) -> str:
    """`text` so that YAML reads it back as that string: plain where that is enough, else quoted."""
    try:
        plain = yaml.safe_load(text) == text
    except yaml.YAMLError:
        plain = False
    return text if plain else "'" + text.replace("'", "''") + "'"


def _fault(source: RecipeSource, loc: tuple[str | int, ...], expected: str, found: str) -> InputError:
    path, where = source.place(loc)
    return InputError(path, where=where, expected=expected, found=found)


def _one_of(ids: list[str]) -> str:
    return f"an earlier stage ({', '.join(ids) or 'there is none'})"


def _say(text: str, *, error: bool = False) -> None:
    print(text, file=sys.stderr if error else sys.stdout, flush=True)
