"""`python -m eval tasks [NAME]`: the tasks there are, and the keys one takes in a recipe."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence

from eval.tasks.task import find_task, task_names


def main(arguments: Sequence[str]) -> int:
    """Print; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m eval tasks",
        description="List the tasks that an eval recipe can name, or show the keys of one.",
        epilog="A task of your own is one file: see docs/eval.md; name it by its path, as in my_task.py.",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a task's name, or a .py file with one")
    name = parser.parse_args(list(arguments)).name
    if name is not None:
        kind = find_task(name)
        print(f"{name}: {_first_line(kind)}")
        for key, field in kind.model_fields.items():
            needed = "needed" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
            print(f"  {key}: {field.description or ''} ({needed})")
        return 0
    names = task_names()
    width = max(map(len, names))
    for each in names:
        print(f"{each:<{width}}  {_first_line(find_task(each))}")
    return 0


def _first_line(kind: type) -> str:
    return (inspect.getdoc(kind) or "").partition("\n")[0]
