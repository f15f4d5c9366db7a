"""Keys, and the file of rows that survives being killed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from core_model.errors import InputError
from eval.judge import verdict_file
from eval.judge.case import Limits, Test
from eval.judge.verdict_file import ReferenceRow, RowFile, sha256_of_tests, verdict_key
from recipes.rows import Verdict


def row(index: int, key: str = "k") -> ReferenceRow:
    return ReferenceRow(question_id=f"q{index}", verdict=Verdict.CORRECT, detail="", slowest_seconds=0.5, key=key)


def place(found: ReferenceRow) -> int | None:
    return int(found.question_id[1:]) if found.key == "k" else None


def written(path: Path) -> list[str]:
    return [ReferenceRow.model_validate_json(line).question_id for line in path.read_text().splitlines()]


def fill(path: Path, count: int, indices: list[int], key: str = "k") -> None:
    with RowFile(path, ReferenceRow) as file:
        file.read(count, lambda found: place(found) if key == "k" else None)
        for index in indices:
            file.append(index, row(index, key))


# -- keys ----------------------------------------------------------------------------------------------------------


def test_a_key_covers_all_that_determines_a_verdict(monkeypatch):
    tests = sha256_of_tests([Test("1\n", "2\n")])
    base = verdict_key("print(2)", tests, None, "strict", Limits())
    assert base == verdict_key("print(2)", tests, None, "strict", Limits())
    others = {
        verdict_key("print(2) ", tests, None, "strict", Limits()),
        verdict_key("print(2)", sha256_of_tests([Test("1\n", "3\n")]), None, "strict", Limits()),
        verdict_key("print(2)", tests, "solve", "strict", Limits()),
        verdict_key("print(2)", tests, None, "lcb-compat", Limits()),
        verdict_key("print(2)", tests, None, "strict", replace(Limits(), memory_bytes=1)),
        verdict_key("print(2)", tests, None, "strict", None),
        verdict_key("print(2)", tests, None, "strict", Limits(), "cpp"),
    }
    monkeypatch.setattr(verdict_file, "JUDGE_VERSION", "next")
    others.add(verdict_key("print(2)", tests, None, "strict", Limits()))
    assert len(others | {base}) == 9


def test_the_sum_of_tests_knows_where_a_text_ends():
    sums = {
        sha256_of_tests(tests)
        for tests in ([Test("ab", "c")], [Test("a", "bc")], [Test("ab", ""), Test("", "c")], [Test("c", "ab")], [])
    }
    assert len(sums) == 5


def test_tests_of_half_a_surrogate_pair_have_a_sum():
    assert sha256_of_tests([Test("\ud800", "")]) != sha256_of_tests([Test("\ud801", "")])


# -- the file ------------------------------------------------------------------------------------------------------


def test_rows_come_in_any_order_and_end_in_that_of_the_work(tmp_path):
    path = tmp_path / "rows.jsonl"
    fill(path, 4, [2, 0])
    assert written(path) == ["q2", "q0"]
    with RowFile(path, ReferenceRow) as file:
        file.read(4, place)
        assert sorted(file.rows) == [0, 2]
        file.append(3, row(3))
        file.append(1, row(1))
        assert [one.question_id for one in file.finish()] == ["q0", "q1", "q2", "q3"]
    assert written(path) == ["q0", "q1", "q2", "q3"]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("cut", [1, 2, 40])
def test_a_torn_last_row_is_dropped(tmp_path, cut):
    path = tmp_path / "rows.jsonl"
    fill(path, 3, [0, 1])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with RowFile(path, ReferenceRow) as file:
        file.read(3, place)
        # Without its line feed alone it is a whole row.
        assert sorted(file.rows) == ([0, 1] if cut == 1 else [0])
        file.append(2, row(2))
    assert written(path) == (["q0", "q1", "q2"] if cut == 1 else ["q0", "q2"])


def test_a_torn_only_row_is_dropped(tmp_path):
    path = tmp_path / "rows.jsonl"
    fill(path, 1, [0])
    path.write_bytes(path.read_bytes()[:30])
    fill(path, 1, [0])
    assert written(path) == ["q0"]


def test_damage_in_the_middle_costs_one_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    fill(path, 3, [0, 1, 2])
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"\0" * 20 + b"\n" + lines[2])
    with RowFile(path, ReferenceRow) as file:
        file.read(3, place)
        assert sorted(file.rows) == [0, 2]
        file.append(1, row(1))
        file.finish()
    assert path.read_bytes() == b"".join(lines)


def test_outdated_rows_stay_until_the_work_is_complete(tmp_path):
    path = tmp_path / "rows.jsonl"
    fill(path, 2, [0, 1], key="old")
    fill(path, 2, [1])
    assert written(path) == ["q0", "q1", "q1"]
    with RowFile(path, ReferenceRow) as file:
        file.read(2, place)
        assert sorted(file.rows) == [1]
        file.append(0, row(0))
        file.finish()
    assert written(path) == ["q0", "q1"]


def test_a_piece_of_work_is_done_once(tmp_path):
    with RowFile(tmp_path / "rows.jsonl", ReferenceRow) as file:
        file.read(2, place)
        file.append(0, row(0))
        with pytest.raises(ValueError, match="which is done"):
            file.append(0, row(0))
        with pytest.raises(ValueError, match="1 rows of 2"):
            file.finish()


def test_a_complete_file_is_left_alone(tmp_path):
    path = tmp_path / "rows.jsonl"
    fill(path, 2, [0, 1])
    before = path.stat()
    with RowFile(path, ReferenceRow) as file:
        file.read(2, place)
        file.finish()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_a_file_of_something_else_is_refused_and_left(tmp_path):
    for content in (b'{"question_id": "a", "sample": 0, "code": "x"}\n', b'{"question_id": "a"}', b"text\n", b"\n"):
        path = tmp_path / "mine.jsonl"
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"mine\.jsonl: line 1.*ReferenceRow"):
            RowFile(path, ReferenceRow)
        assert path.read_bytes() == content


def test_what_is_no_plain_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, Path("/dev/null"), tmp_path / "file" / "rows.jsonl"):
        with pytest.raises(InputError):
            RowFile(path, ReferenceRow)


def test_a_link_goes_on_pointing_to_the_rows(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "rows.jsonl")
    with RowFile(tmp_path / "link", ReferenceRow) as file:
        file.read(2, place)
        file.append(1, row(1))
        file.append(0, row(0))
        file.finish()
    assert (tmp_path / "link").is_symlink()
    assert written(tmp_path / "rows.jsonl") == ["q0", "q1"]


def test_no_row_no_file(tmp_path):
    fill(tmp_path / "rows.jsonl", 1, [])
    assert list(tmp_path.iterdir()) == []


def test_one_process_at_a_time(tmp_path):
    path = tmp_path / "rows.jsonl"
    program = (
        "import sys; from pathlib import Path; from eval.judge.verdict_file import *\n"
        "with RowFile(Path(sys.argv[1]), ReferenceRow) as file: file.read(9, lambda row: None)"
    )

    def other() -> str:
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
        return done.stderr

    with RowFile(path, ReferenceRow) as file:
        file.read(2, place)
        file.append(1, row(1))
        assert "another run at work on it" in other()
        file.append(0, row(0))
        file.finish()  # by a rename: the new file is locked as the old one was
        assert "another run at work on it" in other()
    assert other() == f"{path}: 2 rows are outdated or to be judged again\n"
    assert written(path) == ["q0", "q1"]


def test_a_full_disk_leaves_whole_rows(tmp_path, monkeypatch):
    path = tmp_path / "rows.jsonl"
    write = os.write
    full = False

    def half(file: int, data: memoryview) -> int:
        if full:
            write(file, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    monkeypatch.setattr(verdict_file.os, "write", half)
    with RowFile(path, ReferenceRow) as file:
        file.read(3, place)
        file.append(1, row(1))
        full = True
        with pytest.raises(OSError, match=r"No space left.*rows\.jsonl"):
            file.append(0, row(0))
        full = False
        file.append(2, row(2))
        file.append(0, row(0))
        full = True
        with pytest.raises(OSError, match=r"No space left.*rows\.jsonl"):
            file.finish()
    assert written(path) == ["q1", "q2", "q0"]
    assert list(tmp_path.iterdir()) == [path]
