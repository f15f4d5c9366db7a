"""SwiGLU and RMSNorm as functions of their own, against their formulas under plain autograd."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from reference import relative_difference

from core_model.moe import MLP
from core_model.native import training
from core_model.norm import RMSNorm
from core_model.swiglu import swiglu


@pytest.mark.parametrize("shape", [(6,), (0, 6), (1, 6), (4, 6), (2, 3, 6)])
@pytest.mark.parametrize("layout", ["rows", "halves of one", "transposed"])
def test_swiglu_has_the_gradients_of_its_formula(shape, layout):
    wide = torch.randn(*shape[:-1], 12, dtype=torch.float64)
    halves = [half.clone() for half in wide.chunk(2, dim=-1)] if layout == "rows" else list(wide.chunk(2, dim=-1))
    if layout == "transposed":
        halves = [half.transpose(0, -1).contiguous().transpose(0, -1) for half in halves]
    given, plain = ([half.detach().requires_grad_() for half in halves] for _ in range(2))
    out, expected = swiglu(*given), F.silu(plain[0]) * plain[1]
    upstream = torch.randn_like(expected)
    out.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(given, plain, strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_functional_transforms_pass_through_a_feed_forward():
    mlp, x = MLP(16, 32), torch.randn(5, 16)
    torch.testing.assert_close(torch.vmap(mlp)(x), mlp(x))
    gradient = torch.func.grad(lambda one: mlp(one).sum())(x)
    leaf = x.clone().requires_grad_()
    mlp(leaf).sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)


def test_the_norms_backward_stays_in_fp32_under_autocast(monkeypatch):
    monkeypatch.setattr(training, "compiled", lambda dtype: False)
    norm, upstream, found = RMSNorm(64, 1e-6), torch.randn(8, 64), []
    for enabled in (False, True):
        x = torch.linspace(-2, 3, 8 * 64).view(8, 64).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            norm(x).backward(upstream)
        found.append(x.grad)
    assert relative_difference(found[1], found[0]) < 1e-6
