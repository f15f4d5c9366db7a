"""Kill `python -m eval judge` with SIGKILL at random moments; the rows at the end must be those of an unkilled run.

    python tests/soak/kill_judge.py [--kills 20] [--seed 0] [--workers 2]

Only the command is killed, not its sandboxes: they must go by themselves. A row that was on the disk when the command
was killed must be the same, byte for byte, in the end, time and memory included: then it was not judged twice. Prints
a table; exits with 1 when anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from eval.judge.verdict_file import VerdictRow
from recipes.rows import Verdict, read_rows

MEASURED = {"seconds", "memory_mb"}  # what two runs on one machine may differ in
GONE_SECONDS = 10.0  # within which the sandboxes of a killed command have ended
ENTRY = {"stdin": None, "functional": "solve"}

# Programs for "print the sum of the numbers from 1 to n", by what becomes of them.
PROGRAMS = {
    "right": "n = int(input())\nprint(sum(range(n + 1)))\n",
    "wrong": "n = int(input())\nprint(sum(range(n)))\n",
    "error": "n = int(input())\nprint(1 // (n - n))\n",
    "no program": "print(\n",
    "endless": "while True:\n    pass\n",
    "talkative": "while True:\n    print('x' * 100000)\n",
    "large": "n = int(input())\nx = bytearray(1 << 40)\n",
    "with children": "import os\nif os.fork():\n    os.wait()\n    n = int(input())\n    print(n * (n + 1) // 2)\n",
    "call, right": "class Solution:\n    def solve(self, n):\n        return n * (n + 1) // 2\n",
    "call, wrong": "class Solution:\n    def solve(self, n):\n        return str(n)\n",
}


@dataclass(frozen=True)
class Kill:
    seconds: float  # from the start
    rows: int  # whole rows on the disk then
    torn: int  # bytes of one more
    processes: int  # of the command's, still there when it was gone
    gone: float  # seconds until they were


def write_work(folder: Path, samples: int, draw: random.Random) -> int:
    """Problems and generations; returns how many."""
    with (folder / "P.jsonl").open("w") as file:
        for kind, entry in ENTRY.items():
            tests = [{"input": str(n), "output": str(n * (n + 1) // 2), "testtype": kind} for n in (1, 10, 100)]
            record = {
                "question_title": "Sum",
                "question_content": "The sum of the numbers from 1 to n.",
                "platform": "atcoder",
                "question_id": kind,
                "contest_id": "soak",
                "contest_date": "2024-08-01T00:00:00",
                "starter_code": "" if entry is None else "class Solution:\n    def solve(self, n):",
                "difficulty": "easy",
                "public_test_cases": json.dumps(tests[:1]),
                "private_test_cases": json.dumps(tests[1:]),
                "metadata": json.dumps({} if entry is None else {"func_name": entry}),
            }
            file.write(json.dumps(record) + "\n")
    rows = []
    for sample in range(samples):
        for name, code in PROGRAMS.items():
            kind = "functional" if name.startswith("call") else "stdin"
            # The comment makes programs, and so keys, differ.
            rows.append({"question_id": kind, "sample": len(rows), "code": f"{code}# {sample}\n"})
        rows.append({"question_id": "stdin", "sample": len(rows), "text": "I do not know.", "finish_reason": "length"})
    draw.shuffle(rows)
    (folder / "G.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return len(rows)


def command(folder: Path, out: Path, workers: int) -> list[str]:
    files = ["--problems", str(folder / "P.jsonl"), "--generations", str(folder / "G.jsonl"), "--out", str(out)]
    return [sys.executable, "-m", "eval", "judge", *files, "--workers", str(workers), "--cpu-seconds", "0.5"]


def compared(path: Path) -> list[dict[str, object]]:
    """The rows without what was measured; of a time limit the detail says what was, too."""
    rows = []
    for row in read_rows(path, VerdictRow):
        detail = re.sub(r"\d+\.\d+ s", "... s", row.detail) if row.verdict is Verdict.TIME_LIMIT else row.detail
        rows.append(row.model_dump(mode="json", exclude=MEASURED) | {"detail": detail})
    return rows


def kill_once(arguments: list[str], out: Path, after: float) -> Kill | None:
    """None: it had ended before."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        if process.wait(after) != 0:
            raise RuntimeError(f"the command ended with status {process.returncode}")
        return None
    except subprocess.TimeoutExpired:
        family = descendants(process.pid)
        process.kill()
    if process.wait() != -signal.SIGKILL:
        return None  # it ended in the last moment
    begun = time.monotonic()
    left = [one for one in family if is_there(one)]
    remaining = left
    while remaining and time.monotonic() < begun + GONE_SECONDS:
        time.sleep(0.01)
        remaining = [one for one in remaining if is_there(one)]
    if remaining:
        raise RuntimeError(f"{len(remaining)} processes outlive the command by {GONE_SECONDS:.0f} s: {remaining}")
    data = out.read_bytes() if out.exists() else b""
    return Kill(after, data.count(b"\n"), len(data) - data.rfind(b"\n") - 1, len(left), time.monotonic() - begun)


def descendants(pid: int) -> list[tuple[int, str]]:
    """All processes below one, each with the moment of its start: numbers are used again."""
    children: dict[int, list[tuple[int, str]]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := stat(int(folder.name))):
            children.setdefault(int(fields[1]), []).append((int(folder.name), fields[19]))
    found, waiting = [], [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += [number for number, _ in below]
    return found


def is_there(process: tuple[int, str]) -> bool:
    """Whether a process lives; one that has ended and was not waited for does not."""
    fields = stat(process[0])
    return fields is not None and fields[19] == process[1] and fields[0] not in "ZX"


def stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third on (state, parent, ...)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def soak(folder: Path, kills: int, seed: int, workers: int) -> int:
    """Exit status."""
    draw = random.Random(seed)
    count = write_work(folder, max(2, kills // 2), draw)
    plain, killed = folder / "plain.jsonl", folder / "killed.jsonl"
    begun = time.monotonic()
    subprocess.run(command(folder, plain, workers), check=True)
    undisturbed = time.monotonic() - begun

    table: list[Kill] = []
    wrong: list[str] = []
    rounds = 1
    kept: list[bytes] = []
    while len(table) < kills:
        # A start takes a second, so that some kills hit before the first row; twice this span ends a few rounds early.
        kill = kill_once(command(folder, killed, workers), killed, draw.uniform(0.3, 1.5 + 2 * undisturbed / kills))
        if kill is None:
            wrong += differences(plain, killed, kept, rounds)
            killed.unlink()
            rounds, kept = rounds + 1, []
            continue
        table.append(kill)
        rows = killed.read_bytes().splitlines(keepends=True)[: kill.rows] if kill.rows else []
        wrong += [f"kill {len(table)}: {lost} rows were lost" for lost in [len(set(kept) - set(rows))] if lost]
        kept = rows
    subprocess.run(command(folder, killed, workers), check=True, stdout=subprocess.DEVNULL)
    wrong += differences(plain, killed, kept, rounds)

    print(f"\n{count} generations, {workers} workers, seed {seed}; undisturbed {undisturbed:.1f} s; {rounds} rounds\n")
    print("| kill | after, s | rows on the disk | torn bytes | processes left | gone after, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for number, kill in enumerate(table, 1):
        print(f"| {number} | {kill.seconds:.2f} | {kill.rows} | {kill.torn} | {kill.processes} | {kill.gone:.2f} |")
    print("\nRows: " + ("equal to the undisturbed run's." if not wrong else f"{len(wrong)} differences."))
    for line in wrong[:20]:
        print(f"- {line}")
    return 1 if wrong else 0


def differences(plain: Path, killed: Path, kept: list[bytes], number: int) -> list[str]:
    """What a round's rows have that an undisturbed run's have not, and rows that were judged though they were there."""
    pairs = zip(compared(plain), compared(killed), strict=True)
    wrong = [f"round {number}: {one} and {other}" for one, other in pairs if one != other]
    twice = len(set(kept) - set(killed.read_bytes().splitlines(keepends=True)))
    return wrong + ([f"round {number}: {twice} rows were judged twice"] if twice else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return soak(Path(folder), options.kills, options.seed, options.workers)


if __name__ == "__main__":
    sys.exit(main())
