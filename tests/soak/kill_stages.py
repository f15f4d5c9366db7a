"""Kill a pipeline with SIGKILL once in each of its stages; what comes out must be what an undisturbed run gives.

    python tests/soak/kill_stages.py recipes/nano/pipeline.yaml --seed 0

The undisturbed run is the pipeline's own folder (it is made when it is not there). Writes a table of the kills, the
weights' checksums and the comparison of the reports to docs/soak.md; exits with 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core_model.manifest import sha256_file
from recipes.pipeline import PipelinePlan, plan_pipeline
from recipes.provenance import git_state
from recipes.run import COMPLETE, read_provenance

TRIVIUM = Path(sys.executable).with_name("trivium")
EARLIEST, LATEST = 0.2, 0.9  # of a stage's undisturbed duration
POLL = 0.1  # seconds between two looks at a run folder
NOT_COMPARED = ("seconds", "path", "wall")  # keys of a report that tell when and where, not what


@dataclass(frozen=True)
class Kill:
    stage: str
    seconds: float  # into the stage
    of: float  # seconds the undisturbed stage took


def run_to_end(pipeline: Path, *overrides: str) -> None:
    subprocess.run([TRIVIUM, "run", str(pipeline), *overrides], check=True)


def kill_in(stage: str, folder: Path, after: float, pipeline: Path, *overrides: str) -> None:
    """Start the pipeline, and kill it `after` seconds from the moment in which the stage has begun.

    Raises:
        RuntimeError: it ended before, or the stage was through.
    """
    process = subprocess.Popen([TRIVIUM, "run", str(pipeline), *overrides], process_group=0)
    begun = None
    while begun is None or time.monotonic() < begun + after:
        if process.poll() is not None:
            raise RuntimeError(f"the pipeline ended with status {process.returncode} before the kill in {stage}")
        if begun is None and read_provenance(folder / stage) is not None:
            begun = time.monotonic()
        time.sleep(POLL)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    provenance = read_provenance(folder / stage)
    if provenance is None or provenance["status"] == COMPLETE:
        raise RuntimeError(f"{stage} was complete at {after:.0f} s; kill it earlier")


def differences(first: Any, second: Any, where: str = "") -> list[str]:
    """Places in which two reports differ, times and paths aside."""
    if isinstance(first, dict) and isinstance(second, dict):
        found = []
        for key in sorted(first.keys() | second.keys()):
            if not any(word in key for word in NOT_COMPARED):
                found += differences(first.get(key), second.get(key), f"{where}.{key}")
        return found
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = enumerate(zip(first, second, strict=True))
        return [place for index, pair in pairs for place in differences(*pair, f"{where}[{index}]")]
    return [] if first == second else [f"{where}: {first!r} and {second!r}"]


def compare(plan: PipelinePlan, undisturbed: Path, killed: Path) -> tuple[list[str], list[str]]:
    """Lines of the table of weights, and every difference."""
    lines, wrong = [], []
    for stage in plan.stages:
        for path in sorted((undisturbed / stage.id).glob("model/*.safetensors")):
            other = killed / path.relative_to(undisturbed)
            sums = [sha256_file(path)[:16], sha256_file(other)[:16]]
            lines.append(f"| {stage.id} | {sums[0]} | {sums[1]} |")
            wrong += [] if sums[0] == sums[1] else [f"{stage.id}: {path.name} differs"]
    for table in plan.pipeline.tables:
        wrong += differences(*(json.loads((folder / table).read_text()) for folder in (undisturbed, killed)))
    return lines, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    latest = f"most of a stage's undisturbed time before its kill (default {LATEST}; less, if it ran beside others)"
    parser.add_argument("--latest", type=float, default=LATEST, metavar="SHARE", help=latest)
    parser.add_argument("--output", type=Path, default=Path("docs/soak.md"))
    options = parser.parse_args()

    plan = plan_pipeline(options.pipeline)
    undisturbed = plan.pipeline.folder
    run_to_end(options.pipeline)
    killed = undisturbed.with_name(undisturbed.name + "-killed")
    if killed.exists():
        shutil.rmtree(killed)
    draw = random.Random(options.seed)
    kills = []
    for stage in plan.stages:
        provenance = read_provenance(undisturbed / stage.id)
        assert provenance is not None
        seconds = provenance["seconds"]
        kills.append(Kill(stage.id, seconds * draw.uniform(EARLIEST, options.latest), seconds))
    for kill in kills:
        kill_in(kill.stage, killed, kill.seconds, options.pipeline, f"run_dir={killed}")
    run_to_end(options.pipeline, f"run_dir={killed}")

    weights, wrong = compare(plan, undisturbed, killed)
    text = "\n".join(
        [
            "# Soak: one SIGKILL in every stage",
            "",
            f"`python tests/soak/kill_stages.py {options.pipeline} --seed {options.seed}`: the pipeline is killed once",
            "in each stage and started again with the same command; compared with an undisturbed run.",
            f"Commit {git_state()['commit']}, {os.cpu_count()} cores.",
            "",
            "| stage | killed after, s | undisturbed, s |",
            "| --- | --- | --- |",
            *(f"| {kill.stage} | {kill.seconds:.1f} | {kill.of:.1f} |" for kill in kills),
            "",
            "| weights of | undisturbed, sha256 | killed |",
            "| --- | --- | --- |",
            *weights,
            "",
            f"Reports: {'equal in every number.' if not wrong else f'{len(wrong)} differences.'}",
            *(f"- {line}" for line in wrong[:20]),
            "",
        ]
    )
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(text)
    print(text)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
