"""JSONL rows: what is written is read again, and a bad line is named."""

from __future__ import annotations

import pytest

from core_model.errors import InputError
from recipes.rows import Message, SFTRow, read_rows, write_rows

ROW = SFTRow(problem_id="p", messages=[Message(role="user", content="größer?\u2028ja")], system_variant="none")


def test_rows_come_back(tmp_path):
    assert write_rows(tmp_path / "new" / "rows.jsonl", [ROW, ROW]) == 2
    assert list(read_rows(tmp_path / "new" / "rows.jsonl", SFTRow)) == [ROW, ROW]


@pytest.mark.parametrize(
    ("line", "where"),
    [
        (b'{"problem_id": "\xff"}', "line 2"),
        (b"not json", "line 2"),
        (b'{"problem_id": 3, "messages": [], "system_variant": "none"}', "line 2, problem_id"),
        (b"", "line 2"),
    ],
)
def test_bad_line_is_named(tmp_path, line, where):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(ROW.model_dump_json().encode() + b"\n" + line + b"\n")
    with pytest.raises(InputError, match=f"rows.jsonl.*{where}"):
        list(read_rows(path, SFTRow))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"rows\.jsonl.*no such file"):
        list(read_rows(tmp_path / "rows.jsonl", SFTRow))
