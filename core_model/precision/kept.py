"""Buffers that stay fp32 when a model is cast.

`model.to(torch.bfloat16)`, and an engine that casts the module it is given, would round the routing bias (its steps of
0.001 vanish in bf16 from 0.5 on) and RoPE's frequencies (at position 1000 the angles are off by radians).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn


class KeepsFp32Buffers(nn.Module):
    """Casts of dtype pass by the named buffers; moves between devices do not."""

    fp32_buffers: ClassVar[tuple[str, ...]] = ()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = {name: self._buffers[name] for name in self.fp32_buffers}
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            if buffer is not None and after is not None and after.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(after.device)
        return self
