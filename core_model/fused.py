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
    """`function` of tensors, compiled where kernels are; not differentiable, so for autograd functions.

    Between its operations a kernel keeps fp32 where the operations themselves would round to bf16. Tensors of another
    dtype, rank or last size, or laid out otherwise, get a kernel of their own; of the other sizes one kernel takes all.
    """
    kernels: dict[tuple[object, ...], Callable[Args, Result]] = {}

    @functools.wraps(function)
    def run(*args: Args.args, **kwargs: Args.kwargs) -> Result:
        if torch.compiler.is_compiling():  # more than this function
            return function(*args, **kwargs)
        mode = _get_current_dispatch_mode()
        if isinstance(mode, TakesFused):
            return mode.fused(function, *args, **kwargs)
        place = function.__qualname__, next(x.device for x in args if isinstance(x, Tensor))
        if mode is not None or place in faults or not compiles_on(place[1]):
            return function(*args, **kwargs)
        kinds = (*map(_kind, args), torch.is_inference_mode_enabled())
        if kinds not in kernels:
            kernels[kinds] = torch.compile(_twin(function, len(kernels)))
        detached: Any = [x.detach() if isinstance(x, Tensor) else x for x in args]
        try:
            return kernels[kinds](*detached, **kwargs)
        except TorchDynamoException as error:
            result = function(*args, **kwargs)  # raises where the arguments are at fault
            faults[place] = str(error)
            log.warning("%s runs as single operations, more slowly: %s", place[0], faults[place][:500])
            return result

    return run


# Why a function is not compiled on a device: no compiler on this machine, say.
faults: dict[tuple[str, torch.device], str] = {}


def _kind(x: object) -> object:
    """What a kernel is made for. Of vectors any size: they hold a number for each row."""
    if not isinstance(x, Tensor):
        return x
    return x.dtype, x.dim(), x.shape[-1] if x.dim() > 1 else None, x.is_contiguous()


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
