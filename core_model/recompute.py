"""What backward makes again instead of keeping it from forward.

Three policies, an attribute of the model that the training code sets:

- "none": everything that backward reads is kept.
- "v3": the outputs of every RMSNorm and of MLA's up-projections are made again (V3 report §3.2.3). A projection of the
  queries without a query latent counts among the latter.
- "layer": of each layer its input alone is kept, and its whole forward runs again.

Gradients are the same numbers under all three: the same operations run again on the same values.

"v3" is not made of `torch.utils.checkpoint` regions: what follows a norm (a projection, which would keep the norm's
output as its input) would have to be inside the region and to run again too. Instead `derived` marks a tensor as a
function of others, and within `_DropDerived` autograd keeps how to make it in place of its numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from core_model.precision import autocast_dtype, autocast_to

Recompute = Literal["none", "v3", "layer"]
Made = TypeVar("Made", Tensor, tuple[Tensor, ...])
Result = TypeVar("Result")


def run(policy: Recompute, forward: Callable[..., Result], *args: Any) -> Result:
    """forward(*args), keeping for backward what the policy says.

    Raises:
        ValueError: no such policy.
    """
    if policy not in ("none", "v3", "layer"):
        raise ValueError(f"recompute must be none, v3 or layer, not {policy!r}")
    if policy == "none" or not torch.is_grad_enabled():
        return forward(*args)
    if policy == "v3":
        with _DropDerived():
            return forward(*args)
    # The model draws no random numbers, and reading a generator's state would wait for the device.
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)


def derived(make: Callable[..., Made], *inputs: Tensor) -> Made:
    """make(*inputs), a tensor or several, which "v3" does not keep.

    `make` must give the same numbers when it runs again, and read no tensor but its inputs and parameters.
    """
    if torch.compiler.is_compiling():  # what a compiled region keeps is its compiler's to say
        return make(*inputs)
    active = _active.get()
    return make(*inputs) if active is None else active.derive(make, inputs)


def drops_derived() -> bool:
    """Whether "v3" is on; compiled layers, which keep what they like, stand back then."""
    return _active.get() is not None


class _Derivation:
    """How to make the outputs of one `derived`, and these once made."""

    def __init__(self, make: Callable[..., Any], inputs: tuple[Any, ...], device: torch.device) -> None:
        self.make, self.inputs, self.device = make, inputs, device
        self.autocast = autocast_dtype(device)
        self.made: tuple[Tensor, ...] | None = None

    def outputs(self) -> tuple[Tensor, ...]:
        """Made by the first reader; kept until the last one has let go of this object."""
        if self.made is None:
            inputs = [_unpack(x) for x in self.inputs]
            with torch.no_grad(), autocast_to(self.device, self.autocast):
                made = self.make(*inputs)
            self.made = made if isinstance(made, tuple) else (made,)
            self.inputs = ()
        return self.made


class _View(NamedTuple):
    """A tensor in the memory of a derived one."""

    derivation: _Derivation
    output: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


class _DropDerived(saved_tensors_hooks):
    """While on, tensors in the memory of a `derived` output are packed as the way to make them."""

    def __init__(self) -> None:
        super().__init__(self._pack, _unpack)
        # Outputs by the address of their memory, held so that no other tensor gets that address meanwhile.
        self._outputs: dict[int, tuple[_Derivation, int, Tensor]] = {}

    def __enter__(self) -> None:
        super().__enter__()
        self._token = _active.set(self)

    def __exit__(self, *args: object) -> None:
        _active.reset(self._token)
        super().__exit__(*args)
        self._outputs.clear()

    def derive(self, make: Callable[..., Made], inputs: tuple[Tensor, ...]) -> Made:
        derivation = _Derivation(make, tuple(self._pack(x.detach()) for x in inputs), inputs[0].device)
        made = make(*inputs)
        for index, output in enumerate(made if isinstance(made, tuple) else (made,)):
            self._outputs[output.untyped_storage().data_ptr()] = (derivation, index, output)
        return made

    def _pack(self, x: Tensor) -> Any:
        found = self._outputs.get(x.untyped_storage().data_ptr())
        if found is None or found[2].dtype != x.dtype or not x.numel():  # all empty tensors share one address
            return x
        derivation, index, _ = found
        return _View(derivation, index, tuple(x.shape), x.stride(), int(x.storage_offset()))


def _unpack(packed: Any) -> Tensor:
    if not isinstance(packed, _View):
        return packed
    made = packed.derivation.outputs()[packed.output]
    return made.as_strided(packed.size, packed.stride, packed.offset)


_active: ContextVar[_DropDerived | None] = ContextVar("drops_derived", default=None)
