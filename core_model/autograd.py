"""What the model's own autograd functions share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Gradients = tuple[Tensor | None, ...]


def differentiable_once(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """A backward that refuses `create_graph`, since its results could not be differentiated.

    torch's `once_differentiable` lets it pass where the incoming gradient is a constant, as that of a loss is: a
    penalty on gradients would then be lost without a word.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *grads: Tensor | None) -> Gradients:
        if torch.is_grad_enabled():
            name = backward.__qualname__.split(".")[0].lstrip("_")
            raise RuntimeError(f"{name} has no gradients of gradients: create_graph must be False")
        return backward(ctx, *grads)

    return wrapper
