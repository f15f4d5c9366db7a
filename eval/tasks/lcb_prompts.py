"""How contest problems are put: prompts of our own, each a version, and the official one where it is installed.

V3's prompts for LiveCodeBench were never published.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

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
    """What the official runner sends to a chat model, from the installed package.

    Raises:
        InputError: `nvidia-livecodebench` is not installed.
    """
    try:
        from livecodebench.prompts.code_generation import PromptConstants, get_generic_question_template_answer
    except ImportError as error:
        raise InputError(
            "task livecodebench", where="prompt", expected="an installed nvidia-livecodebench (make bench installs it)",
            found=str(error),
        ) from error  # fmt: skip
    question: Any = SimpleNamespace(
        question_content=problem.messages[-1].content,
        starter_code=problem.verification_info.get("starter_code", ""),
    )
    return [
        Message(role="system", content=PromptConstants.SYSTEM_MESSAGE_GENERIC),
        Message(role="user", content=get_generic_question_template_answer(question)),
    ]
