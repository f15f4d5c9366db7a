"""lm-eval's results of one model: an aggregated file, and one of samples for each task, in the layout of 0.4.13.

    <model>/results_<date>.json             metrics by task, versions, configurations
    <model>/samples_<task>_<date>.jsonl     a line for each problem, all its samples in it

A metric's standard error is lm-eval's own: of the mean over problems.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from typing import Any

from eval.export.evaluation import Answered, Evaluation, RunRecord, TaskAnswers, only, target_of
from eval.metrics import pass_at_k
from recipes.rows import Verdict

FILTER = "none"  # lm-eval's name for answers as they are
HIGHER_IS_BETTER = {"pass@1": True, "truncated": False, "tokens": False}


def files(evaluation: Evaluation) -> dict[str, str]:
    """Text of every file by its name; `evaluation` with what counts alone (`Evaluation.counted`)."""
    made: dict[str, str] = {}
    # As datetime.isoformat() with the colons out of the way; lm-eval finds it behind a name's last underscore.
    date = evaluation.run.started.replace(tzinfo=None).isoformat().replace(":", "-")
    for model in evaluation.models:
        tasks = evaluation.of(model)
        samples = {one.task: [_sample(place, each) for place, each in enumerate(one.answers)] for one in tasks}
        folder = sanitized(model)
        results = _results(evaluation.run, tasks, samples)
        made[f"{folder}/results_{date}.json"] = json.dumps(results, indent=2, ensure_ascii=False)
        for task, lines in samples.items():
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
            made[f"{folder}/samples_{sanitized(task)}_{date}.jsonl"] = text
    return made


def sanitized(name: str) -> str:
    """A name as lm-eval writes it in a path."""
    return re.sub(r"[\"<>:/|\\?*\[\]]+", "__", name)


def mean_stderr(values: Sequence[float]) -> float | str:
    """The standard error of a mean; "N/A" of fewer than two values, as lm-eval says."""
    if len(values) < 2:
        return "N/A"
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)) / math.sqrt(len(values))


def _results(run: RunRecord, tasks: Sequence[TaskAnswers], samples: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    every = [sample for one in tasks for sample in one.samples]
    model = tasks[0].model
    return {
        "results": {one.task: _metrics(one.task, samples[one.task]) for one in tasks},
        "group_subtasks": {},
        "configs": {one.task: _config(run, one) for one in tasks},
        "versions": {one.task: _version(one) for one in tasks},
        "n-shot": {one.task: 0 for one in tasks},
        "higher_is_better": {one.task: HIGHER_IS_BETTER for one in tasks},
        "n-samples": {one.task: {"original": len(one.answers), "effective": len(one.answers)} for one in tasks},
        "config": {
            "model": model,
            "model_args": only(sample.teacher for sample in every),
            "batch_size": None,
            "device": None,
            "use_cache": None,
            "limit": None,
            "bootstrap_iters": 0,
            "gen_kwargs": only(sample.sampling for sample in every),
            "random_seed": run.seed,
            "numpy_seed": None,
            "torch_seed": None,
            "fewshot_seed": None,
        },
        "git_hash": run.commit,
        "date": run.started.timestamp(),
        "transformers_version": run.versions.get("transformers"),
        "task_hashes": {task: _hash("".join(_hashes(line) for line in lines)) for task, lines in samples.items()},
        "model_source": "trivium",
        "model_name": model,
        "model_name_sanitized": sanitized(model),
        "system_instruction": None,
        "system_instruction_sha": None,
        "fewshot_as_multiturn": False,
        "chat_template": None,
        "chat_template_sha": only(sample.template_sha256 for sample in every),
        "total_evaluation_time_seconds": str(run.seconds),
    }


def _metrics(task: str, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"name": task, "alias": task, "sample_len": len(lines)}
    for metric in HIGHER_IS_BETTER:
        values = [line[metric] for line in lines]
        found[f"{metric},{FILTER}"] = sum(values) / len(values)
        found[f"{metric}_stderr,{FILTER}"] = mean_stderr(values)
    return found


def _config(run: RunRecord, task: TaskAnswers) -> dict[str, Any]:
    """What a task's YAML would say."""
    return {
        "task": task.task,
        "output_type": "generate_until",
        "num_fewshot": 0,
        "repeats": task.repeats,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": higher}
            for metric, higher in HIGHER_IS_BETTER.items()
        ],
        "generation_kwargs": only(sample.sampling for sample in task.samples),
        "metadata": {
            "version": _version(task),
            "problems_sha256": task.problems_sha256(),
            "samples_left_out": task.left_out,
            "run": run.name,
            "started": run.started.isoformat(),
        },
    }


def _version(task: TaskAnswers) -> str:
    """Two tables show the same version where they are about the same problems."""
    return task.problems_sha256()[:12]


def _sample(place: int, one: Answered) -> dict[str, Any]:
    problem, samples = one.problem, one.samples
    document = {
        "id": problem.id,
        "source": problem.source,
        "domain": problem.domain,
        "difficulty": problem.difficulty,
        "date": problem.date,
        "language": problem.language,
        "question": problem.messages[-1].content,
    }
    prompt = json.dumps([{"role": each.role, "content": each.content} for each in problem.messages], ensure_ascii=False)
    target = target_of(problem)
    right = sum(sample.verdict is Verdict.CORRECT for sample in samples)
    lengths = [sample.reasoning_tokens + sample.answer_tokens for sample in samples]
    return {
        "doc_id": place,
        "doc": document,
        "target": target,
        "arguments": {"gen_args_0": {"arg_0": prompt, "arg_1": samples[0].sampling}},
        "resps": [[sample.text for sample in samples]],
        "filtered_resps": [[sample.answer for sample in samples]],
        "filter": FILTER,
        "metrics": list(HIGHER_IS_BETTER),
        "doc_hash": _hash(json.dumps(document, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(target),
        "pass@1": pass_at_k(len(samples), right, 1),
        "truncated": sum(sample.finish_reason == "length" for sample in samples) / len(samples),
        "tokens": sum(lengths) / len(samples),
        "verdicts": [sample.verdict.value for sample in samples],
    }


def _hashes(line: dict[str, Any]) -> str:
    return str(line["doc_hash"] + line["prompt_hash"] + line["target_hash"])


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
