"""What every test runs under: one torch thread, no network, no tracking."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported: xdist runs as many workers as there are cores, and results must not depend on that.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
for variable in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
    os.environ.pop(variable, None)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout's root."""
    return ROOT


@pytest.fixture
def tmp_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder of the test's own (not made yet); the working directory is its parent's."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "test"
