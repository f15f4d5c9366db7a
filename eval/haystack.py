"""The text that hides a needle: read from files or generated, cut at the ends of sentences, fitted to exact lengths.

Lengths are those of the whole prompt, chat template included, in the tokens of the model that is asked. The tokens of
a text are nearly, but not exactly, the sum of those of its sentences; so a document is put together by that sum,
measured, and put together again with the difference until it fits.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from random import Random
from typing import Literal

from core_model.errors import InputError
from eval.haystack_sentences import generated_paragraphs, generated_sentences
from eval.tasks.needle import check_depth, nearest, split_long, stated_numbers
from recipes.rows import sha256_of

log = logging.getLogger(__name__)

Boundary = Literal["line", "sentence"]
Tokens = Callable[[str], int]  # text -> how many tokens

UNFIT_SOURCES = ("tasks/", "needles")  # generated text, and text with other needles in it
TEXT_SUFFIXES = (".txt", ".md", ".jsonl")
LONGEST_SENTENCE = 600  # characters after which a text without an end of sentence is cut at a space
SHORTEST_FRAGMENT = 12  # tokens: the sentence that is cut to fit has at least so many to choose from
FRAGMENT_SOURCES = 64  # sentences that are tried for one whose beginning fits
CHARACTER_SOURCES = 4  # of them, those whose beginnings are tried character by character
ANCHOR = "So it was."  # what a piece is measured after: a word's first token can differ at the start of a text
FITTINGS = 8  # times that a document is put together before it starts a piece later
STARTS = 8  # such starts before it is given up
_ABBREVIATIONS = frozenset({"mr", "mrs", "ms", "dr", "prof", "st", "no", "vs", "etc", "e.g", "i.e", "cf", "fig", "vol"})
_END = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|[。！？]+[」』”’）]*\s*|\n[ \t]*\n\s*")
_LAST_WORD = re.compile(r"([\w.]*)$")


# -- where the text comes from ---------------------------------------------------------------------------------------


def draw_haystack(filler: Path | None, megabytes: float, seed: int) -> list[str]:
    """The grid's texts: from `filler`, or generated sentences from a seed.

    Raises:
        InputError: as `read_filler`.
    """
    return read_filler(filler, megabytes) if filler is not None else generated_paragraphs(megabytes, seed)


def haystack_sha256(texts: Sequence[str]) -> str:
    """What identifies a haystack in a result."""
    return sha256_of("haystack", list(texts))


def read_filler(path: Path, megabytes: float) -> list[str]:
    """The texts that needles hide in, up to `megabytes` million characters.

    Args:
        path: JSONL with `text` (and the corpus's `meta.source`), a text file, or a folder with such files, which are
            read in the order of their paths.

    Raises:
        InputError: no such file, a line without text, a file that is not UTF-8, or nothing that can be used.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.suffix in TEXT_SUFFIXES)
    elif not path.is_file():
        raise InputError(path, expected="text for needles to hide in", found="no such file")
    texts: list[str] = []
    size = 0
    for text in (text for file in files for text in _texts(file)):
        if size >= megabytes * 1e6:
            break
        texts.append(text[: int(megabytes * 1e6)])
        size += len(text)
    if not any(text.strip() for text in texts):
        raise InputError(path, expected="text for needles to hide in", found="none")
    return texts


def _texts(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            if path.suffix != ".jsonl":
                yield file.read()
                return
            for number, line in enumerate(file, 1):
                yield from _text_of(path, number, line)
    except UnicodeDecodeError as error:
        raise InputError(path, expected="text in UTF-8", found=str(error)) from error


def _text_of(path: Path, number: int, line: str) -> Iterator[str]:
    try:
        row = json.loads(line)
        text, source = row["text"], row.get("meta", {}).get("source", "")
        fit = not source.startswith(UNFIT_SOURCES)
        if not isinstance(text, str):
            raise TypeError(f"text is {type(text).__name__}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(path, where=f"line {number}", expected="a JSON object with text", found=repr(error)) from error
    if fit:
        yield text


# -- where a needle can go -------------------------------------------------------------------------------------------


def split_sentences(text: str) -> list[str]:
    """The sentences of a text, each with the white space after it; together they are the text.

    A blank line ends a sentence too (a heading), the full stop of an abbreviation or an initial does not, nor does one
    before a small letter. What has no end for 600 characters is cut at its last space.
    """
    pieces: list[str] = []
    start = 0
    for match in _END.finditer(text):
        if not _ends_nothing(text, match):
            pieces += _cut_long(text[start : match.end()])
            start = match.end()
    return pieces + (_cut_long(text[start:]) if start < len(text) else [])


def _ends_nothing(text: str, match: re.Match[str]) -> bool:
    """Whether a match is no end of a sentence after all."""
    if match.group().rstrip() != "." or match.group().count("\n") > 1:
        return False
    before = _LAST_WORD.search(text, max(0, match.start() - 12), match.start())
    word = before.group(1) if before else ""
    return (
        word.lower() in _ABBREVIATIONS
        or (len(word) == 1 and word.isupper())
        or text[match.end() : match.end() + 1].islower()
    )


def _cut_long(sentence: str) -> list[str]:
    pieces = []
    while len(sentence) > LONGEST_SENTENCE:
        cut = sentence.rfind(" ", 1, LONGEST_SENTENCE) + 1 or LONGEST_SENTENCE
        pieces.append(sentence[:cut])
        sentence = sentence[cut:]
    return [*pieces, sentence]


def _pieces(texts: Sequence[str], boundary: Boundary) -> list[str]:
    if boundary == "line":
        return [f"{line}\n" for text in texts for line in split_long(text)]
    return [piece for text in texts if text.strip() for piece in split_sentences(text.strip() + "\n\n")]


# -- documents of exact length ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HaystackDocument:
    """A text with needles.

    Args:
        text: without the question.
        depth: where the asked needle came to stand, 0 to 1 of the filler's tokens; None where there is none.
    """

    text: str
    depth: float | None


class Haystack:
    """Texts cut into pieces, with the length of each in a model's tokens.

    Args:
        texts: what to fill up with; documents start anywhere in them and go on at the beginning after the end.
        boundary: what a piece is: a line (long ones in parts), or a sentence.
        tokens: how many tokens a text has, without special tokens.

    Raises:
        ValueError: no text.
    """

    def __init__(self, texts: Sequence[str], boundary: Boundary, tokens: Tokens) -> None:
        self._close = "\n" if boundary == "line" else " "  # what follows a needle
        self.pieces = _pieces(texts, boundary)
        if not self.pieces:
            raise ValueError("a haystack needs text")
        self._tokens = tokens
        self._anchor = functools.cache(lambda before: (f"{ANCHOR}{before}", tokens(f"{ANCHOR}{before}")))
        self._size = functools.lru_cache(maxsize=1_000_000)(self._size_after)
        self.repeats = False  # whether a document was longer than all pieces together
        self.numbers = frozenset(number for piece in self.pieces for number in stated_numbers(piece))

    def document(
        self, length: int, depth: float | None, needles: Sequence[str], rng: Random, measure: Tokens
    ) -> HaystackDocument:
        """A text whose prompt has exactly `length` tokens.

        Args:
            depth: 0 to 1, where the first needle goes; None hides all but the first.
            needles: sentences; the others go anywhere.
            rng: chooses where the text starts and the other needles' places.
            measure: the tokens of the whole prompt that a text becomes.

        Raises:
            ValueError: a depth outside 0..1, a length too small for needles and question, or one that no text meets.
        """
        check_depth(depth)
        start = rng.randrange(len(self.pieces))
        places = [None if depth is None else depth, *(rng.random() for _ in needles[1:])]
        hidden = [(place, needle) for place, needle in zip(places, needles, strict=True) if place is not None]
        room = length - measure(self._assemble([], hidden)[0])
        if room < 0:
            raise ValueError(f"{length} tokens are too few for {len(hidden)} needles and the question")
        for begin in range(start, start + STARTS):
            left = room
            for fitting in range(FITTINGS):
                text, ends = self._assemble(self._take(begin, max(0, left), fitting), hidden)
                difference = length - measure(text)
                if difference == 0:
                    at = None if depth is None else ends[nearest(ends, depth * ends[-1])] / max(1, ends[-1])
                    return HaystackDocument(text, at)
                left += difference
        raise ValueError(f"no text fits beside needles and question into exactly {length} tokens")

    def _take(self, start: int, room: int, fitting: int) -> list[str]:
        """Successive pieces of `room` tokens in all; the last is the beginning of one, closed with a full stop."""
        taken: list[str] = []
        sizes: list[int] = []
        index, left = start, room
        while left > 0:
            piece = self.pieces[index % len(self.pieces)]
            size = self._size(_gap_after(taken), piece)
            if size > left:
                break
            taken.append(piece)
            sizes.append(size)
            left -= size
            index += 1
        if len(taken) > len(self.pieces) and not self.repeats:
            self.repeats = True
            log.warning("a document of %d tokens repeats its filler: more text, or a larger filler_mb", room)
        # Always a fragment at the end: then what the end of the text changes is the same each time, and comes out.
        while taken and left < SHORTEST_FRAGMENT:
            taken.pop()
            left += sizes.pop()
        if left > 2 * SHORTEST_FRAGMENT:
            beginning, size = self._longest_beginning(index, left - SHORTEST_FRAGMENT, _gap_after(taken))
            taken += [beginning] if beginning else []
            left -= size
            index += 1
        if left:
            fragments = self._fragments(index, left, _gap_after(taken))
            # The first that fits in most cases; when documents will not come out, another one.
            fragment = next(islice(fragments, max(0, fitting - 2), None), None)
            taken += [fragment] if fragment is not None else []
        return taken

    def _longest_beginning(self, index: int, tokens: int, before: str) -> tuple[str, int]:
        """As many words of a piece as `tokens` tokens hold, or characters where no word fits; and their tokens."""
        piece = self.pieces[index % len(self.pieces)]
        found, found_size = "", 0
        for candidates in (self._beginnings(piece), self._characters(piece)):
            for fragment in candidates:
                size = self._tokens_after(before, fragment)
                if size > tokens:
                    break
                found, found_size = fragment, size
            if found:
                break
        return found, found_size

    def _fragments(self, index: int, tokens: int, before: str) -> Iterator[str]:
        """Beginnings of sentences that have exactly so many tokens.

        They end with a word; where words do not come out so, with any character; and where the text's characters all
        have several tokens, they are the beginnings of generated sentences.
        """
        sources = [self.pieces[(index + step) % len(self.pieces)] for step in range(FRAGMENT_SOURCES)]
        generated = islice(generated_sentences(0), FRAGMENT_SOURCES)
        for candidates in (
            *map(self._beginnings, sources),
            *map(self._characters, sources[:CHARACTER_SOURCES]),
            *map(self._beginnings, generated),
        ):
            for fragment in candidates:
                size = self._tokens_after(before, fragment)
                if size == tokens:
                    yield fragment
                if size > tokens + SHORTEST_FRAGMENT:
                    break

    def _characters(self, piece: str) -> Iterator[str]:
        """The beginnings of a piece, character by character."""
        for count in range(1, len(piece.strip()) + 1):
            yield piece[:count].strip() + self._close

    def _beginnings(self, piece: str) -> Iterator[str]:
        """The beginnings of a piece, word by word, each closed with a full stop."""
        words = piece.split()
        for count in range(1, len(words) + 1):
            yield " ".join(words[:count]).rstrip(",;:.!?") + f".{self._close}"

    def _assemble(self, pieces: Sequence[str], hidden: Sequence[tuple[float, str]]) -> tuple[str, list[int]]:
        """The pieces with needles between them, and the tokens up to each boundary between pieces."""
        gaps = ["", *(_gap_after([piece]) for piece in pieces)]
        ends = [0, *accumulate(self._size(gap, piece) for gap, piece in zip(gaps, pieces, strict=False))]
        placed: dict[int, list[str]] = {}
        for depth, needle in hidden:
            placed.setdefault(nearest(ends, depth * ends[-1]), []).append(needle)
        parts: list[str] = []
        for index in range(len(ends)):
            for needle in placed.get(index, ()):
                if parts and not parts[-1][-1:].isspace():
                    parts.append(self._close)
                parts.append(needle + self._close)
            parts += pieces[index : index + 1]
        return "".join(parts).rstrip(), ends

    def _size_after(self, before: str, piece: str) -> int:
        return max(1, self._tokens_after(before, piece))

    def _tokens_after(self, before: str, text: str) -> int:
        """Tokens that a text adds after the end of a sentence and this white space."""
        anchor, size = self._anchor(before)
        return self._tokens(anchor + text) - size


def _gap_after(pieces: Sequence[str]) -> str:
    """The white space at the end of the last piece; what a beginning counts as where there is none."""
    if not pieces:
        return "\n"
    last = pieces[-1]
    return last[len(last.rstrip()) :]
