"""One judge for everything in a process that judges programs, as its stage's recipe wants it."""

from __future__ import annotations

import atexit

from pydantic import Field

from eval.judge.judge import Judge
from recipes.schema import StrictModel


class JudgeRecipe(StrictModel):
    """How programs that a model wrote are judged."""

    workers: int | None = Field(default=None, ge=1, description="programs judged at a time; null: one for each core")
    allow_unsandboxed: bool = Field(
        default=False,
        description="judge also where no namespaces keep programs apart (see docs/judge.md); `trivium doctor` tells",
    )


_wanted = JudgeRecipe()
_judge: Judge | None = None


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


def shared_judge() -> Judge:
    """The process's judge, started when it is first asked for and closed when the process ends.

    Raises:
        InputError: no sandbox starts on this machine.
    """
    global _judge
    if _judge is None:
        _judge = Judge(workers=_wanted.workers, allow_unsandboxed=_wanted.allow_unsandboxed)
        atexit.register(close_shared_judge)
    return _judge


def close_shared_judge() -> None:
    """End its sandboxes; the next call of `shared_judge` makes new ones."""
    global _judge
    if _judge is not None:
        _judge.close()
        _judge = None
