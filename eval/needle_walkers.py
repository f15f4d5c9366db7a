"""How each kind of model walks the needle grid: ours, any of transformers', and one behind an endpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from core_model.errors import InputError
from core_model.generation.generator import Generator
from core_model.manifest import sha256_file
from core_model.tokenizer import BOS, encode_text, special_id
from eval.needle_grid import Prompt, Reply, Walker
from eval.needle_recipe import NeedleRecipe
from eval.subjects.endpoint import EndpointSubject
from eval.subjects.local import LocalSubject, TransformersSubject, TriviumSubject
from eval.subjects.subject import Ask, Sampling, Subject, Wanted
from eval.tasks.families import family_task
from eval.tasks.task import Mode
from recipes.rows import Message, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TASK = family_task("needle")(count=1)  # it says how a prompt becomes a message, and that a line's end ends an answer
_VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def open_walker(subject: Subject, mode: Mode, recipe: NeedleRecipe) -> Walker:
    """The subject as one that can walk the grid.

    Raises:
        InputError: answers from a file, or an endpoint without `needle.tokenizer`.
    """
    if isinstance(subject, TriviumSubject):
        return TriviumWalker(subject, mode)
    if isinstance(subject, TransformersSubject):
        return TransformersWalker(subject, mode)
    if isinstance(subject, EndpointSubject):
        return EndpointWalker(subject, mode, recipe.tokenizer)
    raise InputError(
        f"model {subject.name}", where="needle", expected="a model that can be asked", found="answers from a file"
    )


def _ask(prompt: str, mode: Mode, room: int) -> Ask:
    problem = Problem(
        id="needle",
        source="needle",
        domain="retrieval",
        messages=[Message(role="user", content=prompt)],
        verifier="exact",
        verification_info={},
    )
    return Ask("needle", _TASK, problem, mode, Sampling(room, 0.0, 1.0, 0, 1), seed=0)


class _LocalWalker(ABC):
    """What a model in this process does, in batches."""

    in_batches = True

    def __init__(self, subject: LocalSubject, mode: Mode) -> None:
        self._local, self.mode = subject, mode

    @property
    def revision(self) -> str:
        return self._local.revision

    @cached_property
    def tokenizer_sha256(self) -> str:
        return tokenizer_sha256(self._local.folder)

    def measure(self, prompt: str) -> int:
        return len(self._local.prompt(_ask(prompt, self.mode, 1)))

    def answer(self, prompts: Sequence[Prompt], room: int, length: int) -> Iterator[list[tuple[int, Reply]]]:
        asks = [_ask(prompt if isinstance(prompt, str) else "", self.mode, room) for prompt in prompts]
        ids = [
            self._local.prompt(ask) if isinstance(prompt, str) else prompt
            for prompt, ask in zip(prompts, asks, strict=True)
        ]
        completions = self._generator(len(ids), length).generate(ids, self._local.params(asks[0]))
        answers = [self._local.split(ask, found[0]) for ask, found in zip(asks, completions, strict=True)]
        yield [(number, Reply(answer.text, answer.answer)) for number, answer in enumerate(answers)]

    @abstractmethod
    def _generator(self, prompts: int, length: int) -> Generator:
        """For so many prompts together, of so many tokens with their answers."""


class TriviumWalker(_LocalWalker):
    """A model of ours. That it fails beyond its trained length is a finding: no length is refused."""

    longest: int | None = None

    def __init__(self, subject: TriviumSubject, mode: Mode) -> None:
        super().__init__(subject, mode)
        self._subject = subject

    def tokens(self, text: str) -> list[int]:
        return encode_text(self._subject.tokenizer, text)

    def beginning(self) -> list[int] | None:
        return [special_id(self._subject.tokenizer, BOS)] if self.mode == "base" else None

    def _generator(self, prompts: int, length: int) -> Generator:
        return self._subject.engine(prompts, length)


class TransformersWalker(_LocalWalker):
    """Any causal language model of transformers, up to its max_position_embeddings."""

    def __init__(self, subject: TransformersSubject, mode: Mode) -> None:
        super().__init__(subject, mode)
        self._subject = subject

    @cached_property
    def longest(self) -> int | None:
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self._subject.folder, local_files_only=True)
        return getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)

    def tokens(self, text: str) -> list[int]:
        return list(self._subject.tokenizer(text, add_special_tokens=False)["input_ids"])

    def beginning(self) -> list[int] | None:
        return None

    def _generator(self, prompts: int, length: int) -> Generator:
        return self._subject.loaded


class EndpointWalker:
    """A model behind an endpoint: text in, text out, measured with a copy of its tokenizer.

    Raises:
        InputError: no tokenizer, or, for a chat model, one without a chat template.
    """

    longest: int | None = None
    in_batches = False

    def __init__(self, subject: EndpointSubject, mode: Mode, tokenizer: Path | None) -> None:
        if tokenizer is None:
            raise InputError(
                f"model {subject.name}",
                where="needle.tokenizer",
                expected="the folder of its tokenizer, in whose tokens documents are measured",
                found="none",
            )
        self._subject, self.mode, self._folder = subject, mode, tokenizer
        if mode != "base" and not self._tokenizer.chat_template:
            raise InputError(tokenizer, where="chat_template", expected="a chat template", found="none")

    @property
    def revision(self) -> str:
        return self._subject.revision

    @cached_property
    def tokenizer_sha256(self) -> str:
        return tokenizer_sha256(self._folder)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(self._folder, expected="a tokenizer", found=str(error)) from error

    def tokens(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def measure(self, prompt: str) -> int:
        if self.mode == "base":
            return len(self._tokenizer(prompt)["input_ids"])
        messages = [message.model_dump(exclude_none=True) for message in _ask(prompt, self.mode, 1).messages]
        return len(
            self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        )

    def beginning(self) -> list[int] | None:
        return None

    def answer(self, prompts: Sequence[Prompt], room: int, length: int) -> Iterator[list[tuple[int, Reply]]]:
        wanted = [
            Wanted(_ask(prompt, self.mode, room), 0, str(number))
            for number, prompt in enumerate(prompts)
            if isinstance(prompt, str)
        ]
        for answers in self._subject.complete(wanted):
            yield [(int(one.key), Reply(answer.text, answer.answer)) for one, answer in answers]


def tokenizer_sha256(folder: Path) -> str:
    """What identifies the tokenizer in a folder: the sha256 of the file with its vocabulary.

    Raises:
        InputError: no such file.
    """
    for name in _VOCABULARIES:
        if (folder / name).is_file():
            return sha256_file(folder / name)
    raise InputError(folder, expected=f"one of {', '.join(_VOCABULARIES)}", found="none")
