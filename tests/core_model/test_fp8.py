"""FP8: every input has the defined result, torchao's recorded bytes, DeepSeek's published errors."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from record_torchao import FIXTURE, matrix, unpack
from torch import Tensor

from core_model.precision import dequantize, quantize_activation, quantize_weight
from core_model.precision.fp8 import (
    ACTIVATION_FLOOR,
    ACTIVATION_TILE,
    ACTIVATION_TILE_TRANSPOSED,
    E4M3,
    E4M3FNUZ,
    WEIGHT_BLOCK,
    ceil_to_power_of_two,
    quantize,
    scale_shape,
)

TILES = {"1x128": ACTIVATION_TILE, "128x1": ACTIVATION_TILE_TRANSPOSED, "128x128": WEIGHT_BLOCK}
FORMATS = {"e4m3": E4M3, "e4m3fnuz": E4M3FNUZ}


def relative_l2(x: Tensor, reference: Tensor) -> float:
    return float((x.double() - reference.double()).norm() / reference.double().norm())


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def values_of(bias: int, nan: set[int]) -> list[float | None]:
    """What each of the 256 bytes means, by the definition: sign, 4 bits of exponent, 3 of mantissa."""
    values: list[float | None] = []
    for byte in range(256):
        sign, exponent, mantissa = -1 if byte & 128 else 1, byte >> 3 & 15, byte & 7
        magnitude = (1 + mantissa / 8) * 2.0 ** (exponent - bias) if exponent else mantissa / 8 * 2.0 ** (1 - bias)
        values.append(None if byte in nan else sign * magnitude)
    return values


MEANING = {"e4m3": values_of(7, {0x7F, 0xFF}), "e4m3fnuz": values_of(8, {0x80})}


@pytest.mark.parametrize("name", FORMATS)
def test_the_256_bytes_mean_what_the_format_says(name):
    fp8 = FORMATS[name]
    decoded = torch.arange(256, dtype=torch.uint8).view(fp8.dtype).float().tolist()
    assert [None if math.isnan(x) else x for x in decoded] == MEANING[name]
    assert max(x for x in MEANING[name] if x is not None) == fp8.largest


@pytest.mark.parametrize("name", FORMATS)
@given(st.data())
@settings(max_examples=60, deadline=None)
def test_bytes_are_the_nearest_values_ties_to_even(name, data):
    """Against a search through the format's own numbers, in exact arithmetic (the scale is 1)."""
    fp8 = FORMATS[name]
    numbers = sorted((x, byte) for byte, x in enumerate(MEANING[name]) if x is not None)
    # Any number, and those around which rounding turns: the middle of two neighbours and its next floats.
    middle = st.integers(0, len(numbers) - 2).map(lambda i: (numbers[i][0] + numbers[i + 1][0]) / 2)
    nudge = st.sampled_from([0.0, 2.0**-22, -(2.0**-22)])
    near = st.tuples(middle, nudge).map(lambda pair: pair[0] * (1 + pair[1]))
    anything = st.floats(-fp8.largest, fp8.largest, width=32)
    drawn = data.draw(st.lists(st.one_of(anything, near), min_size=1, max_size=127))
    x = torch.tensor([[*drawn, fp8.largest]])
    q, scale = quantize_activation(x, fp8=fp8)
    assert float(scale) == 1.0
    for value, byte in zip(x[0].tolist(), q.view(torch.uint8)[0].tolist(), strict=True):
        distances = {abs(number - value) for number, _ in numbers}
        candidates = [b for number, b in numbers if abs(number - value) == min(distances)]
        even = [b for b in candidates if b % 2 == 0]
        zeros = {0x00, 0x80} if MEANING[name][byte] == 0 else set()
        assert byte in {*(even or candidates), *zeros}, (value, byte, candidates)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("power_of_two", [False, True])
@given(
    st.integers(0, 3),
    st.integers(0, 300),
    st.integers(0, 300),
    st.floats(-30, 37),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=12, deadline=None)
def test_any_shape_and_size_of_finite_numbers(tile, power_of_two, seed, rows, columns, magnitude, dtype):
    x = (normal(rows, columns, seed=seed).clamp(-8, 8) * 10.0**magnitude).to(dtype)
    q, scale = quantize(x, TILES[tile], power_of_two=power_of_two)
    height, width = TILES[tile]
    assert q.shape == x.shape and scale.shape == (math.ceil(rows / height), math.ceil(columns / width))
    assert scale.dtype == torch.float32 and scale.isfinite().all() and (scale > 0).all()
    back = dequantize(q, scale)
    assert back.isfinite().all()
    expanded = scale.repeat_interleave(height, 0)[:rows].repeat_interleave(width, 1)[:, :columns]
    # Half a step of the mantissa, or half the smallest subnormal of the tile's scale.
    bound = torch.maximum(x.float().abs() * 2.0**-4, expanded * 2.0**-10) * (1 + 1e-5)
    assert ((back - x.float()).abs() <= bound).all()
    if power_of_two:
        assert (torch.frexp(scale).mantissa == 0.5).all()


def test_zeros_stay_zeros_and_keep_a_scale():
    for tile in TILES.values():
        q, scale = quantize(torch.zeros(130, 130), tile)
        assert (q.float() == 0).all() and torch.equal(scale, torch.full_like(scale, ACTIVATION_FLOOR / 448))


def test_small_tiles_count_as_the_floor_and_small_weights_do_not():
    x = torch.full((1, 128), 1e-6)
    assert float(quantize_activation(x)[1]) == pytest.approx(1e-4 / 448)
    assert float(quantize_weight(x)[1]) == pytest.approx(1e-6 / 448)


def test_subnormals_are_kept_and_what_is_below_half_of_the_smallest_is_zero():
    least = 2.0**-9
    x = torch.tensor([[448.0, 3 * least, least, 0.51 * least, 0.5 * least, 0.49 * least, -0.3 * least]])
    q, scale = quantize_activation(x)
    assert float(scale) == 1.0
    assert dequantize(q, scale)[0].tolist() == [448.0, 3 * least, least, least, 0.0, 0.0, -0.0]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_inf_and_nan_spoil_their_tile_and_no_other(bad, power_of_two, name):
    x = normal(2, 384)
    x[1, 200] = bad
    q, scale = quantize_activation(x, power_of_two=power_of_two, fp8=FORMATS[name])
    assert scale.isnan().tolist() == [[False, False, False], [False, True, False]]
    spoiled = dequantize(q, scale).isnan()
    assert spoiled[1, 128:256].all() and int(spoiled.sum()) == 128


@pytest.mark.parametrize("power_of_two", [False, True])
def test_the_largest_float_is_no_overflow(power_of_two):
    largest = torch.finfo(torch.float32).max
    q, scale = quantize_activation(torch.tensor([[largest, -largest, 1.0]]), power_of_two=power_of_two)
    assert scale.isfinite().all() and q.float().isfinite().all()
    # What is meant is right; written as fp32 it may be rounded beyond the largest of those.
    assert float(q[0, 0].double() * scale.double()) == pytest.approx(largest, rel=2**-4)


def test_powers_of_two_round_up_exactly():
    x = torch.tensor([1.0, 1.5, 0.3, 1.0, 3e-5])  # DeepGEMM's `ceil_to_ue8m0` gives these
    assert ceil_to_power_of_two(x).tolist() == [1.0, 2.0, 0.5, 1.0, 2.0**-15]
    for exponent in range(-126, 127):
        power = torch.tensor(2.0**exponent)
        around = torch.stack((power, torch.nextafter(power, torch.tensor(math.inf))))
        assert ceil_to_power_of_two(around).tolist() == [2.0**exponent, 2.0 ** (exponent + 1)]


def test_the_error_figures_of_deepseeks_kernels():
    """TileKernels' casts on normal numbers (three digits)."""
    x = normal(2048, 2048)
    figures = {"1x128": 2.57e-2, "128x1": 2.57e-2, "128x128": 2.64e-2}
    for tile, figure in figures.items():
        assert relative_l2(dequantize(*quantize(x, TILES[tile])), x) == pytest.approx(figure, abs=1e-4)
        error = relative_l2(dequantize(*quantize(x, TILES[tile], power_of_two=True)), x)
        assert error == pytest.approx(2.655e-2, abs=1e-4)


@pytest.mark.parametrize(
    ("power_of_two", "a_error", "b_error", "difference"),
    [(False, 0.025868, 0.026718, 7.005e-4), (True, 0.026539, 0.026661, 7.136e-4)],
)
def test_the_error_figures_of_deepgemm(power_of_two, a_error, b_error, difference):
    """Its casts and `calc_diff` on bf16 normal numbers, seed 0: 64x384 activations, 256x384 weights."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(64, 384, dtype=torch.bfloat16, generator=generator)
    b = torch.randn(256, 384, dtype=torch.bfloat16, generator=generator)
    a8 = dequantize(*quantize_activation(a, power_of_two=power_of_two))
    b8 = dequantize(*quantize_weight(b, power_of_two=power_of_two))
    assert relative_l2(a8, a) == pytest.approx(a_error, abs=1e-6)
    assert relative_l2(b8, b) == pytest.approx(b_error, abs=1e-6)
    ours, exact = (a8 @ b8.T).double(), (a.float() @ b.float().T).double()
    calc_diff = 1 - 2 * float((ours * exact).sum() / (ours**2 + exact**2).sum())
    assert calc_diff == pytest.approx(difference, abs=1e-6)  # theirs multiplies by 1/scale: an ulp now and then


@pytest.mark.parametrize("tile", TILES)
def test_bytes_and_scales_of_torchao(tile):
    """torchao multiplies by fl(448 / amax) where we divide by fl(amax / 448): the scales may differ in the last bit."""
    case = json.loads(FIXTURE.read_text())[tile]
    theirs = unpack(case["q"], torch.uint8, case["shape"])
    their_scale = unpack(case["scale"], torch.float32, case["scale_shape"])
    ours, scale = quantize(matrix(*case["shape"]), TILES[tile], floor=1e-12)
    torch.testing.assert_close(scale, their_scale, rtol=2**-22, atol=0)
    assert torch.equal(ours.view(torch.uint8), theirs)
    assert len(ours.view(torch.uint8).unique()) > 200  # the case reaches nearly every byte


@given(st.integers(0, 10**6), st.sampled_from([torch.float32, torch.bfloat16]), st.floats(-4, 4))
@settings(max_examples=20, deadline=None)
def test_what_comes_back_from_a_second_pass(seed, dtype, magnitude):
    """The round trips that checkpoint/storage.py promises."""
    w = normal(200, 136, seed=seed) * 10.0**magnitude
    q, scale = quantize_weight(w, power_of_two=True)
    value = dequantize(q, scale, dtype)
    assert torch.equal(value.float(), dequantize(q, scale))  # 4 bits times a power of two: no rounding
    assert torch.equal(dequantize(*quantize_weight(value, power_of_two=True), dtype), value)
    q, scale = quantize_weight(w)
    again, scale_again = quantize_weight(dequantize(q, scale, dtype))
    assert torch.equal(again.view(torch.uint8), q.view(torch.uint8))
    close = {torch.bfloat16: 2**-8, torch.float32: 2**-22}[dtype]
    torch.testing.assert_close(scale_again, scale, rtol=close, atol=0)


def test_experts_are_quantised_each_by_itself():
    stack = normal(3, 130, 140)
    q, scale = quantize_weight(stack)
    assert scale.shape == scale_shape((3, 130, 140)) == (3, 2, 2)
    for expert in range(3):
        alone, alone_scale = quantize_weight(stack[expert])
        assert torch.equal(alone.view(torch.uint8), q[expert].view(torch.uint8))
        assert torch.equal(alone_scale, scale[expert])
    assert torch.equal(dequantize(q, scale)[1], dequantize(q[1], scale[1]))


def test_the_input_is_left_alone_and_gets_no_gradient():
    x = normal(4, 256).requires_grad_()
    before = x.detach().clone()
    q, scale = quantize_activation(x)
    assert torch.equal(x, before) and not q.requires_grad and not scale.requires_grad


@pytest.mark.parametrize("shape", [(2, 2), (1, 3), (3, 1), (2,)])
def test_scales_of_another_shape_are_refused(shape):
    q, _ = quantize_weight(normal(128, 200))
    with pytest.raises(ValueError):
        dequantize(q, torch.ones(shape))


def test_the_format_of_mi300_reaches_240_and_no_further():
    x = normal(3, 300)
    q, scale = quantize_activation(x, fp8=E4M3FNUZ)
    assert q.dtype == torch.float8_e4m3fnuz and float(q.float().abs().max()) == 240.0
    torch.testing.assert_close(scale * 240 / 448, quantize_activation(x)[1], rtol=1e-6, atol=0)
    assert relative_l2(dequantize(q, scale), x) < 2.8e-2
