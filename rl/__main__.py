"""`python -m rl RECIPE [key=value ...]`"""

from __future__ import annotations

import sys

from recipes.stage_main import stage_main
from rl.stage import run_stage

if __name__ == "__main__":
    sys.exit(stage_main("rl", run_stage))
