"""RoPE and YaRN against the published check values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core_model.config import YARN_V3
from core_model.rope import (
    amplitude,
    correction_dim,
    inverse_frequencies,
    rotate,
    rotate_tail,
    rotations,
    softmax_scale,
    yarn_mscale,
)


def test_correction_dimensions_of_v3():
    assert correction_dim(32, 64, 10000.0, 4096) == pytest.approx(10.4722, abs=5e-5)
    assert correction_dim(1, 64, 10000.0, 4096) == pytest.approx(22.5134, abs=5e-5)


def test_yarn_keeps_fast_pairs_slows_slow_pairs_and_interpolates_between():
    plain = inverse_frequencies(64, 10000.0, None)
    yarn = inverse_frequencies(64, 10000.0, YARN_V3)
    ratio = plain / yarn
    torch.testing.assert_close(ratio[:11], torch.ones(11))
    torch.testing.assert_close(ratio[23:], torch.full((9,), 40.0))
    share_slowed = (1 - yarn / plain) / (1 - 1 / 40)
    expected = torch.arange(11, 23).sub(10).div(13)
    torch.testing.assert_close(share_slowed[11:23], expected)


def test_plain_frequencies():
    expected = torch.tensor([10000.0 ** (-2 * i / 8) for i in range(4)])
    torch.testing.assert_close(inverse_frequencies(8, 10000.0, None), expected)


def test_a_context_so_short_that_low_meets_high_divides_by_no_zero():
    scaling = {**YARN_V3, "original_max_position_embeddings": 4}
    assert inverse_frequencies(4, 10000.0, scaling).isfinite().all()


def test_the_correction_range_stays_within_the_dimensions():
    """DeepSeek clamps it to [0, dim - 1]; here both ends are beyond: correction dimensions -9.4 and 5.6."""
    scaling = {**YARN_V3, "beta_fast": 2**25}
    ratio = inverse_frequencies(4, 10.0, scaling) / inverse_frequencies(4, 10.0, None)
    torch.testing.assert_close(ratio, torch.tensor([1.0, 2 / 3 + 1 / 3 / 40]))


def test_softmax_scales_of_v3():
    assert yarn_mscale(40, 1.0) == pytest.approx(1.3688879454, abs=5e-11)
    assert yarn_mscale(40, 1.0) ** 2 == pytest.approx(1.8738542071, abs=5e-11)
    assert softmax_scale(192, None) == pytest.approx(0.0721687836, abs=5e-11)
    assert softmax_scale(192, YARN_V3) == pytest.approx(0.1352337789, abs=5e-11)
    assert softmax_scale(192, {**YARN_V3, "mscale_all_dim": 0.707}) == pytest.approx(0.1147213868, abs=5e-11)


def test_cos_and_sin_are_not_scaled_in_v3_but_are_without_mscale_all_dim():
    assert amplitude(None) == 1.0
    assert amplitude(YARN_V3) == 1.0
    bare = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}
    assert amplitude(bare) == pytest.approx(0.1 * math.log(40) + 1)
    assert softmax_scale(192, bare) == softmax_scale(192, None)


def test_a_factor_of_one_is_plain_rope():
    scaling = {**YARN_V3, "factor": 1}
    torch.testing.assert_close(inverse_frequencies(64, 1e4, scaling), inverse_frequencies(64, 1e4, None))
    assert softmax_scale(192, scaling) == softmax_scale(192, None)


def test_pairs_are_interleaved():
    angle = rotations(torch.tensor([[1]]), torch.tensor([0.5, 0.0]))
    turned = rotate(torch.tensor([1.0, 0.0, 3.0, 4.0]).view(1, 1, 1, 4), angle).flatten()
    torch.testing.assert_close(turned, torch.tensor([math.cos(0.5), math.sin(0.5), 3.0, 4.0]))


def test_position_zero_changes_nothing_and_scale_multiplies():
    x = torch.randn(2, 1, 3, 8)
    freqs = inverse_frequencies(8, 1e4, None)
    torch.testing.assert_close(rotate(x, rotations(torch.zeros(2, 1, dtype=torch.long), freqs)), x)
    torch.testing.assert_close(rotate(x, rotations(torch.zeros(2, 1, dtype=torch.long), freqs, 1.5)), 1.5 * x)


@given(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 3000))
@settings(max_examples=30, deadline=None)
def test_scores_depend_on_the_distance_alone(query_at, key_at, shift):
    generator = torch.Generator().manual_seed(query_at)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=generator)
    freqs = inverse_frequencies(8, 1e4, {**YARN_V3, "original_max_position_embeddings": 64})

    def score(shift: int) -> torch.Tensor:
        at = [rotations(torch.tensor([[p + shift]]), freqs) for p in (query_at, key_at)]
        return (rotate(q, at[0]) * rotate(k, at[1])).sum()

    torch.testing.assert_close(score(0), score(shift), rtol=0, atol=5e-3)
    torch.testing.assert_close(rotate(q, rotations(torch.tensor([[query_at]]), freqs)).norm(), q.norm())


def test_bf16_is_rotated_in_fp32():
    x = torch.randn(1, 5, 2, 8).to(torch.bfloat16)
    turns = rotations(torch.arange(5).unsqueeze(0) + 900, inverse_frequencies(8, 1e4, None))
    turned = rotate(x, turns)
    assert turned.dtype == torch.bfloat16
    torch.testing.assert_close(turned, rotate(x.float(), turns).to(torch.bfloat16), rtol=0, atol=0)


LAYOUTS = {
    "odd heads, transposed": lambda: torch.randn(2, 3, 5, 13).transpose(1, 2),
    "every second number": lambda: torch.randn(2, 5, 3, 24)[..., ::2],
    "an odd offset": lambda: torch.randn(2 * 5 * 3 * 12 + 1)[1:].view(2, 5, 3, 12),
    "one number everywhere": lambda: torch.randn(1, 1, 1, 1).expand(2, 5, 3, 12),
    "one odd head": lambda: torch.randn(1, 1, 1, 13),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_heads_of_any_width_and_layout_are_rotated(layout):
    x = LAYOUTS[layout]()
    turns = rotations(torch.arange(x.shape[1]).unsqueeze(0), inverse_frequencies(8, 1e4, None))
    leaf, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    expected = torch.cat((plain[..., :-8], rotate(plain[..., -8:], turns)), dim=-1)
    torch.testing.assert_close(rotate_tail(x, turns), expected)
    rotate_tail(leaf, turns).sum().backward()  # whose gradient is one number everywhere
    expected.sum().backward()
    torch.testing.assert_close(leaf.grad, plain.grad)
