"""The needle grid: exact contexts, deterministic scores, one cell at a time."""

from __future__ import annotations

import json

import pytest

from core_model.errors import InputError
from core_model.generation import Completion
from core_model.tokenizer import decode_tokens, encode_text
from eval.generate import Subject
from eval.needle_grid import ANSWER_ROOM, NeedleRow, build_cells, grid_scores, read_filler, walk_grid
from eval.recipe import NeedleRecipe
from recipes.loader import load_recipe
from recipes.progress import progress_bar

FILLER = [f"Line {number} of the filler says little to anybody." for number in range(60)]


def test_every_cell_has_its_length_and_its_needle(tokenizer):
    grid = NeedleRecipe(lengths=(96, 200, 513), depths=(0.0, 0.5, 1.0), seeds=(0, 1), distractors=1)
    cells = build_cells(grid, tokenizer, FILLER)
    assert len(cells) == 18 and cells == build_cells(grid, tokenizer, FILLER)
    for cell in cells:
        assert len(cell.prompt) + ANSWER_ROOM == cell.length and cell.prompt[0] == 0
        text = decode_tokens(tokenizer, cell.prompt)
        question = text[text.rindex("The secret number") :]
        assert f"{question} {cell.number}." in text and text.endswith(f"\n{question}")
    assert len({cell.number for cell in cells}) > 14  # a number of its own, not one for all
    assert len(encode_text(tokenizer, " 1234.\n")) <= ANSWER_ROOM


def test_a_length_without_room_is_refused(tokenizer):
    with pytest.raises(InputError, match="lengths"):
        build_cells(NeedleRecipe(lengths=(24,)), tokenizer, FILLER)


@pytest.mark.parametrize("values", [{"depths": (0.5, 1.5)}, {"lengths": (64, 64)}, {"seeds": ()}])
def test_what_is_no_grid_is_refused(values):
    with pytest.raises(ValueError):
        NeedleRecipe(**values)


class Reader:
    """Finds needles in contexts up to `reach` tokens."""

    def __init__(self, tokenizer, reach, calls):
        self.tokenizer, self.reach, self.calls = tokenizer, reach, calls

    def generate(self, prompts, params):
        self.calls.append(len(prompts))
        found = []
        for prompt in prompts:
            text = decode_tokens(self.tokenizer, prompt)
            question = text[text.rindex("The secret number") :]
            number = text.split(question + " ")[1][:4] if len(prompt) <= self.reach else "12345"
            ids = encode_text(self.tokenizer, f" {number}.\n")
            found.append([Completion(ids[: params.max_new_tokens], None, "stop")])
        return found


def test_the_grid_is_walked_once_and_scored(models, recipe_file, tmp_path, monkeypatch):
    recipe = load_recipe(recipe_file, ["needle.lengths=[96,128,256]", "needle.seeds=[0,1]"])
    subject = Subject("m", models["first"])
    calls: list[int] = []
    monkeypatch.setattr(Subject, "engine", lambda self, *_: Reader(self.tokenizer, 128, calls))
    cells = build_cells(recipe.needle, subject.tokenizer, FILLER)
    for _ in range(2):
        with progress_bar(len(cells), "test") as bar:
            rows = walk_grid(subject, recipe, tmp_path / "needle.jsonl", cells, bar)
    assert calls == [4, 4, 4]  # a length at a time, nothing twice
    found = grid_scores(rows, recipe.needle, trained=128)
    assert found["shares"] == [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    assert (found["within"], found["cells_within"]) == (1.0, 4)
    assert grid_scores(rows, recipe.needle, trained=256)["within"] == pytest.approx(2 / 3)
    assert grid_scores(rows, recipe.needle, trained=95)["within"] is None


def test_half_a_cell():
    grid = NeedleRecipe(lengths=(64,), depths=(0.0, 1.0), seeds=(0, 1))
    rows = [
        NeedleRow(key=f"{depth}{seed}", length=64, depth=depth, seed=seed, number="1", text="", right=right)
        for (depth, seed), right in zip(
            ((0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1)), (True, False, True, True), strict=True
        )
    ]
    assert grid_scores(rows, grid, 64)["shares"] == [[0.5, 1.0]]
    assert grid_scores(rows, grid, 64)["by_length"] == [0.75]


def test_filler_leaves_out_other_needles_and_tasks(tmp_path):
    path = tmp_path / "documents.jsonl"
    rows = [
        {"text": "a task", "meta": {"source": "tasks/gcd"}},
        {"text": "a book", "meta": {"source": "stdlib"}},
        {"text": "The secret number of Lima is 1.", "meta": {"source": "needles"}},
        {"text": "a page"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_filler(path, 1.0) == ["a book", "a page"]
    assert read_filler(path, 5e-6) == ["a boo"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", "found none"),
        ("a.jsonl", '{"text": "  "}\n', "found none"),
        ("a.jsonl", '{"text": "x"}\n[1]\n', "line 2"),
        ("a.jsonl", "{nonsense\n", "line 1"),
        ("a.txt", " \n", "found none"),
        (None, None, "no such file"),
    ],
)
def test_unusable_filler_is_refused(tmp_path, name, content, message):
    path = tmp_path / (name or "missing.txt")
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_filler(path, 1.0)
