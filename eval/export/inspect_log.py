"""Inspect's evaluation log, version 2 as JSON: one for each model and task, since a log is of one task.

A problem's samples are its epochs, reduced by their mean. What the machine is to blame for is an error of the sample,
without a score, and leaves the metrics, as an errored sample does in Inspect.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from eval.export.evaluation import Answered, Evaluation, RunRecord, TaskAnswers, only, target_of
from recipes.rows import JudgedSample, Message, Verdict

VERSION = 2
SCORER = "verdict"
CORRECT, INCORRECT = "C", "I"
STOP_REASONS = {"stop": "stop", "length": "max_tokens"}
NO_TOP_K = ("top_k", 0)  # our way of saying that it is not used
ID_LETTERS = 22  # as long as Inspect's own ids


def files(evaluation: Evaluation) -> dict[str, str]:
    """Text of every file by its name, which begins with the time as Inspect's listing wants it."""
    made: dict[str, str] = {}
    for task in evaluation.tasks:
        log = _log(evaluation.run, task)
        time = evaluation.run.started.isoformat(timespec="seconds").replace(":", "-")
        parts = (time, _part(task.task), _part(task.model), log["eval"]["task_id"])
        made[f"{'_'.join(parts)}.json"] = json.dumps(log, indent=2, ensure_ascii=False)
    return made


def _part(name: str) -> str:
    """A name within a file's, whose parts underscores divide."""
    return "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in name)


def _log(run: RunRecord, task: TaskAnswers) -> dict[str, Any]:
    model = f"trivium/{task.model}"
    samples = [_sample(model, one, sample, epoch) for one in task.answers for epoch, sample in _epochs(one)]
    scored = task.counted()
    means = [_mean([_score(sample) for sample in one.samples]) for one in scored.answers]
    return {
        "version": VERSION,
        "status": "success",
        "eval": _spec(run, task, model),
        "plan": {"name": "plan", "steps": [], "config": _generate_config(task.samples)},
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(scored.samples),
            "scores": [
                {
                    "name": SCORER,
                    "scorer": SCORER,
                    "reducer": "mean",
                    "scored_samples": len(means),
                    "unscored_samples": 0,
                    "params": {},
                    "metrics": {
                        "accuracy": _metric("accuracy", _mean(means)),
                        "stderr": _metric("stderr", _stderr(means)),
                    },
                }
            ],
        },
        "stats": {
            "started_at": run.started.isoformat(timespec="seconds"),
            "completed_at": run.ended.isoformat(timespec="seconds"),
            "model_usage": {model: _usage(task.samples)},
        },
        "samples": samples,
        "reductions": [
            {
                "scorer": SCORER,
                "reducer": "mean",
                "samples": [
                    {"value": mean, "sample_id": one.problem.id}
                    for mean, one in zip(means, scored.answers, strict=True)
                ],
            }
        ],
    }


def _spec(run: RunRecord, task: TaskAnswers, model: str) -> dict[str, Any]:
    problems = task.problems_sha256()
    spec: dict[str, Any] = {
        "eval_id": _id(run, task.model, task.task, "eval"),
        "run_id": _id(run, "run"),
        "created": run.started.isoformat(timespec="seconds"),
        "task": task.task,
        "task_id": _id(run, task.model, task.task, problems),
        "task_version": problems[:12],
        "task_attribs": {},
        "task_args": {},
        "dataset": {
            "name": task.task,
            "samples": len(task.answers),
            "sample_ids": [one.problem.id for one in task.answers],
            "shuffled": False,
        },
        "model": model,
        "model_generate_config": _generate_config(task.samples),
        "model_args": only(sample.teacher for sample in task.samples) or {},
        "config": {"epochs": task.repeats, "epochs_reducer": ["mean"], "log_samples": True, "fail_on_error": False},
        "packages": run.versions,
        "metadata": {"run": run.name, "seed": run.seed, "problems_sha256": problems},
        "scorers": [{"name": SCORER, "metrics": [{"name": "inspect_ai/accuracy"}, {"name": "inspect_ai/stderr"}]}],
    }
    if run.commit is not None:
        spec["revision"] = {"type": "git", "origin": "", "commit": run.commit, "dirty": run.dirty}
    return spec


def _epochs(one: Answered) -> Iterable[tuple[int, JudgedSample]]:
    """A sample's epoch is its index, counted from 1."""
    return ((sample.index + 1, sample) for sample in one.samples)


def _sample(model: str, one: Answered, sample: JudgedSample, epoch: int) -> dict[str, Any]:
    problem = one.problem
    asked = [_message(message) for message in problem.messages]
    answer = {"role": "assistant", "content": _content(sample.reasoning, sample.answer), "source": "generate"}
    made: dict[str, Any] = {
        "id": problem.id,
        "epoch": epoch,
        "input": asked,
        "target": target_of(problem),
        "messages": [*asked, answer],
        "output": {
            "model": model,
            "choices": [{"message": answer, "stop_reason": STOP_REASONS[sample.finish_reason]}],
            "completion": sample.answer,
            "usage": _usage([sample]),
        },
        "metadata": {
            "verdict": sample.verdict.value,
            "detail": sample.detail,
            "prompt_tokens": sample.prompt_tokens,
            "reasoning_tokens": sample.reasoning_tokens,
            "answer_tokens": sample.answer_tokens,
            "condition": sample.condition.id,
            "difficulty": problem.difficulty,
            "date": problem.date,
            "source": problem.source,
            "isolation": sample.isolation,
            "seed": sample.seed,
            "key": sample.key,
        },
        "model_usage": {model: _usage([sample])},
        "uuid": hashlib.sha256(f"{sample.key} {sample.verdict_key}".encode()).hexdigest()[:ID_LETTERS],
    }
    if sample.verdict.counts:
        made["scores"] = {
            SCORER: {
                "value": CORRECT if sample.verdict is Verdict.CORRECT else INCORRECT,
                "answer": sample.answer,
                "explanation": f"{sample.verdict.value}: {sample.detail}" if sample.detail else sample.verdict.value,
                "metadata": {"verdict": sample.verdict.value},
            }
        }
    else:
        message = f"{sample.verdict.value}: {sample.detail}" if sample.detail else sample.verdict.value
        made["error"] = {"message": message, "traceback": "", "traceback_ansi": ""}
    return made


def _message(message: Message) -> dict[str, Any]:
    return {
        "role": message.role,
        "content": _content(message.reasoning_content, message.content),
        "source": "input",
    }


def _content(reasoning: str | None, text: str) -> str | list[dict[str, str]]:
    """Plain text, or the thought as a part of its own before it."""
    if reasoning is None:
        return text
    return [{"type": "reasoning", "reasoning": reasoning}, {"type": "text", "text": text}]


def _usage(samples: Sequence[JudgedSample]) -> dict[str, int]:
    """Tokens in all; the prompt of each sample is counted, as it is where samples are asked for one by one."""
    read = sum(sample.prompt_tokens for sample in samples)
    reasoning = sum(sample.reasoning_tokens for sample in samples)
    written = reasoning + sum(sample.answer_tokens for sample in samples)
    return {
        "input_tokens": read,
        "output_tokens": written,
        "total_tokens": read + written,
        "reasoning_tokens": reasoning,
    }


def _generate_config(samples: Sequence[JudgedSample]) -> dict[str, Any]:
    """The settings that all samples share, by Inspect's names."""
    names = {"max_new_tokens": "max_tokens", "temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
    found = {theirs: only(sample.sampling.get(ours) for sample in samples) for ours, theirs in names.items()}
    return {name: value for name, value in found.items() if value is not None and (name, value) != NO_TOP_K}


def _score(sample: JudgedSample) -> float:
    return float(sample.verdict is Verdict.CORRECT)


def _metric(name: str, value: float) -> dict[str, Any]:
    return {"name": f"inspect_ai/{name}", "value": value, "params": {}}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _stderr(values: Sequence[float]) -> float:
    """Of the mean over problems; 0 of fewer than two, as Inspect says."""
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _id(run: RunRecord, *parts: str) -> str:
    """The same for the same run, so that exporting twice gives the same file."""
    text = json.dumps([run.name, run.started.isoformat(), *parts])
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LETTERS]
