"""Each step of the problem beside the line it becomes; checked by running the first public example by hand."""

from __future__ import annotations

from random import Random
from typing import Any

from distill.teacher.trace import Line, Trace, write_out
from eval.tasks.program_steps import program_text, stages, steps_from_json


def render(info: dict[str, Any], rng: Random, mistake: bool) -> Trace:
    """A trace from a code problem's `verification_info`: its steps and its first public test."""
    steps = steps_from_json(info["metadata"]["steps"])
    lines = []
    for step in steps:
        wrong, remark = step.wrong_code
        lines.append(Line(f"{step.says}: {step.code}", f"{step.says}: {wrong}", f"that {remark}"))
    example = info["test_cases"][0]["input"].strip()
    states = [[int(number) for number in example.split()]]
    states += stages(steps, states[0])
    shown = [" ".join(map(str, state)) for state in states]
    if steps[-1].of.name == "list":
        shown.pop()  # printing changes nothing
    check = f"Check: {' -> '.join(shown)}. Correct."
    return Trace(write_out(lines, rng, mistake), check, program_text(steps))
