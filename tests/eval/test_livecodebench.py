"""LiveCodeBench's records: private tests in a pickle, call-based problems, releases, windows, errata."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pickle
import zlib
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core_model.errors import InputError
from eval.judge.case import Test
from eval.tasks import problems
from eval.tasks.livecodebench import (
    ERRATA,
    RELEASES,
    WINDOWS,
    LiveCodeBenchRecord,
    Window,
    decode_private_tests,
    from_problem,
    in_window,
    iter_records,
    read_records,
    read_release,
    select_window,
    split_errata,
    to_cases,
    to_problem,
    write_records,
)
from recipes.rows import Problem

ORACLE = Path(__file__).parents[1] / "oracles/lcb/problems.jsonl"
FIELDS = {
    "question_title": "Echo",
    "question_content": "Print the number.",
    "platform": "atcoder",
    "question_id": "abc001_a",
    "contest_id": "abc001",
    "contest_date": "2024-08-31T10:30:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": '[{"input": "1\\n", "output": "1\\n", "testtype": "stdin"}]',
    "private_test_cases": '[{"input": "2\\n", "output": "2\\n", "testtype": "stdin"}]',
    "metadata": "{}",
}
CALLED = {
    "platform": "leetcode",
    "question_id": "9004",
    "starter_code": "class Solution:\n    def twice(self, x: int) -> int:\n        ",
    "public_test_cases": '[{"input": "1", "output": "2", "testtype": "functional"}]',
    "private_test_cases": '[{"input": "[1]", "output": "[1, 1]", "testtype": "functional"}]',
    "metadata": '{"func_name": "twice"}',
}


def record(**changes: str) -> LiveCodeBenchRecord:
    return LiveCodeBenchRecord.model_validate(FIELDS | changes)


def packed(value: Any, protocol: int = 4) -> str:
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


def compressed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data)).decode()


class RunsSomething:
    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


# -- private tests -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_packed_tests_are_read_and_kept_as_json(protocol: int, tmp_path: Path) -> None:
    text = json.dumps([{"input": "你好 π", "output": "x" * 70_000, "testtype": "stdin"}])
    one = record(private_test_cases=packed(text, protocol))
    assert one == record(private_test_cases=text) and one.private_test_cases == text
    write_records(tmp_path / "out.jsonl", [one])
    assert json.loads((tmp_path / "out.jsonl").read_text())["private_test_cases"] == text


def test_tests_of_the_oracles_problems_are_read() -> None:
    records = {one.question_id: one for one in read_records(ORACLE)}
    assert len(records) == 12
    assert records["orc001_a"].private_tests[0] == {"input": "10 -4\n", "output": "6\n", "testtype": "stdin"}
    assert [one.entry for one in records.values() if one.entry] == ["pairSum", "mean", "isPal"]
    assert all(test["testtype"] == "functional" for test in records["9002"].private_tests)
    assert records["orc004_c"].private_tests == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no base64!", "not base64"),
        ("", "ends too early"),
        (base64.b64encode(b"no zlib").decode(), "not zlib data"),
        (base64.b64encode(zlib.compress(pickle.dumps("[]" * 99))[:-6]).decode(), "ends too early"),
        (compressed(b"no pickle"), "not a pickle"),
        (compressed(b""), "not a pickle"),
        (compressed(pickle.dumps("[]")[:-3]), "not a pickle"),
        (compressed(b"\x80\x04\x8d" + (1 << 62).to_bytes(8, "little")), "not a pickle"),  # a string of 4 EiB
        (packed(RunsSomething()), "asks for (posix|nt).system"),
        (packed([date(2024, 1, 1)]), "asks for datetime.date"),
        (compressed(b"c__builtin__\neval\n."), "asks for __builtin__.eval"),
        (packed(["[]"]), "a pickle of list"),
        (packed(b"[]"), "a pickle of bytes"),
        (packed("[1,"), "string is not JSON"),
        (packed("[" * 200_000), "string is not JSON"),
        (packed("{}"), "not a JSON list"),
        ("[1,", "not plain JSON"),
    ],
)
def test_bad_private_tests_are_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        record(private_test_cases=text)
    (tmp_path / "bad.jsonl").write_text(json.dumps(FIELDS) + "\n" + json.dumps(FIELDS | {"private_test_cases": text}))
    with pytest.raises(InputError, match=rf"line 2, private_test_cases.*{message}"):
        read_records(tmp_path / "bad.jsonl")


def test_inflated_size_is_capped(tmp_path: Path) -> None:
    text = json.dumps([{"input": "0" * 10_000, "output": "", "testtype": "stdin"}])
    size = len(pickle.dumps(text, 4))
    assert decode_private_tests(packed(text), size) == text
    with pytest.raises(ValueError, match=f"more than {size - 1} bytes"):
        decode_private_tests(packed(text), size - 1)
    (tmp_path / "one.jsonl").write_text(json.dumps(FIELDS | {"private_test_cases": packed(text)}))
    assert len(read_records(tmp_path / "one.jsonl", most_bytes=size)) == 1
    with pytest.raises(InputError, match=r"line 1, private_test_cases.*more than 9000 bytes"):
        read_records(tmp_path / "one.jsonl", most_bytes=9000)


@given(st.binary(max_size=60))
def test_a_damaged_pickle_is_one_clear_error(data: bytes) -> None:
    try:
        assert isinstance(
            json.loads(decode_private_tests(compressed(data), 1000)), list | dict | str | int | float | None
        )
    except ValueError as error:
        assert str(error).startswith("private tests: ")


def test_published_public_tests_are_never_packed() -> None:
    with pytest.raises(ValueError, match="public_test_cases"):
        record(public_test_cases=packed("[]"))


# -- lines of a file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "the line"),
        ("{", "the line"),
        ("\xff", "the line"),
        (json.dumps({key: value for key, value in FIELDS.items() if key != "metadata"}), "metadata"),
        (json.dumps(FIELDS | {"metadata": '{"func_name": "a b"}'}), "not the name of a function"),
        (json.dumps(FIELDS | {"metadata": '{"func_name": 1}'}), "not the name of a function"),
        (json.dumps(FIELDS | {"question_id": 9001}), "question_id"),
    ],
)
def test_a_line_that_is_no_record(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes(json.dumps(FIELDS).encode() + b"\n" + line.encode("latin-1"))
    with pytest.raises(InputError, match=f"line 2.*{message}"):
        read_records(tmp_path / "bad.jsonl")


def test_records_are_read_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text(json.dumps(FIELDS) + "\nno record\n")
    lines = iter_records(tmp_path / "bad.jsonl")
    assert next(lines) == record()
    with pytest.raises(InputError, match="line 2"):
        next(lines)
    with pytest.raises(InputError, match="no such file"):
        read_records(tmp_path / "none.jsonl")


# -- problems ------------------------------------------------------------------------------------------------------


def test_every_record_goes_to_a_problem_and_back() -> None:
    for one in [*read_records(ORACLE), record(), record(**CALLED)]:
        problem = to_problem(one)
        assert Problem.model_validate_json(problem.model_dump_json()) == problem
        again = from_problem(problem)
        json_fields = {"public_test_cases", "private_test_cases", "metadata"}
        for name in LiveCodeBenchRecord.model_fields:
            left, right = getattr(again, name), getattr(one, name)
            assert (json.loads(left) == json.loads(right)) if name in json_fields else left == right
        assert to_problem(again) == problem


def test_a_call_based_record_keeps_its_function_and_starter_code() -> None:
    problem = to_problem(record(**CALLED))
    info = problem.verification_info
    assert problem.verifier == "functional" and info["entry"] == "twice"
    assert info["starter_code"] == CALLED["starter_code"]
    assert [case["type"] for case in info["test_cases"]] == ["functional"] * 2
    assert "entry" not in to_problem(record()).verification_info


@pytest.mark.parametrize("one", [record(**CALLED), to_problem(record(**CALLED))], ids=["record", "problem"])
def test_cases_of_a_call_based_problem(one: LiveCodeBenchRecord | Problem) -> None:
    assert to_cases(one) == ((Test("1", "2"), Test("[1]", "[1, 1]")), "twice")


def test_cases_of_a_stdin_problem() -> None:
    assert to_cases(record()) == to_cases(to_problem(record())) == ((Test("1\n", "1\n"), Test("2\n", "2\n")), None)
    family = problems("code", "test", 1)[0]
    tests, entry = to_cases(family)
    assert entry is None and len(tests) == 10
    assert tests == to_cases(from_problem(family))[0]


def test_the_function_s_name_alone_decides() -> None:
    named = record(metadata='{"func_name": "f"}')  # though its tests say stdin, and there is no starter code
    assert to_cases(named)[1] == "f" and to_cases(to_problem(named)) == to_cases(named)
    assert to_cases(record(metadata='{"func_name": null}'))[1] is None
    for changes in ({"starter_code": "class Solution:"}, {"public_test_cases": CALLED["public_test_cases"]}):
        with pytest.raises(InputError, match=r"abc001_a: metadata.*func_name"):
            to_problem(record(**changes))
    other = to_problem(record())
    info = other.verification_info | {"test_cases": [{"input": "", "output": "", "type": "gui"}]}
    with pytest.raises(InputError, match=r"test 1.*gui"):
        to_cases(other.model_copy(update={"verification_info": info}))


# -- releases ------------------------------------------------------------------------------------------------------


def test_releases_are_unions_of_files() -> None:
    assert RELEASES["release_v1"] == RELEASES["v1"] == ("test.jsonl",)
    assert RELEASES["v4"] == ("test4.jsonl",)
    assert RELEASES["v1_v3"] == RELEASES["release_v3"] == ("test.jsonl", "test2.jsonl", "test3.jsonl")
    assert RELEASES["v4_v5"] == ("test4.jsonl", "test5.jsonl")
    assert RELEASES["release_v6"][-1] == "test6.jsonl" and len(RELEASES["release_v6"]) == 6
    assert len(RELEASES) == 6 + 6 + 15


def test_a_release_is_read_in_order_of_its_files(tmp_path: Path) -> None:
    for name in RELEASES["release_v3"]:
        write_records(tmp_path / name, [record(question_id=name)])
    assert [one.question_id for one in read_release(tmp_path, "v2_v3")] == ["test2.jsonl", "test3.jsonl"]
    with pytest.raises(InputError, match=r"release_v5: .*no test4.jsonl, test5.jsonl"):
        read_release(tmp_path, "release_v5")
    with pytest.raises(InputError, match="release_v6"):
        read_release(tmp_path, "v7")


def test_a_release_within_a_window_does_not_inflate_the_rest(tmp_path: Path) -> None:
    damaged = json.dumps(FIELDS | {"contest_date": "2023-05-07T00:00:00", "private_test_cases": "damaged"})
    (tmp_path / "test.jsonl").write_text(damaged + "\n" + json.dumps(FIELDS) + "\n")
    assert read_release(tmp_path, "v1", WINDOWS["deepseek-v3"]) == [record()]
    with pytest.raises(InputError, match="line 1"):
        read_release(tmp_path, "v1")
    (tmp_path / "test.jsonl").write_text(json.dumps({"question_id": "1"}))
    with pytest.raises(InputError, match=r"line 1.*contest_date"):
        read_release(tmp_path, "v1", WINDOWS["nemo"])


# -- windows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "count"), [("deepseek-v3", 8), ("deepseek-r1", 10), ("artificial-analysis", 10), ("nemo", 10)]
)
def test_named_windows(name: str, count: int) -> None:
    records, window = read_records(ORACLE), WINDOWS[name]
    start, end = datetime.combine(window.start, datetime.min.time()), datetime.combine(window.end, datetime.min.time())
    late = records[0].model_copy(update={"question_id": "late", "contest_date": f"{window.end}T10:30:00"})
    described = window.describe([*records, late])
    ids = sorted([one.question_id for one in window.select(records)] + ["late"])
    assert described == {
        "start": window.start.isoformat(),
        "end": window.end.isoformat(),
        "end_inclusive": True,
        "count": len(ids),
        "ids_sha256": hashlib.sha256("\n".join(ids).encode()).hexdigest(),
    }
    assert len(ids) - 1 == count
    # The benchmark's own comparison, with midnight of the last day, loses the contest of that morning.
    assert sum(start <= datetime.fromisoformat(one.contest_date) <= end for one in [*records, late]) == count
    assert window.describe(map(to_problem, records))["count"] == count


def test_a_description_depends_on_the_problems_not_on_their_order() -> None:
    records, window = read_records(ORACLE), WINDOWS["deepseek-r1"]
    assert window.describe(records) == window.describe(records[::-1])
    assert window.describe(records) != window.describe(records[2:])
    assert window.describe([])["count"] == 0


def test_windows_by_name_and_by_days() -> None:
    assert (
        Window.of("deepseek-v3") == Window.of("2024-08-01..2024-11-30") == Window(date(2024, 8, 1), date(2024, 11, 30))
    )
    for wrong in ("deepseek", "2024-08-01", "2024-08-01..", "2024-08-02..2024-08-01", "2024-13-01..2025-01-01"):
        with pytest.raises(InputError, match="deepseek-r1"):
            Window.of(wrong)
    assert in_window("2024-11-30T23:59:59", "2024-08-01", "2024-11-30")
    assert not in_window("2024-12-01T00:00:00", "2024-08-01", "2024-11-30")
    assert select_window([record()], "2024-08-31", "2024-08-31") == [record()]
    undated = to_problem(record()).model_copy(update={"date": None})
    assert Window.of("2024-08-31..2024-08-31").select([undated]) == []


# -- errata --------------------------------------------------------------------------------------------------------


def test_errata_are_told_by_id_and_on_leetcode_by_title() -> None:
    asked = [
        record(),
        record(question_id="abc337_e"),
        record(question_id="abc350_c"),
        record(**CALLED, question_title="find-the-peaks"),
        record(**CALLED, question_title="Find Words Containing Character"),
        record(question_title="find-the-peaks"),  # of another platform: another problem
    ]
    for items in (asked, [to_problem(one) for one in asked]):
        kept, dropped = split_errata(items, "drop")
        assert kept == [items[0], items[5]]
        assert [kind for _, kind in dropped] == ["interactive", "wrong-tests", "several-answers", "several-answers"]
        assert split_errata(items) == (items, [])
        kept, dropped = split_errata(items, ["interactive"])
        assert dropped == [(items[1], "interactive")] and len(kept) == 5
    with pytest.raises(InputError, match="boring"):
        split_errata(asked, ["boring"])  # type: ignore[list-item]
    kinds = list(ERRATA.values())
    assert [kinds.count(kind) for kind in ("several-answers", "interactive", "wrong-tests")] == [11, 2, 4]
