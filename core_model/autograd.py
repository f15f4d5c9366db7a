"""What the model's own autograd functions share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


def differentiable_once(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """A backward whose results say so when somebody differentiates them.

    torch's `once_differentiable` does where the incoming gradient requires one itself; but backward reads saved tensors
    too, and the gradient of a loss, from which all others come, is a constant. A penalty on gradients would be lost
    without a word.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor | None) -> Gradients:
        with torch.no_grad():
            gradients = backward(ctx, *grads)
        if not torch.is_grad_enabled():  # no `create_graph`
            return gradients
        message = f"{backward.__qualname__.split('.')[0].lstrip('_')} has no gradients of gradients"
        error = torch._C._functions.DelayedError(message.encode(), len(gradients))
        wanting = [None if one is None else one.detach().requires_grad_() for one in gradients]
        return error(*cast(list[Tensor], wanting))

    return wrapper
