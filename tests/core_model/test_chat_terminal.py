"""A chat in a terminal: commands, thoughts that fold, interruptions, and models that would steer the terminal."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Generator

import pytest
from rich.console import Console

from core_model.errors import InputError
from core_model.generation.api import ChatRequest
from core_model.generation.backend import ReplyChunk
from core_model.generation.chat import Conversation
from core_model.generation.terminal import COMMANDS, Terminal, ThoughtWindow
from core_model.tokenizer.prompts import REFLECT_SYSTEM_PROMPT

Step = ReplyChunk | BaseException


class Scripted:
    """A backend whose replies are chunks and exceptions in turn; it keeps what it was asked."""

    name = "scripted"

    def __init__(self, *steps: Step) -> None:
        self.steps = steps
        self.asked: list[ChatRequest] = []
        self.left = 0  # replies that were left before their end

    def reply(self, request: ChatRequest) -> Generator[ReplyChunk, None, None]:
        self.asked.append(request)
        try:
            for step in self.steps:
                if isinstance(step, BaseException):
                    raise step
                yield step
        except BaseException:
            self.left += 1
            raise

    def close(self) -> None:
        """Nothing is held."""


def thinks(reasoning: str, answer: str, finish: str = "stop") -> Scripted:
    thought = [ReplyChunk(reasoning=c, reasoning_tokens=number) for number, c in enumerate(reasoning, 1)]
    return Scripted(*thought, *(ReplyChunk(content=c) for c in answer), ReplyChunk(finish_reason=finish))


@pytest.fixture
def talk(monkeypatch) -> Callable[..., tuple[Conversation, str]]:
    """Type lines on a terminal that then ends; an exception among them is raised instead. Gives what was written."""

    def run(
        backend: Scripted, *lines: str | BaseException, width: int = 80, height: int = 24, terminal: bool = False
    ) -> tuple[Conversation, str]:
        typed = iter(lines)
        written = io.StringIO()

        def read(prompt: str) -> str:
            line = next(typed, EOFError())
            if isinstance(line, BaseException):
                raise line
            written.write(f"{prompt}{line}\n")  # as the terminal echoes it
            return line

        monkeypatch.setattr("builtins.input", read)
        monkeypatch.setenv("TERM", "xterm")
        console = Console(file=written, width=width, height=height, force_terminal=terminal, color_system=None)
        conversation = Conversation(backend)
        Terminal(conversation, console=console).talk()
        return conversation, written.getvalue()

    return run


def screen(written: str, width: int) -> list[str]:
    """The rows that a terminal shows after this was written to it."""
    rows, row, column = [""], 0, 0
    for code in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[^\x1b]", written):
        if code == "\x1b[1A":
            row -= 1
            assert row >= 0
        elif code == "\x1b[2K":
            rows[row] = ""
        elif code == "\n":
            row, column = row + 1, 0
        elif code == "\r":
            column = 0
        elif len(code) == 1:
            if column == width:
                row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
            rows[row] = rows[row][:column].ljust(column) + code + rows[row][column + 1 :]
            column += 1
        else:
            assert code.endswith(("m", "h", "l"))  # colours, and whether the cursor is seen
        rows += [""] * (row + 1 - len(rows))
    return [line.rstrip() for line in rows if line.strip()]


LONG = " ".join(f"step {number} [of] many" for number in range(60)) + "\n\n" + "x" * 100


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 10), (20, 5), (20, 2)])
def test_a_long_thought_folds_on_a_terminal_of_any_size(talk, width, height):
    _, written = talk(thinks(LONG, "\n\n42 is it"), "q", width=width, height=height, terminal=True)
    assert "step 3 [of]" in written  # it was shown while it came
    folded = f"thought, {len(LONG)} tokens, /thought shows it"
    rows = screen(written, width)
    at = rows.index("> q")
    assert "".join(rows[at + 1 : -1]).replace(" ", "") == folded.replace(" ", "") and rows[-1] == "42 is it"
    # More rows than fit could not be wiped.
    assert max(map(len, re.findall(r"(?:\x1b\[1A\x1b\[2K)+", written))) <= len("\x1b[1A\x1b[2K") * max(1, height - 2)


def test_an_unfolded_thought_stays_and_folds_again(talk):
    _, written = talk(thinks("so [it] is", "42"), "/unfold", "q", "/fold", "r", "/thought")
    one, two, three = written.split("> ")[2], written.split("> ")[4], written.split("> ")[5]
    assert one == "q\nso [it] is\n42\n"
    assert two == "r\nthought, 10 tokens, /thought shows it\n42\n"
    assert three == "/thought\nthought, 10 tokens:\nso [it] is\n\n"


def test_no_thought_yet(talk):
    _, written = talk(thinks("", "42"), "q", "/thought")
    assert "no thought yet" in written and "tokens" not in written.partition("> ")[2]


def test_words_are_counted_where_a_server_tells_no_tokens(talk):
    backend = Scripted(ReplyChunk(reasoning="one two "), ReplyChunk(reasoning="three"), ReplyChunk(content="3"))
    assert "thought, 3 words, /thought shows it\n3\n" in talk(backend, "q")[1]


def test_a_thought_over_its_budget_is_noted(talk):
    _, written = talk(thinks("and so on", "42"), "/budget 8", "q", "/budget 9", "q")
    assert written.count("(9 tokens of thought, and at most 8 were asked for") == 1
    assert "at most 9 were" not in written


def test_a_thought_that_is_cut_off(talk):
    _, written = talk(thinks("and so on", "", "length"), "q", terminal=True)
    assert screen(written, 80)[-2:] == ["thought, 9 tokens, /thought shows it", "(cut off at its limit)"]


def test_an_answer_before_and_after_a_thought(talk):
    backend = Scripted(ReplyChunk(content="well"), ReplyChunk(reasoning="hm"), ReplyChunk(content="42"))
    assert "> q\nwell\nthought, 1 word, /thought shows it\n42\n" in talk(backend, "q")[1]


def test_a_model_cannot_steer_the_terminal(talk):
    hostile = "\x1b[2J\x07\u202e\x9b\r[red]"
    for terminal in (False, True):
        _, written = talk(thinks(hostile, hostile), "q", "/thought", "/unfold", "q", terminal=terminal)
        assert "\x1b[2J" not in written and not set(written) & set("\x07\u202e\x9b")
        assert written.count("\ufffd[2J\ufffd\ufffd\ufffd\ufffd[red]") >= 4


def test_an_interruption_ends_the_reply_only(talk):
    backend = Scripted(ReplyChunk(reasoning="let me see"), KeyboardInterrupt(), ReplyChunk(content="never"))
    conversation, written = talk(backend, "one", "/thought", "two", terminal=True)
    assert written.count("(aborted)") == 2 and "never" not in written and "let me see" in written
    assert len(backend.asked) == 2 and backend.left == 2
    assert conversation.turns == [] and written.count("\x1b[?25l") == written.count("\x1b[?25h")  # the cursor


def test_an_interruption_while_something_is_shown(talk, monkeypatch):
    backend = thinks("", "42")
    interruptions = iter([KeyboardInterrupt()])
    add = "core_model.generation.terminal._Paragraph.add"
    monkeypatch.setattr(add, lambda paragraph, text: (_ for _ in ()).throw(next(interruptions)))
    _, written = talk(backend, "q", "/settings")
    assert "(aborted)" in written and backend.left == 1 and "temperature" in written


def test_two_interruptions_at_the_prompt_leave(talk):
    backend = thinks("", "42")
    _, written = talk(backend, KeyboardInterrupt(), "q", KeyboardInterrupt(), KeyboardInterrupt(), "never")
    assert len(backend.asked) == 1 and written.count("Ctrl-C again") == 2


def test_a_reply_that_fails_does_not_end_the_talk(talk):
    backend = Scripted(ReplyChunk(content="4"), InputError("http://x", expected="a reply", found="503: [later]"))
    _, written = talk(backend, "one", "two")
    assert len(backend.asked) == 2 and written.count("4\nhttp://x: expected a reply; found 503: [later]\n") == 2


def test_questions_of_several_lines(talk):
    backend = thinks("", "42")
    _, written = talk(
        backend, "one \\", "two\\", "three", "/system a\\", "b", " /not a command", "  ", "/quit", "never"
    )
    assert [request.messages[-1].content for request in backend.asked] == ["one \ntwo\nthree", "/not a command"]
    assert backend.asked[1].messages[0].content == "a\nb" and "... two" in written


@pytest.mark.parametrize("end", [EOFError(), OSError(5, "Input/output error")])
def test_a_terminal_that_ends_in_mid_question(talk, end):
    backend = thinks("", "42")
    talk(backend, "one \\", end)
    assert backend.asked == []


def test_bytes_that_are_no_text(talk):
    backend = thinks("", "42")
    talk(backend, "caf\udce9")
    assert backend.asked[0].messages[-1].content == "caf?"


def test_commands_change_how_the_model_is_asked(talk):
    backend = thinks("", "42")
    steps = ["/budget 8 64", "/temperature 0.5", "/seed 7", "/limit 99", "/short", "a", "/budget 0", "/limit off"]
    talk(backend, *steps, "/reason", "b", "/budget off", "/system be brief", "/reset", "c")
    first, second, third = backend.asked
    assert first.model_dump(exclude_unset=True) == {
        "messages": [{"role": "user", "content": "a"}],
        "temperature": 0.5,
        "seed": 7,
        "max_tokens": 99,
        "max_thinking_tokens": 64,
        "min_thinking_tokens": 8,
    }
    assert (second.max_thinking_tokens, second.min_thinking_tokens, second.limit) == (0, 0, None)
    assert second.messages[0].content == REFLECT_SYSTEM_PROMPT and second.seed == 8
    assert third.max_thinking_tokens is None and third.messages[0].content == "be brief" and third.seed == 7


def test_settings_are_shown(talk):
    _, written = talk(thinks("", ""), "/budget 8 64", "/system [b]x", "/settings", "/system", "/help")
    shown = written.split("> ")[3]
    for line in ("model       scripted", "system      [b]x", "budget      8 to 64 tokens of thought", "seed        0"):
        assert f"  {line}\n" in shown
    assert "system: [b]x\n" in written.split("> ")[4] and COMMANDS in written


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/budget", "/budget: expected N (at most"),
        ("/budget 9 8", "found '9 8'"),
        ("/temperature warm", "/temperature: expected a number from 0 to 100; found 'warm'"),
        ("/temperature -1", "/temperature: expected a number from 0 to 100; found '-1'"),
        ("/seed -1", "/seed: expected a whole number, 0 or more; found '-1'"),
        ("/limit 0", "/limit: expected 1 or more new tokens, or off; found '0'"),
        ("/short please", "/short: expected nothing after it; found 'please'"),
        ("/what", "/what: expected one of the commands that /help lists"),
    ],
)
def test_a_bad_command_is_one_line(talk, line, expected):
    backend = thinks("", "42")
    conversation, written = talk(backend, line)
    [said] = written.split("> ")[1].strip().splitlines()[1:]
    assert expected in said and backend.asked == [] and conversation.settings == Conversation(backend).settings


def test_that_a_model_thinks_unasked_is_said_once(talk):
    _, written = talk(thinks("hm", "42"), "a", "/short", "b", "c")
    assert written.count("/budget 0)") == 1 and written.index("/budget 0)") > written.index("> b")
    assert "/budget 0)" not in talk(thinks("", "42"), "/short", "b")[1]


def test_the_window_keeps_the_last_rows_whole():
    window = ThoughtWindow(width=10, height=3)
    window.add("one two three four\n\nfive")
    assert list(window.rows) == ["three four", "", "five"]
    window.add(" 水水水水水")  # two columns each
    assert list(window.rows) == ["", "five", "水水水水水"]
    window.add("abcdefghijklmno")
    assert list(window.rows) == ["水水水水水", "abcdefghij", "klmno"]
