"""Retrieval text to train on: secret numbers hidden in filler, recalled one after another at the end.

The sentences are those of `eval.tasks.needle`, the pairs of place and number from its training split. A row asks for
all its needles, where the evaluation grid asks for one: most of a long row is filler, and the few tokens that need a
look far back should not be fewer still.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from core_model.tokenizer import BOS, EOS, encode_text, special_id
from pretrain.data.corpus import OWN_LICENCE, Document

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Encode = Callable[[str], Sequence[int]]

_SHORT_BYTES = (200, 700)  # fits a base context of 256 tokens
_BYTES_PER_NEEDLE = 100  # a sentence and its repetition; the rest is filler


def needle_row(
    tokenizer: PreTrainedTokenizerFast, length: int, filler: Sequence[Sequence[int]], needles: int, draw: random.Random
) -> list[int]:
    """One document of exactly `length` tokens, bos and eos included, with 1 to `needles` needles.

    Args:
        filler: tokenised lines.

    Raises:
        ValueError: no filler, or `length` is too small for the needles.
    """
    bos, eos = (special_id(tokenizer, token) for token in (BOS, EOS))
    body = _compose(length - 2, filler, needles, lambda text: encode_text(tokenizer, text), draw)
    return [bos, *body, eos]


def short_needle_documents(filler: Sequence[str], seed: int) -> Iterator[Document]:
    """Documents of 200 to 700 bytes in the same format, without end."""
    lines = [f"{line}\n".encode() for line in filler]
    draw = random.Random(f"short needles/{seed}")
    number = 0
    while True:
        length = draw.randint(*_SHORT_BYTES)
        ids = _compose(length, lines, length // _BYTES_PER_NEEDLE, str.encode, draw)
        text = bytes(ids).decode("utf-8", errors="ignore")  # the last line of filler may be cut inside a character
        yield Document(text, "needles", f"needles/{number}", OWN_LICENCE)
        number += 1


def _compose(
    length: int, filler: Sequence[Sequence[int]], needles: int, encode: Encode, draw: random.Random
) -> list[int]:
    """Exactly `length` units: lines of filler with needles between them, then every needle once more."""
    from eval.tasks.needle import Needle, needle_question
    from eval.tasks.vocabulary import PLACES

    family = Needle()
    places = draw.sample(PLACES, draw.randint(1, min(needles, len(PLACES))))
    pairs = [family.draw_pair(draw, place, "train") for place in places]
    sentences = [list(encode(f"{needle_question(place)} {number}.\n")) for place, number in pairs]
    room = length - 2 * sum(map(len, sentences))
    if room < 0 or not any(filler):
        raise ValueError(f"expected filler and room for {len(sentences)} needles, found {length} units")

    lines = _fill(filler, room, draw)
    if lines:
        lines[-1][-1:] = encode("\n")  # the last line may have been cut; what follows begins a line
    for sentence in sentences:
        lines.insert(draw.randint(0, len(lines)), sentence)
    recalled = draw.sample(sentences, len(sentences))
    return [unit for line in [*lines, *recalled] for unit in line]


def _fill(filler: Sequence[Sequence[int]], room: int, draw: random.Random) -> list[list[int]]:
    """Successive lines from a random one on, cyclically, `room` units in all; the last line is cut to fit."""
    lines: list[list[int]] = []
    index = draw.randrange(len(filler))
    while room > 0:
        line = list(filler[index % len(filler)][:room])
        if line:
            lines.append(line)
            room -= len(line)
        index += 1
    return lines
