"""Between our parameters and the names of DeepSeek's checkpoint.

Names are the same but for two things: routed experts are stacked in memory and apart on disk, and an MTP module has
copies of the embedding and the head on disk, which it shares with the main model in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from core_model.config import V3Config

STACKED = re.compile(r"^(?P<mlp>.*\.mlp)\.experts\.(?P<part>gate_up_proj|down_proj)$")
SINGLE = re.compile(r"^(?P<mlp>.*\.mlp)\.experts\.(?P<expert>\d+)\.(?P<part>gate|up|down)_proj\.weight$")
MTP_COPIES = ("embed_tokens.weight", "shared_head.head.weight")


def to_disk(state: Iterable[tuple[str, Tensor]], config: V3Config) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors as DeepSeek stores them; expert tensors are views."""
    shared = {}
    for name, tensor in state:
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            shared[name] = tensor
        match = STACKED.match(name)
        if match is None:
            yield name, tensor
            continue
        prefix = f"{match['mlp']}.experts"
        for expert, weight in enumerate(tensor):
            if match["part"] == "down_proj":
                yield f"{prefix}.{expert}.down_proj.weight", weight
            else:
                gate, up = weight.chunk(2, dim=0)
                yield f"{prefix}.{expert}.gate_proj.weight", gate
                yield f"{prefix}.{expert}.up_proj.weight", up
    for depth in range(config.num_nextn_predict_layers):
        prefix = f"model.layers.{config.num_hidden_layers + depth}"
        yield f"{prefix}.embed_tokens.weight", shared["model.embed_tokens.weight"]
        yield f"{prefix}.shared_head.head.weight", shared["lm_head.weight"]


def from_disk(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_disk`; the input dictionary is emptied on the way, so that experts exist once.

    Raises:
        ValueError: an expert, or one of its three matrices, is missing or differs in shape from the others.
    """
    state: dict[str, Tensor] = {}
    experts: dict[str, dict[int, dict[str, Tensor]]] = {}
    for name in list(tensors):
        tensor = tensors.pop(name)
        match = SINGLE.match(name)
        if match is not None:
            experts.setdefault(match["mlp"], {}).setdefault(int(match["expert"]), {})[match["part"]] = tensor
        elif not (name.startswith("model.layers.") and name.endswith(MTP_COPIES)):
            state[name] = tensor
    for mlp, parts in experts.items():
        for expert in range(max(parts) + 1):
            for part in ("gate", "up", "down"):
                name = f"{mlp}.experts.{expert}.{part}_proj.weight"
                if part not in parts.get(expert, {}):
                    raise ValueError(f"no tensor {name}")
                shape, first = tuple(parts[expert][part].shape), tuple(parts[0][part].shape)
                if shape != first:
                    raise ValueError(f"{name} of shape {shape} beside expert 0's {first}")
        ordered = [parts.pop(expert) for expert in range(len(parts))]
        state[f"{mlp}.experts.gate_up_proj"] = torch.stack([torch.cat((p["gate"], p["up"])) for p in ordered])
        state[f"{mlp}.experts.down_proj"] = torch.stack([p["down"] for p in ordered])
    return state
