"""The one chat template, and the way back from a completion to its parts.

    bos system  ( <｜User｜> content  |  <｜Assistant｜> [<think> reasoning_content </think>] content eos )*

`render_prompt` and `render_training` build token ids role by role, so that a message's text is always ordinary text:
a user who types "<｜Assistant｜>" gets those characters, not a turn. The Jinja template says the same for outside
clients; a golden test holds the two together. Thoughts are a field of their own and are kept in training renders.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from core_model.tokenizer.bpe import decode_tokens, encode_text, special_id
from core_model.tokenizer.special import ASSISTANT, BOS, END_THINK, EOS, PAD, THINK, USER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Messages = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class CompletionParts:
    """One completion taken apart by the ids of its think tokens."""

    reasoning_text: str | None  # None where there is no thought
    answer_text: str
    reasoning_tokens: int  # inside the thought, its two tags not counted
    answer_tokens: int  # after the thought, the stop token not counted
    closed: bool  # no thought was left open
    well_formed: bool  # no think token at all, or exactly <think> thought </think> answer


def render_prompt(tokenizer: PreTrainedTokenizerFast, messages: Messages) -> list[int]:
    """Token ids of `messages` up to and including the `<｜Assistant｜>` that asks for an answer.

    Raises:
        ValueError: no message, an unknown role, a late system message, or an assistant's message at the end.
    """
    if messages and messages[-1]["role"] == "assistant":
        raise ValueError("a prompt must end with a user's message, not with an assistant's")
    ids, _ = render_training(tokenizer, messages)
    return [*ids, special_id(tokenizer, ASSISTANT)]


def render_training(tokenizer: PreTrainedTokenizerFast, messages: Messages) -> tuple[list[int], list[int]]:
    """Token ids of a whole conversation and a mask of the same length, 1 where the assistant speaks.

    The mask covers the think tags, the thought, the answer and the eos after it; not the `<｜Assistant｜>` header.

    Raises:
        ValueError: no message, an unknown role, or a system message that is not the first.
    """
    ids: list[int] = []
    mask: list[int] = []
    for piece, is_special, is_assistant in _pieces(messages):
        piece_ids = [special_id(tokenizer, piece)] if is_special else encode_text(tokenizer, piece)
        ids += piece_ids
        mask += [int(is_assistant)] * len(piece_ids)
    return ids, mask


def template_sha256(tokenizer: PreTrainedTokenizerFast) -> str:
    """The sha256 of the Jinja template that the tokenizer carries."""
    return hashlib.sha256(str(tokenizer.chat_template).encode()).hexdigest()


def split_completion(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int]) -> CompletionParts:
    """Take apart what a model wrote after `<｜Assistant｜>`; everything from the first eos on is dropped.

    The thought runs from `<think>` (or from the start, where the prompt had opened it) to the first `</think>`;
    an unclosed thought runs to the end, and the answer is then empty. Text before `<think>` belongs to no part.
    """
    think, end_think = special_id(tokenizer, THINK), special_id(tokenizer, END_THINK)
    ids = _before_stop(tokenizer, token_ids)
    tags = [token for token in ids if token in (think, end_think)]
    if not tags:
        return CompletionParts(None, decode_tokens(tokenizer, ids), 0, len(ids), closed=True, well_formed=True)
    # A <think> that follows the first </think> stands in the answer and opens nothing.
    start = ids.index(think) + 1 if tags[0] == think else 0
    closed = end_think in tags
    end = ids.index(end_think, start) if closed else len(ids)
    reasoning, answer = ids[start:end], ids[end + 1 :]
    return CompletionParts(
        reasoning_text=decode_tokens(tokenizer, reasoning),
        answer_text=decode_tokens(tokenizer, answer),
        reasoning_tokens=len(reasoning),
        answer_tokens=len(answer),
        closed=closed,
        well_formed=tags == [think, end_think] and start == 1,
    )


def _pieces(messages: Messages) -> Iterator[tuple[str, bool, bool]]:
    """(text, it is a special token, the assistant says it) for each piece of a conversation."""
    if not messages:
        raise ValueError("expected at least one message, found none")
    yield BOS, True, False
    for index, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role == "system" and index == 0:
            yield content, False, False
        elif role == "user":
            yield USER, True, False
            yield content, False, False
        elif role == "assistant":
            yield ASSISTANT, True, False
            reasoning = message.get("reasoning_content")
            if reasoning is not None:
                yield THINK, True, True
                yield reasoning, False, True
                yield END_THINK, True, True
            yield content, False, True
            yield EOS, True, True
        else:
            expected = "a system message only at the start" if role == "system" else "role system, user or assistant"
            raise ValueError(f"message {index}: expected {expected}, found {role!r}")


def _before_stop(tokenizer: PreTrainedTokenizerFast, token_ids: Sequence[int]) -> list[int]:
    ids = list(token_ids)
    eos, pad = special_id(tokenizer, EOS), special_id(tokenizer, PAD)
    if eos in ids:
        ids = ids[: ids.index(eos)]
    while ids and ids[-1] == pad:
        ids.pop()
    return ids
