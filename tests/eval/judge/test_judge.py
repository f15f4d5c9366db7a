"""The judge as its callers see it: recorded verdicts, problems that are at fault, calls and closing, isolation.

Recorded programs that attack (kinds `attack` and `sandbox`) are replayed by the attack suite, in a sandbox around ours.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_judge import ADD, SMALL, program

from core_model.errors import InputError
from eval.judge.case import Case, CaseVerdict, Limits, Test
from eval.judge.judge import Judge
from eval.judge.layers import FULL, NAMESPACES, find_layers
from eval.judge.sandbox import SandboxLost
from eval.tasks.livecodebench import read_records, to_cases
from recipes.catalogue import check_file
from recipes.pipeline import run_pipeline
from recipes.rows import Verdict
from recipes.stage_main import stage_main

# -- recorded verdicts -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(repository) -> list[tuple[dict[str, Any], Case]]:
    folder = repository / "tests" / "oracles" / "lcb"
    tests = {record.question_id: to_cases(record) for record in read_records(folder / "problems.jsonl")}
    rows = [json.loads(line) for line in (folder / "verdicts.jsonl").read_text().splitlines()]
    return [
        (row, Case(row["code"], *tests[row["question_id"]])) for row in rows if row["kind"] in ("ordinary", "policy")
    ]


def test_strict_verdicts_are_those_recorded(recorded) -> None:
    with Judge(workers=2, limits=Limits(cpu_seconds=2)) as judge:
        found = judge.judge_many([case for _, case in recorded])
    wanted = {f"{row['question_id']} {row['name']}": row["strict"]["passed"] for row, _ in recorded}
    passed = dict(zip(wanted, (one.passed for one in found), strict=True))
    assert {name: passed[name] for name, value in wanted.items() if value is not None} == {
        name: value for name, value in wanted.items() if value is not None
    }
    assert not [one for one in found if one.verdict is Verdict.INFRA_ERROR]


def test_compatible_verdicts_are_the_official_ones(recorded) -> None:
    ordinary = [(row, case) for row, case in recorded if row["kind"] == "ordinary"]
    with Judge("lcb-compat", workers=2, limits=Limits(cpu_seconds=2)) as judge:
        found = judge.judge_many([case for _, case in ordinary])
    assert len(found) == 75
    for (row, _), one in zip(ordinary, found, strict=True):
        official = row["official"]
        ours = (one.passed, list(one.results), one.error_code)
        assert ours == (official["passed"], official["results"], official["error_code"]), row["name"]


# -- problems at fault -----------------------------------------------------------------------------------------------


def test_a_problem_without_tests_is_no_success(judge: Judge) -> None:
    assert program(judge, "print(1)", ()).verdict is Verdict.INVALID_PROBLEM


def test_a_test_that_is_not_json_is_the_problems_fault(judge: Judge) -> None:
    one = judge.judge(Case("def f(x): return x", (Test("[1", "1"),), entry="f"))
    assert one.verdict is Verdict.INVALID_PROBLEM


def test_a_test_that_is_not_unicode_is_the_problems_fault(judge: Judge) -> None:
    assert program(judge, "print(1)", (Test("\ud800", "1"),)).verdict is Verdict.INVALID_PROBLEM


@pytest.mark.parametrize("mode", ["strict", "lcb-compat"])
def test_a_bad_test_makes_the_problem_invalid_for_every_program(mode) -> None:
    """Whoever stops at the first test must not be counted where those who come to the second are not."""
    bad = {
        "output is not JSON": (Test("1", "1"), Test("2", "oops")),
        "input is not JSON": (Test("1", "1"), Test("2\n", "2")),
        "output is not Unicode": (Test("1", "1"), Test("2", "\ud800")),
    }
    with Judge(mode, workers=1, limits=SMALL) as one:
        for name, tests in bad.items():
            for source in ("def f(n): return n", "def f(n): return 0", "def f(n): 1/0"):
                verdict = one.judge(Case(source, tests, "f"))
                assert verdict.verdict is Verdict.INVALID_PROBLEM and "test 2" in verdict.detail, name
        assert one.judge(Case("def f(n): return n", (Test("1", "1"),), "f" * 70_000)).verdict is Verdict.INVALID_PROBLEM


# -- calls and closing -----------------------------------------------------------------------------------------------


def test_verdicts_come_one_by_one_and_in_order(judge: Judge) -> None:
    cases = [Case(f"print({number})", (Test("", "3"),)) for number in range(6)]
    seen: dict[int, CaseVerdict] = {}
    found = judge.judge_many(cases, seen.__setitem__)
    assert [one.passed for one in found] == [number == 3 for number in range(6)]
    assert [seen[index] for index in range(6)] == found and judge.judge_many([]) == []


def test_a_caller_that_stops_leaves_a_judge_that_works(judge: Judge) -> None:
    def stop(index: int, verdict: CaseVerdict) -> None:
        raise KeyboardInterrupt

    slow = Case("import time\ntime.sleep(60)", (Test("", "1"),), limits=Limits(wall_seconds=60))
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        judge.judge_many([Case("print(1)", (Test("", "1"),)), slow, slow], stop)
    assert time.monotonic() - started < 30  # what was running is not waited for
    assert program(judge, "print(1)", (Test("", "1"),)).passed


def test_a_judge_does_not_wait_for_itself(judge) -> None:
    def again(_: int, __: CaseVerdict) -> None:
        judge.judge(Case("print(3)", ADD))

    with pytest.raises(RuntimeError, match="on_verdict"):
        judge.judge_many([Case("print(3)", ADD)], again)
    assert not program(judge, "print(4)").passed  # and it still works


def test_nothing_remains_after_closing() -> None:
    with Judge(workers=2, limits=SMALL) as judge:
        assert all(one.passed for one in judge.judge_many([Case("print(1)", (Test("", "1"),))] * 4))
        boxes = [box for worker in judge._workers for box in worker.sandboxes.values()]
        pids = [box.process.pid for box in boxes if box.process is not None]
        groups = [folder for box in boxes if box.group is not None for folder in box.group.folders.values()]
        assert pids
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
    assert not [group for group in groups if group.exists()]


def test_closing_ends_a_call_of_another_thread() -> None:
    one = Judge(workers=2, limits=SMALL)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            one.judge_many([Case("import time\ntime.sleep(10)", ADD)] * 8)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.5)
    one.close()
    thread.join(timeout=10)
    assert not thread.is_alive() and failures
    assert not any(worker.sandboxes for worker in one._workers)


def test_a_fork_of_the_judges_process_does_not_hold_it_up() -> None:
    one = Judge(workers=1, limits=SMALL)
    child = os.fork()
    if child == 0:
        time.sleep(4)
        os._exit(0)
    started = time.monotonic()
    one.close()
    assert time.monotonic() - started < 3
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


# -- isolation -------------------------------------------------------------------------------------------------------


def test_the_level_is_in_every_verdict(judge: Judge) -> None:
    one = program(judge, "print(3)")
    assert one.isolation == judge.isolation and one.isolation.level in range(NAMESPACES, FULL + 1)
    assert one.isolation.to_json()["layers"][:2] == ["process", "rlimits"]


def test_model_written_programs_are_refused_below_namespaces(monkeypatch: pytest.MonkeyPatch) -> None:
    """No program runs here: what is refused is refused before."""
    monkeypatch.setattr("eval.judge.worker.Worker.start", lambda self, **_: None)
    with Judge(workers=1, highest=NAMESPACES - 1) as judge:
        assert judge.isolation.level < NAMESPACES and judge.isolation.missing["namespaces"] == "not asked for"
        with pytest.raises(InputError, match="isolation level 4"):
            program(judge, "print(3)")
        with pytest.raises(InputError, match="isolation level 4"):
            judge.judge_many([Case("print(3)", ADD, trusted=True), Case("print(3)", ADD)])
    with Judge(workers=1, highest=NAMESPACES - 1, allow_unsandboxed=True) as judge:
        judge.require_isolation()


@pytest.fixture
def no_bubblewrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path))
    find_layers.cache_clear()
    yield
    find_layers.cache_clear()


REFUSED = (
    r"expected isolation level 4, bubblewrap's .*; found no bwrap: install bubblewrap \(.*apt-get install bubblewrap\)"
)


def test_without_bubblewrap_it_is_what_is_missing(no_bubblewrap, monkeypatch: pytest.MonkeyPatch) -> None:
    def ends(self: Any, **_: Any) -> None:
        raise SandboxLost("the sandbox ended: ModuleNotFoundError")

    monkeypatch.setattr("eval.judge.worker.Worker.start", ends)
    with pytest.raises(InputError, match=f"^judge: {REFUSED}"):
        Judge(workers=1)
    with pytest.raises(InputError, match="the sandbox ended: ModuleNotFoundError"):
        Judge(workers=1, allow_unsandboxed=True)


def test_recipes_whose_programs_cannot_be_judged_here_are_refused_before_anything_runs(
    no_bubblewrap, repository, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    nano = repository / "recipes" / "nano"
    problems, _ = check_file(nano / "pipeline.yaml", [])
    assert [re.match(rf"{nano}/(\w+).yaml: judge: {REFUSED}", one)[1] for one in problems] == ["distill", "eval"]
    assert (
        check_file(nano / "pipeline.yaml", [f"{id}.judge.allow_unsandboxed=true" for id in ("distill", "eval")])[0]
        == []
    )
    assert len(check_file(nano / "rl_plateau.yaml", [])[0]) == 1
    assert check_file(nano / "rl_plateau.yaml", ["problems.families={gcd: 1}"])[0] == []
    with pytest.raises(InputError, match=f"distill.yaml: judge: {REFUSED}"):
        run_pipeline(nano / "pipeline.yaml")
    assert stage_main("distill", pytest.fail, arguments=[str(nano / "distill.yaml"), "tokenizer=null"]) == 2
    assert list(tmp_path.iterdir()) == []


def test_bubblewrap_is_found_where_the_users_path_has_it(monkeypatch, tmp_path) -> None:
    from eval.judge.layers import bubblewrap

    (tmp_path / "bwrap").write_text("#!/bin/sh\n")
    (tmp_path / "bwrap").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bubblewrap(1 << 20, None)[0] == str(tmp_path / "bwrap")
