"""`python -m eval RECIPE [key=value ...]`"""

from __future__ import annotations

import sys

from eval.stage import run_stage
from recipes.stage_main import stage_main

if __name__ == "__main__":
    sys.exit(stage_main("eval", run_stage))
