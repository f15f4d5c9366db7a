"""Whether a module is the model's own: what works with its weights, and never calls it, stands in for nothing else."""

from __future__ import annotations

from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def runs_as_own(module: object, kind: type[nn.Module]) -> bool:
    """Whether a module is of exactly this class, nobody has given it a `forward`, and no hook runs with it."""
    if type(module) is not kind:
        return False
    own = vars(module)  # its attributes cost several times as much
    return not ("forward" in own or own[HOOKS[0]] or own[HOOKS[1]])


def is_own(module: object, kind: type[nn.Module]) -> bool:
    """`runs_as_own`, and no hook watches its backward."""
    if not runs_as_own(module, kind):
        return False
    own = vars(module)
    return not (own[HOOKS[2]] or own[HOOKS[3]])


def why_not(module: nn.Module) -> str:
    """The end of a message about a module that is not the model's own."""
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    return (
        f"is a {kind} that does more than its weight says (an adapter, a hook, a forward of its own): merge adapters, "
        "take hooks off"
    )
