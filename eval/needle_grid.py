"""The needle grid: one fact hidden at every depth of contexts of every length, asked for at the end.

A base model can walk it as well as a tuned one: the prompt is a text whose last sentence wants its number.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_model.errors import InputError
from core_model.generation import SamplingParams
from core_model.tokenizer import BOS, EOS, decode_tokens, encode_text, special_id
from eval.generate import Subject
from eval.journal import Journal
from eval.recipe import NeedleRecipe, Recipe
from eval.tasks.needle import leading_number, needle_document
from recipes.progress import Bar
from recipes.rows import Row, sha256_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

ANSWER_ROOM = 8  # tokens kept free for the answer: a space, four digits, and what ends a sentence
UNFIT_SOURCES = ("tasks/", "needles")  # generated text, and text with other needles in it


class NeedleRow(Row):
    """One document of one cell, and what the model answered."""

    key: str
    length: int
    depth: float
    seed: int
    number: str
    text: str
    right: bool


@dataclass(frozen=True)
class Cell:
    """One document, and where it stands in the grid."""

    length: int
    depth: float
    seed: int
    prompt: list[int]
    number: str


def read_filler(path: Path, megabytes: float) -> list[str]:
    """The texts that needles hide in: from JSONL with `text` (and the corpus's `meta.source`), or one text file.

    Raises:
        InputError: no such file, a line without text, or nothing that can be used.
    """
    if not path.is_file():
        raise InputError(path, expected="text for needles to hide in", found="no such file")
    texts: list[str] = []
    size = 0
    for text in _texts(path):
        if size >= megabytes * 1e6:
            break
        texts.append(text[: int(megabytes * 1e6)])
        size += len(text)
    if not any(text.strip() for text in texts):
        raise InputError(path, expected="text for needles to hide in", found="none")
    return texts


def _texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="\n") as file:
        if path.suffix != ".jsonl":
            yield file.read()
            return
        for number, line in enumerate(file, 1):
            try:
                row: Any = json.loads(line)
                text, source = row["text"], row.get("meta", {}).get("source", "")
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(
                    path, where=f"line {number}", expected="a JSON object with text", found=repr(error)
                ) from error
            if not source.startswith(UNFIT_SOURCES):
                yield text


def build_cells(recipe: NeedleRecipe, tokenizer: PreTrainedTokenizerFast, filler: Sequence[str]) -> list[Cell]:
    """The documents of the grid, by length, depth and seed; the same for equal tokenizers and filler.

    Raises:
        InputError: a length too small for the needle and its question.
    """
    # The same lines of filler return in document after document.
    encode = functools.lru_cache(maxsize=100_000)(lambda text: tuple(encode_text(tokenizer, text)))
    cells = []
    for length in recipe.lengths:
        for depth in recipe.depths:
            for seed in recipe.seeds:
                try:
                    document = needle_document(
                        length - 1 - ANSWER_ROOM,  # bos before it, the answer after it
                        depth,
                        int(sha256_of("needle grid", length, depth, seed)[:12], 16),
                        filler,
                        lambda text: list(encode(text)),
                        distractors=recipe.distractors,
                    )
                except ValueError as error:
                    raise InputError("needle.lengths", expected="lengths with room", found=str(error)) from error
                prompt = [special_id(tokenizer, BOS), *document.token_ids]
                cells.append(Cell(length, depth, seed, prompt, document.number))
    return cells


def walk_grid(subject: Subject, recipe: Recipe, path: Path, cells: Sequence[Cell], bar: Bar) -> list[NeedleRow]:
    """Ask for every needle that the journal at `path` does not hold yet, a length at a time; all rows, in order."""
    grid = recipe.needle
    per_length = len(grid.depths) * len(grid.seeds)
    blocks = [list(cells[start : start + per_length]) for start in range(0, len(cells), per_length)]
    keys = {id(cell): _key(subject, recipe, cell) for cell in cells}
    journal = Journal(path, NeedleRow, [[keys[id(cell)] for cell in block] for block in blocks])
    bar.advance(len(journal.rows))
    params = SamplingParams(
        max_new_tokens=ANSWER_ROOM,
        temperature=0.0,
        stop_ids=(special_id(subject.tokenizer, EOS), *subject.newline_ids),
    )
    for block in blocks[journal.blocks_done :]:
        length = block[0].length
        # The model's trained length is no limit here: that it fails beyond is a finding.
        engine = subject.engine(recipe, max(1, grid.batch_tokens // length), length)
        rows = []
        for cell, completions in zip(block, engine.generate([cell.prompt for cell in block], params), strict=True):
            text = decode_tokens(subject.tokenizer, completions[0].token_ids)
            rows.append(
                NeedleRow(
                    key=keys[id(cell)],
                    length=cell.length,
                    depth=cell.depth,
                    seed=cell.seed,
                    number=cell.number,
                    text=text,
                    right=leading_number(text) == cell.number,
                )
            )
        journal.append(rows)
        bar.advance(len(rows))
    return journal.rows


def _key(subject: Subject, recipe: Recipe, cell: Cell) -> str:
    return sha256_of("needle", subject.revision, recipe.dtype, recipe.needle.batch_tokens, cell.prompt, cell.number)


def grid_scores(rows: Sequence[NeedleRow], recipe: NeedleRecipe, trained: int) -> dict[str, Any]:
    """The share of right answers by cell ([length][depth]), and over the cells within the trained length.

    `within` is None when the whole grid is longer than that.
    """
    right = {(row.length, row.depth, row.seed): row.right for row in rows}
    shares = [
        [sum(right[length, depth, seed] for seed in recipe.seeds) / len(recipe.seeds) for depth in recipe.depths]
        for length in recipe.lengths
    ]
    inside = [share for length, line in zip(recipe.lengths, shares, strict=True) if length <= trained for share in line]
    return {
        "trained_length": trained,
        "shares": shares,
        "by_length": [sum(line) / len(line) for line in shares],
        "within": sum(inside) / len(inside) if inside else None,
        "cells_within": len(inside),
    }
