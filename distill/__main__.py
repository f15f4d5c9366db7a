"""`python -m distill RECIPE [key=value ...]`"""

from __future__ import annotations

import sys

from distill.stage import run_stage
from recipes.stage_main import stage_main

if __name__ == "__main__":
    sys.exit(stage_main("distill", run_stage))
