"""The router's numbers as compiled code takes them (router.h)."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from core_model.moe.gate import Gate


class Router(ctypes.Structure):
    """`experts` 0: a dense layer."""

    _fields_ = [
        ("bias", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("experts", "chosen", "groups", "kept_groups", "normalised")),
        ("scaling", ctypes.c_float),
    ]

    @classmethod
    def of(cls, gate: Gate, bias: int) -> Router:
        """bias: address of the routing bias in fp32, which the caller keeps."""
        return cls(bias, gate.experts, gate.top_k, gate.groups, gate.top_groups, gate.normalise, gate.scaling)
