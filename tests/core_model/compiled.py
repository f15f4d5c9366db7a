"""Tests of compiled training, wherever it compiles: whose operations stand beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from core_model import native
from core_model.native import training

needs_compiler = pytest.mark.skipif(
    native.library("train") is None, reason=f"no code: {native.reason_against('train')}"
)
both = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])


@contextmanager
def operations() -> Iterator[None]:
    """PyTorch's operations in place of compiled code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "reason_against", lambda dtype: "not wanted")
        yield
