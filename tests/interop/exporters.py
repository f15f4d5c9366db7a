"""What `python -m eval export` writes, read back by each format's own tool, in that tool's own environment.

    python tests/interop/exporters.py LIVECODEBENCH LM_EVAL INSPECT

Each argument is the interpreter of an environment (`make interop` makes them): the official LiveCodeBench evaluator as
`nvidia-livecodebench` packages it, lm-eval, inspect_ai. The run is made up: problems of a year, six answers to each by
programs whose fate is known, so that the official evaluator can also judge them anew. Prints a table; exit status 1
where a tool finds other numbers than ours.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from eval.metrics import pass_at_k
from eval.tasks.livecodebench import LiveCodeBenchRecord, Window, to_problem
from recipes.rows import JudgedSample, Problem, Verdict, write_rows

SAMPLES = 6  # of a problem: pass@5 can be had too
REJUDGED = 8  # problems whose programs the official evaluator runs again
WINDOWS = ("2024-07-01..2024-09-30", "2024-08-01..2024-11-30", "2024-08-01..2025-01-31")
CLEAN, LOST = "clean", "lost"  # two models; of the second, the machine lost a sample
STARTED = "2025-03-01T12:00:00Z"

# Programs for "the sum of two numbers" whose first test is 1 + 2, and what becomes of them on its three tests. The
# function is not called add: the official prelude imports operator's, and an empty program would pass.
STDIN = {
    "print(sum(map(int, input().split())))": (Verdict.CORRECT, ""),
    "input()\nprint(3)": (Verdict.WRONG_ANSWER, "test 2: line 1: 3 is not 30"),
    "print(int(input().split()[9]))": (Verdict.RUNTIME_ERROR, "test 1: IndexError: list index out of range"),
    "print(": (Verdict.COMPILE_ERROR, "SyntaxError: '(' was never closed"),
}
CALLED = {
    "class Solution:\n    def add_up(self, a, b):\n        return a + b": (Verdict.CORRECT, ""),
    "class Solution:\n    def add_up(self, a, b):\n        return 3": (Verdict.WRONG_ANSWER, "test 2: 3 is not 30"),
    "class Solution:\n    def add_up(self, a, b):\n        return [][a]": (Verdict.RUNTIME_ERROR, "test 1: IndexError"),
}
NO_PROGRAM = {"I cannot say.": Verdict.NO_ANSWER, "```python\nprint(": Verdict.TRUNCATED}


def make_problems(count: int = 60) -> list[Problem]:
    """Every sixth day from June 2024, stdin and call-based in turn, half of them held at 10:30, and two contests on
    the last day of a window: one at midnight, one later."""
    held = [datetime(2024, 6, 1) + timedelta(days=6 * i, minutes=630 * (i // 2 % 2)) for i in range(count - 3)]
    held += [datetime(2024, 11, 30), datetime(2024, 11, 30, 10, 30), datetime(2025, 1, 31)]
    made = []
    for number, time in enumerate(held):
        called = number % 2 == 1
        pairs = ((1, 2), (10, 20), (5, 5))
        tests = [
            {"input": f"{a}\n{b}" if called else f"{a} {b}\n", "output": str(a + b), "testtype": kind}
            for kind in ("functional" if called else "stdin",)
            for a, b in pairs
        ]
        record = LiveCodeBenchRecord(
            question_title=f"Sum {number}",
            question_content="Add two numbers.",
            platform="leetcode" if called else "atcoder",
            question_id=f"{3000 + 97 * number % 1000}" if called else f"abc{number}_a",
            contest_id=f"weekly-{number}",
            contest_date=time.isoformat(),
            starter_code="class Solution:\n    def add_up(self, a, b):\n" if called else "",
            difficulty=("easy", "medium", "hard")[number % 3],
            public_test_cases=json.dumps(tests[:1]),
            private_test_cases=json.dumps(tests[1:]),
            metadata=json.dumps({"func_name": "add_up"} if called else {}),
        )
        made.append(to_problem(record))
    return made


def make_samples(model: str, problems: Sequence[Problem], *, lose: bool) -> list[JudgedSample]:
    """Six samples each; more often right where the problem is easy."""
    draw = random.Random(model)
    chance = {"easy": 0.8, "medium": 0.5, "hard": 0.2}
    rows: list[JudgedSample] = []
    for problem in problems:
        programs = CALLED if "entry" in problem.verification_info else STDIN
        right = next(iter(programs))
        others = [*list(programs)[1:], *NO_PROGRAM]
        for index in range(SAMPLES):
            text = right if draw.random() < chance[str(problem.difficulty)] else draw.choice(others)
            verdict, detail = programs[text] if text in programs else (NO_PROGRAM[text], "")
            if lose and not rows:
                verdict, detail = Verdict.INFRA_ERROR, "no sandbox"
            answer = f"Here it is.\n```python\n{text}\n```" if text in programs else text
            thought = None if index % 2 else "Two numbers: add them."
            rows.append(
                JudgedSample(
                    key=f"{model}-{problem.id}-{index}",
                    task=problem.source,
                    problem_id=problem.id,
                    index=index,
                    seed=0,
                    text=answer if thought is None else f"<think>{thought}</think>{answer}",
                    reasoning=thought,
                    answer=answer,
                    finish_reason="length" if verdict is Verdict.TRUNCATED else "stop",
                    prompt_tokens=20,
                    reasoning_tokens=0 if thought is None else 7,
                    answer_tokens=draw.randint(5, 90),
                    sampling={"max_new_tokens": 256, "temperature": 0.6, "top_p": 0.95, "top_k": 0, "n": SAMPLES},
                    teacher={"name": model, "revision": "made up"},
                    template_sha256="0" * 64,
                    verdict=verdict,
                    detail=detail,
                )
            )
    return rows


def write_run(folder: Path, problems: Sequence[Problem], samples: Mapping[str, Sequence[JudgedSample]]) -> None:
    write_rows(folder / "samples" / "problems.jsonl", problems)
    for model, rows in samples.items():
        write_rows(folder / "samples" / "judged" / f"{model}.jsonl", rows)
    provenance = {"status": "complete", "started": STARTED, "seconds": 60.0, "inputs": {}, "wandb_run_id": "0"}
    provenance |= {"recipe": {"stage": "eval", "name": "interop", "seed": 0}, "git": {"commit": None, "dirty": None}}
    (folder / "provenance.json").write_text(json.dumps(provenance), encoding="utf-8")


def export(run: Path, form: str, out: Path, *options: str) -> int:
    """The exit status of the command."""
    command = [sys.executable, "-m", "eval", "export", run, "--format", form, "--out", out, *options]
    return subprocess.run(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE).returncode


def read_with(python: Path, program: str, *arguments: Path) -> Any:
    """What a program prints as JSON on its last line, run by the tool's own interpreter."""
    done = subprocess.run([python, "-c", program, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


@dataclass
class Table:
    """Rows of what was compared; `agree` where both sides are the same in all."""

    agree: bool = True
    lines: list[str] = field(default_factory=lambda: ["| reader | what | theirs | ours |", "| --- | --- | --- | --- |"])

    def compare(self, reader: str, what: str, theirs: Any, ours: Any) -> None:
        same = theirs == ours
        self.agree = self.agree and same
        self.lines.append(f"| {reader} | {what} | {_short(theirs)} | {_short(ours)} |{'' if same else ' DIFFERENT'}")


def _short(value: Any) -> str:
    text = f"{value:.6f}" if isinstance(value, float) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


@dataclass(frozen=True)
class Counts:
    """Our own numbers, from problems and verdicts alone. They are added up in the order in which the official program
    adds, by question_id: in another the last bit of a sum can differ."""

    right: Mapping[str, int]  # of SAMPLES, by problem

    def pass_at(self, problems: Sequence[Problem], k: int) -> float:
        return float(np.mean([pass_at_k(SAMPLES, self.right[problem.id], k) for problem in problems]))

    def scores(self, problems: Sequence[Problem]) -> dict[str, float]:
        """What compute_scores prints that can be had from so many samples, by its names."""
        found = {}
        groups = {"": list(problems)} | {
            f"{level} ": [problem for problem in problems if problem.difficulty == level.lower()]
            for level in ("Easy", "Medium", "Hard")
        }
        for group, some in groups.items():
            for k in (1, 5):
                found[f"{group}Pass@{k} ="] = self.pass_at(some, k)
            found[f"{group}Pass@1:"] = sum(self.right[problem.id] / SAMPLES for problem in some) / len(some)
        return found


# -- LiveCodeBench -------------------------------------------------------------------------------------------------

JUDGE_AGAIN = """
import contextlib, io, json, sys
from livecodebench.evaluation import codegen_metrics, extract_instance_results
from livecodebench.evaluation.pass_k_utils import compute_metrics_from_results
name, count = sys.argv[1], int(sys.argv[3])
metrics, results, metadata = json.load(open(name + "_eval.json"))
graded = json.load(open(name + "_eval_all.json"))
tests = json.load(open(sys.argv[2]))
if __name__ == "__main__":
    recomputed = compute_metrics_from_results({int(key): value for key, value in results.items()}, k_list=[1, 5])
    details = {k: {str(i): v for i, v in each.items()} for k, each in recomputed.pop("detail").items()}
    grades = extract_instance_results({int(key): value for key, value in results.items()})
    places = range(0, len(graded), max(1, len(graded) // count))[:count]
    some = [graded[place] for place in places]
    with contextlib.redirect_stdout(io.StringIO()):
        again = codegen_metrics(
            [{"input_output": json.dumps(tests[one["question_id"]])} for one in some],
            [one["code_list"] for one in some], k_list=[1], num_process_evaluate=2,
        )[1]
    print(json.dumps({
        "metrics": {**recomputed, "detail": details} == metrics,
        "grades": grades == [[bool(grade) for grade in one["graded_list"]] for one in graded],
        "again": [again[i] for i in range(count)],
        "exported": [results[str(place)] for place in places],
    }))
"""


def compute_scores(python: Path, file: Path, *dates: str) -> tuple[int, dict[str, float]]:
    """The number of problems and the scores that the official program prints."""
    command = [python, "-m", "livecodebench.evaluation.compute_scores", "--eval_all_file", file, *dates]
    done = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True)
    count, *lines = done.stdout.splitlines()
    found = (re.fullmatch(r"((?:\w+ )?Pass@\d+(?: =|:)) +(\S+)", line) for line in lines)
    return int(count), {match[1]: float(match[2]) for match in found if match}


def check_livecodebench(python: Path, run: Path, folder: Path, problems: Sequence[Problem], ours: Counts) -> Table:
    table, reader = Table(), "compute_scores"
    name = f"{CLEAN}/Scenario.codegeneration_{SAMPLES}_0.6"
    assert export(run, "livecodebench", folder / "all", "--model", CLEAN) == 0
    whole = folder / "all" / f"{name}_eval_all.json"
    for text in WINDOWS:
        window = Window.of(text)
        asked = window.select(problems)
        own = ours.scores(asked)
        out = folder / text
        assert export(run, "livecodebench", out, "--model", CLEAN, "--window", text.replace("..", ":")) == 0
        count, scores = compute_scores(python, out / f"{name}_eval_all.json")
        table.compare(reader, f"{text}: problems", count, len(asked))
        table.compare(reader, f"{text}: pass@1", scores["Pass@1 ="], own["Pass@1 ="])
        table.compare(reader, f"{text}: all {len(own)} scores", {key: scores[key] for key in own}, own)
        # Its own dates end at midnight before the last day's contests: ours without those is what it must find.
        midnight = datetime.combine(window.end, datetime.min.time())
        kept = [problem for problem in asked if datetime.fromisoformat(str(problem.date)) <= midnight]
        dates = ("--start_date", window.start.isoformat(), "--end_date", window.end.isoformat())
        count, scores = compute_scores(python, whole, *dates)
        what = f"{text} by its own dates, {len(asked) - len(kept)} of the last day lost: pass@1"
        table.compare(reader, what, (count, scores["Pass@1 ="]), (len(kept), ours.pass_at(kept, 1)))

    tests = {}
    for problem in problems:
        info = problem.verification_info
        inputs, outputs = ([case[side] for case in info["test_cases"]] for side in ("input", "output"))
        tests[problem.id] = {"inputs": inputs, "outputs": outputs, "fn_name": info.get("entry")}
    (folder / "tests.json").write_text(json.dumps(tests), encoding="utf-8")
    judge = folder / "judge_again.py"  # a file: the evaluator's processes import it
    judge.write_text(JUDGE_AGAIN, encoding="utf-8")
    command = [python, judge, folder / "all" / name, folder / "tests.json", str(REJUDGED)]
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    table.compare(
        "compute_metrics_from_results", "_eval.json: its metrics are those of its results", found["metrics"], True
    )
    table.compare("extract_instance_results", "_eval.json: graded_list is that of its results", found["grades"], True)
    what = f"{REJUDGED * SAMPLES} programs judged anew: results test by test"
    table.compare("codegen_metrics", what, found["again"], found["exported"])
    table.compare("exporter", "a lost sample: exit status", export(run, "livecodebench", folder / "lost"), 2)
    return table


# -- lm-eval -------------------------------------------------------------------------------------------------------

READ_LM_EVAL = """
import json, sys
from pathlib import Path
from datasets import load_dataset
from lm_eval.api.metrics import mean, mean_stderr
from lm_eval.utils import (get_file_datetime, get_file_task_name, get_latest_filename, get_results_filenames,
                           get_sample_results_filenames, handle_non_serializable, hash_string, make_table)
folder = Path(sys.argv[1])
files = [str(path) for path in folder.rglob("*.json*")]
latest = get_latest_filename(get_results_filenames(files))
(samples,) = get_sample_results_filenames(files)
results = json.loads(Path(latest).read_text(encoding="utf-8"))
row = load_dataset("json", data_files=latest, split="train", cache_dir=str(folder / "cache"))[0]
lines = list(load_dataset("json", data_files=samples, split="train", cache_dir=str(folder / "cache")))
raw = [json.loads(line) for line in Path(samples).read_text(encoding="utf-8").splitlines()]
task = get_file_task_name(Path(samples).name)
values = [line["pass@1"] for line in lines]
dumped = [json.dumps(each["doc"], indent=2, default=handle_non_serializable, ensure_ascii=False) for each in raw]
hashes = [[hash_string(doc), hash_string(each["arguments"]["gen_args_0"]["arg_0"]), hash_string(each["target"])]
          for doc, each in zip(dumped, raw)]
print(json.dumps({
    "task": task,
    "date": get_file_datetime(Path(samples).name),
    "loaded": row["results"][task]["pass@1,none"],
    "mean": mean(values), "stderr": mean_stderr(values),
    "written": [results["results"][task][key] for key in ("pass@1,none", "pass@1_stderr,none")],
    "table": make_table(results),
    "hashes": hashes == [[each["doc_hash"], each["prompt_hash"], each["target_hash"]] for each in raw],
    "task_hash": results["task_hashes"][task] == hash_string("".join("".join(each) for each in hashes)),
    "resps": [len(line["resps"][0]) for line in lines],
}))
"""


def check_lm_eval(python: Path, run: Path, folder: Path, problems: Sequence[Problem], ours: Counts) -> Table:
    table = Table()
    assert export(run, "lm-eval", folder, "--model", CLEAN) == 0
    found = read_with(python, READ_LM_EVAL, folder)
    own = sum(pass_at_k(SAMPLES, ours.right[problem.id], 1) for problem in problems) / len(problems)
    table.compare(
        "file names", "task and date", [found["task"], found["date"]], [problems[0].source, "2025-03-01T12-00-00"]
    )
    table.compare("load_dataset", "results: pass@1", round(found["loaded"], 12), round(own, 12))
    table.compare("load_dataset", "samples: answers to each", set(found["resps"]), {SAMPLES})
    table.compare("metrics.mean, mean_stderr", "of the samples", [found["mean"], found["stderr"]], found["written"])
    (line,) = (line for line in found["table"].splitlines() if "|pass@1" in line.replace(" ", ""))
    cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
    table.compare(
        "make_table", "pass@1 and its error", [cells[-3], cells[-1]], [f"{own:.4f}", f"{found['stderr']:.4f}"]
    )
    table.compare(
        "hash_string", "documents, prompts, targets, task", [found["hashes"], found["task_hash"]], [True, True]
    )
    table.compare("exporter", "a lost sample: exit status", export(run, "lm-eval", folder / "lost"), 2)
    return table


# -- inspect -------------------------------------------------------------------------------------------------------

READ_INSPECT = """
import json, sys
from inspect_ai.log import list_eval_logs, read_eval_log, read_eval_log_samples, recompute_metrics
found = {}
for info in list_eval_logs(sys.argv[1]):
    log = read_eval_log(info)
    def numbers():
        return {name: metric.value for name, metric in log.results.scores[0].metrics.items()}
    written, reductions = numbers(), {one.sample_id: one.value for one in log.reductions[0].samples}
    completed = log.results.completed_samples
    recompute_metrics(log)
    usage = log.stats.model_usage[log.eval.model]
    kinds = {part.type for sample in log.samples for part in sample.output.message.content if not isinstance(part, str)}
    found[log.eval.model] = {
        "header": [log.version, log.status, log.eval.task, info.task, log.eval.config.epochs],
        "written": written, "recomputed": numbers(),
        "reductions": reductions == {one.sample_id: one.value for one in log.reductions[0].samples},
        "completed": [completed, log.results.completed_samples],
        "right": sum(sample.scores["verdict"].value == "C" for sample in log.samples if sample.scores),
        "thoughts": sum(len(sample.output.message.content) == 2 for sample in log.samples
                        if not isinstance(sample.output.message.content, str)),
        "kinds": sorted(kinds),
        "errors": [sample.error.message for sample in log.samples if sample.error],
        "tokens": [usage.input_tokens, usage.output_tokens, usage.reasoning_tokens],
        "streamed": sum(1 for _ in read_eval_log_samples(info)),
    }
print(json.dumps(found))
"""


def check_inspect(
    python: Path, run: Path, folder: Path, problems: Sequence[Problem], samples: Mapping[str, Sequence[JudgedSample]]
) -> Table:
    table = Table()
    assert export(run, "inspect", folder) == 0
    found = read_with(python, READ_INSPECT, folder)
    table.compare("list_eval_logs", "models", sorted(found), [f"trivium/{name}" for name in (CLEAN, LOST)])
    for name, rows in samples.items():
        theirs = found[f"trivium/{name}"]
        counting = [row for row in rows if row.verdict.counts]
        by_problem: dict[str, list[float]] = {}
        for row in counting:
            by_problem.setdefault(row.problem_id, []).append(float(row.verdict is Verdict.CORRECT))
        means = [float(np.mean(values)) for values in by_problem.values()]
        own = {"accuracy": float(np.mean(means)), "stderr": float(np.std(means, ddof=1) / np.sqrt(len(means)))}
        task = problems[0].source
        table.compare("read_eval_log", f"{name}: header", theirs["header"], [2, "success", task, task, SAMPLES])
        for metric, value in own.items():
            written, recomputed = round(theirs["written"][metric], 12), round(theirs["recomputed"][metric], 12)
            table.compare("read_eval_log", f"{name}: {metric}", written, round(value, 12))
            table.compare("recompute_metrics", f"{name}: {metric}", recomputed, round(value, 12))
        table.compare("recompute_metrics", f"{name}: means of each problem", theirs["reductions"], True)
        table.compare("recompute_metrics", f"{name}: completed samples", theirs["completed"], [len(counting)] * 2)
        right = sum(row.verdict is Verdict.CORRECT for row in counting)
        table.compare("read_eval_log", f"{name}: right samples", theirs["right"], right)
        thoughts = [sum(row.reasoning is not None for row in rows), ["reasoning", "text"]]
        table.compare("read_eval_log", f"{name}: thoughts as parts", [theirs["thoughts"], theirs["kinds"]], thoughts)
        errors = [f"{row.verdict}: {row.detail}" for row in rows if not row.verdict.counts]
        table.compare("read_eval_log", f"{name}: errors", theirs["errors"], errors)
        reasoning = sum(row.reasoning_tokens for row in rows)
        tokens = [sum(row.prompt_tokens for row in rows), reasoning + sum(row.answer_tokens for row in rows), reasoning]
        table.compare("read_eval_log", f"{name}: tokens read, written, thought", theirs["tokens"], tokens)
        table.compare("read_eval_log_samples", f"{name}: samples", theirs["streamed"], len(rows))
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("livecodebench", type=Path, help="interpreter with nvidia-livecodebench, numpy, pandas, tqdm")
    parser.add_argument("lm_eval", type=Path, help="interpreter with lm-eval")
    parser.add_argument("inspect", type=Path, help="interpreter with inspect_ai")
    options = parser.parse_args()
    problems = sorted(make_problems(), key=lambda problem: problem.id)
    shuffled = random.Random(0).sample(problems, len(problems))
    samples = {name: make_samples(name, problems, lose=name == LOST) for name in (CLEAN, LOST)}
    right = {problem.id: 0 for problem in problems}
    for row in samples[CLEAN]:
        right[row.problem_id] += row.verdict is Verdict.CORRECT
    with tempfile.TemporaryDirectory() as name:
        folder, ours = Path(name), Counts(right)
        run = folder / "run"
        write_run(run, shuffled, samples)
        tables = [
            check_livecodebench(options.livecodebench.absolute(), run, folder / "livecodebench", problems, ours),
            check_lm_eval(options.lm_eval.absolute(), run, folder / "lm_eval", problems, ours),
            check_inspect(options.inspect.absolute(), run, folder / "inspect", problems, samples),
        ]
    print("\n\n".join("\n".join(table.lines) for table in tables))
    return 0 if all(table.agree for table in tables) else 1


if __name__ == "__main__":
    sys.exit(main())
