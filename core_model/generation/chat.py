"""`trivium chat RUN`: ask a model one question after another; its thoughts are shown dimmed before its answer.

In a pipe (`echo PROBLEM | trivium chat RUN`) all of standard input is one question, answered in plain text.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core_model.errors import InputError
from core_model.tokenizer.prompts import REFLECT_SYSTEM_PROMPT

if TYPE_CHECKING:
    from rich.console import Console

    from core_model.generation import Engine
    from core_model.tokenizer import CompletionParts

COMMANDS = """\
/reason   think before answering (the system prompt asks for it)
/short    answer at once
/reset    forget the questions so far
/quit     leave (so does Ctrl-D)"""


@dataclass
class Conversation:
    """A model, and how it is asked.

    Args:
        engine: generates; its `tokenizer` is the model's.
        system_prompt: stands before the first question; None for short answers.
        history: earlier turns that the model is shown. The default is none: a model that was trained on single
            questions answers each as if it were the first.
        settings: temperature, max_new_tokens, seed.
    """

    engine: Engine
    system_prompt: str | None = REFLECT_SYSTEM_PROMPT
    history: int = 0
    settings: dict[str, Any] = field(default_factory=lambda: {"max_new_tokens": 512, "temperature": 0.0, "seed": 0})
    turns: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str) -> tuple[CompletionParts, bool]:
        """The model's reply taken apart, and whether it was cut off at the limit.

        Raises:
            InputError: the question leaves no room for an answer in the model's context.
        """
        from core_model.generation import SamplingParams
        from core_model.tokenizer import EOS, render_prompt, special_id, split_completion

        tokenizer = self.engine.tokenizer
        prompt = render_prompt(tokenizer, self._messages(question))
        room = self.engine.max_tokens - len(prompt)
        if room < 1:
            raise InputError(
                "the question",
                expected=f"fewer than {self.engine.max_tokens} tokens, the model's context",
                found=f"{len(prompt)} tokens",
            )
        params = SamplingParams(
            max_new_tokens=min(room, self.settings["max_new_tokens"]),
            temperature=self.settings["temperature"],
            seed=self.settings["seed"] + len(self.turns),
            stop_ids=(special_id(tokenizer, EOS),),
        )
        completion = self.engine.generate([prompt], params)[0][0]
        parts = split_completion(tokenizer, completion.token_ids)
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": parts.answer_text}]
        return parts, completion.finish_reason == "length"

    def _messages(self, question: str) -> list[dict[str, str]]:
        system = [] if self.system_prompt is None else [{"role": "system", "content": self.system_prompt}]
        earlier = self.turns[-2 * self.history :] if self.history else []
        return [*system, *earlier, {"role": "user", "content": question}]


def main(arguments: Sequence[str]) -> int:
    """Run `trivium chat`; returns the exit status.

    Raises:
        InputError: no model at the given place, a damaged one, or nothing asked.
    """
    options = _parser().parse_args(list(arguments))
    if sys.stdin.isatty():
        _loop(_open(options))
        return 0
    question = sys.stdin.buffer.read().decode("utf-8", errors="replace").strip()
    if not question:
        raise InputError("standard input", expected="a question", found="nothing")
    parts, cut = _open(options).ask(question)
    if parts.reasoning_text is not None:
        print(printable(parts.reasoning_text) + "\n")
    print(printable(parts.answer_text))
    if cut:
        print("trivium chat: the answer was cut off at its limit", file=sys.stderr)
    return 0


def printable(text: str) -> str:
    """What a model wrote, safe to show: a byte-level vocabulary can spell the codes that steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text.strip("\n"))


def find_model(folder: Path) -> Path:
    """The model folder: the one given, or a run's `model`.

    Raises:
        InputError: neither.
    """
    for candidate in (folder, folder / "model"):
        if (candidate / "config.json").is_file():
            return candidate
    raise InputError(folder, expected="a run folder with a model/, or a model folder", found=_what_is(folder))


def _what_is(folder: Path) -> str:
    if not folder.exists():
        return "no such folder"
    inside = sorted(path.parent.name for path in folder.glob("*/model") if path.is_dir())
    return f"the runs {', '.join(inside)}: choose one" if inside else "no model"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="trivium chat",
        description="Ask a trained model; it thinks aloud, then answers.",
        epilog="commands while talking:\n" + COMMANDS + "\n\nin a pipe:  echo PROBLEM | trivium chat RUN",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="RUN", help="a run folder with a model/, or a model folder")
    parser.add_argument("--short", action="store_true", help="answer at once, without thoughts")
    parser.add_argument("--system", metavar="TEXT", default=REFLECT_SYSTEM_PROMPT, help="the system prompt for /reason")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (the default) always takes the likeliest")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="limit of a reply (default 512)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling, when the temperature is above 0")
    parser.add_argument("--history", type=int, default=0, metavar="N", help="earlier turns the model sees (default 0)")
    return parser


def _open(options: argparse.Namespace) -> Conversation:
    from core_model.generation import Engine
    from core_model.model import V3ForCausalLM
    from core_model.tokenizer import load_tokenizer

    for name, value, least in (
        ("--temperature", options.temperature, 0),
        ("--max-new-tokens", options.max_new_tokens, 1),
        ("--history", options.history, 0),
        ("--seed", options.seed, 0),
    ):
        if not value >= least:
            raise InputError("trivium chat", where=name, expected=f"{least} or more", found=str(value))
    folder = find_model(options.model)
    tokenizer = load_tokenizer(folder)
    engine = Engine(V3ForCausalLM.from_pretrained(folder), tokenizer, max_batch=1)
    settings = {key: getattr(options, key) for key in ("max_new_tokens", "temperature", "seed")}
    return Conversation(engine, None if options.short else options.system, options.history, settings)


def _loop(conversation: Conversation) -> None:
    """Questions and commands from a terminal until it ends."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    reasoning_prompt = conversation.system_prompt or REFLECT_SYSTEM_PROMPT
    console.print(f"[dim]{escape(COMMANDS)}[/dim]")
    while True:
        try:
            line = console.input("[bold]> [/bold]").encode("utf-8", errors="replace").decode().strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line == "/quit":
            return
        if line == "/reset":
            conversation.turns.clear()
            console.print("[dim]forgotten[/dim]")
        elif line in ("/short", "/reason"):
            conversation.system_prompt = reasoning_prompt if line == "/reason" else None
            console.print(f"[dim]{'thinking first' if line == '/reason' else 'answering at once'}[/dim]")
        elif line.startswith("/"):
            console.print(f"[dim]{escape(COMMANDS)}[/dim]")
        elif line:
            _reply(conversation, console, line)


def _reply(conversation: Conversation, console: Console, question: str) -> None:
    """Print the thoughts dimmed and the answer bright; a question that is too long is said to be, not fatal."""
    from rich.text import Text

    try:
        parts, cut = conversation.ask(question)
    except InputError as error:
        console.print(Text(str(error), style="red"))
        return
    # Text, not markup: what a model writes in square brackets is not ours to interpret.
    if parts.reasoning_text is not None:
        console.print(Text(printable(parts.reasoning_text), style="dim italic"))
    console.print(Text(printable(parts.answer_text), style="bold"))
    if cut:
        console.print(Text("(cut off at its limit)", style="dim"))
