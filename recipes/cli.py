"""The `trivium` command.

It imports what it runs and nothing else: subcommands that belong to another package are found by module name.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from core_model.errors import InputError

app = typer.Typer(
    name="trivium",
    help="Train a DeepSeek-V3-style reasoner end to end from recipes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Everything after these commands' names goes to the package that owns them, --help included.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
DISPATCH = {"chat": "core_model.generation.chat", "report": "eval.report"}

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Replace keys; `stage.key=value` in a pipeline.")
]


def main() -> None:
    """The console script: bad input is one message and exit status 2."""
    try:
        app()
    except InputError as error:
        print(f"trivium: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        sys.stderr.close()
        sys.exit(141)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="A pipeline or a single stage's recipe (YAML).")],
    overrides: Overrides = None,
) -> None:
    """Run a pipeline or one recipe; interrupted, the same command goes on where it stopped."""
    from recipes.child import run_child
    from recipes.loader import load_recipe
    from recipes.pipeline import is_pipeline, run_pipeline

    given = overrides or []
    if is_pipeline(recipe):
        status = run_pipeline(recipe, given)
    else:
        stage = load_recipe(recipe, given).stage
        status = run_child([sys.executable, "-m", stage, str(recipe), *given])
    raise typer.Exit(status)


@app.command("list")
def list_recipes(
    folder: Annotated[Path | None, typer.Argument(help="Where to look; ./recipes, else the shipped ones.")] = None,
) -> None:
    """List the recipes: file, stage, name, and what each says of itself."""
    from recipes.catalogue import print_catalogue

    shipped = Path(__file__).parent
    here = Path("recipes")
    print_catalogue(folder if folder is not None else here if here.is_dir() else shipped)


@app.command()
def check(
    recipes: Annotated[
        list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE...]", help="Recipes and pipelines, and overrides.")
    ],
) -> None:
    """Check recipes and pipelines without running them. Exit status 0, or 2 when one has a problem."""
    from recipes.catalogue import check_file

    overrides = [argument for argument in recipes if "=" in argument]
    files = [Path(argument) for argument in recipes if "=" not in argument]
    if not files:
        raise InputError("trivium check", expected="at least one recipe", found="none")
    failed = False
    for path in files:
        problems, notes = check_file(path, overrides)
        for problem in problems:
            print(problem, file=sys.stderr)
        failed = failed or bool(problems)
        if not problems:
            print(f"{path}: ok" + "".join(f"\n  {note}" for note in notes))
    raise typer.Exit(2 if failed else 0)


@app.command(context_settings=PASS_ON)
def chat(context: typer.Context) -> None:
    """Talk to a run's model; `trivium chat --help` says how."""
    _dispatch("chat", context.args)


@app.command(context_settings=PASS_ON)
def report(context: typer.Context) -> None:
    """Show a run's report; `trivium report --help` says how."""
    _dispatch("report", context.args)


@app.command()
def doctor() -> None:
    """Say what this machine offers and which versions are installed."""
    from recipes.catalogue import print_doctor

    print_doctor()


def _dispatch(command: str, arguments: list[str]) -> None:
    """Run `<module>.main(arguments)`, which returns an exit status or None."""
    status = importlib.import_module(DISPATCH[command]).main(list(arguments))
    raise typer.Exit(int(status or 0))
