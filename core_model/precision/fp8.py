"""FP8 with one scale per tile: what the format means, in plain PyTorch, on any device.

A matrix is cut into tiles: 1x128 for activations, 128x1 for the same activations on their way into the weight
gradient, 128x128 for weights. Each tile carries a scale, so that its largest magnitude becomes the format's largest
number; `q * scale` is the value meant. Scales are FP32, either any number or (UE8M0) a power of two, by which
dividing and multiplying is exact.

Every input has a defined result:

- Finite values never become inf or NaN: they are divided in FP32, clamped to the largest number and rounded to the
  nearest, ties to even. Below half the smallest subnormal (2^-10 of a scale in E4M3) they become zero. Only
  `dequantize` can overflow, where fp32 ends: a number from its last binade may have been rounded up.
- The amax of a tile counts as at least `floor`, so a tile of zeros has a scale and stays zeros.
- inf or NaN anywhere in a tile makes its scale and all its bytes NaN: an overflow spoils a tile visibly, never quietly.
- Edges that 128 does not divide are padded with zeros before the scale is taken; the padding is cut off again.

Relative L2 error on normal numbers: 2.57e-2 with tiles, 2.64e-2 with blocks, 2.65e-2 with power-of-two scales.

Shape suffixes: R rows, C columns, r rows of tiles, c columns of tiles.
Source: V3 report §3.3; deepseek-ai/DeepSeek-V3 inference/kernel.py (`act_quant`, `weight_dequant`), README_WEIGHTS.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 128
ACTIVATION_TILE = (1, TILE)
ACTIVATION_TILE_TRANSPOSED = (TILE, 1)
WEIGHT_BLOCK = (TILE, TILE)

# act_quant's clamp: a tile of noise around 1e-6 is not worth all of the format's range.
ACTIVATION_FLOOR = 1e-4
# A weight block may be small and mean it. Only zeros need a floor, and what was dequantised gets its bytes back.
WEIGHT_FLOOR = 1e-12


@dataclass(frozen=True)
class Fp8Format:
    """An 8-bit format: torch's type with its bits, and the largest finite magnitude."""

    dtype: torch.dtype
    largest: float


E4M3 = Fp8Format(torch.float8_e4m3fn, 448.0)
# AMD MI300: exponent bias 8 instead of 7, no negative zero, NaN is the byte 0x80; torch's own cast overflows to NaN.
E4M3FNUZ = Fp8Format(torch.float8_e4m3fnuz, 240.0)


def ceil_to_power_of_two(x: Tensor) -> Tensor:
    """The smallest power of two >= x, exactly, for positive finite fp32 (UE8M0 holds nothing else)."""
    mantissa, exponent = torch.frexp(x)  # x = mantissa * 2^exponent, 0.5 <= mantissa < 1
    return torch.ldexp(torch.ones_like(x), exponent - (mantissa == 0.5).to(exponent.dtype))


@torch.no_grad()
def quantize(
    x: Tensor,
    tile: tuple[int, int],
    *,
    power_of_two: bool = False,
    fp8: Fp8Format = E4M3,
    floor: float = ACTIVATION_FLOOR,
) -> tuple[Tensor, Tensor]:
    """Quantise the last two dimensions tile by tile.

    Args:
        x: [..., R, C], a floating-point type.
        tile: rows and columns of a tile.
        power_of_two: round scales up to powers of two (UE8M0).
        floor: least amax, > 0.

    Returns:
        q [..., R, C] of the format's type, and scale [..., ceil(R / rows), ceil(C / columns)] fp32: x ~ q * scale.
    """
    (rows, columns), (height, width) = tile, x.shape[-2:]
    padded = x.to(torch.float32, copy=True)  # a copy of our own: it is divided in place
    if height % rows or width % columns:
        padded = F.pad(padded, (0, -width % columns, 0, -height % rows))
    r, c = padded.shape[-2] // rows, padded.shape[-1] // columns
    tiles = padded.unflatten(-1, (c, columns)).unflatten(-3, (r, rows))
    # Twice a reduction instead of abs(): no second matrix in memory. NaN passes through all of it.
    amax = torch.maximum(tiles.amax((-3, -1)), tiles.amin((-3, -1)).neg_())
    scale = amax.clamp_min(floor) / fp8.largest
    if power_of_two:
        scale = ceil_to_power_of_two(scale)
    scale = scale.masked_fill(~amax.isfinite(), float("nan"))
    tiles.div_(scale[..., :, None, :, None]).clamp_(-fp8.largest, fp8.largest)
    return padded[..., :height, :width].to(fp8.dtype).contiguous(), scale


def quantize_activation(
    x: Tensor, *, power_of_two: bool = False, transposed: bool = False, fp8: Fp8Format = E4M3
) -> tuple[Tensor, Tensor]:
    """Tiles of 1x128 along the last dimension, or (`transposed`) of 128x1 along the one before it."""
    tile = ACTIVATION_TILE_TRANSPOSED if transposed else ACTIVATION_TILE
    return quantize(x, tile, power_of_two=power_of_two, fp8=fp8)


def quantize_weight(w: Tensor, *, power_of_two: bool = False, fp8: Fp8Format = E4M3) -> tuple[Tensor, Tensor]:
    """Blocks of 128x128: [..., out, in] and scales [..., ceil(out / 128), ceil(in / 128)]."""
    return quantize(w, WEIGHT_BLOCK, power_of_two=power_of_two, fp8=fp8, floor=WEIGHT_FLOOR)


def scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the scales of a weight [..., out, in]: one for every block, begun ones included."""
    return (*shape[:-2], -(-shape[-2] // TILE), -(-shape[-1] // TILE))


def dequantize(q: Tensor, scale: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """q * scale, multiplied in fp32 and rounded once to `dtype`; the tile's shape follows from the two shapes.

    Args:
        q: [..., R, C].
        scale: [..., R or ceil(R / 128), C or ceil(C / 128)].

    Raises:
        ValueError: scales of any other shape.
    """
    rows, columns = (1 if tiles == size else TILE for size, tiles in zip(q.shape[-2:], scale.shape[-2:], strict=True))
    expected = (*q.shape[:-2], -(-q.shape[-2] // rows), -(-q.shape[-1] // columns))
    if scale.shape != expected:
        raise ValueError(f"scales of shape {tuple(scale.shape)} do not fit values of shape {tuple(q.shape)}")
    x = q.to(torch.float32)
    scale_rC = scale.float().repeat_interleave(columns, -1)[..., : q.shape[-1]]
    whole = q.shape[-2] // rows  # rows of tiles that are complete; at most one more is not
    x[..., : whole * rows, :].unflatten(-2, (whole, rows)).mul_(scale_rC[..., :whole, None, :])
    x[..., whole * rows :, :].mul_(scale_rC[..., whole:, :])
    return x.to(dtype)
