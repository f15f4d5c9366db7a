"""What every subject of an evaluation does: say what determines its answers, and answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from eval.tasks.task import Mode, Task
from recipes.rows import Condition, Generation, Message, Problem, sha256_of

FREE = Condition()


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: `max_new_tokens` counts thoughts and the stop token too; temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    n: int

    def record(self) -> dict[str, Any]:
        """As rows keep it."""
        return {name: getattr(self, name) for name in ("max_new_tokens", "temperature", "top_p", "top_k", "n")}


@dataclass(frozen=True)
class Ask:
    """One problem put to a subject.

    seed: of the problem's samples; sample i's random numbers are a function of (seed, i).
    """

    name: str
    task: Task
    problem: Problem
    mode: Mode
    sampling: Sampling
    seed: int
    condition: Condition = FREE

    @cached_property
    def messages(self) -> list[Message]:
        """What a chat model is asked, a stated budget included."""
        messages = self.task.messages(self.problem, self.mode)
        if self.condition.mechanism != "stated":
            return messages
        assert self.condition.tokens is not None
        return state_budget(messages, self.condition.tokens)

    @property
    def text(self) -> str:
        """What a base model continues."""
        return self.task.text(self.problem)


def state_budget(messages: Sequence[Message], tokens: int) -> list[Message]:
    """The messages with a sentence about the budget at the end of the system prompt, or as one."""
    sentence = budget_sentence(tokens)
    if messages and messages[0].role == "system":
        first = messages[0].model_copy(update={"content": f"{messages[0].content} {sentence}"})
        return [first, *messages[1:]]
    return [Message(role="system", content=sentence), *messages]


def budget_sentence(tokens: int) -> str:
    """How a budget is stated in a prompt."""
    return f"Think for at most {tokens} tokens."


@dataclass(frozen=True)
class Wanted:
    """One sample to be made."""

    ask: Ask
    index: int
    key: str


@dataclass(frozen=True)
class Answer:
    """What a subject gave. Tokens are the subject's own; stop tokens and the tags of thoughts do not count."""

    text: str
    reasoning: str | None
    answer: str
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    reasoning_tokens: int
    answer_tokens: int


class Subject(ABC):
    """Something that answers.

    Attributes:
        name: its id in the recipe.
        whole_blocks: samples made together can depend on each other in their last bits, so a block of which one is
            missing is made again whole.
        distributed: several processes share its work.
    """

    whole_blocks: bool = False
    distributed: bool = False
    template_sha256: str = ""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    @abstractmethod
    def revision(self) -> str:
        """The sha256, or the name where there is none to take, of what decides its answers."""

    @abstractmethod
    def prompt(self, ask: Ask) -> Any:
        """What is put to it, JSON-serialisable.

        Raises:
            InputError: it cannot be asked so.
        """

    @abstractmethod
    def complete(self, wanted: Sequence[Wanted]) -> Iterator[list[tuple[Wanted, Answer]]]:
        """Make samples, and give them as they come.

        Raises:
            InputError: a prompt and its completion do not fit, or the subject cannot be reached.
        """

    def release(self) -> None:
        """Let go of what it holds; it is taken up again when needed."""
        return


def wanted_samples(subject: Subject, asks: Iterable[Ask]) -> list[list[Wanted]]:
    """The samples of each ask, with their keys: the sha256 of everything that determines one."""
    return [_samples(subject, ask) for ask in asks]


def _samples(subject: Subject, ask: Ask) -> list[Wanted]:
    problem, condition = ask.problem.model_dump(mode="json"), ask.condition.model_dump()
    what = (subject.revision, ask.mode, problem, subject.prompt(ask), ask.sampling.record(), ask.seed, condition)
    return [Wanted(ask, index, sha256_of(*what, index)) for index in range(ask.sampling.n)]


def generation_row(subject: Subject, wanted: Wanted, answer: Answer) -> Generation:
    """The row of one sample."""
    ask = wanted.ask
    return Generation(
        key=wanted.key,
        task=ask.name,
        problem_id=ask.problem.id,
        index=wanted.index,
        seed=ask.seed,
        text=answer.text,
        reasoning=answer.reasoning,
        answer=answer.answer.strip("\n") if ask.problem.domain == "code" else answer.answer.strip(),
        finish_reason=answer.finish_reason,
        prompt_tokens=answer.prompt_tokens,
        reasoning_tokens=answer.reasoning_tokens,
        answer_tokens=answer.answer_tokens,
        sampling=ask.sampling.record(),
        teacher={"name": subject.name, "revision": subject.revision},
        template_sha256=subject.template_sha256,
        condition=ask.condition,
    )


def base_answer(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """The answer in a base model's continuation, and whether the text shows its end (one of `stops` comes)."""
    places = [place for place in (text.find(stop) for stop in stops) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)
