"""Fill-in-the-middle at document level, before packing (V3 report 4.1: prefix-suffix-middle order, rate 0.1)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from core_model.tokenizer import BOS, EOS, FIM_BEGIN, FIM_END, FIM_HOLE, encode_texts, special_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def split_for_fim(text: str, rate: float, seed: int) -> tuple[str, str, str] | None:
    """(prefix, middle, suffix) of a document chosen with probability `rate`, else None.

    Choice and cuts depend only on the text and the seed, never on the document's place in the corpus. The two cuts
    fall between characters, uniformly, so that a model also learns to complete from inside a word.
    """
    digest = hashlib.sha256(f"fim/{seed}/".encode() + text.encode()).digest()
    draw = random.Random(digest)
    if draw.random() >= rate:
        return None
    first, second = sorted((draw.randint(0, len(text)), draw.randint(0, len(text))))
    return text[:first], text[first:second], text[second:]


def encode_documents(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], *, fim_rate: float = 0.0, seed: int = 0
) -> Iterator[list[int]]:
    """Token ids of each document: `bos text eos`, or for a share of them
    `bos <｜fim▁begin｜> prefix <｜fim▁hole｜> suffix <｜fim▁end｜> middle eos`.

    bos stands before every document, as before every prompt: position 0 then always looks the same to the model.
    """
    bos, eos, begin, hole, end = (special_id(tokenizer, token) for token in (BOS, EOS, FIM_BEGIN, FIM_HOLE, FIM_END))
    splits = [split_for_fim(text, fim_rate, seed) if fim_rate > 0 else None for text in texts]
    parts = [part for text, split in zip(texts, splits, strict=True) for part in (split or (text,))]
    encoded = iter(encode_texts(tokenizer, parts))
    for split in splits:
        if split is None:
            yield [bos, *next(encoded), eos]
        else:
            prefix, middle, suffix = next(encoded), next(encoded), next(encoded)
            yield [bos, begin, *prefix, hole, *suffix, end, *middle, eos]
