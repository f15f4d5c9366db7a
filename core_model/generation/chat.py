"""`trivium chat RUN` or `trivium chat URL`: ask a model one question after another, and watch it think.

In a pipe (`echo PROBLEM | trivium chat RUN`) all of standard input is one question, answered in plain text or JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from core_model.errors import InputError
from core_model.tokenizer.prompts import REFLECT_SYSTEM_PROMPT

if TYPE_CHECKING:
    from core_model.generation.api import ChatRequest
    from core_model.generation.backend import Backend, ReplyChunk, Usage

KEY_VARIABLE = "TRIVIUM_API_KEY"  # the one that `trivium serve` reads
LIMIT = 512  # new tokens of a reply from a model in this process
STILL_THINKS = "the model thinks without being asked to; a budget of 0 leaves no room for a thought"
LARGEST = 2**63 - 1


@dataclass(frozen=True)
class Settings:
    """How a model is asked.

    Args:
        system_prompt: stands before the first question; None for none.
        most_thought, least_thought: tokens of a thought; None for no limit.
        temperature: 0 always takes the likeliest token.
        seed: of the first reply; each later one takes the next.
        limit: new tokens of a reply, thought included; None for as many as fit (of a server: as it likes).
    """

    system_prompt: str | None = REFLECT_SYSTEM_PROMPT
    most_thought: int | None = None
    least_thought: int = 0
    temperature: float = 0.0
    seed: int = 0
    limit: int | None = LIMIT

    def overrun(self, reply: Reply) -> str | None:
        """What to say of a thought longer than allowed: a server that does not know the limit passes over it."""
        if self.most_thought is None or (reply.reasoning_tokens or 0) <= self.most_thought:
            return None
        return (
            f"{reply.reasoning_tokens} tokens of thought, and at most {self.most_thought} were asked for: "
            "this server may not know max_thinking_tokens"
        )

    def with_budget(self, text: str, where: str) -> Settings:
        """`N` (at most), `N M` or `N,M` (at least and at most), or `off`.

        Raises:
            InputError: as all of these: `text` is none of that; `where` it was given begins the message.
        """
        if text.strip() == "off":
            return replace(self, most_thought=None, least_thought=0)
        expected = "N (at most N tokens of thought), N M (at least N, at most M), or off"
        bounds = [_whole(word, 0, where, expected) for word in text.replace(",", " ").split()]
        if len(bounds) not in (1, 2) or bounds != sorted(bounds):
            raise _wrong(where, expected, text)
        return replace(self, most_thought=bounds[-1], least_thought=bounds[0] if len(bounds) == 2 else 0)

    def with_temperature(self, text: str, where: str) -> Settings:
        expected = "a number from 0 to 100"
        try:
            temperature = float(text)
        except ValueError:
            raise _wrong(where, expected, text) from None
        if not 0 <= temperature <= 100:
            raise _wrong(where, expected, text)
        return replace(self, temperature=temperature)

    def with_seed(self, text: str, where: str) -> Settings:
        return replace(self, seed=_whole(text, 0, where, "a whole number, 0 or more"))

    def with_limit(self, text: str, where: str) -> Settings:
        if text.strip() == "off":
            return replace(self, limit=None)
        return replace(self, limit=_whole(text, 1, where, "1 or more new tokens, or off"))


def _whole(text: str, least: int, where: str, expected: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise _wrong(where, expected, text) from None
    if not least <= number <= LARGEST:
        raise _wrong(where, expected, text)
    return number


def _wrong(where: str, expected: str, text: str) -> InputError:
    return InputError(where, expected=expected, found=repr(text[:80]) if text.strip() else "nothing")


@dataclass
class Reply:
    """A reply as it grows.

    reasoning_tokens: of the thought so far; None where the backend does not tell.
    """

    reasoning: str = ""
    answer: str = ""
    reasoning_tokens: int | None = None
    finish_reason: str | None = None
    usage: Usage | None = None

    @property
    def cut_off(self) -> bool:
        return self.finish_reason == "length"

    def add(self, chunk: ReplyChunk) -> None:
        self.reasoning += chunk.reasoning
        self.answer += chunk.content
        self.finish_reason = chunk.finish_reason or self.finish_reason
        self.usage = chunk.usage or self.usage
        if chunk.reasoning_tokens is not None:
            self.reasoning_tokens = chunk.reasoning_tokens


@dataclass
class Conversation:
    """Questions to a backend.

    history: earlier turns that the model is shown. The default is none: a model that was trained on single questions
    answers each as if it were the first.
    """

    backend: Backend
    settings: Settings = field(default_factory=Settings)
    history: int = 0
    turns: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str, show: Callable[[ReplyChunk], None] | None = None) -> Reply:
        """The whole reply; `show` is told of every piece as it comes.

        Interrupted (KeyboardInterrupt), the reply is aborted at its source, and the question not remembered.

        Raises:
            InputError: as `Backend.reply`.
        """
        reply = Reply()
        with closing(self.backend.reply(self._request(question))) as chunks:
            for chunk in chunks:
                reply.add(chunk)
                if show is not None:
                    show(chunk)
        self.turns += [{"role": "user", "content": question}, {"role": "assistant", "content": reply.answer}]
        return reply

    def _request(self, question: str) -> ChatRequest:
        """Only what was asked for is in it: other servers than ours may not know the limits on thoughts."""
        from core_model.generation.api import ChatRequest

        settings = self.settings
        system = [] if settings.system_prompt is None else [{"role": "system", "content": settings.system_prompt}]
        earlier = self.turns[-2 * self.history :] if self.history else []
        fields: dict[str, object] = {
            "messages": [*system, *earlier, {"role": "user", "content": question}],
            "temperature": settings.temperature,
            "seed": settings.seed + len(self.turns) // 2,
        }
        if settings.limit is not None:
            fields["max_tokens"] = settings.limit
        if settings.most_thought is not None:
            fields["max_thinking_tokens"] = settings.most_thought
        if settings.least_thought:
            fields["min_thinking_tokens"] = settings.least_thought
        return ChatRequest.model_validate(fields)


def main(arguments: Sequence[str]) -> int:
    """Run `trivium chat`; returns the exit status.

    Raises:
        InputError: no model at the given place, a damaged one, no server, a setting out of range, or nothing asked.
    """
    from core_model.generation.terminal import Terminal

    options = _parser().parse_args(list(arguments))
    settings, talk = _settings(options), sys.stdin.isatty()
    if talk and options.json:
        raise InputError("trivium chat", where="--json", expected="a question in a pipe", found="a terminal")
    if not _is_address(options.place):
        find_model(Path(options.place))  # before it waits for a question
    question = "" if talk else sys.stdin.buffer.read().decode("utf-8", errors="replace").strip()
    if not talk and not question:
        raise InputError("standard input", expected="a question", found="nothing")
    with closing(_open(options)) as backend:
        conversation = Conversation(backend, settings, options.history)
        if talk:
            Terminal(conversation, folded=not options.unfold).talk()
        else:
            reply = conversation.ask(question)
            _answer(reply, options)
            if overrun := settings.overrun(reply):
                print(f"trivium chat: {overrun}", file=sys.stderr)
    return 0


def _answer(reply: Reply, options: argparse.Namespace) -> None:
    """Print the reply to a question from a pipe; what it lacks goes to standard error."""
    if options.json:
        usage = None if reply.usage is None else asdict(reply.usage)
        shown = {"reasoning": reply.reasoning or None, "answer": reply.answer}
        print(json.dumps(shown | {"finish_reason": reply.finish_reason, "usage": usage}))
    else:
        if reply.reasoning:
            print(printable(reply.reasoning) + "\n")
        print(printable(reply.answer))
    if reply.cut_off:
        print("trivium chat: the answer was cut off at its limit", file=sys.stderr)
    if options.short and reply.reasoning:
        print(f"trivium chat: {STILL_THINKS} (--budget 0)", file=sys.stderr)


def printable(text: str) -> str:
    """What a model wrote, safe to show: a byte-level vocabulary can spell the codes that steer a terminal."""
    return harmless(text).strip("\n")


def harmless(text: str) -> str:
    """`printable` for a piece of a text, line breaks at its ends included."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)


def encodable(text: str) -> str:
    """What was typed or given as an argument, without the bytes that were no UTF-8."""
    return text.encode("utf-8", errors="replace").decode()


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


EPILOG = """\
examples:
  trivium chat runs/nano/rl                            talk to a run's model
  trivium chat runs/nano/rl --budget 64                it may think 64 tokens, then has to answer
  trivium chat http://127.0.0.1:8000/v1                talk to trivium serve, or another server of OpenAI's API
  echo "Count the 1 bits of 1000." | trivium chat runs/nano/rl
                                                       one question: the thought, a blank line, the answer
  echo "Count the 1 bits of 1000." | trivium chat runs/nano/rl --json
                                                       {"reasoning", "answer", "finish_reason", "usage"}

A thought is shown dimmed while it comes, and folds to one line when it is over. Ctrl-C ends the reply that is coming;
Ctrl-D leaves. A line that ends in a backslash goes on in the next.

A model that was trained to reason behind a system prompt needs it: without (--short) nano's thoughts come to little. An
answer at once is --budget 0, which puts an empty thought first. (A model that never learnt to answer without a thought
may then reason in its answer.)

commands while talking:
"""


def _parser() -> argparse.ArgumentParser:
    from core_model.generation.terminal import COMMANDS

    parser = argparse.ArgumentParser(
        prog="trivium chat",
        description="Ask a trained model, in this process or at a server; it thinks aloud, then answers.",
        epilog=EPILOG + COMMANDS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    place = "a run folder with a model/, a model folder, or the address of a server (http://HOST:PORT/v1)"
    parser.add_argument("place", metavar="RUN|URL", help=place)
    system = parser.add_mutually_exclusive_group()
    system.add_argument("--system", metavar="TEXT", help=f"the system prompt (default: {REFLECT_SYSTEM_PROMPT!r})")
    system.add_argument("--short", action="store_true", help="no system prompt: do not ask for thoughts")
    parser.add_argument("--budget", metavar="N[,M]", help="at most N tokens of thought; N,M: at least N, at most M")
    parser.add_argument("--temperature", metavar="X", default="0", help="0 (the default) always takes the likeliest")
    limit = f"limit of a reply, or off for what fits (default: {LIMIT}; with a server, the server's own)"
    parser.add_argument("--max-new-tokens", metavar="N", help=limit)
    parser.add_argument("--seed", metavar="N", default="0", help="of the sampling, when the temperature is above 0")
    parser.add_argument("--history", type=int, default=0, metavar="N", help="earlier turns the model sees (default 0)")
    parser.add_argument("--unfold", action="store_true", help="leave thoughts on the screen when they are over")
    parser.add_argument("--json", action="store_true", help="in a pipe: one JSON object instead of text")
    server = parser.add_argument_group("with a server")
    server.add_argument("--model", metavar="NAME", help="the model's name there (default: the first it lists)")
    server.add_argument("--api-key", metavar="KEY", help=f"its key; better in the environment, as {KEY_VARIABLE}")
    return parser


def _is_address(place: str) -> bool:
    return place.lower().startswith(("http://", "https://"))


def _settings(options: argparse.Namespace) -> Settings:
    """The options checked, before anything is loaded.

    Raises:
        InputError: one out of range, or one that only a server understands.
    """
    if options.history < 0:
        raise InputError("--history", expected="0 or more", found=str(options.history))
    remote = _is_address(options.place)
    for name, value in (("--model", options.model), ("--api-key", options.api_key)):
        if value is not None and not remote:
            raise InputError(name, expected="the address of a server before it", found=options.place)
    # What fits a server's model only the server knows.
    settings = Settings(limit=None if remote else LIMIT)
    if options.short or options.system is not None:
        settings = replace(settings, system_prompt=None if options.short else encodable(options.system))
    if options.budget is not None:
        settings = settings.with_budget(options.budget, "--budget")
    if options.max_new_tokens is not None:
        settings = settings.with_limit(options.max_new_tokens, "--max-new-tokens")
    return settings.with_temperature(options.temperature, "--temperature").with_seed(options.seed, "--seed")


def _open(options: argparse.Namespace) -> Backend:
    from core_model.generation.backend import EngineBackend, ServerBackend

    if _is_address(options.place):
        return ServerBackend(options.place, options.api_key or os.environ.get(KEY_VARIABLE) or None, options.model)

    from core_model.generation import Engine
    from core_model.model import V3ForCausalLM
    from core_model.parallel.device import training_device
    from core_model.tokenizer import load_tokenizer

    folder = find_model(Path(options.place))
    tokenizer = load_tokenizer(folder)
    model = V3ForCausalLM.from_pretrained(folder).to(training_device())  # type: ignore[arg-type]
    return EngineBackend(Engine(model, tokenizer, max_batch=1), options.place)
