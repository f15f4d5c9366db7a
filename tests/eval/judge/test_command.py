"""`python -m eval judge`, with a judge that runs nothing; once with the real one."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
from types import SimpleNamespace

import fake_judge
import pytest
from fake_judge import FakeJudge
from judge_work import DATES, answer, record, references, write

from eval.__main__ import main as eval_main
from eval.judge import command, verdict_file
from eval.judge.verdict_file import ReferenceRow, VerdictRow
from recipes.rows import read_rows


def test_rows_say_all_that_was_found(work, capsys):
    work.answers([answer("b", 3, "wrong", tokens=17), answer("a", 0, "right")])
    assert work.run("--workers", "2", "--memory-mb", "64", "--allow-unsandboxed") == 0
    first, second = (json.loads(line) for line in work.out.read_text().splitlines())
    key = first.pop("key")
    assert first == {
        "question_id": "b",
        "sample": 3,
        "verdict": "WRONG_ANSWER",
        "detail": "line 1",
        "passed": False,
        "lcb_results": [-2],
        "error_code": -2,
        "isolation": {"level": 6, "layers": list(fake_judge.ISOLATION.layers), "missing": {}},
        "extraction": None,
        "no_code": False,
        "seconds": 0.25,
        "memory_mb": 9.5,
        "mode": "strict",
    }
    assert len(key) == 64 and second["key"] != key
    assert (second["question_id"], second["passed"], second["lcb_results"]) == ("a", True, [True])
    [judge] = FakeJudge.made
    assert (judge.mode, judge.workers, judge.allow_unsandboxed) == ("strict", 2, True)
    assert (judge.limits.cpu_seconds, judge.limits.memory_bytes) == (6.0, 64 << 20)
    told = capsys.readouterr().out
    assert "2 verdicts, mode strict, isolation level 6 (2 rows)" in told
    assert "right: 1 of 2 that count (50.0%)" in told
    assert "1 of 3 problems have no generation" in told


def test_cases_carry_the_problem(work):
    write(work.folder / "P.jsonl", [record("a", ("1", "2")), record("b", ("3",), "solve")])
    work.run("--cpu-seconds", "2.5")
    cases = {case.source: case for case in FakeJudge.judged}
    assert [test.output for test in cases["right"].tests] == ["1", "2"]
    assert (cases["right"].entry, cases["wrong"].entry) == (None, "solve")
    assert cases["right"].limits.cpu_seconds == 2.5
    assert not cases["right"].trusted


# -- extraction ----------------------------------------------------------------------------------------------------

FENCED = "So:\n```python\nright\n```\n"
CUT = "So:\n```python\nrig"


def test_other_languages_are_keys_of_their_own(work):
    work.answers([answer("a", 0, "right"), answer("a", 1, "right") | {"language": "cpp"}])
    assert work.run() == 0
    assert sorted(case.language for case in FakeJudge.judged) == ["cpp", "python"]
    python, cpp = work.rows()
    assert python.key != cpp.key


def test_programs_are_extracted_and_failures_kept_apart(work, capsys):
    work.answers(
        [
            answer("a", 0, text=FENCED),
            answer("a", 1, text="I do not know."),
            answer("a", 2, text=CUT),
            answer("a", 3, text="I do not", finish_reason="length"),
            answer("a", 4, text=FENCED, finish_reason="length"),
            answer("a", 5, "wrong", text=FENCED),
            answer("a", 6, " \n"),
        ]
    )
    assert work.run() == 0
    found = [(row.verdict.value, row.extraction, row.no_code) for row in work.rows()]
    assert found == [
        ("CORRECT", "strict-v1", False),
        ("NO_ANSWER", "strict-v1", True),
        ("TRUNCATED", "strict-v1", True),
        ("TRUNCATED", "strict-v1", True),
        ("CORRECT", "strict-v1", False),
        ("WRONG_ANSWER", None, False),
        ("NO_ANSWER", None, True),
    ]
    assert [row.isolation.level for row in work.rows()] == [6, 0, 0, 0, 6, 6, 0]
    assert "extraction strict-v1: no program in 3 of 5 answers (60.0%), 2 cut off" in capsys.readouterr().out


def test_the_mode_has_its_own_policy(work):
    text = "```\nwrong\n```\n```bash\nright\n```\n"  # strict: the last that may be Python; lcb: the last of all
    work.answers([answer("a", 0, text=text)])
    found = []
    for options in (["strict"], ["lcb-compat"], ["lcb-compat", "--extraction", "strict"]):
        assert work.run("--mode", *options) == 0
        [row] = work.rows()
        found.append((row.passed, row.extraction, row.mode))
    assert found == [
        (False, "strict-v1", "strict"),
        (True, "lcb-last-pair-v1", "lcb-compat"),
        (False, "strict-v1", "lcb-compat"),
    ]


def test_a_row_is_made_anew_when_the_policy_or_the_ending_differs(work):
    work.answers([answer("a", 0, text=FENCED), answer("a", 1, text="none")])
    work.run()
    work.run("--extraction", "lcb-last-pair")
    assert work.judged() == ["", "right"]  # with the line feed that a fence leaves, or without
    assert {row.extraction for row in work.rows()} == {"lcb-last-pair-v1"}
    work.answers([answer("a", 0, text=FENCED), answer("a", 1, text="none", finish_reason="length")])
    work.run("--extraction", "lcb-last-pair")
    assert work.judged() == [""]
    assert work.rows()[1].verdict == "TRUNCATED"


def test_an_error_message_of_half_a_surrogate_pair(work):
    work.answers([answer("a", 0, "odd")])
    assert work.run() == 0
    assert work.rows()[0].detail == "\\ud800"


# -- going on ------------------------------------------------------------------------------------------------------


def test_a_second_run_judges_nothing(work):
    work.run()
    before = work.out.read_bytes()
    assert work.run() == 0
    assert FakeJudge.made == []
    assert work.out.read_bytes() == before


def test_what_is_new_or_changed_is_judged(work):
    work.run()
    work.answers([answer("c", 0, "slow"), answer("b", 0, "right"), answer("a", 0, "right")])
    work.run()
    assert work.judged() == ["right", "slow"]
    assert [row.question_id for row in work.rows()] == ["c", "b", "a"]
    write(work.folder / "P.jsonl", [record("a", ("1", "2")), record("b"), record("c")])
    work.run()
    assert [(case.source, len(case.tests)) for case in FakeJudge.judged] == [("right", 2)]
    for change in (["--cpu-seconds", "1"], ["--memory-mb", "32"], ["--mode", "lcb-compat"]):
        work.run(*change)
        assert len(FakeJudge.judged) == 3, change


def test_the_machines_faults_are_judged_again(work, capsys):
    work.answers([answer("a", 0, "right"), answer("a", 1, "infra"), answer("a", 2, "infra")])
    assert work.run() == 3
    told = capsys.readouterr().out
    assert "2 rows are INFRA_ERROR" in told and "again" in told
    assert "right: 1 of 1 that count" in told
    assert work.run() == 3
    assert work.judged() == ["infra", "infra"]
    FakeJudge.healed = True
    assert work.run() == 0
    assert work.judged() == ["infra", "infra"]
    assert [row.passed for row in work.rows()] == [True, True, True]


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_goes_on(work, seed):
    draw = random.Random(seed)
    words = ["right", "wrong", "slow", ""]
    work.answers([answer(draw.choice("abc"), number, draw.choice(words)) for number in range(30)])
    assert work.run() == 0
    undisturbed = work.out.read_bytes()
    work.out.unlink()
    script = [sys.executable, fake_judge.__file__]
    after = draw.randrange(1, 30)
    killed = subprocess.run([*script, str(after), *work.arguments()], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    left = [line.decode() for line in work.out.read_bytes().splitlines(keepends=True)]
    assert len(left) == after
    if draw.random() < 0.7:  # and its last row was on its way
        left[-1] = left[-1][: draw.randrange(len(left[-1]) - 1)]
        work.out.write_text("".join(left))
        left.pop()
    assert work.run() == 0
    assert len(FakeJudge.judged) == 30 - len(left)  # nothing twice
    assert work.out.read_bytes() == undisturbed


def test_a_full_disk_is_one_message_and_mends(work, monkeypatch, capsys):
    work.answers([answer("a", number, "right") for number in range(5)])
    system_write = os.write
    rows = 0

    def write_three(file: int, data: bytes) -> int:
        nonlocal rows
        rows += 1
        if rows > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return system_write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(verdict_file.os, "write", write_three)
        assert work.run() == 2
    [message] = [line for line in capsys.readouterr().err.splitlines() if "eval judge" in line]
    assert "V.jsonl: expected a place that can be written to, with room" in message
    assert len(work.rows()) == 3
    assert work.run() == 0
    assert len(FakeJudge.judged) == 2
    assert len(work.rows()) == 5


def test_a_second_run_at_once_is_refused(work, capsys):
    with verdict_file.RowFile(work.out, VerdictRow) as file:
        file.read(1, lambda row: None)
        assert work.run() == 2
    assert "another run at work on it" in capsys.readouterr().err
    assert FakeJudge.made == []


def test_interrupted(work, monkeypatch, capsys):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeJudge, "judge_many", interrupt)
    assert work.run() == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err


# -- what is asked -------------------------------------------------------------------------------------------------


def test_a_window_holds_its_last_day(work, capsys):
    work.answers([answer(one, 0, "right") for one in DATES])
    assert work.run("--window", "2024-08-03..2024-08-31") == 0
    assert [row.question_id for row in work.rows()] == ["a", "b"]
    told = capsys.readouterr().out
    assert "window 2024-08-03..2024-08-31, both days included: 2 problems" in told
    assert "1 of 3 generations are of problems that are left out" in told
    assert work.run("--window", "deepseek-v3") == 0
    assert len(work.rows()) == 3


def test_a_release_and_its_errata(work, capsys):
    folder = work.folder / "published"
    folder.mkdir()
    wrong = record("a") | {"question_id": "abc350_c"}
    write(folder / "test.jsonl", [record("a"), wrong])
    write(folder / "test2.jsonl", [record("b")])
    work.answers([answer(one, 0, "right") for one in ("b", "abc350_c", "a")])
    options = ["--problems", str(folder), "--release", "release_v2"]
    assert work.run(*options) == 0
    assert [row.question_id for row in work.rows()] == ["b", "abc350_c", "a"]
    assert work.run(*options, "--errata", "interactive,several-answers") == 0
    assert len(work.rows()) == 3
    assert work.run(*options, "--errata", "drop") == 0
    assert [row.question_id for row in work.rows()] == ["b", "a"]
    assert FakeJudge.made == []  # the rows were there
    assert "errata dropped: abc350_c (wrong-tests)" in capsys.readouterr().out


# -- references ----------------------------------------------------------------------------------------------------


def test_limits_come_from_references(work):
    work.answers([answer(one, 0, f"wrong{' ' * number}") for number, one in enumerate(DATES)])
    options = references(work, a="right", b="slow")
    assert work.run(*options, "--cpu-seconds", "9") == 0
    trusted = [case for case in FakeJudge.judged if case.trusted]
    assert sorted((case.source, case.limits.cpu_seconds) for case in trusted) == [("right", 60.0), ("slow", 60.0)]
    limits = {case.source.count(" "): case.limits.cpu_seconds for case in FakeJudge.judged if not case.trusted}
    assert limits == {0: 4.0, 1: 12.0, 2: 9.0}  # 4 s at least, 4 x 3 s, the option
    assert work.run(*options, "--cpu-seconds", "9") == 0
    assert FakeJudge.made == []  # their times are kept beside the verdicts
    kept = read_rows(work.folder / "V.jsonl.references", ReferenceRow)
    assert {row.question_id: row.slowest_seconds for row in kept} == {"a": 0.25, "b": 3.0}


def test_where_a_reference_fails_the_problem_is_invalid(work, capsys):
    work.answers([answer("a", 0, "right"), answer("a", 1, "wrong"), answer("b", 0, "right")])
    assert work.run(*references(work, a="wrong", c="right")) == 0
    assert work.judged() == ["right", "wrong"]  # the reference of a, and the answer to b
    assert [row.verdict.value for row in work.rows()] == ["INVALID_PROBLEM", "INVALID_PROBLEM", "CORRECT"]
    assert work.rows()[0].detail == "the reference fails: WRONG_ANSWER line 1"
    assert "right: 1 of 1 that count" in capsys.readouterr().out
    assert work.run(*references(work, a="right")) == 0  # mended
    assert [row.verdict.value for row in work.rows()] == ["CORRECT", "WRONG_ANSWER", "CORRECT"]


def test_a_reference_that_the_machine_fails_is_tried_again(work):
    options = references(work, a="infra")
    assert work.run(*options) == 3
    assert [row.verdict.value for row in work.rows()] == ["INFRA_ERROR", "WRONG_ANSWER"]
    FakeJudge.healed = True
    assert work.run(*options) == 0
    assert work.judged() == ["infra", "right"]


def test_low_isolation_is_told(work, capsys):
    work.answers([answer("a", 0, "unsafe"), answer("a", 1, "right")])
    assert work.run("--allow-unsandboxed") == 0
    told = capsys.readouterr().out
    assert "isolation level 2 (1 rows), 6 (1 rows)" in told
    assert "1 programs ran below isolation level 4" in told


# -- as a process --------------------------------------------------------------------------------------------------


def test_help_tells_of_both(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["eval", "--help"])
    monkeypatch.setitem(
        sys.modules, "eval.stage", SimpleNamespace(run_stage=None, step_of=None, outdated=None)
    )  # which imports torch
    with pytest.raises(SystemExit, match="0"):
        eval_main()
    told = capsys.readouterr().out
    assert "python -m eval judge --problems" in told and "keys of an eval recipe" in told
    done = subprocess.run([sys.executable, "-m", "eval", "judge", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    for word in ("example:", "question_id", "finish_reason", "exit status:", "INFRA_ERROR", "deepseek-v3"):
        assert word in done.stdout, word


REFERENCE = "class Solution:\n    def solve(self, n):\n        return [1 + n]\n"


def test_the_real_judge(work, monkeypatch, capsys):
    """Programs as they come: right, wrong, not Python, ending in an error; stdin and a function; both modes."""
    from eval.judge.judge import Judge

    monkeypatch.setattr(command, "Judge", Judge)
    write(work.folder / "P.jsonl", [record("a", ("1", "2")), record("b", ("[1]", "[2]"), "solve")])
    work.answers(
        [
            answer("a", 0, "print(int(input()) + 1)"),
            answer("a", 1, "print(1)"),
            answer("a", 2, "print("),
            answer("a", 3, ""),
            answer("b", 0, "class Solution:\n    def solve(self, n):\n        return [n + 1]\n"),
            answer("b", 1, "class Solution:\n    def solve(self, n):\n        return n / 0\n"),
        ]
    )
    expected = ["CORRECT", "WRONG_ANSWER", "COMPILE_ERROR", "NO_ANSWER", "CORRECT", "RUNTIME_ERROR"]
    assert work.run("--workers", "2", "--allow-unsandboxed", *references(work, b=REFERENCE)) == 0
    assert [row.verdict.value for row in work.rows()] == expected
    assert [row.lcb_results for row in work.rows()] == [[True, True], [True, -2], [-4], [-4], [True, True], [-4]]
    first = work.out.read_bytes()
    assert work.run("--workers", "2", "--allow-unsandboxed", *references(work, b=REFERENCE)) == 0
    assert work.out.read_bytes() == first
    assert work.run("--mode", "lcb-compat", "--workers", "2", "--allow-unsandboxed") == 0
    compat = [row.lcb_results for row in work.rows()]
    assert compat[:3] + compat[4:] == [[True, True], [True, -2], [-4], [True, True], [-4]]
    assert work.rows()[3].verdict == "NO_ANSWER"
