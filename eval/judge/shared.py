"""One judge of each mode for everything in a process that judges programs, as its stage's recipe wants it."""

from __future__ import annotations

import atexit

from pydantic import Field

from core_model.errors import InputError
from eval.judge.case import Mode
from eval.judge.judge import Judge
from eval.judge.layers import find_layers, isolation_fault
from recipes.schema import KeyFault, StrictModel


class JudgeRecipe(StrictModel):
    """How programs that a model wrote are judged."""

    workers: int | None = Field(default=None, ge=1, description="programs judged at a time; null: one for each core")
    allow_unsandboxed: bool = Field(
        default=False,
        description="judge also where no namespaces keep programs apart (see docs/judge.md); `trivium doctor` tells",
    )


def judge_faults(recipe: JudgeRecipe, *, needed: bool) -> list[KeyFault]:
    """What keeps this machine from judging a stage's programs, from the key `judge` of its recipe; no judge is started.

    Args:
        needed: the stage will judge programs.
    """
    if not needed or recipe.allow_unsandboxed:
        return []
    try:
        fault = isolation_fault(find_layers())
    except InputError as error:  # no Linux
        fault = error
    return [] if fault is None else [KeyFault(("judge",), expected=fault.expected, found=fault.found)]


_wanted = JudgeRecipe()
_judges: dict[Mode, Judge] = {}


def use_judge(recipe: JudgeRecipe, *, needed: bool) -> None:
    """Let `shared_judge` be one of this kind from now on; a stage says so once, at its start.

    Args:
        needed: the stage will judge programs: better found out now that this machine cannot.

    Raises:
        InputError: needed, and no sandbox starts here or its level is too low.
    """
    global _wanted
    if recipe != _wanted:
        _wanted = recipe
        close_shared_judge()
    if needed:
        shared_judge().require_isolation()


def shared_judge(mode: Mode = "strict") -> Judge:
    """The process's judge of a mode, started when it is first asked for and closed when the process ends.

    Raises:
        InputError: no sandbox starts on this machine.
    """
    if mode not in _judges:
        if not _judges:
            atexit.register(close_shared_judge)
        _judges[mode] = Judge(mode, workers=_wanted.workers, allow_unsandboxed=_wanted.allow_unsandboxed)
    return _judges[mode]


def close_shared_judge() -> None:
    """End all sandboxes; the next call of `shared_judge` makes new ones."""
    while _judges:
        _judges.popitem()[1].close()
