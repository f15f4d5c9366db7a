"""The judge command's files, and a judge that runs nothing."""

from __future__ import annotations

import pytest
from fake_judge import FakeJudge
from judge_work import Work

from eval.judge import command


@pytest.fixture
def work(tmp_path, monkeypatch) -> Work:
    monkeypatch.setattr(command, "Judge", FakeJudge)
    monkeypatch.setattr(FakeJudge, "healed", False)
    return Work(tmp_path)
