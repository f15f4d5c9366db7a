"""Five runs of the judge under heavy load: no verdict changes.

    python tests/soak/judge_load.py [--runs 5] [--load 8]

Judges the recorded LiveCodeBench programs in both modes and HumanEval's canonical solutions, first on the machine as it
is, then while `load` processes keep every core busy; prints a table for docs/soak.md. Exit status 1 if a verdict
changed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eval.judge.case import Case, CaseVerdict, Limits, Mode
from eval.judge.judge import Judge
from eval.tasks.humaneval import canonical_cases
from eval.tasks.livecodebench import read_records, to_cases

ORACLES = Path(__file__).resolve().parent.parent / "oracles" / "lcb"
BURN = "while True: sum(range(10 ** 6))"


def recorded_cases() -> list[Case]:
    """The recorded programs that do no harm; those that attack belong to the attack suite."""
    tests = {record.question_id: to_cases(record) for record in read_records(ORACLES / "problems.jsonl")}
    rows = [json.loads(line) for line in (ORACLES / "verdicts.jsonl").read_text().splitlines()]
    limits = Limits(cpu_seconds=2)
    return [
        Case(row["code"], *tests[row["question_id"]], limits=limits)
        for row in rows
        if row["kind"] in ("ordinary", "policy")
    ]


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep the cores busy meanwhile."""
    burners = [subprocess.Popen([sys.executable, "-S", "-c", BURN]) for _ in range(processes)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def judge_all(mode: Mode, cases: list[Case]) -> tuple[list[tuple[str, tuple[bool | int, ...]]], float]:
    """Verdicts with their result lists, and seconds."""
    started = time.monotonic()
    with Judge(mode) as judge:
        verdicts: list[CaseVerdict] = judge.judge_many(cases)
    return [(one.verdict.value, one.results) for one in verdicts], time.monotonic() - started


def main() -> int:
    parser = argparse.ArgumentParser(description="Judge the same programs again and again under load.")
    parser.add_argument("--runs", type=int, default=5, help="runs under load")
    parser.add_argument(
        "--load", type=int, default=4 * (os.cpu_count() or 1), help="processes that keep the cores busy"
    )
    options = parser.parse_args()
    recorded = recorded_cases()
    work: list[tuple[str, Mode, list[Case]]] = [
        ("recorded programs, strict", "strict", recorded),
        ("recorded programs, lcb-compat", "lcb-compat", recorded),
        ("HumanEval, canonical solutions", "strict", canonical_cases()),
    ]
    changed = 0
    print(f"| cases | programs | idle | under {options.load} busy processes | verdicts that changed |")
    print("| --- | --- | --- | --- | --- |")
    for name, mode, cases in work:
        first, idle = judge_all(mode, cases)
        seconds, differing = [], 0
        with busy(options.load):
            for _ in range(options.runs):
                again, took = judge_all(mode, cases)
                seconds.append(took)
                differing += sum(one != other for one, other in zip(first, again, strict=True))
        changed += differing
        spans = f"{min(seconds):.0f} to {max(seconds):.0f} s"
        total = options.runs * len(cases)
        print(f"| {name} | {len(cases)} | {idle:.0f} s | {spans} | {differing} of {total} |", flush=True)
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
