"""Asking a model: prompts by mode, answers in batches, every sample a row with the key of what determined it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from core_model import V3ForCausalLM
from core_model.errors import InputError
from core_model.generation import Completion, Engine, SamplingParams
from core_model.manifest import MANIFEST, sha256_file
from core_model.parallel.device import training_device
from core_model.tokenizer import (
    BOS,
    EOS,
    decode_tokens,
    encode_text,
    load_tokenizer,
    render_prompt,
    special_id,
    split_completion,
    template_sha256,
)
from eval.journal import Journal
from eval.recipe import Mode, Recipe
from eval.tasks.text import base_prompt, prompt_messages
from recipes.atomic import sha256_artefact
from recipes.progress import Bar
from recipes.rows import Generation, Problem, sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

NEXT_QUESTION = "Question"  # a base model that goes on after its answer begins the next question with this


class Subject:
    """A model under evaluation; its weights are loaded when they are first needed.

    Args:
        name: its id in the recipe.
        folder: model and tokenizer.

    Raises:
        InputError: no tokenizer there (weights are checked when they are loaded).
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.tokenizer: PreTrainedTokenizerFast = load_tokenizer(folder)
        self.template_sha256 = template_sha256(self.tokenizer)

    @cached_property
    def revision(self) -> str:
        """The sha256 of everything in the folder that decides an answer."""
        manifest = self.folder / MANIFEST
        weights = sha256_file(manifest) if manifest.is_file() else sha256_artefact(self.folder)
        return sha256_of(weights, sha256_file(self.folder / "tokenizer.json"), self.template_sha256)

    @cached_property
    def model(self) -> V3ForCausalLM:
        model = V3ForCausalLM.from_pretrained(self.folder).eval()
        return model.to(training_device())

    def release(self) -> None:
        """Let go of the weights; they are loaded again when needed."""
        self.__dict__.pop("model", None)

    @cached_property
    def newline_ids(self) -> tuple[int, ...]:
        """Every token with a line break in it: where a base model's one-line answer ends."""
        tokens = range(len(self.tokenizer))
        return tuple(token for token in tokens if "\n" in decode_tokens(self.tokenizer, [token]))

    def engine(self, recipe: Recipe, max_batch: int, max_tokens: int) -> Engine:
        """A new engine: what one has in its cache from earlier work could show in the last bits of later work."""
        dtype = getattr(torch, recipe.dtype)
        return Engine(self.model, self.tokenizer, max_batch=max_batch, max_tokens=max_tokens, dtype=dtype)


@dataclass(frozen=True)
class Request:
    """One problem put to a model, and the keys of the samples it is to give."""

    problem: Problem
    mode: Mode
    prompt: list[int]
    sampling: dict[str, Any]  # as rows keep it
    params: SamplingParams
    keys: tuple[str, ...]


def build_requests(subject: Subject, mode: Mode, recipe: Recipe, problems: Sequence[Problem]) -> list[Request]:
    """What the model is asked, in the problems' order."""
    sampling = sampling_record(recipe, mode)
    requests = []
    for problem in problems:
        prompt = prompt_ids(subject.tokenizer, problem, mode)
        # The engine's random numbers are a function of (seed, sample): problems must not share them.
        seed = int(sha256_of("sampling", recipe.seed, problem.id)[:12], 16)
        what = (subject.revision, mode, problem.model_dump(mode="json"), prompt, sampling, recipe.dtype, seed)
        requests.append(
            Request(
                problem=problem,
                mode=mode,
                prompt=prompt,
                sampling=sampling,
                params=SamplingParams(seed=seed, stop_ids=stop_ids(subject, problem, mode), **sampling),
                keys=tuple(sha256_of(*what, index) for index in range(recipe.sampling.samples)),
            )
        )
    return requests


def sampling_record(recipe: Recipe, mode: Mode) -> dict[str, Any]:
    """The engine's settings as a row keeps them."""
    settings = recipe.sampling
    return {
        "max_new_tokens": getattr(settings.max_new_tokens, mode),
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "n": settings.samples,
    }


def prompt_ids(tokenizer: PreTrainedTokenizerFast, problem: Problem, mode: Mode) -> list[int]:
    """The prompt: running text that a base model continues, or the chat template."""
    if mode == "base":
        return [special_id(tokenizer, BOS), *encode_text(tokenizer, base_prompt(problem))]
    messages = prompt_messages(problem, reflect=mode == "reasoning")
    return render_prompt(tokenizer, [message.model_dump() for message in messages])


def stop_ids(subject: Subject, problem: Problem, mode: Mode) -> tuple[int, ...]:
    """Where a completion ends. Programs have lines; a base model's ends where the next question begins."""
    eos = special_id(subject.tokenizer, EOS)
    if mode != "base":
        return (eos,)
    if problem.domain != "code":
        return (eos, *subject.newline_ids)
    next_question = encode_text(subject.tokenizer, NEXT_QUESTION)
    return (eos, next_question[0]) if len(next_question) == 1 else (eos,)


def generate(subject: Subject, recipe: Recipe, work: Work, bar: Bar) -> list[Generation]:
    """Answer what the journal does not hold yet; the rows of all requests, in their order.

    Raises:
        InputError: a prompt and its completion do not fit into the model's context.
    """
    journal = work.journal
    for block in work.blocks[journal.blocks_done :]:
        longest = max(len(request.prompt) + request.params.max_new_tokens for request in block)
        _check_room(subject, longest)
        engine = subject.engine(recipe, recipe.max_batch, longest)
        answers = engine.generate([request.prompt for request in block], [request.params for request in block])
        journal.append(
            [
                generation_row(subject, request, index, completion)
                for request, completions in zip(block, answers, strict=True)
                for index, completion in enumerate(completions)
            ]
        )
        bar.advance(len(block) * recipe.sampling.samples)
    return journal.rows


@dataclass(frozen=True)
class Work:
    """Requests in the blocks in which they are generated, and the journal of what is done."""

    blocks: list[list[Request]]
    journal: Journal[Generation]

    @classmethod
    def open(cls, path: Path, requests: Sequence[Request], chunk: int) -> Work:
        """Divide requests into blocks of `chunk` and open their journal."""
        blocks = [list(requests[start : start + chunk]) for start in range(0, len(requests), chunk)]
        return cls(blocks, Journal(path, Generation, [block_keys(block) for block in blocks]))


def block_keys(block: Sequence[Request]) -> list[str]:
    return [key for request in block for key in request.keys]


def generation_row(subject: Subject, request: Request, index: int, completion: Completion) -> Generation:
    """The row of one sample, taken apart into thoughts and answer."""
    ids, finish_reason = completion.token_ids, completion.finish_reason
    assert finish_reason != "abort"  # nobody does
    reasoning: str | None
    if request.mode == "base":
        answer, ended = base_answer(_decode_text(subject, ids), request.problem)
        finish_reason = "stop" if ended else finish_reason
        reasoning, reasoning_tokens = None, 0
        answer_tokens = len(ids) - (ids[-1] in request.params.stop_ids)
    else:
        parts = split_completion(subject.tokenizer, ids)
        reasoning, answer = parts.reasoning_text, parts.answer_text
        reasoning_tokens, answer_tokens = parts.reasoning_tokens, parts.answer_tokens
    return Generation(
        key=request.keys[index],
        problem_id=request.problem.id,
        index=index,
        seed=request.params.seed,
        text=decode_tokens(subject.tokenizer, ids),
        reasoning=reasoning,
        answer=answer.strip("\n") if request.problem.domain == "code" else answer.strip(),
        finish_reason=finish_reason,
        prompt_tokens=len(request.prompt),
        reasoning_tokens=reasoning_tokens,
        answer_tokens=answer_tokens,
        sampling=request.sampling,
        teacher={"name": subject.name, "revision": subject.revision},
        template_sha256=subject.template_sha256,
    )


def base_answer(text: str, problem: Problem) -> tuple[str, bool]:
    """The answer in a base model's continuation, and whether the text shows its end (the next question begins)."""
    if problem.domain != "code":
        line, end, _ = text.partition("\n")
        return line, bool(end)
    answer, end, _ = text.partition(f"\n{NEXT_QUESTION}")
    return answer, bool(end)


def _decode_text(subject: Subject, ids: Sequence[int]) -> str:
    """The text of a completion, without a stop token that is no text."""
    ended = bool(ids) and ids[-1] == special_id(subject.tokenizer, EOS)
    return decode_tokens(subject.tokenizer, ids[:-1] if ended else ids)


def _check_room(subject: Subject, longest: int) -> None:
    room = subject.model.config.max_position_embeddings
    if longest > room:
        raise InputError(
            subject.folder,
            where="max_position_embeddings",
            expected=f"room for the longest prompt and its new tokens (sampling.max_new_tokens): {longest}",
            found=str(room),
        )
