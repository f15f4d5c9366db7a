"""Elementwise work that accelerators do in one kernel.

Between its products a training step reads and writes activations, each operation in a pass over memory of its own; on
an accelerator these passes take as long as the products do (docs/gpu.md). A function under `fused` is one pass:
torch.compile makes a Triton kernel of it. On a CPU, whose caches make less of that, and wherever nothing is compiled,
its operations run as they are written.
"""

from __future__ import annotations

import functools
import logging
import os
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from core_model.parallel.device import compiles_kernels

log = logging.getLogger(__name__)

Args = ParamSpec("Args")
Result = TypeVar("Result")


class TakesFused(TorchDispatchMode):
    """A dispatch mode that sees a fused function as one operation, where others see those it is written in."""

    def fused(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        raise NotImplementedError


def fused(function: Callable[Args, Result]) -> Callable[Args, Result]:
    """`function` of tensors, one kernel where kernels are compiled; not differentiable, so for autograd functions.

    Between its operations a kernel keeps fp32 where the operations themselves would round to bf16. Each width (the last
    size of tensors that have others) has a kernel of its own, in which it is a constant; of the other sizes one kernel
    takes all.
    """
    kernels: dict[tuple[object, ...], Callable[Args, Result]] = {}
    faults: list[str] = []

    @functools.wraps(function)
    def run(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        if torch.compiler.is_compiling():  # more than this function
            return function(*args, **kwargs)
        mode = _get_current_dispatch_mode()
        if isinstance(mode, TakesFused):
            return mode.fused(function, *args, **kwargs)
        tensors = [x for x in args if isinstance(x, Tensor)]
        if faults or mode is not None or not compiles_on(tensors[0].device):
            return function(*args, **kwargs)
        widths = tuple(x.shape[-1] if x.dim() > 1 else None for x in tensors)
        if widths not in kernels:
            kernels[widths] = torch.compile(_twin(function, "_".join(map(str, filter(None, widths)))))
        try:
            return kernels[widths](*args, **kwargs)
        except TorchDynamoException as error:  # no compiler on this machine, say; said once
            faults.append(str(error))
            log.warning("%s runs as single operations, more slowly: %s", function.__qualname__, faults[0][:500])
            return function(*args, **kwargs)

    return run


def _twin(function: Callable[Args, Result], suffix: str) -> Callable[Args, Result]:
    """The same function by another name: torch.compile tells by the name of code which of its sizes have changed, and
    counts by code how often it compiles.
    """
    name = f"{function.__name__}_{suffix}"
    code = function.__code__.replace(co_name=name)
    return types.FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)


@functools.cache
def compiles_on(device: torch.device) -> bool:
    """Whether fused functions are kernels there; else single operations."""
    return os.environ.get("TRIVIUM_NATIVE", "1") != "0" and compiles_kernels(device)
