"""Which numbers products are made of: the model's linear layers, dtypes, FP8."""

from core_model.precision.autocast import autocast_dtype, autocast_to
from core_model.precision.fastest import fastest_dtype
from core_model.precision.fp8 import dequantize, quantize_activation, quantize_weight
from core_model.precision.kept import KeepsFp32Buffers
from core_model.precision.linear import Linear, plain_weight

__all__ = [
    "KeepsFp32Buffers",
    "Linear",
    "autocast_dtype",
    "autocast_to",
    "dequantize",
    "fastest_dtype",
    "plain_weight",
    "quantize_activation",
    "quantize_weight",
]
