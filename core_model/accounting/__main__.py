"""`python -m core_model.accounting [PRESET ...]`: the numbers of the presets side by side.

Bytes are of one device that holds the whole model, fp32 weights and BF16 products.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from core_model.accounting.counts import flops_per_token, kv_bytes_per_token, parameters
from core_model.accounting.memory import Dtypes, activation_bytes, state_bytes
from core_model.config import PRESETS, V3Config
from core_model.recompute import Recompute


def rows(config: V3Config, tokens: int) -> dict[str, str]:
    """What is printed of one configuration, by name; activations for a micro-batch of `tokens` in one sequence."""
    count, state = parameters(config), state_bytes(config)
    flops = flops_per_token(config, tokens, mtp=True)
    found = {
        "parameters": f"{count.total:,}",
        "active a token": f"{count.active:,}",
        "MTP modules": f"{count.mtp:,}",
        "latent cache a token, BF16": f"{kv_bytes_per_token(config, torch.bfloat16):,} B",
        f"training at {tokens} tokens, MTP too": f"{flops / 1e9:,.3f} GFLOP a token",
        "weights": _size(state.weights),
        "gradients": _size(state.gradients),
        "Adam's moments": _size(state.moments),
        "Adam's moments in BF16, as V3's": _size(state_bytes(config, Dtypes(moments=torch.bfloat16)).moments),
    }
    policies: dict[Recompute, str] = {
        "none": "no recomputation",
        "v3": "norms and up-projections recomputed",
        "layer": "whole layers recomputed",
    }
    for policy, label in policies.items():
        kept = activation_bytes(config, tokens, policy)
        again = f" + {_size(kept.again)} in backward" if kept.again else ""
        found[f"activations, {label}"] = _size(kept.tokens + kept.heads) + again
    found["BF16 weight copies (not with whole-layer recomputation)"] = _size(activation_bytes(config, tokens).copies)
    return found


def table(presets: Sequence[str], tokens: int) -> str:
    """The rows of each preset, one block after the other.

    Raises:
        ValueError: no such preset, or tokens below 1.
    """
    blocks = []
    for name in presets:
        found = rows(V3Config.preset(name), tokens)
        width = max(map(len, found))
        blocks.append("\n".join([name, *(f"  {label:<{width}}  {value}" for label, value in found.items())]))
    return "\n\n".join(blocks)


def _size(count: int) -> str:
    """Bytes in the unit that leaves 1 to 1023 of it."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.1f} {units[0]}"


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status: 2 for a preset that is none or a length below 1."""
    parser = argparse.ArgumentParser(prog="python -m core_model.accounting", description="What the presets cost.")
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"of {', '.join(PRESETS)}; all by default")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of a sequence, the micro-batch (4096)")
    options = parser.parse_args(list(arguments))
    try:
        print(table(options.presets or list(PRESETS), options.tokens))
    except ValueError as error:
        print(f"accounting: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
