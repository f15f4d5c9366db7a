"""The `trivium` command.

It imports what it runs and nothing else: subcommands that belong to another package are found by module name.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from core_model.errors import InputError, disk_fault
from recipes.exchange import Dtype, Scale

app = typer.Typer(
    name="trivium",
    help="Train a DeepSeek-V3-style reasoner end to end from recipes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # a docstring's line ends are not its paragraphs' ends
)

# Everything after these commands' names goes to the package that owns them, --help included.
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
DISPATCH = {
    "chat": "core_model.generation.chat",
    "serve": "core_model.generation.server",
    "report": "eval.report",
    "leaderboard": "eval.leaderboard",
}

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Replace keys; `stage.key=value` in a pipeline.")
]

MTP = Annotated[bool, typer.Option("--mtp/--no-mtp", help="Write the multi-token prediction modules.")]
ShardSize = Annotated[str, typer.Option(metavar="SIZE", help="Start a new file before one passes this, such as 500MB.")]
NewFolder = Annotated[Path, typer.Argument(help="The new folder; it appears when it is whole.")]


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
    except OSError as error:
        if (fault := disk_fault(error)) is None:
            raise
        print(f"trivium: {fault}", file=sys.stderr)
        sys.exit(2)


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
        list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE...]", help="Recipes, pipelines, sweeps; and overrides.")
    ],
) -> None:
    """Check recipes, pipelines and sweeps without running them. Exit status 0, or 2 when one has a problem."""
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
def serve(context: typer.Context) -> None:
    """Serve a run's model to OpenAI's clients; `trivium serve --help` says how."""
    _dispatch("serve", context.args)


@app.command(context_settings=PASS_ON)
def report(context: typer.Context) -> None:
    """Write an eval run's report (report.json, report.html, figures) anew, and show it; `trivium report --help`."""
    _dispatch("report", context.args)


@app.command(context_settings=PASS_ON)
def leaderboard(context: typer.Context) -> None:
    """Rank the models of eval runs; `trivium leaderboard --help` says how."""
    _dispatch("leaderboard", context.args)


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="A run folder with a model/, or a model folder.")],
    out: NewFolder,
    dtype: Annotated[Dtype, typer.Option(help="How weights are stored.")] = Dtype.BF16,
    scale: Annotated[Scale, typer.Option(help="FP8 only: any scale (V3, R1), or powers of two (V3.1).")] = Scale.FP32,
    whole_blocks: Annotated[
        bool, typer.Option("--whole-blocks", help="FP8 only: BF16 for weights that 128x128 blocks do not divide.")
    ] = False,
    mtp: MTP = True,
    shard_size: ShardSize = "5GB",
) -> None:
    """Write a model as DeepSeek publishes its own, for transformers, vLLM, SGLang and llama.cpp.

    The tokenizer and the chat template travel along. Interrupted, the same command goes on where it stopped. Memory
    holds one tensor at a time, whatever the model's size.

    fp8 stores attention and feed-forward weights as E4M3 with a scale for every 128x128 block, and keeps embedding,
    head, norms and gate in BF16; it costs about 2.6 % of a weight (relative L2). vLLM and SGLang run it; transformers
    needs a GPU, or turns it back into BF16. It takes cut-off blocks (sizes above 128 that 128 does not divide: V3 and
    nano have some) for smaller ones, so give it --whole-blocks. Programs without MTP want --no-mtp where they complain
    of unexpected weights.

    For example: trivium export runs/nano/rl exported --dtype fp8 --whole-blocks
    """
    from core_model.generation.chat import find_model
    from recipes.exchange import convert, storage_of

    convert(find_model(model), out, storage_of(dtype, scale, whole_blocks), mtp=mtp, shard_size=shard_size)


@app.command("import")
def import_model(
    folder: Annotated[Path, typer.Argument(help="A deepseek_v3 folder: safetensors and config.json, BF16 or FP8.")],
    out: NewFolder,
    dtype: Annotated[
        Dtype | None, typer.Option(help="How weights are stored; left out: like its head, or BF16 for FP8.")
    ] = None,
    scale: Annotated[Scale, typer.Option(help="FP8 only: any scale, or powers of two.")] = Scale.FP32,
    mtp: MTP = True,
    shard_size: ShardSize = "5GB",
) -> None:
    """Take in a DeepSeek-V3 model of another program: check all of it, and write a folder that stages start from.

    Every tensor's name and shape is compared with config.json; FP8 is made whole, block by block; MTP modules that
    config.json claims and the weights lack (transformers writes such) are struck out. Interrupted, the same command
    goes on where it stopped. Memory holds one tensor at a time.

    For example: trivium import DeepSeek-V3-0324 models/v3, then init_from: models/v3 in a recipe.
    """
    from recipes.exchange import convert, storage_of

    if dtype is None and scale is Scale.UE8M0:
        raise InputError("--scale", expected="ue8m0 together with --dtype fp8", found="no --dtype")
    convert(folder, out, None if dtype is None else storage_of(dtype, scale), mtp=mtp, shard_size=shard_size)


@app.command()
def doctor() -> None:
    """Say what this machine offers, which versions are installed, and how well judged programs are sandboxed."""
    from recipes.catalogue import print_doctor

    print_doctor()
    importlib.import_module("eval.judge.layers").print_layers()


def _dispatch(command: str, arguments: list[str]) -> None:
    """Run `<module>.main(arguments)`, which returns an exit status or None."""
    status = importlib.import_module(DISPATCH[command]).main(list(arguments))
    raise typer.Exit(int(status or 0))
