"""`python -m eval RECIPE [key=value ...]`, and `python -m eval judge`."""

from __future__ import annotations

import sys

HELP = """\
Two commands: one judges programs that are there already, one runs a recipe.

  python -m eval judge --problems P.jsonl --generations G.jsonl --out V.jsonl     (python -m eval judge --help)
  python -m eval RECIPE [KEY=VALUE ...]                                           (what follows)
"""


def main() -> int:
    """The exit status."""
    if sys.argv[1:2] == ["judge"]:
        from eval.judge.command import main as judge  # without torch, which recipes need

        return judge(sys.argv[2:])
    if sys.argv[1:2] in (["--help"], ["-h"]):
        print(HELP)
    from eval.stage import run_stage
    from recipes.stage_main import stage_main

    return stage_main("eval", run_stage)


if __name__ == "__main__":
    sys.exit(main())
