"""`python -m pretrain RECIPE [key=value ...]`"""

from __future__ import annotations

import sys

from pretrain.stage import run_stage
from recipes.stage_main import stage_main

if __name__ == "__main__":
    sys.exit(stage_main("pretrain", run_stage))
