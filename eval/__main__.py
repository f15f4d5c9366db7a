"""`python -m eval`: the stage, its steps, and what is done with its runs."""

from __future__ import annotations

import importlib
import sys

HELP = """\
Evaluate models: ask them, judge their answers, report accuracy and length.

  python -m eval RECIPE [KEY=VALUE ...]            everything a recipe says (what follows is about this)
  torchrun --nproc_per_node N -m eval RECIPE       the same, generation divided among N processes (GPUs: accelerate launch)

its steps, in the recipe's run folder, each resumable:
  python -m eval generate RECIPE [KEY=VALUE ...]   answers, and log-likelihoods of choices and texts
  python -m eval judge RECIPE [KEY=VALUE ...]      verdicts; what the machine lost is judged again
  python -m eval needle RECIPE [KEY=VALUE ...]     the needle grid
  python -m eval score RUN                         report.json from the rows
  python -m eval report RUN                        report.json, report.html, figures and CSV from the rows

with runs and files:
  python -m eval compare RUN RUN                   two runs on the same problems, paired
  python -m eval leaderboard RUN...                runs of the same suite, ranked
  python -m eval export RUN --format FORMAT        LiveCodeBench's, lm-eval's or inspect's files
  python -m eval codeforces --contests FOLDER      rating and percentile from saved contests
  python -m eval judge --problems P --generations G --out V      judge programs that are there already
  python -m eval tasks [NAME]                      the tasks there are, and one's keys

Each has its own --help.
"""
STEPS = ("generate", "judge", "needle")
COMMANDS = {
    "score": "eval.score_command",
    "report": "eval.report",
    "compare": "eval.compare_command",
    "leaderboard": "eval.leaderboard",
    "export": "eval.export.command",
    "codeforces": "eval.codeforces.command",
    "tasks": "eval.tasks_command",
}
ALSO_OF_TRIVIUM = ("report", "leaderboard")  # their help says as which of the two they were called


def main() -> int:
    """The exit status."""
    arguments = sys.argv[1:]
    first = arguments[0] if arguments else ""
    if first == "judge" and (len(arguments) == 1 or arguments[1].startswith("-")):
        from eval.judge.command import main as judge  # without torch, which recipes need

        return judge(arguments[1:])
    if first in COMMANDS:
        return _command(first, arguments[1:])
    if first in ("--help", "-h"):
        print(HELP)
    from eval.stage import outdated, run_stage, step_of
    from recipes.stage_main import stage_main

    if first in STEPS:
        return stage_main("eval", step_of(first), distributed=True, step=first, arguments=arguments[1:])  # type: ignore[arg-type]
    return stage_main("eval", run_stage, distributed=True, outdated=outdated)


def _command(name: str, arguments: list[str]) -> int:
    """One of the commands that need no recipe."""
    from core_model.errors import InputError

    try:
        called = {"prog": f"python -m eval {name}"} if name in ALSO_OF_TRIVIUM else {}
        return int(importlib.import_module(COMMANDS[name]).main(arguments, **called))
    except InputError as error:
        print(f"eval {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"eval {name}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
