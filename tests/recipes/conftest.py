"""Stages made for the tests: packages on a path of their own, started as real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

PIPELINE = """\
# two walks, one after the other
name: both
seed: 3
stages:
  - {id: first, recipe: walk.yaml}
  - id: second
    recipe: walk.yaml
    inputs: {source: first/model}
    overrides: [start=100]
tables: [second/report.json]
"""

# A random walk with checkpoints. FAKE_DIE="<run folder's name>:<step>" kills the process there, once its metrics of
# that step are out; FAKE_TORN kills it inside the writing of a checkpoint; FAKE_HANG makes it wait at that step.
WALK_MAIN = """
import json, os, random, signal, sys, time
from pathlib import Path
from recipes.checkpoints import latest_checkpoint, save_checkpoint, step_of
from recipes.stage_main import stage_main

def reached(variable, run, step):
    return os.environ.get(variable) == f"{run.path.name}:{step}"

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def walk(recipe, run):
    step, x = 0, recipe.start
    if recipe.source is not None:
        x += json.loads((recipe.source / "result.json").read_text())["x"]
    if (checkpoint := latest_checkpoint(run.checkpoints)) is not None:
        step, (x, state) = step_of(checkpoint), json.loads((checkpoint / "state.json").read_text())
        random.setstate((state[0], tuple(state[1]), state[2]))
    run.rewind(step)
    while step < recipe.steps:
        step += 1
        x += random.random()
        run.log(step, {"x": x})
        if reached("FAKE_DIE", run, step):
            die()
        if reached("FAKE_HANG", run, step):
            (run.path / "hanging").write_text(str(os.getpid()))
            time.sleep(60)
        if step % 5 == 0:
            def write(folder):
                (folder / "state.json").write_text(json.dumps([x, random.getstate()]))
                if reached("FAKE_TORN", run, step):
                    die()
            save_checkpoint(run.checkpoints, step, write)
    (run.path / "model").mkdir(exist_ok=True)
    (run.path / "model" / "result.json").write_text(json.dumps({"x": x}))
    (run.path / "report.json").write_text(json.dumps({"x": x}))
    return {"x": x}

if __name__ == "__main__":
    sys.exit(stage_main("walk", walk))
"""

WALK_RECIPE = """
from pydantic import Field
from recipes.schema import InputPath, KeyFault, StageRecipe, StrictModel

class Pace(StrictModel):
    length: float = Field(default=1.0, gt=0, description="of a step, metres")

class Recipe(StageRecipe):
    steps: int = Field(default=20, ge=0, description="how many steps")
    start: float = Field(default=0.0, description="where it begins, metres")
    source: InputPath | None = Field(default=None, description="a folder with result.json to go on from")
    pace: Pace = Pace()

    def machine_faults(self):
        far = KeyFault(("steps",), expected="no more steps than this machine has ground", found=str(self.steps))
        return [far] if self.steps > 10_000 else []
"""

# Enough of torch to seed it and to describe the machine: what is tested here is processes and files, and torch's
# import would be most of each process's life. test_stage_command.py starts a stage with the real one.
TORCH = """
class accelerator:
    is_available = staticmethod(lambda: False)
manual_seed = set_num_threads = lambda value: None
get_num_threads = lambda: 1
"""

REPORT = """
import json
def print_table(path):
    print("TABLE", json.loads(path.read_text())["x"])
def main(arguments):
    print("REPORT", *arguments)
"""


@dataclass
class Stages:
    """A working directory with the `walk` stage, and a way to start commands in it."""

    root: Path
    path: Path

    def write(self, name: str | Path, text: str) -> Path:
        file = self.root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def environ(self, **extra: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.path), str(ROOT)]), **extra}

    def python(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=self.root, env=self.environ(**extra), capture_output=True, text=True, timeout=60
        )

    def trivium(self, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
        return self.python("-c", "from recipes.cli import main; main()", *arguments, **extra)

    def start(self, *arguments: str, **extra: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from recipes.cli import main; main()", *arguments]
        return subprocess.Popen(
            command,
            cwd=self.root,
            env=self.environ(**extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def make_stages(folder: Path) -> Stages:
    """The stage `walk` on a path of its own; recipes/walk.yaml and recipes/pipeline.yaml in a working directory."""
    made = Stages(folder / "work", folder / "path")
    files = {
        "walk/__init__.py": "",
        "walk/recipe.py": WALK_RECIPE,
        "walk/__main__.py": WALK_MAIN,
        "torch.py": TORCH,
        # The package that prints tables stands above recipes; here a double of it.
        "eval/__init__.py": "",
        "eval/report.py": REPORT,
    }
    for name, text in files.items():
        made.write(made.path / name, text)
    made.write("recipes/walk.yaml", "# a random walk\nstage: walk\nname: walk\nsteps: 20  # steps\n")
    made.write("recipes/pipeline.yaml", PIPELINE)
    return made


@pytest.fixture
def stages(tmp_path: Path) -> Stages:
    return make_stages(tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Stages:
    """A pipeline that ran to its end in runs/both, its output in output.txt. Tests leave its runs as they are."""
    made = make_stages(tmp_path_factory.mktemp("finished"))
    done = made.trivium("run", "recipes/pipeline.yaml")
    assert done.returncode == 0, done.stderr
    made.write("output.txt", done.stdout)
    return made


@contextmanager
def importable(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working directory is the stages'; `walk` can be imported in this process, the doubles cannot."""
    folder = stages.path / "importable"
    folder.mkdir(exist_ok=True)
    if not (folder / "walk").exists():
        (folder / "walk").symlink_to(stages.path / "walk")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(stages.root)
    names = ("walk", "walk.recipe")
    for name in names:
        sys.modules.pop(name, None)
    yield
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def walk_recipe(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """recipes/walk.yaml, its stage importable in this process."""
    with importable(stages, monkeypatch):
        yield stages.root / "recipes" / "walk.yaml"


@pytest.fixture
def inside_finished(finished: Stages, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stages]:
    """The finished pipeline, its stage importable in this process."""
    with importable(finished, monkeypatch):
        yield finished
