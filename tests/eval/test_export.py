"""Exports of an eval run: what the files hold, what is refused, and that every format tells the same accuracy."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core_model.errors import InputError
from eval.__main__ import main as eval_main
from eval.export.command import FORMATS, main, make_files
from eval.export.evaluation import Answered, Evaluation, RunRecord, TaskAnswers, read
from eval.export.livecodebench import results_of
from eval.tasks import problems
from eval.tasks.livecodebench import LiveCodeBenchRecord, to_problem
from recipes.rows import Condition, JudgedSample, Message, Problem, Verdict, write_rows

PROGRAM = "print(sum(map(int, input().split())))"
FENCED = f"So:\n```python\n{PROGRAM}\n```"
RECORD = RunRecord("test", datetime(2025, 3, 1, 12, tzinfo=UTC), 1.0, 0, None, None, {})
LCB = "Scenario.codegeneration_2_0.6"


def record(key: str = "abc001_a", **changes: str) -> LiveCodeBenchRecord:
    """Two public tests and a private one."""
    tests = [{"input": f"{n} 1\n", "output": f"{n + 1}\n", "testtype": "stdin"} for n in range(3)]
    fields = {"question_title": "Sum", "question_content": "Add two numbers.", "question_id": key, "metadata": "{}"}
    fields |= {"platform": "atcoder", "contest_id": "abc001", "contest_date": "2024-08-31T10:30:00", "starter_code": ""}
    fields |= {"difficulty": "easy", "public_test_cases": json.dumps(tests[:2])}
    fields |= {"private_test_cases": json.dumps(tests[2:])}
    return LiveCodeBenchRecord.model_validate(fields | changes)


def lcb(key: str = "abc001_a", source: str = "lcb", **changes: str) -> Problem:
    return to_problem(record(key, **changes), source)


def called() -> Problem:
    tests = '[{"input": "1", "output": "2", "testtype": "functional"}]'
    changes = {"starter_code": "class Solution:", "public_test_cases": tests, "private_test_cases": "[]"}
    return lcb("7", metadata='{"func_name": "twice"}', **changes)


def sum_problem(key: str = "sum-1") -> Problem:
    asked = [Message(role="system", content="Be brief."), Message(role="user", content="2 + 2?")]
    info = {"answer": 4}
    return Problem(id=key, source="sums", domain="math", messages=asked, verifier="integer", verification_info=info)


def sample(problem: Problem, index: int = 0, verdict: Verdict = Verdict.CORRECT, **changes: Any) -> JudgedSample:
    fields: dict[str, Any] = {"key": f"{problem.source}-{problem.id}-{index}", "task": problem.source, "index": index}
    fields |= {"problem_id": problem.id, "seed": 5, "finish_reason": "stop", "verdict": verdict}
    fields |= {"text": f"<think>Add.</think>{FENCED}", "reasoning": "Add.", "answer": FENCED}
    fields |= {"prompt_tokens": 10, "reasoning_tokens": 3, "answer_tokens": 4, "template_sha256": "f" * 64}
    fields |= {"sampling": {"max_new_tokens": 64, "temperature": 0.6, "top_p": 0.95, "top_k": 0, "n": 2}}
    fields |= {"teacher": {"name": "rl", "revision": "abc"}}
    return JudgedSample.model_validate(fields | changes)


def write_run(
    folder: Path, asked: Sequence[Problem], judged: Mapping[str, Sequence[JudgedSample]], **changes: Any
) -> Path:
    write_rows(folder / "samples/problems.jsonl", asked)
    for model, rows in judged.items():
        write_rows(folder / f"samples/judged/{model}.jsonl", rows)
    provenance: dict[str, Any] = {"status": "complete", "started": "2025-03-01T12:00:00Z", "seconds": 90.0}
    provenance |= {"inputs": {}, "wandb_run_id": "0", "recipe": {"stage": "eval", "name": "test", "seed": 3}}
    provenance |= {"git": {"commit": "c" * 40, "dirty": False}, "versions": {"python": "3.11.7", "trl": None}}
    (folder / "provenance.json").write_text(json.dumps(provenance | changes))
    return folder


@pytest.fixture
def run(tmp_path) -> Path:
    """Two LiveCodeBench problems, not in the order of their ids as text, and a sum; two samples each."""
    nine, ten, four = lcb("9"), lcb("10", difficulty="hard", contest_date="2024-09-01T00:00:00"), sum_problem()
    wrong = {"detail": "test 3: line 1: 4 is not 3"}
    rows = [
        sample(nine, 1, Verdict.WRONG_ANSWER, **wrong),  # rows come in any order
        sample(nine, 0),
        sample(ten, 0, Verdict.NO_ANSWER, text="No.", answer="No.", reasoning=None, reasoning_tokens=0),
        sample(ten, 1, Verdict.TRUNCATED, finish_reason="length"),
        sample(four, 0, answer="4"),
        sample(four, 1, answer="4"),
    ]
    return write_run(tmp_path / "run", [nine, ten, four], {"rl": rows})


def export(run: Path, form: str, *options: str) -> dict[str, str]:
    """The files that the command wrote, by name."""
    out = run.parent / f"out-{form}"
    assert main([str(run), "--format", form, "--out", str(out), *options]) == 0
    return {str(path.relative_to(out)): path.read_text() for path in sorted(out.rglob("*.json*"))}


def test_livecodebench_files_hold_what_the_official_ones_do(run):
    files = {name: json.loads(text) for name, text in export(run, "livecodebench").items()}
    assert list(files) == [f"rl/{LCB}.json", f"rl/{LCB}_eval.json", f"rl/{LCB}_eval_all.json"]
    generations, (metrics, results, metadata), graded = files.values()
    assert [one["question_id"] for one in generations] == ["10", "9"], "sorted as text"
    ten, nine = graded
    assert nine == {
        "question_title": "Sum",
        "question_content": "Add two numbers.",
        "platform": "atcoder",
        "question_id": "9",
        "contest_id": "abc001",
        "contest_date": "2024-08-31T10:30:00",
        "starter_code": "",
        "difficulty": "easy",
        "output_list": [f"<think>Add.</think>{FENCED}"] * 2,
        "code_list": [PROGRAM + "\n"] * 2,
        "graded_list": [True, False],
        "pass@1": 0.5,
        "metadata": metadata[1],
    }
    assert ten["code_list"] == ["", ""], "a program in an answer that was cut off was not what was judged"
    assert (ten["graded_list"], ten["pass@1"]) == ([False, False], 0.0)
    assert [{key: one[key] for key in generations[0]} for one in graded] == generations
    assert results == {"0": [[-4], [-4]], "1": [[True, True, True], [True, True, -2]]}
    assert metrics == {"pass@1": 0.25, "detail": {"pass@1": {"0": 0.0, "1": 0.5}}}
    wrong = {"error_code": -2, "error_message": "test 3: line 1: 4 is not 3", "verdict": "WRONG_ANSWER"}
    assert [json.loads(one) for one in metadata[1]] == [{"verdict": "CORRECT"}, wrong]


@pytest.mark.parametrize(
    ("problem", "verdict", "detail", "results"),
    [
        (lcb(), "TIME_LIMIT", "test 2: 9.0 s of wall time", [True, -3]),
        (lcb(), "MEMORY_LIMIT", "test 1: ended", [-4]),
        (lcb(), "OUTPUT_LIMIT", "", [-4]),
        (lcb(), "COMPILE_ERROR", "test 3: is no name", [-4]),  # the compiler's words, no test
        (called(), "CORRECT", "", [True]),
        (called(), "WRONG_ANSWER", "test 1: 3 is not 2", [False]),
        (called(), "RUNTIME_ERROR", "test 1: KeyError", [-4]),
        (called(), "TRUNCATED", "", [-4]),
    ],
)
def test_results_are_in_the_official_codes(problem, verdict, detail, results):
    assert results_of(problem, sample(problem, verdict=Verdict(verdict), detail=detail)) == results


def test_pass_at_k_only_where_every_problem_has_k_samples(tmp_path):
    one, two = lcb("a"), lcb("b")
    rows = [
        sample(each, i, Verdict.CORRECT if i < 2 else Verdict.WRONG_ANSWER) for each in (one, two) for i in range(5)
    ]
    even = export(write_run(tmp_path / "run", [one, two], {"rl": rows}), "livecodebench")
    metrics = json.loads(even["rl/Scenario.codegeneration_5_0.6_eval.json"])[0]
    assert metrics.pop("detail").keys() == metrics.keys()
    assert metrics == pytest.approx({"pass@1": 0.4, "pass@5": 1.0})
    fewer = write_run(tmp_path / "run", [one, two], {"rl": rows[:-1]})
    uneven = export(fewer, "livecodebench", "--allow-incomplete")
    assert json.loads(uneven["rl/Scenario.codegeneration_5_0.6_eval.json"])[0].keys() == {"pass@1", "detail"}


def test_contest_times_are_those_that_compute_scores_can_compare(tmp_path):
    zoned, day = lcb("a", contest_date="2024-08-31T23:30:00+09:00"), lcb("b", contest_date="2024-08-31")
    run = write_run(tmp_path / "run", [zoned, day], {"rl": [sample(zoned), sample(day)]})
    graded = json.loads(export(run, "livecodebench")["rl/Scenario.codegeneration_1_0.6_eval_all.json"])
    assert [one["contest_date"] for one in graded] == ["2024-08-31T23:30:00", "2024-08-31T00:00:00"]


def test_generated_programs_are_found_by_their_familys_rule(tmp_path):
    (problem,) = problems("code", "test", 1)
    run = write_run(tmp_path / "run", [problem], {"rl": [sample(problem, answer=PROGRAM, text=PROGRAM)]})
    graded = json.loads(export(run, "livecodebench")["rl/Scenario.codegeneration_1_0.6_eval_all.json"])
    assert graded[0]["code_list"] == [PROGRAM], "the whole answer, without a fence"
    assert graded[0]["graded_list"] == [True]


def test_extraction_is_the_tasks(tmp_path):
    asked = lcb()
    run = write_run(tmp_path / "run", [asked], {"rl": [sample(asked, answer=PROGRAM)]})
    with pytest.raises(InputError, match=r"abc001_a: sample 0: .*--extraction.*none by strict"):
        export(run, "livecodebench")
    assert PROGRAM in export(run, "livecodebench", "--extraction", "lcb-base")["rl/Scenario.codegeneration_1_0.6.json"]
    with pytest.raises(InputError, match="extraction policy"):
        export(run, "lm-eval", "--extraction", "best")


def test_other_problems_are_left_out_and_said(run, capsys):
    export(run, "livecodebench")
    assert "rl, task sums: 1 problems that are not of LiveCodeBench's schema left out" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"problems in LiveCodeBench's schema; found sums"):
        export(run, "livecodebench", "--task", "sums")


def test_one_question_in_two_tasks_needs_a_choice(tmp_path):
    cot, plain = lcb(source="cot"), lcb(source="plain")
    run = write_run(tmp_path / "run", [cot, plain], {"rl": [sample(cot), sample(plain, verdict=Verdict.TIME_LIMIT)]})
    with pytest.raises(InputError, match=r"one task with that question \(--task chooses\); found it in cot and plain"):
        export(run, "livecodebench")
    graded = json.loads(
        export(run, "livecodebench", "--task", "plain")["rl/Scenario.codegeneration_1_0.6_eval_all.json"]
    )
    assert graded[0]["graded_list"] == [False]


def test_a_record_that_is_none_is_named(tmp_path):
    asked = lcb().model_copy(update={"difficulty": None})
    run = write_run(tmp_path / "run", [asked], {"rl": [sample(asked)]})
    with pytest.raises(InputError, match="abc001_a: difficulty: expected a LiveCodeBench record"):
        export(run, "livecodebench")


# -- lm-eval -------------------------------------------------------------------------------------------------------


def test_lm_eval_results(run):
    files = export(run, "lm-eval")
    date = "2025-03-01T12-00-00"
    assert list(files) == [f"rl/results_{date}.json", f"rl/samples_lcb_{date}.jsonl", f"rl/samples_sums_{date}.jsonl"]
    results = json.loads(files[f"rl/results_{date}.json"])
    found = results["results"]["lcb"]
    assert (found["name"], found["alias"], found["sample_len"]) == ("lcb", "lcb", 2)
    assert (found["pass@1,none"], found["pass@1_stderr,none"]) == (0.25, 0.25), "of 0.5 and 0"
    assert (found["truncated,none"], found["truncated_stderr,none"]) == (0.25, 0.25), "of 0 and 0.5"
    assert (found["tokens,none"], found["tokens_stderr,none"]) == pytest.approx((6.25, 0.75)), "of 7, 7; 4, 7"
    assert results["results"]["sums"]["pass@1_stderr,none"] == "N/A", "of one problem"
    assert results["n-samples"]["lcb"] == {"original": 2, "effective": 2}
    assert results["configs"]["lcb"]["repeats"] == 2
    assert results["group_subtasks"] == {}
    assert results["higher_is_better"]["sums"]["pass@1"] is True
    assert results["config"]["model"] == results["model_name"] == "rl"
    assert (results["date"], results["git_hash"]) == (1740830400.0, "c" * 40)
    assert results["versions"]["lcb"] != results["versions"]["sums"]


def test_lm_eval_samples(run):
    files = export(run, "lm-eval")
    (line,) = files["rl/samples_sums_2025-03-01T12-00-00.jsonl"].splitlines()
    row = json.loads(line)
    assert (row["doc_id"], row["target"], row["filter"], row["pass@1"]) == (0, "4", "none", 1.0)
    assert row["filtered_resps"] == [["4", "4"]]
    assert row["resps"] == [[f"<think>Add.</think>{FENCED}"] * 2]
    asked = json.loads(row["arguments"]["gen_args_0"]["arg_0"])
    assert asked == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    assert row["target_hash"] == hashlib.sha256(b"4").hexdigest()
    first, second = map(json.loads, files["rl/samples_lcb_2025-03-01T12-00-00.jsonl"].splitlines())
    assert first["verdicts"] == ["CORRECT", "WRONG_ANSWER"]
    assert [second["doc"][key] for key in ("id", "difficulty", "date")] == ["10", "hard", "2024-09-01T00:00:00"]
    hashes = "".join(each[key] for each in (first, second) for key in ("doc_hash", "prompt_hash", "target_hash"))
    written = json.loads(files["rl/results_2025-03-01T12-00-00.json"])["task_hashes"]["lcb"]
    assert written == hashlib.sha256(hashes.encode()).hexdigest()


# -- inspect -------------------------------------------------------------------------------------------------------


def test_inspect_logs(run):
    files = export(run, "inspect")
    time = "2025-03-01T12-00-00+00-00"
    assert [name.rsplit("_", 1)[0] for name in files] == [f"{time}_lcb_rl", f"{time}_sums_rl"]
    log = json.loads(next(iter(files.values())))
    assert (log["version"], log["status"], log["eval"]["task"], log["eval"]["model"]) == (
        2,
        "success",
        "lcb",
        "trivium/rl",
    )
    assert log["eval"]["config"]["epochs"] == 2
    assert log["eval"]["model_generate_config"] == {"max_tokens": 64, "temperature": 0.6, "top_p": 0.95}
    assert log["eval"]["packages"] == {"python": "3.11.7"}
    metrics = log["results"]["scores"][0]["metrics"]
    assert (metrics["accuracy"]["value"], metrics["stderr"]["value"]) == (0.25, 0.25)
    assert [(one["id"], one["epoch"]) for one in log["samples"]] == [("9", 1), ("9", 2), ("10", 1), ("10", 2)]
    assert [one["scores"]["verdict"]["value"] for one in log["samples"]] == ["C", "I", "I", "I"]
    assert [one["output"]["choices"][0]["stop_reason"] for one in log["samples"]] == ["stop"] * 3 + ["max_tokens"]
    right, _, silent, _ = log["samples"]
    thought, text = right["messages"][-1]["content"]
    assert (thought, text) == ({"type": "reasoning", "reasoning": "Add."}, {"type": "text", "text": FENCED})
    assert silent["messages"][-1]["content"] == "No.", "no thought: plain text"
    assert (right["metadata"]["verdict"], right["metadata"]["reasoning_tokens"]) == ("CORRECT", 3)
    usage = {"input_tokens": 40, "output_tokens": 25, "total_tokens": 65, "reasoning_tokens": 9}
    assert log["stats"]["model_usage"] == {"trivium/rl": usage}
    assert log["stats"]["completed_at"] == "2025-03-01T12:01:30+00:00"
    assert log["reductions"][0]["samples"] == [{"value": 0.5, "sample_id": "9"}, {"value": 0.0, "sample_id": "10"}]
    (sums,) = [json.loads(text) for name, text in files.items() if "_sums_" in name]
    assert sums["samples"][0]["target"] == "4"
    assert sums["results"]["scores"][0]["metrics"]["stderr"]["value"] == 0.0


def test_an_infra_error_is_inspects_error_and_no_score(tmp_path):
    asked = lcb()
    rows = [sample(asked), sample(asked, 1, Verdict.INFRA_ERROR, detail="no sandbox")]
    (text,) = export(write_run(tmp_path / "run", [asked], {"rl": rows}), "inspect").values()
    log = json.loads(text)
    assert log["samples"][1]["error"]["message"] == "INFRA_ERROR: no sandbox"
    assert "scores" not in log["samples"][1]
    assert "error" not in log["samples"][0]
    assert log["results"]["total_samples"] == 2
    assert log["results"]["completed_samples"] == 1
    assert log["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 1.0


# -- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["livecodebench", "lm-eval"])
@pytest.mark.parametrize("verdict", [Verdict.INFRA_ERROR, Verdict.INVALID_PROBLEM])
def test_what_is_neither_right_nor_wrong_is_refused_or_left_out(tmp_path, capsys, form, verdict):
    asked, lost = lcb("a"), lcb("b")
    rows = [sample(asked), sample(asked, 1, verdict), sample(lost, 0, verdict), sample(lost, 1, verdict)]
    run = write_run(tmp_path / "run", [asked, lost], {"rl": rows})
    with pytest.raises(InputError, match=rf"rl, task lcb: .*--allow-incomplete.*3 samples .*\({verdict}\)"):
        export(run, form)
    assert not (tmp_path / f"out-{form}").exists()
    files = export(run, form, "--allow-incomplete")
    assert "rl, task lcb: 3 samples without a judgement of the model left out" in capsys.readouterr().out
    if form == "lm-eval":
        results = json.loads(files["rl/results_2025-03-01T12-00-00.json"])
        assert results["results"]["lcb"]["pass@1,none"] == 1.0
        assert results["configs"]["lcb"]["metadata"]["samples_left_out"] == 3
    else:
        (graded,) = json.loads(files["rl/Scenario.codegeneration_1_0.6_eval_all.json"])
        assert (graded["question_id"], graded["graded_list"]) == ("a", [True])


@pytest.mark.parametrize("form", FORMATS)
def test_a_run_of_which_nothing_counts(tmp_path, form):
    asked = lcb()
    run = write_run(tmp_path / "run", [asked], {"rl": [sample(asked, 0, Verdict.INFRA_ERROR)]})
    if form == "inspect":
        log = json.loads(next(iter(export(run, form).values())))
        assert log["results"]["completed_samples"] == 0
        assert log["reductions"][0]["samples"] == []
    else:
        with pytest.raises(InputError, match="a sample with a judgement of the model; found none"):
            export(run, form, "--allow-incomplete")


def test_missing_samples_are_refused(tmp_path):
    one, two = lcb("a"), lcb("b")
    run = write_run(tmp_path / "run", [one, two], {"rl": [sample(one), sample(one, 1), sample(two)]})
    with pytest.raises(InputError, match=r"1 problems with fewer samples than others \(2\)"):
        export(run, "inspect")
    graded = json.loads(export(run, "livecodebench", "--allow-incomplete")[f"rl/{LCB}_eval_all.json"])
    assert [one["graded_list"] for one in graded] == [[True, True], [True]]


def test_problems_without_answers_are_a_gap_only_in_a_run_that_goes_on(tmp_path, capsys):
    one, two = lcb("a"), lcb("b")
    forced = sample(one, condition=Condition(mechanism="forced", tokens=16))
    judged = {"rl": [sample(one)], "rl.forced-16": [forced]}
    done = write_run(tmp_path / "done", [one, two], judged)
    assert "rl/Scenario.codegeneration_1_0.6.json" in export(done, "livecodebench")
    going = write_run(tmp_path / "going", [one, two], judged, status="running")
    with pytest.raises(InputError, match=r"rl, task lcb: .*1 problems not answered yet"):
        export(going, "livecodebench")
    export(going, "inspect", "--model", "rl.forced-16")  # a budget is tried on some of the problems
    assert "the run is not complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "sft"], "model: expected one of rl; found sft"),
        (["--task", "gsm8k"], "task: expected one of lcb, sums; found gsm8k"),
        (["--window", "2030-01-01..2030-02-01"], "answers to problems dated 2030-01-01 to 2030-02-01; found none"),
        (["--window", "2030-01-01:2030-02-01"], "answers to problems dated 2030-01-01 to 2030-02-01; found none"),
        (["--window", "2024-09-01:2024-08-01"], "expected START..END"),
        (["--window", "soon"], "expected START..END"),
    ],
)
def test_options_that_fit_nothing(run, options, message):
    with pytest.raises(InputError, match=message):
        export(run, "lm-eval", *options)


def test_a_folder_that_is_no_eval_run(tmp_path, run):
    with pytest.raises(InputError, match=r"the folder of an eval run \(with provenance.json\); found none"):
        read(tmp_path)
    with pytest.raises(InputError, match="stage: expected a run of the eval stage; found 'sft'"):
        read(write_run(tmp_path / "sft", [], {}, recipe={"stage": "sft"}))
    with pytest.raises(InputError, match="started: expected a time with its zone"):
        read(write_run(tmp_path / "zone", [], {}, started="2025-03-01T12:00:00"))
    with pytest.raises(InputError, match="the provenance of a run; found KeyError: 'name'"):
        read(write_run(tmp_path / "name", [], {}, recipe={"stage": "eval"}))
    with pytest.raises(InputError, match="judged answers to problems; found none"):
        read(write_run(tmp_path / "empty", [lcb()], {}))
    (run / "samples/judged/rl.jsonl").write_text('{"key": ')
    with pytest.raises(InputError, match=r"rl.jsonl: line 1"):
        read(run)


def test_rows_that_contradict(tmp_path):
    asked = lcb()
    unknown = write_run(tmp_path / "unknown", [asked], {"rl": [sample(lcb("other"))]})
    with pytest.raises(InputError, match=r"line 1: expected an answer to one of .*problem 'other'"):
        read(unknown)
    twice = write_run(tmp_path / "twice", [asked], {"rl": [sample(asked), sample(asked, key="changed")]})
    with pytest.raises(InputError, match="line 2, abc001_a, index 0: expected one row a sample"):
        read(twice)
    anew = [sample(asked, verdict=Verdict.INFRA_ERROR), sample(asked)]  # judged again under the same key
    assert read(write_run(tmp_path / "anew", [asked], {"rl": anew})).tasks[0].samples == anew[1:]


def test_rows_without_a_task_belong_to_the_only_one_of_their_problem(tmp_path):
    asked = lcb()
    run = write_run(tmp_path / "old", [asked, sum_problem()], {"rl": [sample(asked, task="")]})
    assert [one.task for one in read(run).tasks] == ["lcb"]
    both = write_run(tmp_path / "both", [asked, lcb(source="cot")], {"rl": [sample(asked, task="")]})
    with pytest.raises(InputError, match="task ''"):
        read(both)


def test_nothing_is_written_over_a_file(run, tmp_path):
    (tmp_path / "taken").write_text("here")
    with pytest.raises(InputError, match="a folder for the files"):
        main([str(run), "--format", "inspect", "--out", str(tmp_path / "taken")])


# -- all formats ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "ids"),
    [
        ("2024-08-01:2024-08-31", ["9"]),  # at 10:30 on the last day, which counts
        ("2024-09-01:2024-09-01", ["10"]),
        ("deepseek-v3", ["9", "10"]),
    ],
)
def test_windows_select_by_day_and_undated_problems_are_in_none(run, window, ids):
    lines = export(run, "lm-eval", "--window", window)["rl/samples_lcb_2025-03-01T12-00-00.jsonl"].splitlines()
    assert [json.loads(line)["doc"]["id"] for line in lines] == ids
    assert not (run.parent / "out-lm-eval/rl/samples_sums_2025-03-01T12-00-00.jsonl").exists()


@pytest.mark.parametrize("form", FORMATS)
def test_exporting_twice_gives_the_same_bytes_whatever_the_order_of_rows(run, form):
    first = export(run, form)
    path = run / "samples/judged/rl.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    assert export(run, form) == first


def test_models_have_files_of_their_own_unless_one_is_chosen(tmp_path):
    asked = lcb()
    judged = {"rl": [sample(asked)], "rl_eval": [sample(asked, verdict=Verdict.TIME_LIMIT)]}
    run = write_run(tmp_path / "run", [asked], judged)
    assert len(export(run, "livecodebench")) == 6
    out = tmp_path / "one"
    main([str(run), "--format", "livecodebench", "--out", str(out), "--model", "rl"])
    assert [path.name for path in out.iterdir()] == ["rl"]


def test_the_command_line(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["eval", "export", str(run), "--format", "lm-eval", "--out", str(tmp_path / "out")]
    )
    assert eval_main() == 0
    assert str(tmp_path / "out/rl/results_2025-03-01T12-00-00.json") in capsys.readouterr().out.splitlines()
    monkeypatch.setattr(sys, "argv", ["eval", "export", str(tmp_path), "--format", "lm-eval", "--out", str(tmp_path)])
    assert eval_main() == 2
    assert capsys.readouterr().err.startswith(f"eval export: {tmp_path}: expected")


VERDICTS = st.sampled_from([Verdict.CORRECT, Verdict.WRONG_ANSWER, Verdict.NO_ANSWER, Verdict.INFRA_ERROR])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(VERDICTS, min_size=1, max_size=4), min_size=1, max_size=5))
def test_all_formats_tell_the_same_accuracy(verdicts):
    """The mean over problems of the share of right ones among the samples that count."""
    asked = [lcb(str(number)) for number in range(len(verdicts))]
    answers = tuple(
        Answered(problem, tuple(sample(problem, i, verdict) for i, verdict in enumerate(row)))
        for problem, row in zip(asked, verdicts, strict=True)
    )
    evaluation = Evaluation(RECORD, (TaskAnswers("rl", "lcb", answers),))
    shares = [
        sum(verdict is Verdict.CORRECT for verdict in row if verdict.counts) / count
        for row in verdicts
        if (count := sum(verdict.counts for verdict in row))
    ]
    (log,) = map(json.loads, make_files(evaluation, "inspect").values())
    metrics = log["results"]["scores"][0]["metrics"]
    if not shares:
        assert metrics["accuracy"]["value"] == 0.0
        return
    mean = sum(shares) / len(shares)
    assert metrics["accuracy"]["value"] == pytest.approx(mean)
    official = [json.loads(text) for name, text in make_files(evaluation, "livecodebench").items() if "_eval" in name]
    assert official[0][0]["pass@1"] == pytest.approx(mean)
    assert math.fsum(one["pass@1"] for one in official[1]) / len(official[1]) == pytest.approx(mean)
    results = json.loads(next(text for name, text in make_files(evaluation, "lm-eval").items() if "results" in name))
    assert results["results"]["lcb"]["pass@1,none"] == pytest.approx(mean)
    error = results["results"]["lcb"]["pass@1_stderr,none"]
    assert metrics["stderr"]["value"] == pytest.approx(0.0 if error == "N/A" else error)
