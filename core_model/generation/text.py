"""Text from tokens as they come: no broken characters, thoughts apart from answers, stop texts left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from core_model.tokenizer import END_THINK, EOS, THINK, decode_tokens, special_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
LONGEST_WAIT = 8  # tokens


class TextStream:
    """Decodes tokens into text that will not change any more.

    What may still turn out to be the first bytes of a character, or the beginning of a stop text, is held back.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._undecoded: list[int] = []
        self._held = ""
        self.stopped = False  # a stop text has come; nothing follows

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens settle; the same in all, however they are divided among calls."""
        return "".join(map(self._push, token_ids))

    def _push(self, token: int) -> str:
        if self.stopped:
            return ""
        self._undecoded.append(token)
        text = decode_tokens(self._tokenizer, self._undecoded)
        # A character that is not whole yet may be made so, and its last token may begin another; what is still broken
        # after some tokens is not text.
        if text.endswith(REPLACEMENT) and len(self._undecoded) < LONGEST_WAIT:
            return ""
        self._undecoded.clear()
        return self._release(text, last=False)

    def finish(self) -> str:
        """The rest, as it is."""
        if self.stopped:
            return ""
        text = decode_tokens(self._tokenizer, self._undecoded)
        self._undecoded.clear()
        return self._release(text, last=True)

    def _release(self, text: str, last: bool) -> str:
        self._held += text
        places = [place for place in (self._held.find(stop) for stop in self._stop) if place >= 0]
        if places:
            self.stopped, last = True, True
            self._held = self._held[: min(places)]
        kept = 0 if last else max((_overlap(self._held, stop) for stop in self._stop), default=0)
        released, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return released


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` may be the beginning of `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


@dataclass(frozen=True)
class ReplyPart:
    """A piece of an assistant's reply."""

    reasoning: str = ""
    content: str = ""


class ReplyStream:
    """Splits an assistant's tokens into thought and answer; the tags and eos are not part of either.

    Attributes:
        reasoning_tokens: tokens of the thought so far.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, stop: Sequence[str] = ()) -> None:
        self._think, self._end_think, self._eos = (special_id(tokenizer, token) for token in (THINK, END_THINK, EOS))
        self._reasoning, self._content = TextStream(tokenizer, stop), TextStream(tokenizer, stop)
        self._thinking, self._thought = False, False
        self.reasoning_tokens = 0

    def push(self, token_ids: Sequence[int]) -> ReplyPart:
        """What these tokens add."""
        parts = [self._push(token) for token in token_ids]
        return ReplyPart("".join(p.reasoning for p in parts), "".join(p.content for p in parts))

    def finish(self) -> ReplyPart:
        """What was held back."""
        return ReplyPart(self._reasoning.finish(), self._content.finish())

    def _push(self, token: int) -> ReplyPart:
        if token == self._think and self._thinking:
            self.reasoning_tokens += 1  # a thought ends at </think> alone
            return ReplyPart(reasoning=self._reasoning.finish())
        if token in (self._think, self._end_think):
            ended = self._thinking
            self._thinking = token == self._think and not self._thought
            self._thought = self._thought or self._thinking
            if self._thinking:  # what was held back before the thought is not continued after it
                return ReplyPart(content=self._content.finish())
            # A tag without effect is dropped, but no stop text reaches across it.
            return ReplyPart(self._reasoning.finish()) if ended else ReplyPart(content=self._content.finish())
        if token == self._eos:
            return ReplyPart()
        if self._thinking:
            self.reasoning_tokens += 1
            return ReplyPart(reasoning=self._reasoning.push([token]))
        return ReplyPart(content=self._content.push([token]))
