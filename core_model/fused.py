"""Elementwise work that accelerators do in one kernel.

Between its products a training step reads and writes activations, each operation in a pass over memory of its own; on
an accelerator these passes take as long as the products do (docs/gpu.md). Of a function under `fused` torch.compile
makes one Triton kernel, or two where it sums over something else than what it writes along. On a CPU, whose caches make
less of that, and wherever nothing is compiled, its operations run as they are written.
"""

from __future__ import annotations

import functools
import logging
import os
import threading
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._dynamo.exc import TorchDynamoException
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from core_model.parallel.device import compiles_kernels
from core_model.precision import autocast_dtype

log = logging.getLogger(__name__)

Args = ParamSpec("Args")
Result = TypeVar("Result")


class TakesFused(TorchDispatchMode):
    """A dispatch mode that is given a fused function whole, where others see the operations it is written in."""

    def fused(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        return function(*args, **kwargs)


# Why a function is not compiled on a device: no compiler on this machine, say.
faults: dict[tuple[str, torch.device], str] = {}
_making = threading.Lock()


def fused(function: Callable[Args, Result]) -> Callable[Args, Result]:
    """`function` of tensors and constants, compiled where kernels are; not differentiable, so for autograd functions.

    Between its operations a kernel keeps fp32 where the operations themselves would round to bf16. Tensors of another
    dtype, rank or last size, or laid out otherwise, get a kernel of their own, and so do other constants; of the other
    sizes one kernel takes all.
    """
    kernels: dict[tuple[object, ...], Callable[Args, Result]] = {}

    @functools.wraps(function)
    def run(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        if torch.compiler.is_compiling():  # more than this function
            return function(*args, **kwargs)
        mode = _get_current_dispatch_mode()
        if isinstance(mode, TakesFused):
            return mode.fused(function, *args, **kwargs)
        device = next(x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        place = f"{function.__module__}.{function.__qualname__}", device
        if mode is not None or place in faults or not compiles_on(device):
            return function(*args, **kwargs)
        named = ((name, _kind(x)) for name, x in kwargs.items())
        kinds = (*map(_kind, args), *named, autocast_dtype(device), torch.is_inference_mode_enabled())
        with _making:
            if kinds not in kernels:
                kernels[kinds] = torch.compile(_twin(function, len(kernels)))
        values: Any = map(_detached, args)
        named_values: Any = {name: _detached(x) for name, x in kwargs.items()}
        try:
            return kernels[kinds](*values, **named_values)
        except TorchDynamoException as error:
            result = function(*args, **kwargs)  # raises where the arguments are at fault
            faults[place] = str(error)
            log.warning("%s runs as single operations, more slowly: %s", place[0], faults[place][:500])
            return result

    return run


def _kind(x: object) -> object:
    """What a kernel is made for.

    Of sizes the last one, but not a vector's, which holds a number for each row; and which of them are 1: torch.compile
    takes these for constants, and would count a kernel for each combination.
    """
    if not isinstance(x, Tensor):
        return x
    width = x.shape[-1] if x.dim() > 1 else None
    return x.device, x.dtype, width, tuple(size == 1 for size in x.shape), x.is_contiguous()


def _detached(x: object) -> object:
    return x.detach() if isinstance(x, Tensor) else x


def _twin(function: Callable[Args, Result], number: int) -> Callable[Args, Result]:
    """The same function by another name: torch.compile tells by the name of code which of its sizes have changed, and
    counts by code how often it compiles, which it does eight times.
    """
    name = f"{function.__name__}_{number}"
    code = function.__code__.replace(co_name=name)
    return types.FunctionType(code, function.__globals__, name, function.__defaults__, function.__closure__)


@functools.cache
def compiles_on(device: torch.device) -> bool:
    """Whether fused functions are kernels there; else single operations."""
    return os.environ.get("TRIVIUM_NATIVE", "1") != "0" and compiles_kernels(device)
