"""What `python -m <stage>` does, the same for every stage."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core_model.errors import InputError, disk_fault
from recipes.key_help import key_lines
from recipes.loader import load_recipe
from recipes.pipeline import require_machine
from recipes.progress import clock
from recipes.run import Run
from recipes.schema import StageRecipe

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

EPILOG = """\
examples:
  {command} {example}
  {command} {example} seed=1 run_dir=runs/second
  accelerate launch --config_file recipes/accelerate/cpu.yaml -m {module} {example}

The run is kept in runs/<name> (or run_dir). Killed at any moment, it resumes with the same command; complete, it says
so and does nothing. Exit status: 0 done, 2 bad input (one message says which key or file), 130 interrupted.

keys of {article} {stage} recipe, dotted where nested, with their defaults; <name> is yours to give, <i> is an index:
{keys}
"""
EXAMPLES = {"sft": "recipes/nano/sft_reasoning.yaml", "rl": "recipes/nano/rl_accuracy.yaml"}  # else <stage>.yaml


def stage_main(
    stage: str,
    run_stage: Callable[[Any, Run], dict[str, Any]],
    *,
    distributed: bool = False,
    step: str | None = None,
    arguments: list[str] | None = None,
    outdated: Callable[[Any, Run], str | None] | None = None,
) -> int:
    """Parse the command line, open the run, run the stage, record its summary.

    Args:
        stage: the package's name; its schema is `<stage>.recipe.Recipe`.
        run_stage: does the work; gets the recipe and the open run, returns the summary (JSON-serialisable).
        step: the name of the step that `run_stage` does, where it is not the whole stage: the run is not complete then.
        distributed: whether the stage can run as several processes (WORLD_SIZE > 1).
        arguments: the command line after the module's name; None takes `sys.argv`.
        outdated: says what has changed since a complete run was made, so that it is worth making again.

    Returns:
        The exit status; `<stage>/__main__.py` passes it to `sys.exit`.
    """
    schema: type[StageRecipe] = importlib.import_module(f"{stage}.recipe").Recipe
    options = _parser(stage, schema, step).parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    # Libraries announce every request and download; only their warnings matter to a reader of a training run.
    for name in ("httpx", "urllib3", "filelock", "fsspec", "datasets", "transformers", "accelerate"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # TRL and transformers announce experimental and coming changes at every step; the versions are pinned.
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    try:
        _refuse_several_processes(stage, distributed)
        return _run(stage, schema, run_stage, options, step, outdated)
    except InputError as error:
        print(f"{stage}: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except OSError as error:
        if (fault := disk_fault(error)) is None:
            raise
        print(f"{stage}: {fault}; the same command resumes", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print(f"{stage}: interrupted; the same command resumes", file=sys.stderr)
        return EXIT_INTERRUPTED


def seed_everything(recipe: StageRecipe) -> None:
    """Set torch's threads and every global random number generator from the recipe."""
    import numpy
    import torch

    from core_model.parallel.host_memory import keep_freed_memory

    keep_freed_memory()
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    random.seed(recipe.seed)
    numpy.random.seed(recipe.seed)
    torch.manual_seed(recipe.seed)


def _run(
    stage: str,
    schema: type[StageRecipe],
    run_stage: Callable[[Any, Run], dict[str, Any]],
    options: argparse.Namespace,
    step: str | None,
    outdated: Callable[[Any, Run], str | None] | None,
) -> int:
    recipe = load_recipe(options.recipe, options.overrides, schema)
    if recipe.stage != stage:
        raise InputError(options.recipe, where="stage", expected=repr(stage), found=repr(recipe.stage))
    first = os.environ.get("RANK", "0") == "0"
    if first and step is None:  # a step may need less than the whole
        require_machine(recipe, Path(options.recipe))
    seed_everything(recipe)
    named = [stage] if step is None else [stage, step]
    command = ["python", "-m", *named, options.recipe, *options.overrides]
    run = Run.open(recipe, command, recipe.input_paths(), writer=first)
    try:
        if run.is_complete and step is None:
            if first:
                print(f"{stage}: {run.path} is already complete")
                if outdated is not None and (reason := outdated(recipe, run)) is not None:
                    print(f"{stage}: {reason}")
            return 0
        summary = run_stage(recipe, run)
        if step is None:
            run.complete(summary)
    finally:
        run.close()
    if first and step is not None:
        print(f"{stage} {step}: done, in {run.path}")
    elif first:
        print(f"{stage}: complete in {clock(run.provenance['seconds'])}, in {run.path}")
    return 0


def _refuse_several_processes(stage: str, distributed: bool) -> None:
    world = os.environ.get("WORLD_SIZE", "1")
    if not distributed and world not in ("", "1"):
        found = f"WORLD_SIZE={world}; launch it with --num_processes 1 (recipes/accelerate/cpu.yaml or one_gpu.yaml)"
        raise InputError(f"python -m {stage}", expected="one process: this stage is not distributed", found=found)


def _parser(stage: str, schema: type[StageRecipe], step: str | None) -> argparse.ArgumentParser:
    what = f"the {stage} stage" if step is None else f"one step of the {stage} stage"
    module = stage if step is None else f"{stage} {step}"
    example = EXAMPLES.get(stage, f"recipes/nano/{stage}.yaml")
    # A name without vowels is spelt out: an ess-eff-tee recipe.
    spoken_vowels = "aeiou" if set(stage) & set("aeiou") else "aefhilmnorsx"
    article = "an" if stage[0] in spoken_vowels else "a"
    command = f"python -m {module}"
    keys = "\n".join(key_lines(schema))
    parser = argparse.ArgumentParser(
        prog=command,
        description=f"Run {what} as a recipe says.",
        epilog=EPILOG.format(command=command, module=module, example=example, article=article, stage=stage, keys=keys),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", metavar="RECIPE", help=f"a YAML file, such as {example}")
    parser.add_argument(
        "overrides", metavar="KEY=VALUE", nargs="*", help="replace a key of the recipe, dotted, by a YAML value"
    )
    return parser
