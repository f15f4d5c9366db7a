"""What backward makes again instead of keeping it from forward.

Three policies, an attribute of the model that the training code sets:

- "none": everything that backward reads is kept.
- "v3": the outputs of every RMSNorm and of MLA's up-projections are made again (V3 report §3.2.3). A projection of the
  queries without a query latent counts among the latter.
- "layer": of each layer its input alone is kept, and its whole forward runs again.

Gradients are the same under all three, up to the rounding of compiled layers, which "v3" does without: the same
operations run again on the same values, and draw the same random numbers, where an adapter in the model draws any.

"v3" is not made of `torch.utils.checkpoint` regions: what follows a norm (a projection, which would keep the norm's
output as its input) would have to be inside the region and to run again too. Instead `derived` marks a tensor as a
function of others, and within `_DropDerived` autograd keeps how to make it in place of its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint, get_device_states, set_device_states

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
    if torch.compiler.is_compiling():
        return checkpoint(forward, *args, use_reentrant=False)
    drawn_from = _Generators.now(next(x.device for x in args if isinstance(x, Tensor)))
    ran = False

    def run_or_repeat(*args: Any) -> Result:
        nonlocal ran
        with drawn_from.again() if ran else nullcontext():
            ran = True
            return forward(*args)

    # torch's own way of drawing the same numbers keeps the states of all generators for every layer.
    return checkpoint(run_or_repeat, *args, use_reentrant=False, preserve_rng_state=False)


def derived(make: Callable[..., Made], *inputs: Tensor) -> Made:
    """make(*inputs), a tensor or several, which "v3" does not keep.

    `make` must read no tensor but its inputs and parameters. What it draws (an adapter's dropout) it draws again.
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
        self.drawn_from = _Generators.now(device)
        self.made: tuple[Tensor, ...] | None = None

    def outputs(self) -> tuple[Tensor, ...]:
        """Made by the first reader; kept until the last one has let go of this object."""
        if self.made is None:
            inputs = [_unpack(x) for x in self.inputs]
            with torch.no_grad(), autocast_to(self.device, self.autocast), self.drawn_from.again():
                made = self.make(*inputs)
            self.made = made if isinstance(made, tuple) else (made,)
            self.inputs = ()
        return self.made


class _Generators:
    """The states of torch's generators, for a function that is to draw the same once more."""

    _latest: ClassVar[_Generators | None] = None

    @classmethod
    def now(cls, device: torch.device) -> _Generators:
        """Those of the CPU and the device; the same object until somebody has drawn."""
        found, latest = cls(device), cls._latest
        if latest is not None and latest == found:
            return latest
        cls._latest = found
        return found

    def __init__(self, device: torch.device) -> None:
        self.cpu = torch.get_rng_state()
        self.kind = device.type
        self.devices: list[int] = []
        self.states: list[Tensor] = []
        if device.type not in ("cpu", "meta"):
            self.devices, self.states = get_device_states(torch.empty(0, device=device))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Generators) or (self.kind, self.devices) != (other.kind, other.devices):
            return False
        # States lie in the CPU's memory, a device's too: nothing waits.
        pairs = zip((self.cpu, *self.states), (other.cpu, *other.states), strict=True)
        return all(np.array_equal(one.numpy(), another.numpy()) for one, another in pairs)

    __hash__ = None  # type: ignore[assignment]

    @contextmanager
    def again(self) -> Iterator[None]:
        kind = {"device_type": self.kind} if self.devices else {}
        with torch.random.fork_rng(self.devices, **kind):
            torch.set_rng_state(self.cpu)
            if self.devices:
                set_device_states(self.devices, self.states, device_type=self.kind)
            yield


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
