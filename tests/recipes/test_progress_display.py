"""Progress: plain lines into a file, a bar on a terminal."""

from __future__ import annotations

import io

import pytest

from recipes import progress as module
from recipes.progress import clock, progress, progress_bar


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time_stands(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def test_plain_lines_come_now_and_then(time_stands):
    stream = io.StringIO()
    with progress_bar(1000, "train", done=400, unit="step", stream=stream) as bar:
        for step in range(600):
            time_stands.now += 0.1
            bar.advance(loss=1 / (step + 1))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 6 or len(lines) == 7  # 60 seconds; the last may fall together with the end
    assert lines[0].startswith("train: 500/1000 step  10 step/s  50s left  loss 0.0") or lines[0].startswith(
        "train: 501/1000"
    )
    assert lines[-1] == "train: 1000/1000 step  10 step/s  1m00s  loss 0.001667"


def test_an_unknown_total_and_an_empty_iterable(time_stands, capsys):
    assert list(progress([], "nothing")) == []
    assert list(progress(iter("abc"), "some")) == ["a", "b", "c"]
    assert capsys.readouterr().err.splitlines() == ["nothing: 0/0 it  0 it/s  0s", "some: 3 it  0 it/s  0s"]


def test_an_interrupted_block_says_nothing_false(time_stands):
    stream = io.StringIO()
    with pytest.raises(KeyboardInterrupt), progress_bar(10, "train", stream=stream) as bar:
        bar.advance()
        raise KeyboardInterrupt
    assert stream.getvalue() == ""


def test_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with progress_bar(3, "train", stream=stream, unit="step") as bar:
        for _ in range(3):
            bar.advance(loss=0.5)
    assert "3/3" in stream.getvalue()
    assert "loss 0.5" in stream.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (3599, "59m59s"), (7620, "2h07m")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text
