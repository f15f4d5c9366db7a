"""A judge with small limits, the judge command's files, and a judge that runs nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_judge import FakeJudge
from judge_work import Work
from small_judge import SMALL

from eval.judge import command
from eval.judge.judge import Judge
from eval.judge.layers import NAMESPACES


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(workers=1, limits=SMALL) as one:
        assert one.isolation.level >= NAMESPACES, f"install bubblewrap: {one.isolation.missing}"
        yield one


@pytest.fixture
def work(tmp_path, monkeypatch) -> Work:
    monkeypatch.setattr(command, "Judge", FakeJudge)
    monkeypatch.setattr(FakeJudge, "healed", False)
    return Work(tmp_path)
