"""The needle grid: the published axes, exact contexts for every kind of model, deterministic scores, resumption."""

from __future__ import annotations

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from core_model.errors import InputError
from core_model.generation import Completion
from core_model.tokenizer import decode_tokens, encode_text, load_tokenizer, render_prompt, train_tokenizer
from core_model.tokenizer.prompts import REFLECT_SYSTEM_PROMPT
from eval.haystack_sentences import generated_paragraphs
from eval.needle_grid import NeedleRow, Reply, build_cells, draw_haystack, grid_rows, grid_scores, walk_grid
from eval.needle_recipe import NeedleRecipe, NeedleTokens, v3_axes
from eval.needle_walkers import open_walker
from eval.subjects.canned import CanonicalSubject
from eval.subjects.endpoint import EndpointRecipe, EndpointSubject
from eval.subjects.local import TransformersSubject, TriviumSubject, Workers
from eval.tasks.needle import answers_needle, stated_numbers
from eval.tasks.task import Mode
from recipes.loader import load_recipe
from recipes.progress import progress_bar
from recipes.rows import sha256_of

FILLER = [f"Line {number} of the filler says little to anybody." for number in range(60)] + ["word " * 200, ""]
TEXT = generated_paragraphs(0.05, 0)
REQUEST = "What is the secret number of "


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of ours with a tokenizer that knows the haystack's words."""
    from core_model import V3Config, V3ForCausalLM

    place = tmp_path_factory.mktemp("model")
    tokenizer = train_tokenizer([*TEXT[:40], "The secret number of Lima is 1234.\n"], 800)
    tokenizer.save_pretrained(place)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 8, "num_hidden_layers": 2}
    ranks = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}
    config = V3Config.preset("nano", vocab_size=len(tokenizer), max_position_embeddings=512, **sizes, **ranks)
    V3ForCausalLM(config).initialize(0.3, 0).save_pretrained(place)
    return place


SETTINGS: dict[str, Any] = {"dtype": "float32", "max_batch": 4, "workers": Workers()}


def ours(folder, mode="base", grid=None):
    return open_walker(TriviumSubject("m", folder, **SETTINGS), mode, grid or NeedleRecipe())


def walk(walker, grid, path, cells):
    with progress_bar(len(cells), "test") as bar:
        return walk_grid(walker, grid, path, cells, bar)


# -- the recipe ------------------------------------------------------------------------------------------------------


def test_axes_are_those_of_the_v3_report():
    lengths, depths = v3_axes()
    assert [length / 1024 for length in lengths] == [2, 11, 20, 29, 38, 47, 56, 65, 74, 83, 92, 101, 110, 119, 128]
    assert [round(100 * depth) for depth in depths] == [0, 7, 14, 21, 29, 36, 43, 50, 57, 64, 71, 79, 86, 93, 100]
    assert v3_axes(8192)[0] == tuple(length // 16 for length in lengths) and v3_axes(8192)[1] == depths


def test_axes_in_a_recipe():
    grid = NeedleRecipe(axes="v3", max_length=65_536, seeds=(0, 1, 2), control=True)
    assert (grid.lengths, grid.depths) == v3_axes(65_536)
    assert NeedleRecipe(**grid.model_dump(mode="json")) == grid  # a resolved recipe is one
    assert grid.documents == 15 * 15 * 3 + 15 * 3 and grid.documents_per_length == 48
    with pytest.raises(ValueError, match="axes v3 sets them"):
        NeedleRecipe(axes="v3", lengths=(256,))
    five = NeedleRecipe(lengths=(256, 1024, 2048, 4096, 8192))
    assert five.documents == 25 and five.depths == (0.0, 0.25, 0.5, 0.75, 1.0)


def test_the_shipped_recipe_has_the_report_s_grid(repository):
    grid = load_recipe(repository / "recipes/needle_128k.yaml").needle
    assert (grid.lengths, grid.depths) == v3_axes(131_072) and len(grid.seeds) == 3
    assert grid.control and grid.digits == 7 and grid.boundary == "sentence"


@pytest.mark.parametrize(
    "values", [{"depths": (0.5, 1.5)}, {"lengths": (64, 64)}, {"seeds": ()}, {"distractors": 100}, {"digits": 5}]
)
def test_what_is_no_grid_is_refused(values):
    with pytest.raises(ValueError):
        NeedleRecipe(**values)


def test_room_for_the_answer():
    assert [NeedleRecipe(digits=digits).answer_room("base") for digits in (4, 7)] == [8, 11]
    grid = NeedleRecipe(new_tokens=NeedleTokens(base=3, chat=5, reasoning=7))
    assert [grid.answer_room(mode) for mode in ("base", "chat", "reasoning")] == [3, 5, 7]


# -- documents -------------------------------------------------------------------------------------------------------


class Reader:
    """A walker that finds needles in contexts up to `reach` tokens, and writes down what it is asked."""

    mode: Mode = "base"
    revision, tokenizer_sha256, longest, in_batches = "r", "t", None, True

    def __init__(self, tokenizer, reach=10**6):
        self.tokenizer, self.reach, self.calls = tokenizer, reach, []

    def tokens(self, text):
        return encode_text(self.tokenizer, text)

    def measure(self, prompt):
        return len(self.tokens(prompt)) + 1

    def beginning(self):
        return [0]

    def answer(self, prompts, room, length):
        self.calls.append((len(prompts), length))
        asked = [(one if isinstance(one, str) else decode_tokens(self.tokenizer, one), one) for one in prompts]
        found = [self.find(text) if len(prompt) <= self.reach else " 12345" for text, prompt in asked]
        yield [(number, Reply(text, text)) for number, text in enumerate(found)]

    def find(self, text):
        question = text[text.rindex("The secret number") :]
        after = text.split(question + " ")[1:]
        return f" {after[0].split('.')[0]}" if after else " 0"


def test_documents_of_lines_are_the_same_as_ever():
    """Recorded before the grid could do anything else; nano's five lengths and depths are the first."""
    tokenizer = train_tokenizer([*FILLER, "The secret number of Lima is 1234.\n"] * 3, 330)
    grids = {
        "726660384f9972f1691bae53e4066689c13aef0a642cf64d826cf5b494f03417": NeedleRecipe(),
        "410be23549ecc677311ecb34285f75353dec0722751122e62dfc59b0098d8d0a": NeedleRecipe(
            lengths=(128, 512), depths=(0.0, 0.3, 1.0), seeds=(0, 7), distractors=2
        ),
    }
    for recorded, grid in grids.items():
        cells = build_cells(grid, Reader(tokenizer), FILLER)
        assert sha256_of([[one.length, one.depth, one.seed, one.prompt, one.number] for one in cells]) == recorded


def test_every_cell_has_its_length_and_its_needle(folder):
    grid = NeedleRecipe(lengths=(160, 300, 513), depths=(0.0, 0.5, 1.0), seeds=(0, 1), distractors=1, control=True)
    walker = ours(folder)
    cells = build_cells(grid, walker, TEXT)
    assert len(cells) == grid.documents == 24 and cells == build_cells(grid, walker, TEXT)
    tokenizer = load_tokenizer(folder)
    for cell in cells:
        assert isinstance(cell.prompt, list)
        assert len(cell.prompt) + 8 == cell.length == cell.prompt_tokens + 8 and cell.prompt[0] == 0
        text = decode_tokens(tokenizer, cell.prompt)
        question = text[text.rindex("The secret number") :]
        assert (f"{question} {cell.number}." in text) == (cell.depth is not None)
        assert f" {cell.others[0]}.\n" in text and text.endswith(f"\n{question}")
        if cell.depth in (0.0, 1.0):
            assert cell.measured_depth == cell.depth
    assert len({cell.number for cell in cells}) > 20  # a number of its own, not one for all
    assert [cell.depth for cell in cells[:8]] == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0, None, None]


@pytest.mark.parametrize("boundary", ["sentence", "line"])
@pytest.mark.parametrize("mode", ["base", "chat", "reasoning"])
def test_prompts_of_text_are_exact_after_the_template(folder, mode, boundary):
    grid = NeedleRecipe(
        lengths=(500, 901),
        depths=(0.0, 0.5, 1.0),
        digits=7,
        distractors=2,
        control=True,
        boundary=boundary,
        new_tokens=NeedleTokens(reasoning=64),
    )
    tokenizer, room = load_tokenizer(folder), grid.answer_room(mode)
    cells = build_cells(grid, ours(folder, mode), TEXT)
    for cell in cells:
        if mode == "base":
            assert isinstance(cell.prompt, list if boundary == "line" else str)
            ids = [0, *encode_text(tokenizer, cell.prompt)] if isinstance(cell.prompt, str) else cell.prompt
        else:
            system = [{"role": "system", "content": REFLECT_SYSTEM_PROMPT}] if mode == "reasoning" else []
            ids = render_prompt(tokenizer, [*system, {"role": "user", "content": cell.prompt}])
        assert len(ids) == cell.length - room == cell.prompt_tokens
        text = decode_tokens(tokenizer, ids)
        assert len(cell.number) == 7 and text.count(cell.number) == (cell.depth is not None)
        assert all(len(other) == 7 and text.count(other) == 1 for other in cell.others) and len(cell.others) == 2
        asked = text.split("What is the secret number of " if mode != "base" else "secret number of ")[-1].split()[0]
        assert (f"The secret number of {asked} is {cell.number}." in text) == (cell.depth is not None)


def test_our_folder_is_measured_alike_by_all(folder):
    """Through transformers, and with a copy of the tokenizer beside an endpoint."""
    remote = EndpointSubject("e", EndpointRecipe(url="http://127.0.0.1:9/v1", model="m"))
    for mode in ("chat", "reasoning"):
        grid = NeedleRecipe(
            lengths=(512,), boundary="sentence", digits=7, tokenizer=folder, new_tokens=NeedleTokens(reasoning=9)
        )
        walkers = [
            ours(folder, mode),
            open_walker(TransformersSubject("t", folder, **SETTINGS), mode, grid),
            open_walker(remote, mode, grid),
        ]
        cells, *others = [build_cells(grid, walker, TEXT) for walker in walkers]
        assert others == [cells, cells]
        assert len({walker.tokenizer_sha256 for walker in walkers}) == 1


def test_numbers_of_the_filler_are_no_needles(folder):
    years = [" ".join(f"In {year} it rained." for year in range(1000, 9999, 2))]  # every even number
    grid = NeedleRecipe(lengths=(400,), seeds=tuple(range(6)), boundary="sentence")
    assert all(int(cell.number) % 2 for cell in build_cells(grid, ours(folder), years))
    with pytest.raises(InputError, match="nearly every number of 4 digits"):
        build_cells(
            grid, ours(folder), [f"{years[0]} {years[0].replace('0 ', '1 ')}" + " ".join(map(str, range(9999)))]
        )


def test_lengths_that_cannot_be_are_refused(folder):
    for boundary in ("line", "sentence"):
        with pytest.raises(InputError, match="lengths"):
            build_cells(NeedleRecipe(lengths=(24,), boundary=boundary), ours(folder), TEXT)
    theirs = open_walker(TransformersSubject("t", folder, **SETTINGS), "chat", NeedleRecipe())
    with pytest.raises(InputError, match="at most 512"):
        build_cells(NeedleRecipe(lengths=(513,)), theirs, TEXT)


# -- asking ----------------------------------------------------------------------------------------------------------


def test_the_grid_is_walked_once_and_scored(folder, tmp_path):
    grid = NeedleRecipe(lengths=(128, 160, 256), depths=(0.0, 1.0), seeds=(0, 1), control=True)
    walker = Reader(load_tokenizer(folder), reach=152)
    cells = build_cells(grid, walker, TEXT)
    for _ in range(2):
        rows = walk(walker, grid, tmp_path / "needle.jsonl", cells)
    assert walker.calls == [(6, 128), (6, 160), (6, 256)]  # a length at a time, nothing twice
    assert [(row.length, row.depth, row.seed) for row in rows] == [(one.length, one.depth, one.seed) for one in cells]
    assert len({row.haystack_sha256 for row in rows}) == 1 and rows[0].tokenizer_sha256 == "t"
    found = grid_scores(rows, grid, trained=160)
    assert found["shares"] == [[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]
    assert (found["within"], found["cells_within"]) == (1.0, 4)
    assert found["control"] == 0.0 and found["control_by_length"] == [0.0, 0.0, 0.0]
    assert (found["longest_good"], found["perfect"]) == (160, pytest.approx(2 / 3))
    assert found["minimum"] == {"length": 256, "depth": 0.0, "share": 0.0}
    assert found["depth_error"] == 0.0 and found["haystack_sha256"] == rows[0].haystack_sha256
    assert grid_scores(rows, grid, trained=256)["within"] == pytest.approx(2 / 3)
    assert grid_scores(rows, grid, trained=95)["within"] is None


@pytest.mark.parametrize(("in_batches", "expected"), [(True, [(2, 256), (1, 256)]), (False, [(2, 256)])])
def test_what_a_kill_left_is_made_again_by_blocks(folder, tmp_path, in_batches, expected):
    grid = NeedleRecipe(lengths=(256,), batch_tokens=600)  # two prompts at once
    walker = Reader(load_tokenizer(folder))
    walker.in_batches = in_batches
    cells = build_cells(grid, walker, TEXT)
    path = tmp_path / "needle.jsonl"
    whole = walk(walker, grid, path, cells)
    assert walker.calls == ([(2, 256), (2, 256), (1, 256)] if in_batches else [(5, 256)])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], lines[4][:20]]))  # one of the second block is missing, and the third torn
    walker.calls.clear()
    assert walk(walker, grid, path, cells) == whole
    assert walker.calls == expected
    kept = [json.loads(line)["key"] for line in path.read_bytes().splitlines()]
    assert len(kept) == len(set(kept)) == 5


def test_a_row_s_key_changes_with_what_decides_it(folder, tmp_path):
    tokenizer, keys = load_tokenizer(folder), set()
    for change in ({}, {"batch_tokens": 300}, {"new_tokens": {"base": 9}}, {"digits": 7}):
        grid = NeedleRecipe(**{"lengths": (256,), "depths": (0.5,)} | change)
        walker = Reader(tokenizer)
        for revision in ("r", "s"):
            walker.revision = revision
            rows = walk(walker, grid, tmp_path / "n.jsonl", build_cells(grid, walker, TEXT))
            keys |= {row.key for row in rows}
    assert len(keys) == 8


def test_our_engine_and_transformers_walk_alike(folder, tmp_path):
    """The same weights: the same text for every prompt, up to the longest positions; ours goes on beyond."""
    grid = NeedleRecipe(lengths=(256, 512), depths=(0.0, 1.0), boundary="sentence", new_tokens=NeedleTokens(chat=4))
    walkers = [ours(folder, "chat"), open_walker(TransformersSubject("t", folder, **SETTINGS), "chat", grid)]
    texts = []
    for number, walker in enumerate(walkers):
        rows = walk(walker, grid, tmp_path / f"{number}.jsonl", build_cells(grid, walker, TEXT))
        texts.append([row.text for row in rows])
    assert texts[0] == texts[1] and len(set(texts[0])) > 1
    beyond = NeedleRecipe(lengths=(700,), depths=(0.5,), boundary="sentence")
    assert len(walk(walkers[0], beyond, tmp_path / "beyond.jsonl", build_cells(beyond, walkers[0], TEXT))) == 1


@pytest.mark.parametrize("begins", [True, False])
def test_a_base_model_of_transformers_is_asked_in_its_tokenizer_s_way(folder, tmp_path, begins):
    """With a token before the text where the tokenizer puts one, and exactly as long either way."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    shutil.copytree(folder, tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if begins:
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{bos[0]} $A", special_tokens=[bos])
    tokenizer.save_pretrained(tmp_path / "m")
    grid = NeedleRecipe(lengths=(300,), depths=(0.0, 1.0))  # lines, and yet as text
    walker = open_walker(TransformersSubject("t", tmp_path / "m", **SETTINGS), "base", grid)
    cells = build_cells(grid, walker, TEXT)
    for cell in cells:
        assert isinstance(cell.prompt, str)
        ids = encode_text(load_tokenizer(folder), cell.prompt)
        assert len(ids) + begins == 292 == walker.measure(cell.prompt)
    texts = [row.text for row in walk(walker, grid, tmp_path / "n.jsonl", cells)]
    assert len(texts) == 2 and all(texts)


def test_a_line_of_tokens_reaches_the_engine_as_it_is(folder, tmp_path, monkeypatch):
    seen = []

    class Engine:
        def generate(self, prompts, params):
            seen.append((prompts, params.max_new_tokens, params.temperature))
            ids = encode_text(load_tokenizer(folder), " 77.\n")
            return [[Completion(ids, None, "stop")] for _ in prompts]

    monkeypatch.setattr(TriviumSubject, "engine", lambda self, *_: Engine())
    grid = NeedleRecipe(lengths=(256,), depths=(0.0, 1.0))
    walker = ours(folder)
    cells = build_cells(grid, walker, TEXT)
    rows = walk(walker, grid, tmp_path / "n.jsonl", cells)
    assert seen == [([cell.prompt for cell in cells], 8, 0.0)]
    assert [row.text for row in rows] == [" 77.\n"] * 2 and not any(row.right for row in rows)


class _Server(ThreadingHTTPServer):
    """Keeps what it is asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.bodies: list[tuple[str, dict[str, Any]]] = []


class _Handler(BaseHTTPRequestHandler):
    """Answers from the text it is sent."""

    server: _Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.bodies.append((self.path, body))
        text = body["prompt"] if "prompt" in body else body["messages"][-1]["content"]
        place = text.split(REQUEST if "messages" in body else "secret number of ")[-1].split()[0]
        stated = text.split(f"The secret number of {place} is ")[1:]
        number = stated[0].split(".")[0] if stated and stated[0][:1].isdigit() else "not stated"
        choice = {"index": 0, "finish_reason": "stop"}
        choice |= {"text": f" {number}.\nSo"} if "prompt" in body else {"message": {"content": f"It is {number}."}}
        content = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_) -> None:
        """Quiet."""


@pytest.mark.parametrize("mode", ["base", "chat"])
def test_a_model_behind_an_endpoint_walks_it(folder, tmp_path, mode):
    server = _Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        grid = NeedleRecipe(
            lengths=(400, 600), boundary="sentence", digits=7, distractors=2, control=True, tokenizer=folder
        )
        entry = EndpointRecipe(url=f"http://127.0.0.1:{server.server_port}/v1", model="m")
        subject = EndpointSubject("e", entry)
        walker = open_walker(subject, mode, grid)
        rows = walk(walker, grid, tmp_path / "n.jsonl", build_cells(grid, walker, TEXT))
        subject.release()
    finally:
        server.shutdown()
        server.server_close()
    scores = grid_scores(rows, grid, trained=600)
    assert scores["shares"] == [[1.0] * 5] * 2 and scores["control"] == 0.0 and len(server.bodies) == 12
    path, body = server.bodies[0]
    assert path == ("/v1/completions" if mode == "base" else "/v1/chat/completions")
    assert (body["temperature"], body["max_tokens"]) == (0.0, grid.answer_room(mode))


def test_who_cannot_walk_is_refused(folder, tmp_path):
    remote = EndpointSubject("e", EndpointRecipe(url="http://127.0.0.1:9/v1", model="m"))
    with pytest.raises(InputError, match=r"needle\.tokenizer"):
        open_walker(remote, "chat", NeedleRecipe())
    with pytest.raises(InputError, match="a tokenizer"):
        open_walker(remote, "chat", NeedleRecipe(tokenizer=tmp_path))
    with pytest.raises(InputError, match="answers from a file"):
        open_walker(CanonicalSubject("c"), "chat", NeedleRecipe())


# -- scores ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("4827", True),
        ("The secret number of Lima is **4827**.", True),
        ("4,827", True),
        ("48271", False),
        ("14827", False),
        ("1.4827", True),
        ("4827, 5555", False),  # another needle's
        ("4827, 5556", True),
        ("not stated", False),
        ("", False),
    ],
)
def test_a_chat_answer_states_the_number_and_no_other_needle_s(answer, right):
    assert answers_needle(answer, "4827", ("5555",)) == right


def test_numbers_in_a_text():
    assert stated_numbers("1,234,567 and 12,34 or 4827,1234; 007") == ["1234567", "12", "34", "4827", "1234", "007"]


def rows_of(grid, right):
    return [
        NeedleRow(key="", length=length, depth=depth, seed=seed, number="1", text="", right=right(length, depth, seed))
        for length in grid.lengths
        for depth in [*grid.depths, *([None] if grid.control else [])]
        for seed in grid.seeds
    ]


def test_half_a_cell_and_a_guessing_model():
    grid = NeedleRecipe(lengths=(64, 128), depths=(0.0, 1.0), seeds=(0, 1), control=True)
    rows = rows_of(grid, lambda length, depth, seed: (depth, seed) not in {(0.0, 1), (None, 0)} or length == 128)
    found = grid_scores(rows[::-1], grid, 64)  # in whatever order
    assert found["shares"] == [[0.5, 1.0], [1.0, 1.0]] and found["by_length"] == [0.75, 1.0]
    assert (found["within"], found["perfect"], found["cells"]) == (0.75, 0.75, 4)
    assert found["minimum"] == {"length": 64, "depth": 0.0, "share": 0.5}
    assert (found["control"], found["control_by_length"]) == (0.75, [0.5, 1.0])
    assert found["longest_good"] is None  # the shortest fails, whatever comes after
    assert found["depth_error"] is None
    assert grid_rows(found, grid) == [
        {"length": 64, "depth": 0.0, "documents": 2, "share": 0.5},
        {"length": 64, "depth": 1.0, "documents": 2, "share": 1.0},
        {"length": 128, "depth": 0.0, "documents": 2, "share": 1.0},
        {"length": 128, "depth": 1.0, "documents": 2, "share": 1.0},
        {"length": 64, "depth": None, "documents": 2, "share": 0.5},
        {"length": 128, "depth": None, "documents": 2, "share": 1.0},
    ]


@pytest.mark.parametrize(("wrong", "longest"), [((), 64), ((0,), 64), ((0, 1), None)])
def test_nine_of_ten_at_every_depth_is_good(wrong, longest):
    grid = NeedleRecipe(lengths=(64,), depths=(0.0, 1.0), seeds=tuple(range(10)))
    found = grid_scores(rows_of(grid, lambda _, depth, seed: depth == 1.0 or seed not in wrong), grid, 64)
    assert found["longest_good"] == longest and found["control"] is None


def test_draw_haystack_generates_where_there_is_no_file():
    assert draw_haystack(None, 0.01, 4) == generated_paragraphs(0.01, 4)
