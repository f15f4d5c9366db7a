"""What the judge command refuses: one message with file, line and key; exit status 2; nothing written."""

from __future__ import annotations

import json
import re

import pytest
from fake_judge import FakeJudge
from judge_work import Work, answer, record, references, write

BAD = {
    "unknown question": ([answer("a", 0, "x"), answer("zz", 0, "x")], r"G\.jsonl: question_id: .*P\.jsonl; found zz$"),
    "twice": ([answer("a", 0, "x"), answer("a", 0, "y")], r"G\.jsonl: line 2, question_id and sample: .*line 1 has$"),
    "no program": ([answer("a", 0)], r"G\.jsonl: line 1, .*neither `code` nor `text`$"),
    "no sample": ([{"question_id": "a", "code": "x"}], r"G\.jsonl: line 1, sample: "),
    "a sample in a string": ([answer("a", 0, "x") | {"sample": "0"}], r"G\.jsonl: line 1, sample: "),
    "a negative sample": ([answer("a", -1, "x")], r"G\.jsonl: line 1, sample: "),
    "a program that is no text": ([answer("a", 0, "x") | {"code": 3}], r"G\.jsonl: line 1, code: "),
    "an unknown language": ([answer("a", 0, "x") | {"language": "cobol"}], r"G\.jsonl: line 1, .*not 'cobol'$"),
    "a language without its code": (
        [{"question_id": "a", "sample": 0, "text": "x", "language": "cpp"}],
        r"G\.jsonl: line 1, .*given as `code`",
    ),
    "nothing": ([], r"G\.jsonl: expected rows with question_id"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_generations(work, capsys, name):
    rows, message = BAD[name]
    work.answers(rows)
    refused(work, capsys, message)


def refused(work: Work, capsys, message: str, *options: str) -> None:
    """One message, status 2, and nothing written."""
    before = sorted(path.name for path in work.folder.iterdir())
    assert work.run(*options) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.search(message, line), line
    assert sorted(path.name for path in work.folder.iterdir()) == before
    assert FakeJudge.made == []


@pytest.mark.parametrize("text", ["{", "[]", "", "\udcff", '{"question_id": "a", "sample": 0, "code": "\udcff"}'])
def test_lines_that_are_no_rows(work, capsys, text):
    good = json.dumps(answer("a", 0, "x")).encode() + b"\n"
    (work.folder / "G.jsonl").write_bytes(good + text.encode(errors="surrogateescape") + b"\n")
    refused(work, capsys, r"G\.jsonl: line 2, the line: expected a GenerationRow row")


@pytest.mark.parametrize("name", ["P.jsonl", "G.jsonl"])
def test_missing_files(work, capsys, name):
    (work.folder / name).unlink()
    refused(work, capsys, rf"{name}: expected .*; found no such file$")


def test_bad_problems(work, capsys):
    problems = work.folder / "P.jsonl"
    write(problems, [record("a"), record("b") | {"difficulty": "awful"}])
    refused(work, capsys, r"P\.jsonl: line 2, difficulty: ")
    write(problems, [record("a"), record("b"), record("a")])
    refused(work, capsys, r"P\.jsonl: question_id: expected each once; found a again$")
    write(problems, [record("a") | {"starter_code": "class Solution:"}, record("b")])
    refused(work, capsys, r"P\.jsonl: question_id a, metadata: expected func_name")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--extraction", "best"], "extraction policy: expected one of strict"),
        (["--window", "2024"], "window: expected START..END"),
        (["--window", "2023-01-01..2023-01-31"], r"G\.jsonl: expected answers to problems of .*; found none of 2"),
        (["--errata", "some"], "errata: expected keep, drop, or kinds"),
        (["--release", "release_v1"], r"P\.jsonl: expected a folder, for --release release_v1"),
        (["--references", "none.jsonl"], r"none\.jsonl: expected a JSONL file"),
    ],
)  # fmt: skip
def test_bad_options(work, capsys, options, message):
    refused(work, capsys, message, *options)


def test_bad_folders(work, capsys):
    folder = ["--problems", str(work.folder)]
    refused(work, capsys, "expected with a folder, --release and one of release_v1", *folder)
    refused(work, capsys, "found release_v9", *folder, "--release", "release_v9")
    refused(work, capsys, r"v1_v2: expected the files test\.jsonl, test2\.jsonl; found no test\.jsonl, test2\.jsonl",
        *folder, "--release", "v1_v2")  # fmt: skip


def test_bad_references(work, capsys):
    refused(work, capsys, r"R\.jsonl: question_id: .*found zz$", *references(work, zz="right"))
    path = write(work.folder / "R.jsonl", [{"question_id": "a", "code": "x"}] * 2)
    refused(work, capsys, r"R\.jsonl: line 2, question_id: expected each once", "--references", str(path))


@pytest.mark.parametrize(
    "option", [["--workers", "0"], ["--cpu-seconds", "nan"], ["--memory-mb", "1.5"], ["--mode", "x"]]
)
def test_numbers_that_are_none(work, capsys, option):
    with pytest.raises(SystemExit, match="2"):
        work.run(*option)
    assert f"argument {option[0]}: " in capsys.readouterr().err


def test_an_input_is_never_written_over(work, capsys):
    for name in ("G.jsonl", "P.jsonl"):
        before = (work.folder / name).read_bytes()
        refused(work, capsys, r"--out: expected a file of its own", "--out", str(work.folder / name))
        assert (work.folder / name).read_bytes() == before
    other = write(work.folder / "other.jsonl", [answer("a", 0, "x")])
    refused(work, capsys, r"other\.jsonl: line 1, .*expected a VerdictRow", "--out", str(other))
    assert other.read_text() == json.dumps(answer("a", 0, "x")) + "\n"
