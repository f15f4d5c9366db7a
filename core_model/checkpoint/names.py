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
ROUTING_BIAS = "e_score_correction_bias"


def on_disk(state: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under its name on disk; experts are views into their stack, to read from or to fill."""
    for name, tensor in state:
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


def mtp_copies(config: V3Config) -> dict[str, str]:
    """Names on disk of the MTP modules' copies, and of what each is a copy of."""
    copies = {}
    for depth in range(config.num_nextn_predict_layers):
        prefix = f"model.layers.{config.num_hidden_layers + depth}"
        copies[f"{prefix}.embed_tokens.weight"] = "model.embed_tokens.weight"
        copies[f"{prefix}.shared_head.head.weight"] = "lm_head.weight"
    return copies


def shapes_on_disk(config: V3Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a configuration's whole checkpoint, in the model's order, the MTP copies last."""
    from core_model.model import V3ForCausalLM

    with torch.device("meta"):  # shapes without memory
        state = V3ForCausalLM(config).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in on_disk(state.items())}
    return shapes | {copy: shapes[original] for copy, original in mtp_copies(config).items()}


def layer_of(name: str) -> int | None:
    """The number of the layer a tensor belongs to, None for embedding, final norm and head."""
    number = name.removeprefix("model.layers.").split(".")[0]
    return int(number) if number.isdecimal() else None
