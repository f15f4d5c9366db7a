"""A sweep without a server: `python -m recipes.sweep FILE`, from a file that wandb's agent can run as well.

The file is in wandb's own format (docs/tracking.md). Each trial is a stage's run in a folder of its own,
`runs/sweeps/<name>/<trial>`, whose name comes from the trial's values: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from core_model.errors import InputError, disk_fault
from recipes.atomic import write_json
from recipes.child import run_child
from recipes.loader import RecipeSource, holds_sweep, load_recipe, validate
from recipes.pipeline import check_recipe, missing_inputs
from recipes.run import COMPLETE, read_metrics, read_provenance, run_status
from recipes.schema import StageRecipe, StrictModel

EXIT_FAILED, EXIT_BAD_INPUT, SIGNALLED = 1, 2, 128
ARGUMENTS, PLACE = "${args_no_hyphens}", "run_dir="
DRAWS = 100  # of a random sweep for each trial asked for, before it is said that there are no more

EPILOG = """\
examples:
  python -m recipes.sweep recipes/nano/sweep.yaml --dry-run
  python -m recipes.sweep recipes/nano/sweep.yaml --count 4

Trials run one after the other, each as `python -m <stage> <recipe> key=value ...`, in runs/sweeps/<name>/<trial>; those
that are complete are skipped, an interrupted one resumes. At the end they are printed, best first, and written to
runs/sweeps/<name>/trials.json. Nothing is sent anywhere: wandb stays offline unless WANDB_MODE says otherwise.
Exit status: 0 all trials are complete, 1 some failed, 2 bad input (before anything runs), 128 + n killed by signal n.
"""

Scalar = bool | int | float | str


class Metric(StrictModel):
    """What trials are compared by."""

    name: str = Field(min_length=1, description="a key of metrics.jsonl; its last value counts")
    goal: Literal["minimize", "maximize"] = Field(default="minimize", description="which end is the better one")


class Parameter(StrictModel):
    """The values of one key of the recipe: one, some, or a range to draw from."""

    value: Scalar | None = Field(default=None, description="the only one")
    values: tuple[Scalar, ...] | None = Field(default=None, min_length=1, description="each of them")
    distribution: Literal["uniform", "int_uniform", "log_uniform_values"] | None = Field(
        default=None, description="of a range; null: int_uniform between integers, else uniform"
    )
    min: int | float | None = Field(default=None, description="of a range")
    max: int | float | None = Field(default=None, description="of a range, included")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        is_range = self.min is not None and self.max is not None
        if (self.value is not None) + (self.values is not None) + is_range != 1:
            raise ValueError("it takes a value, or values, or min and max")
        if not is_range and not (self.min is self.max is self.distribution is None):
            raise ValueError("min, max and distribution belong to a range: min and max")
        if self.min is None or self.max is None:
            return self
        if self.min >= self.max:
            raise ValueError(f"min {self.min} is not below max {self.max}")
        if self.distribution == "log_uniform_values" and self.min <= 0:
            raise ValueError(f"log_uniform_values needs min above 0, not {self.min}")
        if self.distribution == "int_uniform" and not (isinstance(self.min, int) and isinstance(self.max, int)):
            raise ValueError("int_uniform needs whole numbers")
        return self

    @property
    def choices(self) -> tuple[Scalar, ...] | None:
        """The values there are; None for a range."""
        return self.values if self.value is None else (self.value,)

    def draw(self, generator: random.Random) -> Scalar:
        """One of the values, each as likely, or a number from the range."""
        if self.choices is not None:
            return generator.choice(self.choices)
        assert self.min is not None and self.max is not None
        whole = isinstance(self.min, int) and isinstance(self.max, int)
        if self.distribution == "int_uniform" or (self.distribution is None and whole):
            return generator.randint(int(self.min), int(self.max))
        if self.distribution == "log_uniform_values":
            drawn = math.exp(generator.uniform(math.log(self.min), math.log(self.max)))
            return min(max(drawn, self.min), self.max)  # exp and log do not quite undo each other
        return generator.uniform(self.min, self.max)


class Sweep(StrictModel):
    """A sweep's file: the keys of wandb's format that mean something without its server."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the trials' folder and wandb group")
    description: str | None = Field(default=None, description="what it is for")
    project: str | None = Field(default=None, description="wandb's project")
    entity: str | None = Field(default=None, description="wandb's user or team")
    program: str | None = Field(default=None, description="wandb's agent asks for it; the command says what runs")
    method: Literal["grid", "random"] = Field(
        description="all combinations, or drawn ones; bayes needs wandb's server and its agent"
    )
    metric: Metric
    parameters: dict[str, Parameter] = Field(min_length=1, description="dotted key of the recipe -> its values")
    command: tuple[str, ...] = Field(
        description="[${env}, ${interpreter}, -m, STAGE, RECIPE, KEY=VALUE..., ${args_no_hyphens}]"
    )
    run_cap: int | None = Field(default=None, ge=1, description="how many trials at most")


@dataclass(frozen=True)
class Trial:
    """One combination of values, its recipe resolved.

    Attributes:
        id: eight hexadecimal digits of the values' sha256; the run folder's name.
        values: dotted key -> value.
        recipe: the stage's recipe with them.
        command: what runs it.
    """

    id: str
    values: dict[str, Scalar]
    recipe: StageRecipe
    command: tuple[str, ...]


@dataclass(frozen=True)
class SweepPlan:
    path: Path
    sweep: Sweep
    folder: Path
    trials: tuple[Trial, ...]


def is_sweep(path: Path) -> bool:
    """Whether a YAML file is a sweep. Files that cannot be read are not."""
    try:
        return holds_sweep(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False


def plan_sweep(path: Path, *, count: int | None = None, seed: int = 0, folder: Path | None = None) -> SweepPlan:
    """Read a sweep's file and resolve the recipe of every trial; nothing is run.

    Args:
        path: the file; the recipe in its command is relative to the working directory, as for wandb's agent.
        count: how many trials at most; None takes `run_cap`.
        seed: of a random sweep's draws. The first n trials are the same whatever the count.
        folder: of the trials' runs; None: runs/sweeps/<name>.

    Raises:
        InputError: the file or a trial's recipe is at fault, or a trial's folder belongs to another recipe.
    """
    sweep, source = _read(path)
    stage, recipe_path, fixed = _command(sweep, source)
    place = folder if folder is not None else Path("runs/sweeps") / sweep.name
    trials = []
    for values in _combinations(sweep, count or sweep.run_cap, seed, source):
        key = json.dumps(values, sort_keys=True)
        name = hashlib.sha256(key.encode()).hexdigest()[:8]
        # The same texts as wandb's agent makes of them.
        overrides = [*fixed, *(f"{name}={value}" for name, value in values.items())]
        overrides += [f"{PLACE}{place / name}", f"group={sweep.name}"]
        recipe: StageRecipe = load_recipe(recipe_path, overrides)
        if recipe.stage != stage:
            raise _fault(source, "command", f"a recipe of the stage {stage}", f"{recipe_path} of {recipe.stage}")
        for problem in check_recipe(recipe, recipe_path):
            raise InputError(path, where=f"trial {key}", expected="a recipe that can run here", found=str(problem))
        command = (sys.executable, "-m", stage, str(recipe_path), *overrides)
        trials.append(Trial(name, values, recipe, command))
    return SweepPlan(path, sweep, place, tuple(trials))


def run_sweep(plan: SweepPlan) -> int:
    """Run the trials that are not complete, one after the other; then print and write their table.

    Returns:
        0, 1 when a trial failed (the others are run all the same), 128 + n when signal n ended one.

    Raises:
        InputError: an input is missing, or a trial's folder belongs to another recipe or to other inputs.
    """
    for trial in plan.trials:
        for key, artefact in missing_inputs(trial.recipe).items():
            raise InputError(artefact, where=f"input {key}", expected="a file or folder", found="nothing there")
    # All of them first: a folder of another recipe is found out before anything runs.
    statuses = [_status(trial) for trial in plan.trials]
    failed = False
    for number, (trial, status) in enumerate(zip(plan.trials, statuses, strict=True), 1):
        title = f"[{number}/{len(plan.trials)}] {trial.id} {_shown(trial.values)}"
        if status == COMPLETE:
            print(f"{title}: already complete", flush=True)
            continue
        print(f"{title}: {'starting' if status is None else 'resuming'}", flush=True)
        code = run_child(list(trial.command))
        if code >= SIGNALLED:
            print(f"{title}: ended by signal {code - SIGNALLED}; the same command resumes", file=sys.stderr)
            return code
        if code != 0:
            print(f"{title}: ended with status {code}", file=sys.stderr)
            failed = True
    rows = results(plan)
    write_json(plan.folder / "trials.json", {"metric": plan.sweep.metric.model_dump(), "trials": rows})
    _print_results(plan, rows)
    return EXIT_FAILED if failed else 0


def results(plan: SweepPlan) -> list[dict[str, Any]]:
    """A row for each trial: `trial`, `values`, `status`, `metric`. Best first, those without the metric last."""
    rows: list[dict[str, Any]] = []
    for trial in plan.trials:
        provenance = read_provenance(trial.recipe.folder)
        logged = [line.get(plan.sweep.metric.name) for line in read_metrics(trial.recipe.folder / "metrics.jsonl")]
        numbers = [value for value in logged if value is not None]
        rows.append(
            {
                "trial": trial.id,
                "values": trial.values,
                "status": "not begun" if provenance is None else provenance["status"],
                "metric": numbers[-1] if numbers else None,
            }
        )
    sign = -1.0 if plan.sweep.metric.goal == "maximize" else 1.0
    return sorted(rows, key=lambda row: math.inf if row["metric"] is None else sign * row["metric"])


def _read(path: Path) -> tuple[Sweep, RecipeSource]:
    """The file's sweep. Not by `read_yaml`: wandb's ${...} would be taken for OmegaConf's."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(path, expected="a sweep (a YAML file)", found="no such file") from None
    except OSError as error:
        raise InputError(path, expected="a sweep (a YAML file)", found=str(error.strerror)) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(path, expected="YAML in UTF-8", found=str(error).splitlines()[0]) from error
    if not isinstance(data, dict):
        raise InputError(path, expected="a mapping of keys", found=repr(data)[:60])
    source = RecipeSource([path])
    sweep: Sweep = validate(Sweep, data, source)
    return sweep, source


def _command(sweep: Sweep, source: RecipeSource) -> tuple[str, Path, list[str]]:
    """The stage, the recipe and the fixed overrides in a sweep's command.

    Its run_dir is for wandb's agent and left out: here each trial gets its own.
    """
    words = [word for word in sweep.command if word != "${env}"]
    if words[:2] not in (["${interpreter}", "-m"], ["python", "-m"]) or words.count(ARGUMENTS) != 1 or len(words) < 5:
        expected = "[${env}, ${interpreter}, -m, STAGE, RECIPE, KEY=VALUE..., ${args_no_hyphens}]"
        raise _fault(source, "command", expected, " ".join(sweep.command) or "nothing")
    stage, recipe, *overrides = words[2:]
    fixed = [word for word in overrides if word != ARGUMENTS and not word.startswith(PLACE)]
    for word in (stage, recipe, *fixed):
        if word.startswith("${"):
            raise _fault(source, "command", "no other ${...} than env, interpreter and args_no_hyphens", word)
    for key in sweep.parameters:
        if key in ("run_dir", "group") or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
            raise _fault(source, f"parameters.{key}", "a dotted key that decides a number", repr(key))
    return stage, Path(recipe), fixed


def _combinations(sweep: Sweep, count: int | None, seed: int, source: RecipeSource) -> Iterator[dict[str, Scalar]]:
    """The trials' values, each combination once."""
    names = list(sweep.parameters)
    if sweep.method == "grid":
        for name, parameter in sweep.parameters.items():
            if parameter.choices is None:
                raise _fault(source, f"parameters.{name}", "a value or values: it is a grid", "a range")
        every = itertools.product(*(parameter.choices or () for parameter in sweep.parameters.values()))
        for chosen in itertools.islice(every, count):
            yield dict(zip(names, chosen, strict=True))
        return
    if count is None:
        raise _fault(source, "run_cap", "how many trials a random sweep has, here or as --count", "neither")
    seen: set[str] = set()
    for draw in range(count * DRAWS):
        generator = random.Random(f"{seed}:{draw}")
        values = {name: parameter.draw(generator) for name, parameter in sweep.parameters.items()}
        if (key := json.dumps(values)) not in seen:
            seen.add(key)
            yield values
        if len(seen) == count:
            return
    print(f"sweep {sweep.name}: {len(seen)} different trials and not {count}: there are no more", file=sys.stderr)


def _status(trial: Trial) -> str | None:
    folder = trial.recipe.folder
    return run_status(trial.recipe, trial.recipe.input_paths()) if folder.exists() else None


def _fault(source: RecipeSource, key: str, expected: str, found: str) -> InputError:
    # A parameter's name has dots of its own.
    head, _, rest = key.partition(".")
    path, where = source.place((head, rest) if rest else (head,))
    return InputError(path, where=where, expected=expected, found=found)


def _shown(values: dict[str, Scalar]) -> str:
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in values.items()
    )


def _print_results(plan: SweepPlan, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    metric = plan.sweep.metric
    arrow = "highest first" if metric.goal == "maximize" else "lowest first"
    table = Table(f"{escape(metric.name)}, {arrow}", "trial", "status", "values", box=None, header_style="bold")
    for row in rows:
        number = "none" if row["metric"] is None else f"{row['metric']:.6g}"
        table.add_row(number, row["trial"], row["status"], escape(_shown(row["values"])))
    console = Console()
    (console if console.is_terminal else Console(width=10_000, soft_wrap=True)).print(table)
    if rows and all(row["metric"] is None for row in rows):
        print(f"{plan.path}: no trial logged {metric.name!r}; metrics.jsonl has the names", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m recipes.sweep",
        description="Run a grid or random sweep of one stage without a server, from a file in wandb's format.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="the sweep, such as recipes/nano/sweep.yaml")
    parser.add_argument("--count", metavar="N", type=int, help="run N trials at most (default: the file's run_cap)")
    parser.add_argument("--seed", metavar="S", type=int, default=0, help="of a random sweep's draws (default: 0)")
    parser.add_argument("--folder", metavar="DIR", type=Path, help="of the runs (default: runs/sweeps/<name>)")
    parser.add_argument("--dry-run", action="store_true", help="check the file and print the commands; run nothing")
    options = parser.parse_args(arguments)
    try:
        if options.count is not None and options.count < 1:
            raise InputError("--count", expected="at least 1", found=str(options.count))
        plan = plan_sweep(options.file, count=options.count, seed=options.seed, folder=options.folder)
        if not options.dry_run:
            return run_sweep(plan)
        for trial in plan.trials:
            print(" ".join(["python", *trial.command[1:]]))
        return 0
    except InputError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        if (fault := disk_fault(error)) is None:
            raise
        print(f"sweep: {fault}; the same command resumes", file=sys.stderr)
        return EXIT_BAD_INPUT


if __name__ == "__main__":
    sys.exit(main())
