"""Models in this process: ours behind the engine, any other behind transformers."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from core_model import V3ForCausalLM
from core_model.errors import InputError
from core_model.generation import Completion, Engine, SamplingParams
from core_model.generation.data_parallel import DataParallelGenerator
from core_model.generation.generator import Generator
from core_model.generation.sampling import ThinkingBudget
from core_model.manifest import MANIFEST, sha256_file
from core_model.parallel.device import training_device
from core_model.tokenizer import (
    BOS,
    END_THINK,
    EOS,
    THINK,
    decode_tokens,
    encode_text,
    load_tokenizer,
    render_prompt,
    special_id,
    split_completion,
    template_sha256,
)
from eval.subjects.subject import Answer, Ask, Subject, Wanted, base_answer
from recipes.atomic import sha256_artefact
from recipes.rows import sha256_of

if TYPE_CHECKING:
    from accelerate import PartialState

    from core_model.generation.hugging_face import HuggingFaceGenerator

EXTENDING = "Wait, "  # what takes the place of a thought's end that comes too soon
SCORED_TOGETHER = 8  # rows of an engine that scores: its cache is as long as the model's context
OPEN, CLOSE = "<think>", "</think>"  # the tags of a thought in text


class Workers:
    """The processes that share a stage's generation; one wrapper for all of its generators."""

    def __init__(self) -> None:
        self._shared: DataParallelGenerator | None = None
        self._processes: PartialState | None = None
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            from accelerate import PartialState

            # Before any model is loaded: it gives each process its device.
            self._processes = PartialState(cpu=training_device().type == "cpu")

    def over(self, generator: Generator) -> Generator:
        """The generator, its work divided among the processes where there are several."""
        if self._processes is None:
            return generator
        if self._shared is None:
            self._shared = DataParallelGenerator(generator, self._processes)
        self._shared.generator = generator
        return self._shared


class LocalSubject(Subject):
    """A model that this process runs, in batches.

    Args:
        name, folder: its id in the recipe; model and tokenizer.
        dtype: of activations.
        max_batch: sequences decoded together.
        workers: the stage's processes.
    """

    whole_blocks = True
    distributed = True

    def __init__(self, name: str, folder: Path, *, dtype: str, max_batch: int, workers: Workers) -> None:
        super().__init__(name)
        self.folder, self.dtype, self.max_batch, self.workers = folder, dtype, max_batch, workers

    @abstractmethod
    def prompt(self, ask: Ask) -> list[int]:
        """The prompt's tokens."""

    @abstractmethod
    def params(self, ask: Ask) -> SamplingParams:
        """What its samples are drawn with."""

    @abstractmethod
    def generator(self, longest: int) -> Generator:
        """For sequences up to `longest` tokens.

        Raises:
            InputError: the model has no such room.
        """

    @abstractmethod
    def split(self, ask: Ask, completion: Completion) -> Answer:
        """A completion taken apart into thoughts and answer."""

    @abstractmethod
    def scorer(self) -> Generator:
        """For sequences as long as the model takes: log-likelihoods are taken with it."""

    def complete(self, wanted: Sequence[Wanted]) -> Iterator[list[tuple[Wanted, Answer]]]:
        groups = [list(group) for _, group in groupby(wanted, key=lambda one: id(one.ask))]
        asks = [group[0].ask for group in groups]
        prompts, params = [self.prompt(ask) for ask in asks], [self.params(ask) for ask in asks]
        longest = max(len(prompt) + one.max_new_tokens for prompt, one in zip(prompts, params, strict=True))
        completions = self.workers.over(self.generator(longest)).generate(prompts, params)
        yield [
            (one, self.split(one.ask, samples[one.index]))
            for group, samples in zip(groups, completions, strict=True)
            for one in group
        ]


class TriviumSubject(LocalSubject):
    """A model of ours.

    Raises:
        InputError: no tokenizer in the folder (weights are checked when they are loaded).
    """

    def __init__(self, name: str, folder: Path, *, dtype: str, max_batch: int, workers: Workers) -> None:
        super().__init__(name, folder, dtype=dtype, max_batch=max_batch, workers=workers)
        self.tokenizer = load_tokenizer(folder)
        self.template_sha256 = template_sha256(self.tokenizer)

    @cached_property
    def revision(self) -> str:
        """The sha256 of everything in the folder that decides an answer, and the dtype."""
        manifest = self.folder / MANIFEST
        weights = sha256_file(manifest) if manifest.is_file() else sha256_artefact(self.folder)
        return sha256_of(weights, sha256_file(self.folder / "tokenizer.json"), self.template_sha256, self.dtype)

    @cached_property
    def model(self) -> V3ForCausalLM:
        return V3ForCausalLM.from_pretrained(self.folder).eval().to(training_device())

    def release(self) -> None:
        self.__dict__.pop("model", None)

    @cached_property
    def newline_ids(self) -> tuple[int, ...]:
        """Every token with a line break in it: where a base model's one-line answer ends."""
        tokens = range(len(self.tokenizer))
        return tuple(token for token in tokens if "\n" in decode_tokens(self.tokenizer, [token]))

    def prompt(self, ask: Ask) -> list[int]:
        if ask.mode == "base":
            return [special_id(self.tokenizer, BOS), *encode_text(self.tokenizer, ask.text)]
        return render_prompt(self.tokenizer, [message.model_dump() for message in ask.messages])

    def params(self, ask: Ask) -> SamplingParams:
        stop_ids: tuple[int, ...] = (special_id(self.tokenizer, EOS),)
        stop: tuple[str, ...] = ()
        if ask.mode == "base" and ask.task.base_stop == ("\n",):
            stop_ids += self.newline_ids  # the same, and no text is searched
        elif ask.mode == "base":
            stop = ask.task.base_stop
        return SamplingParams(
            seed=ask.seed, stop_ids=stop_ids, stop=stop, thinking=self._thinking(ask), **ask.sampling.record()
        )

    def _thinking(self, ask: Ask) -> ThinkingBudget | None:
        """The limit on the thought that the ask's condition sets."""
        mechanism, tokens = ask.condition.mechanism, ask.condition.tokens
        if mechanism not in ("forced", "extended"):
            return None
        assert tokens is not None
        start, end = special_id(self.tokenizer, THINK), special_id(self.tokenizer, END_THINK)
        if mechanism == "forced":
            return ThinkingBudget(end_id=end, max_tokens=tokens, closing=(end,), start_id=start)
        extending = tuple(encode_text(self.tokenizer, EXTENDING))
        return ThinkingBudget(end_id=end, min_tokens=tokens, extending=extending, start_id=start)

    def generator(self, longest: int) -> Generator:
        room = self.model.config.max_position_embeddings
        if longest > room:
            raise _no_room(self.folder, longest, room)
        return self.engine(self.max_batch, longest)

    def scorer(self) -> Generator:
        return self.engine(min(self.max_batch, SCORED_TOGETHER), self.model.config.max_position_embeddings)

    def engine(self, max_batch: int, max_tokens: int) -> Engine:
        """A new engine: what one has in its cache from earlier work could show in the last bits of later work."""
        dtype = getattr(torch, self.dtype)
        return Engine(self.model, self.tokenizer, max_batch=max_batch, max_tokens=max_tokens, dtype=dtype)

    def split(self, ask: Ask, completion: Completion) -> Answer:
        ids, finish_reason = completion.token_ids, completion.finish_reason
        assert finish_reason != "abort"  # nobody does
        reasoning: str | None
        if ask.mode == "base":
            ended = bool(ids) and ids[-1] == special_id(self.tokenizer, EOS)
            written = ids[:-1] if ended else ids
            answer, stopped = base_answer(decode_tokens(self.tokenizer, written), ask.task.base_stop)
            finish_reason = "stop" if stopped or ended else finish_reason
            reasoning, reasoning_tokens = None, 0
            answer_tokens = _tokens_of(answer, written, lambda some: decode_tokens(self.tokenizer, some))
        else:
            parts = split_completion(self.tokenizer, ids)
            reasoning, answer = parts.reasoning_text, parts.answer_text
            reasoning_tokens, answer_tokens = parts.reasoning_tokens, parts.answer_tokens
        return Answer(
            text=decode_tokens(self.tokenizer, ids),
            reasoning=reasoning,
            answer=answer,
            finish_reason=finish_reason,
            prompt_tokens=len(self.prompt(ask)),
            reasoning_tokens=reasoning_tokens,
            answer_tokens=answer_tokens,
        )


class TransformersSubject(LocalSubject):
    """Any causal language model of transformers in a local folder. Thoughts stand between <think> and </think>."""

    @cached_property
    def revision(self) -> str:
        """The sha256 of the folder, and the dtype."""
        return sha256_of(sha256_artefact(self.folder), self.dtype)

    @cached_property
    def tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise InputError(
                self.folder, expected="a model of transformers with its tokenizer", found=str(error)
            ) from error

    @property
    def template_sha256(self) -> str:  # type: ignore[override]  # known when the tokenizer is
        return sha256_of(str(self.tokenizer.chat_template))

    @cached_property
    def loaded(self) -> HuggingFaceGenerator:
        from core_model.generation.hugging_face import HuggingFaceGenerator

        return HuggingFaceGenerator.from_pretrained(
            self.folder, max_batch=self.max_batch, dtype=getattr(torch, self.dtype)
        )

    def release(self) -> None:
        self.__dict__.pop("loaded", None)

    def prompt(self, ask: Ask) -> list[int]:
        if ask.condition.mechanism in ("forced", "extended"):
            raise InputError(
                f"model {self.name}", where="budgets", expected="a model of ours or an endpoint that serves one",
                found="a model of transformers, whose thoughts nothing here can end",
            )  # fmt: skip
        if ask.mode == "base":
            return list(self.tokenizer(ask.text)["input_ids"])
        if not self.tokenizer.chat_template:
            raise InputError(self.folder, where="chat_template", expected="a chat template", found="none")
        messages = [message.model_dump(exclude_none=True) for message in ask.messages]
        return list(
            self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        )

    def params(self, ask: Ask) -> SamplingParams:
        stop = ask.task.base_stop if ask.mode == "base" else ()
        return SamplingParams(seed=ask.seed, stop_ids=self.loaded.stop_ids, stop=stop, **ask.sampling.record())

    def generator(self, longest: int) -> Generator:
        if longest > self.loaded.max_tokens:
            raise _no_room(self.folder, longest, self.loaded.max_tokens)
        return self.loaded

    def scorer(self) -> Generator:
        return self.loaded

    def split(self, ask: Ask, completion: Completion) -> Answer:
        ids, finish_reason = completion.token_ids, completion.finish_reason
        assert finish_reason != "abort"
        ended = bool(ids) and ids[-1] in self.loaded.stop_ids
        written = ids[:-1] if ended else ids
        text = self.tokenizer.decode(written, skip_special_tokens=False)
        reasoning: str | None = None
        answer, reasoning_tokens, answer_tokens = text, 0, len(written)
        if ask.mode == "base":
            answer, stopped = base_answer(text, ask.task.base_stop)
            finish_reason = "stop" if stopped or ended else finish_reason
            answer_tokens = _tokens_of(answer, written, self.tokenizer.decode)
        elif CLOSE in text or text.lstrip().startswith(OPEN):
            thought, _, answer = text.partition(CLOSE)
            reasoning = thought.lstrip().removeprefix(OPEN).strip("\n")
            reasoning_tokens = _tokens_of(thought, written, self.tokenizer.decode)
            answer_tokens = len(written) - reasoning_tokens
        return Answer(
            text=self.tokenizer.decode(ids, skip_special_tokens=False),
            reasoning=reasoning,
            answer=answer,
            finish_reason=finish_reason,
            prompt_tokens=len(self.prompt(ask)),
            reasoning_tokens=reasoning_tokens,
            answer_tokens=answer_tokens,
        )


def _tokens_of(beginning: str, ids: Sequence[int], decode: Any) -> int:
    """How many of the tokens it takes to spell the text's beginning."""
    low, high = 0, len(ids)
    while low < high:
        middle = (low + high) // 2
        if len(decode(list(ids[:middle]))) >= len(beginning):
            high = middle
        else:
            low = middle + 1
    return low


def _no_room(folder: Path, longest: int, room: int) -> InputError:
    return InputError(
        folder,
        where="max_position_embeddings",
        expected=f"room for the longest prompt and its new tokens (sampling.max_new_tokens): {longest}",
        found=str(room),
    )
