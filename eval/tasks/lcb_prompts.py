"""How contest problems are put: prompts of our own, each a version, and the official one where it is installed.

V3's prompts for LiveCodeBench were never published.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

from core_model.errors import InputError
from recipes.rows import Message, Problem


@dataclass(frozen=True)
class Prompt:
    """Args:
    version: raised whenever the text changes.
    text: with places for the question and the form of the answer.
    """

    version: str
    text: str

    def fill(self, problem: Problem) -> str:
        """The message."""
        starter = problem.verification_info.get("starter_code", "")
        form = CALLED.format(starter=starter) if starter else PRINTED
        return self.text.format(question=problem.messages[-1].content, form=form)


PRINTED = "The program reads the input from stdin and prints the answer to stdout."
CALLED = "Complete this code, keeping its names:\n```python\n{starter}\n```"
PROMPTS = {
    "cot": Prompt(
        "cot-v1",
        "Solve this programming problem in Python.\n\n{question}\n\n{form}\n\nThink about the problem step by step"
        " first: what is asked, which algorithm is fast enough, which cases are special. Then give the whole program in"
        " one block that begins with ```python and ends with ```.",
    ),
    "direct": Prompt(
        "direct-v1",
        "Solve this programming problem in Python.\n\n{question}\n\n{form}\n\nAnswer with the whole program in one"
        " block that begins with ```python and ends with ```, and nothing else.",
    ),
}


def official_prompt(problem: Problem) -> list[Message]:
    """What the official runner sends to a chat model (its style OpenAIChat), from the installed package.

    Raises:
        InputError: `nvidia-livecodebench` is not installed, or its prompts cannot be imported.
    """
    official = _imported(_official_file())
    question = SimpleNamespace(
        question_content=problem.messages[-1].content,
        starter_code=problem.verification_info.get("starter_code", ""),
    )
    written = official.format_prompt_generation(question, official.LMStyle.OpenAIChat)
    return [Message(role=one["role"], content=one["content"]) for one in written]


def _official_file() -> Path:
    found = importlib.util.find_spec("livecodebench")
    for folder in (found.submodule_search_locations if found is not None else None) or ():
        if (path := Path(folder) / "prompts" / "code_generation.py").is_file():
            return path
    raise InputError(
        "task livecodebench", where="prompt", expected="an installed nvidia-livecodebench (make bench installs it)",
        found="no such package",
    )  # fmt: skip


@functools.cache
def _imported(path: Path) -> ModuleType:
    """The module alone: its package imports the clients of many services, which `pip install --no-deps` leaves out."""
    spec = importlib.util.spec_from_file_location("livecodebench_official_prompts", path)
    assert spec is not None and spec.loader is not None  # for a .py file there is one
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever its imports raise
        found = f"{type(error).__name__}: {error}"
        raise InputError(path, where="prompt", expected="a module that can be imported", found=found) from error
    return module
