"""A chat in a terminal: questions and commands line by line, replies as they come, thoughts that fold."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from core_model.errors import InputError
from core_model.generation.chat import STILL_THINKS, Conversation, Reply, encodable, harmless, printable
from core_model.tokenizer.prompts import REFLECT_SYSTEM_PROMPT

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    from core_model.generation.backend import ReplyChunk

COMMANDS = """\
  /budget N        at most N tokens of thought; 0: none, an answer at once
  /budget N M      at least N, at most M;  /budget off: as long as it likes
  /reason          the system prompt that asks for thoughts
  /short           no system prompt
  /system TEXT     another system prompt;  /system shows it
  /temperature X   0 always takes the likeliest
  /seed N          of the sampling, when the temperature is above 0
  /limit N         most new tokens of a reply, thought included;  /limit off: what fits
  /thought         show the last thought whole
  /fold, /unfold   whether a thought folds to one line when it is over
  /settings        show all of these
  /reset           forget the questions so far
  /help            this list
  /quit            leave (so does Ctrl-D)"""
# Those that nothing follows.
ALONE = {"/reason", "/short", "/thought", "/fold", "/unfold", "/settings", "/reset", "/help", "/quit"}
ROWS = 8  # of a thought while it comes
THOUGHT, NOTE = "dim italic", "dim"


class ThoughtWindow:
    """The last rows of a text that grows, broken to fit; what it costs does not grow with the text."""

    def __init__(self, width: int, height: int) -> None:
        self._width = max(2, width)  # the widest characters take two columns
        self.rows: deque[str] = deque([""], maxlen=max(1, height))

    def add(self, text: str) -> None:
        from rich.cells import cell_len

        for character in text.replace("\t", "    "):
            if character == "\n":
                self.rows.append("")
                continue
            row = self.rows[-1] + character
            if cell_len(row) <= self._width:
                self.rows[-1] = row
                continue
            whole, _, begun = row.rpartition(" ")
            if not whole.strip():  # a word longer than a row
                whole, begun = row[:-1], character
            self.rows[-1] = whole
            self.rows.append(begun)


class _Paragraph:
    """Text printed as it comes, without the line breaks at its ends."""

    def __init__(self, console: Console, style: str) -> None:
        self._console, self._style = console, style
        self._breaks = ""  # held back until something follows
        self.begun = False

    def add(self, text: str) -> None:
        text = self._breaks + harmless(text)
        if not self.begun:
            text = text.lstrip("\n")
        shown = text.rstrip("\n")
        self._breaks = text[len(shown) :]
        if shown:
            self.begun = True
            # Raw: the terminal breaks the lines. Pieces broken one by one would come out ragged.
            self._console.out(shown, end="", style=self._style, highlight=False)

    def end(self) -> None:
        if self.begun:
            self._console.out("")


class ReplyView:
    """Shows one reply as it comes.

    While a thought comes that is to be folded, its last rows stand in a window smaller than the terminal, which can
    therefore always be wiped; then one line says how long it was. Where nothing can be wiped (output to a file, a dumb
    terminal) only that line is shown.
    """

    def __init__(self, console: Console, folded: bool) -> None:
        self.reply = Reply()  # what has come so far
        self._console, self._folded = console, folded
        self._wipes = console.is_terminal and not console.is_dumb_terminal
        self._part: Literal["thought", "answer"] | None = None
        self._paragraph = _Paragraph(console, THOUGHT)
        self._window: ThoughtWindow | None = None
        self._live: Live | None = None

    def show(self, chunk: ReplyChunk) -> None:
        self.reply.add(chunk)
        if chunk.reasoning:
            self._turn_to("thought")
            if not self._folded:
                self._paragraph.add(chunk.reasoning)
            elif self._live is not None and self._window is not None:
                self._window.add(harmless(chunk.reasoning))
                self._live.update(_rows(self._window), refresh=True)
        # A line break between thought and answer is not an answer yet.
        if chunk.content.strip("\n") or (chunk.content and self._part == "answer"):
            self._turn_to("answer")
            self._paragraph.add(chunk.content)

    def end(self) -> None:
        """End what is on the screen, whether or not the reply came to its end; once more does nothing."""
        if self._part == "answer" or not self._folded:
            self._paragraph.end()
        elif self._part == "thought":
            if self._live is not None:
                self._live.stop()
            self._console.print(f"{thought_length(self.reply)}, /thought shows it", style=NOTE, highlight=False)
        self._part, self._live = None, None

    def _turn_to(self, part: Literal["thought", "answer"]) -> None:
        if self._part == part:
            return
        if self._part is not None:
            self.end()
        self._part = part
        self._paragraph = _Paragraph(self._console, THOUGHT if part == "thought" else "bold")
        if part == "thought" and self._folded and self._wipes:
            from rich.live import Live

            self._window = ThoughtWindow(self._console.width - 1, min(ROWS, self._console.height - 2))
            self._live = Live(console=self._console, transient=True, auto_refresh=False, vertical_overflow="crop")
            self._live.start()


def _rows(window: ThoughtWindow) -> Text:
    from rich.text import Text

    return Text("\n".join(window.rows), style=THOUGHT, no_wrap=True, overflow="crop")


def thought_length(reply: Reply) -> str:
    """How long a thought is: in tokens, or in words where the server has not told."""
    if reply.reasoning_tokens is not None:
        count, unit = reply.reasoning_tokens, "token"
    else:
        count, unit = len(reply.reasoning.split()), "word"
    return f"thought, {count} {unit}{'' if count == 1 else 's'}"


class Terminal:
    """A conversation at a terminal.

    folded: a thought folds to one line when it is over. console: default the standard output.
    """

    def __init__(self, conversation: Conversation, folded: bool = True, console: Console | None = None) -> None:
        from rich.console import Console

        self._conversation, self._folded = conversation, folded
        self._console = Console(highlight=False) if console is None else console
        self._last: Reply | None = None  # the last one that thought
        self._noted = False  # that the model thinks without being asked to

    def talk(self) -> None:
        """Questions and commands until the terminal ends or `/quit`."""
        with suppress(ImportError):  # line editing, where the platform has it
            import readline  # noqa: F401

        self._note(f"{self._conversation.backend.name}; /help lists the commands")
        interrupted = False  # twice in a row leaves
        while True:
            try:
                question = self._read()
            except KeyboardInterrupt:
                self._console.print()
                if interrupted:
                    return
                interrupted = True
                self._note("Ctrl-D, or Ctrl-C again, leaves")
                continue
            interrupted = False
            if question is None or question.strip() == "/quit":
                return
            # A space before it makes a question of what begins with a slash.
            if question.startswith("/"):
                self._command(question)
            elif question.strip():
                self._ask(question.strip())

    def _read(self) -> str | None:
        """A question or command of one line or several; None when the terminal has ended, even in the middle of one."""
        lines: list[str] = []
        while not lines or lines[-1].endswith("\\"):
            try:
                line = input("... " if lines else "> ")
            except (EOFError, OSError):  # OSError: the terminal was closed
                self._console.print()
                return None
            lines.append(encodable(line).rstrip())
        return "\n".join([*(line[:-1] for line in lines[:-1]), lines[-1]])

    def _note(self, text: str, style: str = NOTE) -> None:
        from rich.text import Text

        # Text, not markup: what people and models write in square brackets is not ours to interpret.
        self._console.print(Text(printable(text), style=style), soft_wrap=True)

    def _ask(self, question: str) -> None:
        """Show the reply; one that fails, or is interrupted, does not end the talk."""
        view = ReplyView(self._console, self._folded)
        problem: InputError | None = None
        interrupted = False
        try:
            self._conversation.ask(question, view.show)
        except InputError as error:
            problem = error
        except KeyboardInterrupt:
            interrupted = True
        finally:  # whatever happened, the cursor is the terminal's again
            view.end()
        reply = view.reply
        if reply.reasoning:
            self._last = reply
        if problem is not None:
            self._note(str(problem), style="red")
        elif interrupted:
            self._note("(aborted)")
        elif reply.cut_off:
            self._note("(cut off at its limit)")
        elif not reply.answer.strip():
            self._note("(no answer)")
        if overrun := self._conversation.settings.overrun(reply):
            self._note(f"({overrun})")
        asked_for_none = self._conversation.settings.system_prompt is None
        if reply.reasoning and asked_for_none and not self._noted:
            self._noted = True
            self._note(f"({STILL_THINKS}: /budget 0)")

    def _command(self, line: str) -> None:
        """Carry out a command, and say so, or in one line what is wrong with it."""
        name, _, text = line.partition(" ")
        try:
            if text.strip() and name in ALONE:
                raise InputError(name, expected="nothing after it", found=repr(text.strip()[:80]))
            done = self._changed(name, text.strip()) or self._shown(name)
        except InputError as error:
            self._note(str(error), style="red")
        else:
            self._note(done)

    def _changed(self, name: str, text: str) -> str | None:
        """Carry out a command that changes how the model is asked, and say how that is now; None for others.

        Raises:
            InputError: a value that cannot be.
        """
        settings = self._conversation.settings
        match name:
            case "/budget":
                settings = settings.with_budget(text, name)
            case "/temperature":
                settings = settings.with_temperature(text, name)
            case "/seed":
                settings = settings.with_seed(text, name)
            case "/limit":
                settings = settings.with_limit(text, name)
            case "/reason":
                settings = replace(settings, system_prompt=REFLECT_SYSTEM_PROMPT)
            case "/short":
                settings = replace(settings, system_prompt=None)
            case "/system" if text:
                settings = replace(settings, system_prompt=text)
            case _:
                return None
        self._conversation.settings = settings
        self._noted = False
        key = "system" if name in ("/reason", "/short") else name.removeprefix("/")
        return f"{key}: {self._values()[key]}"

    def _shown(self, name: str) -> str:
        """What any other command says.

        Raises:
            InputError: there is no such command.
        """
        match name:
            case "/system":
                return f"system: {self._values()['system']}"
            case "/settings":
                return "\n".join(f"  {key:<12}{value}" for key, value in self._values().items())
            case "/thought":
                last = self._last
                return "no thought yet" if last is None else f"{thought_length(last)}:\n{printable(last.reasoning)}"
            case "/fold" | "/unfold":
                self._folded = name == "/fold"
                return f"thoughts: {self._values()['thoughts']}"
            case "/reset":
                self._conversation.turns.clear()
                return "forgotten"
            case "/help":
                return COMMANDS
        raise InputError(name, expected="one of the commands that /help lists", found="no such command")

    def _values(self) -> dict[str, str]:
        settings, history = self._conversation.settings, self._conversation.history
        least, most = settings.least_thought, settings.most_thought
        if most is None:
            budget = "off"
        elif most == 0:
            budget = "0, no thought"
        else:
            budget = f"{least} to {most} tokens of thought" if least else f"at most {most} tokens of thought"
        return {
            "model": self._conversation.backend.name,
            "system": "none" if settings.system_prompt is None else settings.system_prompt,
            "budget": budget,
            "temperature": f"{settings.temperature:g}",
            "seed": str(settings.seed),
            "limit": "what fits" if settings.limit is None else f"{settings.limit} new tokens",
            "history": f"{history} earlier turns are shown to the model",
            "thoughts": "folded when they are over" if self._folded else "left on the screen",
        }
