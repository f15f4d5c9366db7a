"""How a model's weights lie on disk: which type each tensor has, and how it gets there.

In FP8 as DeepSeek released it, the products of attention and feed-forward are E4M3 with a `weight_scale_inv` for every
128x128 block; embedding, head, norms, the gate and the MTP projection stay BF16. The routing bias is always FP32:
its steps of 0.001 vanish in BF16 from 0.5 on.

What comes back bit by bit (tests/core_model/test_convert.py):

- FP32 and BF16 written and read, in whatever order of folders: everything.
- FP8 to FP8 with the same kind of scale: everything; the bytes are copied.
- FP8 with power-of-two scales to BF16 or FP32 and back: every value. (A block whose largest value was rounded down to
  a power of two comes back with half the scale and doubled bytes.)
- FP8 with FP32 scales to BF16 or FP32 and back: every byte of a block that holds a +-448, as all quantised ones do; a
  scale comes back within 2^-8 of itself from BF16 and within 2^-22 from FP32.
- BF16 to FP8 and back loses (2.6e-2 in relative L2), once: with power-of-two scales a second pass changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from core_model.checkpoint.names import ROUTING_BIAS
from core_model.precision.fp8 import E4M3, TILE, quantize_weight, scale_shape

SCALE = "_scale_inv"  # after the weight's name
IN_FP8 = re.compile(r"\.(self_attn\.\w+_proj(_with_mqa)?|mlp(\.experts\.\d+|\.shared_experts)?\.\w+_proj)\.weight$")
EXPERT = re.compile(r"\.experts\.\d+\.\w+$")

STORED = (torch.float64, torch.float32, torch.bfloat16, torch.float16, E4M3.dtype)

Declared = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True)
class Storage:
    """dtype: float64, float32, bfloat16, float16 or float8_e4m3fn.

    power_of_two: round FP8's scales up to powers of two (V3.1).
    whole_blocks: leave in BF16 what FP8's blocks do not divide, and say so in config.json. V3 quantises it too, but
        transformers infers the size of blocks from the numbers of rows and scales, and gets another one there.

    Raises:
        ValueError: another dtype, in which weights would be lost.
    """

    dtype: torch.dtype
    power_of_two: bool = False
    whole_blocks: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in STORED:
            raise ValueError(f"weights are stored in one of {', '.join(map(str, STORED))}, not in {self.dtype!r}")

    @property
    def is_fp8(self) -> bool:
        return self.dtype == E4M3.dtype

    @property
    def plain_dtype(self) -> torch.dtype:
        """Of what is not quantised."""
        return torch.bfloat16 if self.is_fp8 else self.dtype

    def quantises(self, name: str, shape: tuple[int, ...]) -> bool:
        if not self.is_fp8 or IN_FP8.search(name) is None:
            return False
        return not (self.whole_blocks and is_cut_off(shape))

    def left_out(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """The modules that `whole_blocks` leaves as they are, by the names that transformers replaces modules under.

        Those are a layer's experts all at once, and the head too: it is left out by itself only where no list is given.
        """
        if not self.is_fp8:
            return []
        names = (name for name, shape in shapes.items() if IN_FP8.search(name) and not self.quantises(name, shape))
        modules = dict.fromkeys(EXPERT.sub(".experts", name.removesuffix(".weight")) for name in names)
        return [*modules, "lm_head"] if modules else []

    def declare(self, name: str, shape: tuple[int, ...]) -> dict[str, Declared]:
        """The tensors a weight is stored as: one, or two where it is quantised."""
        if self.quantises(name, shape):
            return {name: (self.dtype, shape), name + SCALE: (torch.float32, scale_shape(shape))}
        return {name: (torch.float32 if name.endswith(ROUTING_BIAS) else self.plain_dtype, shape)}

    def encode(self, name: str, tensor: Tensor) -> dict[str, Tensor]:
        """The weight as `declare` says.

        Raises:
            ValueError: inf or NaN in a weight that is to be quantised.
        """
        if not self.quantises(name, tuple(tensor.shape)):
            ((dtype, _),) = self.declare(name, tuple(tensor.shape)).values()
            return {name: tensor.to(dtype)}
        q, scale = quantize_weight(tensor, power_of_two=self.power_of_two)
        if not scale.isfinite().all():
            raise ValueError(f"inf or NaN in {name}")
        return {name: q, name + SCALE: scale}

    def quantization_config(self, left_out: list[str]) -> dict[str, Any]:
        """What config.json says of FP8, in the words of V3 (and, with `scale_fmt`, of V3.1)."""
        fields = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"}
        scales = {"scale_fmt": "ue8m0"} if self.power_of_two else {}
        others = {"modules_to_not_convert": left_out} if left_out else {}
        return {**fields, **scales, "weight_block_size": [TILE, TILE], **others}


def is_cut_off(shape: tuple[int, ...]) -> bool:
    """Whether the last of FP8's blocks are cut off, while the first are not."""
    return any(size > TILE and size % TILE for size in shape)
