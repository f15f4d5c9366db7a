"""What `trivium list`, `check` and `doctor` show."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from core_model.errors import InputError
from recipes.loader import load_recipe, read_yaml
from recipes.pipeline import check_recipe, is_pipeline, missing_inputs, plan_pipeline
from recipes.sweep import is_sweep, plan_sweep


def find_recipes(folder: Path) -> dict[Path, dict[str, Any]]:
    """The recipes and pipelines under a folder and what is in them ({} for one that cannot be read).

    YAML files of another kind, such as accelerate's, have neither a stage nor stages and are left out.
    """
    if not folder.is_dir():
        raise InputError(folder, expected="a folder of recipes", found="no such folder")
    found = {}
    for path in sorted(folder.rglob("*.yaml")):
        if is_sweep(path):  # its ${...} are wandb's, and would not resolve
            continue
        try:
            data = read_yaml(path)[0]
        except InputError:
            data = {}
        if not data or data.keys() & {"stage", "stages"}:
            found[path] = data
    return found


def print_catalogue(folder: Path) -> None:
    """A table of the recipes under `folder`."""
    recipes = find_recipes(folder)
    if not recipes:
        raise InputError(folder, expected="recipes (YAML files with a stage)", found="none")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("recipe", no_wrap=True)  # whole, to be copied
    table.add_column("stage", no_wrap=True)
    table.add_column("what it is")
    for path, data in recipes.items():
        stage = "pipeline" if "stages" in data else str(data.get("stage", "unreadable"))
        table.add_row(*map(escape, (str(path), stage, first_comment(path))))
    _console().print(table)


def check_file(path: Path, overrides: list[str]) -> tuple[list[str], list[str]]:
    """Check one recipe, pipeline or sweep without running it.

    Args:
        overrides: of a recipe or a pipeline; a sweep takes none.

    Returns:
        Problems, and notes that are none (inputs that are not there yet, what a sweep is run by).
    """
    try:
        if is_sweep(path):
            return [], _sweep_notes(path)
        if is_pipeline(path):
            plan = plan_pipeline(path, overrides)
            problems: list[str] = []
            notes: list[str] = []
            for stage in plan.stages:
                problems += map(str, check_recipe(stage.recipe, stage.recipe_path))
                missing = missing_inputs(stage.recipe, stage.from_stages)
                notes += [f"stage {stage.id}: input {key} is not there yet: {place}" for key, place in missing.items()]
            return problems, notes
        recipe = load_recipe(path, overrides)
        notes = [f"input {key} is not there yet: {place}" for key, place in missing_inputs(recipe).items()]
        return list(map(str, check_recipe(recipe, path))), notes
    except InputError as error:
        return [str(error)], []


def _sweep_notes(path: Path) -> list[str]:
    """What there is to say of a sweep whose trials can run.

    Raises:
        InputError: as `plan_sweep`.
    """
    trials = plan_sweep(path).trials
    missing = {pair for trial in trials for pair in missing_inputs(trial.recipe).items()}
    return [
        f"a sweep of {len(trials)} trials: `python -m recipes.sweep {path}` runs them",
        *(f"input {key} is not there yet: {place}" for key, place in sorted(missing)),
    ]


def first_comment(path: Path) -> str:
    """The text of a file's first comment line, "" when it has none."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith("#") and line.strip("# "):
            return line.strip("# ")
    return ""


def print_doctor() -> None:
    """Versions, cores, memory, disk, accelerator, and what the CPU runs in."""
    import torch

    from core_model import native
    from core_model.native import training
    from core_model.parallel.device import training_device
    from core_model.precision import fastest_dtype
    from recipes.provenance import git_state, hardware, versions

    machine = hardware()
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("processor", f"{machine['processor']}, {machine['cores']} cores for this process")
    table.add_row("torch threads", str(torch.get_num_threads()))
    table.add_row("memory", f"{machine['memory_gib']} GiB")
    table.add_row("free disk here", f"{shutil.disk_usage(Path.cwd()).free / 2**30:.0f} GiB")
    found = machine["accelerator"]
    table.add_row("accelerator", "none: the CPU is used" if found is None else f"{found['count']} x {found['kind']}")
    table.add_row("instruction set", torch.backends.cpu.get_cpu_capability())
    compiled = {"decoding, torch.float32": native.reason_against("decode")}
    compiled |= {f"training, {dtype}": training.reason_against(dtype) for dtype in training.KINDS}
    for what, reason in compiled.items():
        table.add_row(what, "compiled code" if reason is None else f"PyTorch's operations: {reason}")
    table.add_row("compute_dtype", f"{fastest_dtype(training_device())} where a recipe leaves it open")
    table.add_row("elementwise work", _elementwise_work())
    for what, name in _attention_kernels():
        table.add_row(what, name)
    table.add_row("code", str(git_state()["commit"] or "not a git checkout"))
    for name, version in versions().items():
        table.add_row(name, version or "not installed")
    _console().print(table)


def _elementwise_work() -> str:
    from core_model.fused import compiles_on
    from core_model.parallel.device import training_device

    device = training_device()
    if compiles_on(device):
        return "kernels of fused functions"
    return f"single operations{'' if device.type == 'cpu' else ': no Triton, or TRIVIUM_NATIVE is 0'}"


def _attention_kernels() -> list[tuple[str, str]]:
    """What attention runs through on the training device at V3's widths in bf16."""
    import torch

    from core_model.attention_kernels import kernel_names
    from core_model.config import V3Config
    from core_model.generation.latent_kernels import latent_kernel
    from core_model.parallel.device import training_device

    config, device = V3Config.preset("671b"), training_device()
    rows, documents = kernel_names(device, torch.bfloat16, config.qk_head_dim, config.v_head_dim)
    decoding = latent_kernel(device, torch.bfloat16, config.kv_lora_rank, config.qk_rope_head_dim).name
    return [
        ("attention, whole rows", rows),
        ("attention, documents", documents),
        ("attention, decoding", decoding),
    ]


def _console() -> Console:
    """As wide as a terminal; in a pipe as wide as the text, so that no row is folded."""
    console = Console()
    return console if console.is_terminal else Console(width=10_000, soft_wrap=True)
