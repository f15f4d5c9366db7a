"""What a task of an evaluation is: its problems, how a model is asked, and what makes an answer right.

A task is a class in a file of its own, `eval/tasks/library/<name>.py` or any file that a recipe names. Its fields are
the keys it has in a recipe; docs/eval.md shows how to write one.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, ValidationError

from core_model.errors import InputError
from eval.judge.case import JUDGE_VERSION
from eval.tasks.family import Judgement
from eval.tasks.text import base_prompt, prompt_messages
from recipes.faults import did_you_mean, explain, shown
from recipes.rows import Message, Problem, Verdict, sha256_of
from recipes.schema import KeyFault, StrictModel, is_input

Mode = Literal["base", "chat", "reasoning"]


class Task(StrictModel):
    """A set of problems with their prompts and their verifier. Subclasses add fields, which are recipe keys.

    Class attributes: `kind` says what a model does: it writes answers, or the log-likelihoods of choices or of running
    text are taken (eval/likelihood.py); `needs_judge` that answers are programs to be run, so that a machine without a
    sandbox is refused before anything is generated; `base_stop` are the texts that end a base model's answer.
    """

    kind: ClassVar[Literal["answers", "choices", "text"]] = "answers"
    needs_judge: ClassVar[bool] = False
    base_stop: ClassVar[tuple[str, ...]] = ("\n",)

    task: str | None = Field(
        default=None, description="which task: a name (python -m eval tasks) or a .py file; null: the key itself"
    )
    limit: int | None = Field(default=None, ge=1, description="at most so many problems, the first ones; null: all")
    max_new_tokens: int | None = Field(
        default=None, ge=1, description="longest completion here, tokens; null: sampling.max_new_tokens by mode"
    )

    @abstractmethod
    def problems(self) -> list[Problem]:
        """All problems, in a fixed order, with distinct ids; `limit` is applied by the caller.

        Raises:
            InputError: their source is missing or damaged.
        """

    @abstractmethod
    def judge(self, problems: Sequence[Problem], answers: Sequence[str]) -> list[Judgement]:
        """Judge one answer to each problem; never raises for anything an answer contains."""

    def messages(self, problem: Problem, mode: Mode) -> list[Message]:
        """What a chat or reasoning model is asked."""
        return prompt_messages(problem, reflect=mode == "reasoning")

    def text(self, problem: Problem) -> str:
        """The running text that a base model continues."""
        return base_prompt(problem)

    def best_constant(self, problems: Sequence[Problem]) -> tuple[str, float] | None:
        """The answer that is right most often, and how often: the accuracy of knowing nothing. None: not known."""
        return None

    def reference(self, problem: Problem) -> str | None:
        """An answer known to be right, as a model would give it; None where there is none."""
        return None

    def vote(self, answer: str) -> str | None:
        """What an answer says, spelt so that equal answers are equal: cons@k counts these. None: it says nothing."""
        return answer.strip() or None

    def settings(self) -> dict[str, Any]:
        """Its keys but for those that say where things lie: what is there is in the problems."""
        places = {name for name, field in type(self).model_fields.items() if is_input(field)}
        return self.model_dump(mode="json", exclude={"task", *places})

    def revision(self) -> str:
        """The sha256 of what decides a verdict besides the answer and its problem."""
        settings = {key: value for key, value in self.settings().items() if key not in ("limit", "max_new_tokens")}
        return sha256_of(JUDGE_VERSION, settings, _source_sha256(type(self)))


def chosen_problems(name: str, task: Task) -> list[Problem]:
    """The problems of a recipe's task, known by the recipe's name for it.

    Raises:
        InputError: as `Task.problems`, or two problems of one id, or none at all.
    """
    problems = task.problems()[: task.limit]
    twice = len(problems) - len({problem.id for problem in problems})
    if not problems or twice:
        found = f"{twice} ids that occur twice" if twice else "none"
        raise InputError(f"task {name}", where="problems", expected="problems with distinct ids", found=found)
    return [problem.model_copy(update={"source": name}) for problem in problems]


def graded(right: bool, answer: str) -> Judgement:
    """The judgement on an answer that is right or not: no answer where there is no text."""
    if not answer.strip():
        return Judgement(Verdict.NO_ANSWER)
    return Judgement(Verdict.CORRECT if right else Verdict.WRONG_ANSWER)


# -- finding tasks ---------------------------------------------------------------------------------------------------


def build_task(name: str, options: dict[str, Any]) -> Task:
    """The task of a recipe's entry `name: options`.

    Raises:
        KeyFault: no such task, or options it does not take.
    """
    which = options.get("task") or name
    if not isinstance(which, str):
        raise KeyFault((name, "task"), expected="a name or a .py file", found=shown(which))
    try:
        kind = find_task(which)
    except InputError as error:
        key = (name, "task") if options.get("task") else (name,)
        found = error.found if which.endswith(".py") else f"the unknown task {which!r}"
        raise KeyFault(key, expected=error.expected, found=found) from error
    text = json.dumps(options)
    try:
        return kind.model_validate_json(text, strict=True)
    except ValidationError as error:
        fault = explain(kind, json.loads(text), error)
        raise KeyFault((name, *fault.key), expected=fault.expected, found=fault.found) from error


def find_task(which: str) -> type[Task]:
    """The task class of a name, or of a .py file.

    Raises:
        InputError: there is none, or several.
    """
    from eval.tasks import FAMILIES  # families are tasks without files of their own

    if which.endswith(".py"):
        return _in_file(Path(which))
    if which in FAMILIES:
        from eval.tasks.families import family_task

        return family_task(which)
    if which not in (known := task_names()):
        hint = did_you_mean(which, known) or f": {', '.join(known)}"
        raise InputError("task", expected=f"a .py file, or a task that comes along{hint}", found=which)
    return _only_task(importlib.import_module(f"eval.tasks.library.{which}"), which)


def task_names() -> list[str]:
    """The names of all tasks that come with Trivium."""
    from eval.tasks import FAMILIES

    folder = Path(__file__).with_name("library")
    return [*FAMILIES, *sorted(path.stem for path in folder.glob("*.py") if not path.name.startswith("_"))]


def _in_file(path: Path) -> type[Task]:
    if not path.is_file():
        raise InputError(path, expected="a file with a task", found="no such file")
    name = f"trivium_task_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None  # for a .py file there is one
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise InputError(path, expected="a file with a task", found=f"{type(error).__name__}: {error}") from error
    return _only_task(sys.modules[name], str(path))


def _only_task(module: Any, where: str) -> type[Task]:
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Task) and value.__module__ == module.__name__
    ]
    found = [one for one in found if not inspect.isabstract(one) and not one.__name__.startswith("_")]
    if len(found) != 1:
        names = ", ".join(one.__name__ for one in found) or "none"
        raise InputError(where, expected="one subclass of eval.tasks.task.Task in the file", found=names)
    return found[0]


def _source_sha256(kind: type[Task]) -> str:
    """Of every file that a class of the task comes from, and of what tasks share: a changed verifier judges anew."""
    files = {inspect.getfile(base) for base in kind.__mro__ if issubclass(base, Task)}
    here = Path(__file__).parent
    files |= {str(path) for pattern in ("*.py", "livecodebench/*.py") for path in here.glob(pattern)}
    return sha256_of(sorted(hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files))
