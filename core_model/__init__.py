"""The DeepSeek-V3 model: attention, experts, multi-token prediction, generation, checkpoints, tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core_model.config import V3Config
    from core_model.model import V3ForCausalLM, V3Model

__all__ = ["V3Config", "V3ForCausalLM", "V3Model"]


def __getattr__(name: str) -> Any:
    """Import the model on first use, so that commands that need none start without transformers."""
    if name == "V3Config":
        from core_model.config import V3Config

        return V3Config
    if name in ("V3Model", "V3ForCausalLM"):
        from core_model import model

        return getattr(model, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
