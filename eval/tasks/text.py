"""Prompts and plain text made of problems."""

from __future__ import annotations

from core_model.tokenizer.prompts import REFLECT_SYSTEM_PROMPT
from recipes.rows import Message, Problem


def prompt_messages(problem: Problem, reflect: bool) -> list[Message]:
    """What a model is asked: the problem, after the system prompt for reflection and verification if `reflect`.

    V3's two sample types (V3 report, section 5.1): with the system prompt the answer is reasoned, without it is short.
    """
    system = [Message(role="system", content=REFLECT_SYSTEM_PROMPT)] if reflect else []
    return [*system, *problem.messages]


def base_prompt(problem: Problem) -> str:
    """The plain text that a base model continues with the short answer, up to the next line break.

    Question and answer start lines of their own: there a word is the same token as after a role token, so that what
    pre-training teaches about it serves the chat format too.
    """
    question = problem.messages[-1].content
    if problem.domain == "retrieval":  # its question is the beginning of a sentence that the answer completes
        return question
    return f"Question:\n{question}\nAnswer:\n"


def question_answer_text(problem: Problem, answer: str) -> str:
    """A problem and its short answer as running text for pre-training."""
    end = f" {answer}.\n" if problem.domain == "retrieval" else f"{answer}\n"
    return base_prompt(problem) + end
