"""Progress of long work: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import IO, Any, Protocol, TypeVar

T = TypeVar("T")

LINE_EVERY = 10.0  # seconds between plain lines


class Bar(Protocol):
    """What `progress_bar` gives."""

    def advance(self, amount: int = 1, **shown: float) -> None:
        """Count `amount` more; `shown` are numbers to show beside the rate, such as loss=2.31."""


def progress(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield the items of `iterable`, showing how far it is. `total` defaults to its length, when it has one."""
    if total is None and isinstance(iterable, Sized):
        total = len(iterable)
    with progress_bar(total, description) as bar:
        for item in iterable:
            yield item
            bar.advance()


@contextmanager
def progress_bar(
    total: int | None, description: str, *, done: int = 0, unit: str = "it", stream: IO[str] | None = None
) -> Iterator[Bar]:
    """Show the progress of a piece of work while the block runs.

    Args:
        total: how much there is in all; None when unknown (then no time left is shown).
        description: what is being done.
        done: how much of it was done before, by the run that this one resumes; not part of the rate.
        unit: what is counted.
        stream: where to; stderr when None.
    """
    stream = stream if stream is not None else sys.stderr
    if not stream.isatty():
        lines = PlainLines(total, description, done=done, unit=unit, stream=stream)
        yield lines
        lines.finish()
        return
    with _rich_bar(stream) as bar:
        task = bar.add_task(description, total=total, completed=done, numbers="", unit=unit)
        yield _RichBar(bar, task)


class PlainLines:
    """Progress as lines of text, at most one every `LINE_EVERY` seconds, and one at the end."""

    def __init__(self, total: int | None, description: str, *, done: int, unit: str, stream: IO[str]) -> None:
        self.total, self.description, self.unit, self.stream = total, description, unit, stream
        self.done, self.before = done, done
        self.started = self.last_line = time.monotonic()
        self.shown: dict[str, float] = {}

    def advance(self, amount: int = 1, **shown: float) -> None:
        self.done += amount
        self.shown |= shown
        now = time.monotonic()
        if now - self.last_line >= LINE_EVERY:
            self.last_line = now
            self._write(now)

    def finish(self) -> None:
        self._write(time.monotonic())

    def _write(self, now: float) -> None:
        seconds = now - self.started
        rate = (self.done - self.before) / seconds if seconds > 0 else 0.0
        of = "" if self.total is None else f"/{self.total}"
        parts = [f"{self.description}: {self.done}{of} {self.unit}", f"{rate:.3g} {self.unit}/s"]
        if self.total is not None and self.done < self.total and rate > 0:
            parts.append(f"{clock((self.total - self.done) / rate)} left")
        else:
            parts.append(clock(seconds))
        self.stream.write("  ".join([*parts, *_numbers(self.shown)]) + "\n")
        self.stream.flush()


class _RichBar:
    def __init__(self, bar: Any, task: Any) -> None:
        self.bar, self.task = bar, task
        self.shown: dict[str, float] = {}

    def advance(self, amount: int = 1, **shown: float) -> None:
        self.shown |= shown
        self.bar.update(self.task, advance=amount, numbers="  ".join(_numbers(self.shown)))


def clock(seconds: float) -> str:
    """Seconds as `42s`, `3m05s` or `2h07m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _numbers(shown: dict[str, float]) -> list[str]:
    return [f"{name} {value:.4g}" for name, value in shown.items()]


def _rich_bar(stream: IO[str]) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:.3g} {task.fields['unit']}/s" if task.speed else "")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
        console=Console(file=stream),
    )
