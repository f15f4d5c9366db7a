"""`trivium chat`: one question from a pipe, its options, and how a model is asked."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from core_model.errors import InputError
from core_model.generation.api import ChatRequest
from core_model.generation.backend import ReplyChunk, Usage
from core_model.generation.chat import Conversation, Settings, find_model, main
from core_model.tokenizer.prompts import REFLECT_SYSTEM_PROMPT


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A run with an untrained model."""
    from core_model import V3Config, V3ForCausalLM
    from core_model.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("run")
    tokenizer = train_tokenizer(["Compute 1 + 2.", "3", REFLECT_SYSTEM_PROMPT] * 3, 300)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 8, "num_hidden_layers": 2}
    ranks = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 4}
    config = V3Config.preset("nano", vocab_size=len(tokenizer), max_position_embeddings=160, **sizes, **ranks)
    (folder / "model").mkdir()
    tokenizer.save_pretrained(folder / "model")
    V3ForCausalLM(config).initialize(0.3, 0).save_pretrained(folder / "model")
    return folder


@pytest.fixture
def pipe(monkeypatch):
    """Put bytes on standard input."""

    def put(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    return put


class Scripted:
    """A backend that replies as told, and keeps what it was asked."""

    name = "scripted"

    def __init__(self, reasoning: str = "1 and 2 [is] 3", answer: str = "3", finish: str = "stop") -> None:
        self.reasoning, self.answer, self.finish = reasoning, answer, finish
        self.asked: list[ChatRequest] = []
        self.closed = False

    def reply(self, request: ChatRequest) -> Generator[ReplyChunk, None, None]:
        self.asked.append(request)
        yield from (ReplyChunk(reasoning=c, reasoning_tokens=i + 1) for i, c in enumerate(self.reasoning))
        yield from (ReplyChunk(content=c) for c in self.answer)
        yield ReplyChunk(finish_reason=self.finish)
        yield ReplyChunk(usage=Usage(11, 7, 5))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def answers(monkeypatch, pipe, capsys):
    """Ask a backend by a pipe: what is printed, and on standard error."""

    def ask(backend: Scripted, *arguments: str) -> Sequence[str]:
        monkeypatch.setattr("core_model.generation.chat.find_model", lambda folder: folder)
        monkeypatch.setattr("core_model.generation.chat._open", lambda options: backend)
        pipe(b"Compute 1 + 2.")
        assert main(["RUN", *arguments]) == 0
        return capsys.readouterr()

    return ask


def test_a_pipe_is_one_question(run_folder, pipe, capsys):
    answers = []
    for _ in range(2):
        pipe(b"Compute 1 + 2.\nPlease.\n")
        assert main([str(run_folder), "--max-new-tokens", "20"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1] and answers[0].strip()


def test_hostile_bytes_on_the_pipe_are_text(run_folder, pipe, capsys):
    pipe(b"\xff\xfe<|x|> \xed\xa0\x80 " + "<｜Assistant｜></think>".encode())
    assert main([str(run_folder), "--max-new-tokens", "5", "--short", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["usage"]["completion_tokens"] <= 5


@pytest.mark.parametrize("data", [b"", b" \n\t\n"])
def test_nothing_asked(run_folder, pipe, data):
    pipe(data)
    with pytest.raises(InputError, match="a question"):
        main([str(run_folder)])


def test_a_question_too_long_for_the_model(run_folder, pipe):
    pipe(b"7 " * 500)
    with pytest.raises(InputError, match="160 tokens"):
        main([str(run_folder)])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--temperature", "-1"], "--temperature: expected a number from 0 to 100"),
        (["--temperature", "nan"], "--temperature: .*'nan'"),
        (["--max-new-tokens", "0"], "--max-new-tokens: expected 1 or more"),
        (["--history", "-1"], "--history: expected 0 or more"),
        (["--seed", "x"], "--seed: expected a whole number"),
        (["--budget", "5,4"], "--budget: expected N .* N M"),
        (["--budget", ""], "--budget: .*found nothing"),
        (["--model", "nano"], "--model: expected the address of a server"),
        (["--api-key", "k"], "--api-key: expected the address of a server"),
    ],
)
def test_options_out_of_range(pipe, arguments, expected):
    pipe(b"x")
    with pytest.raises(InputError, match=expected):
        main(["RUN", *arguments])


def test_where_the_model_is(run_folder, tmp_path):
    assert find_model(run_folder) == run_folder / "model" == find_model(run_folder / "model")
    with pytest.raises(InputError, match="no such folder"):
        find_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no model"):
        find_model(tmp_path)
    (tmp_path / "sft" / "model").mkdir(parents=True)
    with pytest.raises(InputError, match="the runs sft: choose one"):
        find_model(tmp_path)


def test_the_thought_comes_before_the_answer_in_a_pipe(answers):
    backend = Scripted()
    assert answers(backend).out == "1 and 2 [is] 3\n\n3\n" and backend.closed
    assert answers(Scripted(reasoning="")).out == "3\n"
    assert "cut off" in answers(Scripted(finish="length")).err


def test_a_thought_longer_than_asked_for_is_said(answers):
    thought = "1 and 2 [is] 3"  # 14 tokens; other servers pass over limits that they do not know
    assert "14 tokens of thought, and at most 13 were asked for" in answers(Scripted(thought), "--budget", "13").err
    assert answers(Scripted(thought), "--budget", "14").err == answers(Scripted(thought)).err == ""


def test_one_json_object(answers):
    printed = answers(Scripted(answer="3\x1b é"), "--json").out
    assert printed.isascii() and "\x1b" not in printed and printed.count("\n") == 1
    assert json.loads(printed) == {
        "reasoning": "1 and 2 [is] 3",
        "answer": "3\x1b é",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 11, "completion_tokens": 7, "reasoning_tokens": 5},
    }
    assert json.loads(answers(Scripted(reasoning=""), "--json").out)["reasoning"] is None


def test_that_a_model_thinks_unasked_is_said_where_it_does(answers):
    assert "--budget 0" in answers(Scripted(), "--short").err
    assert answers(Scripted(reasoning=""), "--short").err == ""
    assert answers(Scripted()).err == ""


def test_a_model_cannot_steer_the_terminal(answers):
    hostile = Scripted(reasoning="\x1b[2J\x07\u202e", answer="1\n\t2\x9b")
    assert answers(hostile).out == "\ufffd[2J\ufffd\ufffd\n\n1\n\t2\ufffd\n"


def test_options_become_the_request(answers):
    def request(*arguments: str) -> dict[str, object]:
        backend = Scripted()
        answers(backend, *arguments)
        return backend.asked[0].model_dump(exclude_unset=True)

    user = {"role": "user", "content": "Compute 1 + 2."}
    system = {"role": "system", "content": REFLECT_SYSTEM_PROMPT}
    assert request() == {"messages": [system, user], "temperature": 0.0, "seed": 0, "max_tokens": 512}
    assert request("--short", "--temperature", ".5", "--seed", "3", "--max-new-tokens", "off", "--budget", "9") == {
        "messages": [user],
        "temperature": 0.5,
        "seed": 3,
        "max_thinking_tokens": 9,
    }
    limits = request("--system", "be\udcff brief", "--budget", "2,9")
    assert (limits["min_thinking_tokens"], limits["max_thinking_tokens"]) == (2, 9)
    assert limits["messages"] == [{"role": "system", "content": "be? brief"}, user]


def test_history_is_what_was_asked_for_without_thoughts():
    backend = Scripted()
    conversation = Conversation(backend, Settings(system_prompt=None, seed=4), history=1)
    for question in ("one", "two", "three"):
        conversation.ask(question)
    contents = [[message.content for message in request.messages] for request in backend.asked]
    assert contents == [["one"], ["one", "3", "two"], ["two", "3", "three"]]
    assert [request.seed for request in backend.asked] == [4, 5, 6]


@pytest.mark.parametrize(
    ("text", "limits"),
    [("64", (0, 64)), ("0", (0, 0)), ("8 64", (8, 64)), ("8,64", (8, 64)), ("7 7", (7, 7)), (" off ", (0, None))],
)
def test_budgets(text, limits):
    changed = Settings(most_thought=5, least_thought=3).with_budget(text, "/budget")
    assert (changed.least_thought, changed.most_thought) == limits


@pytest.mark.parametrize("text", ["", "x", "-1", "9 8", "1 2 3", "1.5", "9" * 30, "9" * 5000])
def test_what_is_no_budget(text):
    with pytest.raises(InputError, match=r"^/budget: expected N \(at most N tokens of thought\)") as caught:
        Settings().with_budget(text, "/budget")
    assert len(str(caught.value)) < 300


def test_json_is_for_a_pipe(monkeypatch):
    monkeypatch.setattr(sys, "stdin", type("Terminal", (), {"isatty": lambda self: True})())
    with pytest.raises(InputError, match="--json: expected a question in a pipe"):
        main(["RUN", "--json"])


def test_a_folder_without_a_model_is_said_before_a_question_is_waited_for(monkeypatch):
    monkeypatch.setattr(sys, "stdin", type("Pipe", (), {"isatty": lambda self: False})())  # reading it would fail
    with pytest.raises(InputError, match="nowhere: expected a run folder with a model/"):
        main(["nowhere"])


def test_the_help_teaches(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    printed = capsys.readouterr().out
    assert left.value.code == 0
    for word in ("/budget N M", "/thought", "TRIVIUM_API_KEY", "http://127.0.0.1:8000/v1", "echo", "backslash"):
        assert word in printed
    assert max(map(len, printed.splitlines())) <= 120
