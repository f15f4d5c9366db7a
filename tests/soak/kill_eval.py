"""Kill `python -m eval RECIPE` with SIGKILL at random moments; what it ends with must be what an unkilled run has.

    python tests/soak/kill_eval.py [--kills 20] [--seed 0]

Evaluates two models of `make nano` on a few problems, free and under budgets, and on needles. Every row must be there
once, and every file but those that hold times must be the same, byte for byte. A row that was on the disk at a kill
must still be there. Prints a table; exits with 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RECIPE = Path("recipes/nano/eval.yaml")
NANO = Path("runs/nano")
OVERRIDES = [
    "models={short: {path: runs/nano/sft_short/model, mode: chat}, "
    "rl: {path: runs/nano/rl/model, mode: reasoning, budgets: true}, "
    "base: {path: runs/nano/pretrain/model, mode: base, problems: false, needle: true}}",
    "tasks={chain_sum: {count: 20}, base_conversion: {count: 20}, code: {count: 20}}",
    "budgets={tokens: [32, 64], mechanisms: [forced], problems: 10}",
    "comparisons=[{better: rl, baseline: short}]",
    "needle.lengths=[256, 1024]",
    "curves={}",
    "chunk=5",
    "statistics={resamples: 500, flips: 500}",
]
TIMED = ("provenance.json", "recipe.yaml", ".lock", "seconds.jsonl", "report.html", "runs.csv")


def command(run: Path) -> list[str]:
    return [sys.executable, "-m", "eval", str(RECIPE), f"run_dir={run}", *OVERRIDES]


def contents(run: Path) -> dict[str, bytes]:
    """Every file but those that hold times; report.json without them."""
    files = {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name not in TIMED and "wandb" not in path.parts
    }
    files["report.json"] = json.dumps(without_times(json.loads(files["report.json"]))).encode()
    return files


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if "seconds" not in key}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def rows_of(run: Path) -> dict[str, bytes]:
    """Whole rows on the disk, by file and key (a judged row has its verdict's)."""
    found = {}
    for path in sorted(run.glob("samples/*/*.jsonl")):
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                row = json.loads(line)
                found[f"{path.relative_to(run)} {row.get('verdict_key') or row['key']}"] = line
    return found


def kill_once(run: Path, after: float) -> tuple[float, int] | None:
    """When it was killed, seconds, and how many rows were there; None when it had ended before."""
    process = subprocess.Popen(command(run), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        if process.wait(after) != 0:
            raise RuntimeError(f"the command ended with status {process.returncode}")
        return None
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    return after, len(rows_of(run))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not NANO.is_dir():
        print(f"{NANO}: expected the runs of `make nano`; found none", file=sys.stderr)
        return 2
    draw = random.Random(options.seed)
    faults: list[str] = []
    kills: list[tuple[float, int]] = []
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        subprocess.run(
            command(Path(folder) / "whole"), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        whole_seconds = time.monotonic() - started
        whole = contents(Path(folder) / "whole")
        attempt = 0
        while len(kills) < options.kills:
            run, kept = Path(folder) / f"run{attempt}", {}
            attempt += 1
            for _ in range(5):  # a run survives several
                killed = kill_once(run, draw.uniform(0.15, 0.9) * whole_seconds)
                if killed is None:
                    break
                kills.append(killed)
                now = rows_of(run)
                faults += [f"run {attempt}: lost or changed: {key}" for key in kept if now.get(key) != kept[key]]
                kept = now
            subprocess.run(command(run), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            found = contents(run)
            faults += [
                f"run {attempt}: {name} differs"
                for name in whole.keys() | found.keys()
                if whole.get(name) != found.get(name)
            ]
    print(f"{len(kills)} kills of an evaluation that takes {whole_seconds:.0f} s\n")
    print("| seconds | rows on the disk |\n| --- | --- |")
    print("\n".join(f"| {after:.1f} | {rows} |" for after, rows in kills))
    print(f"\n{len(faults)} faults" + "".join(f"\n{fault}" for fault in faults[:20]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
