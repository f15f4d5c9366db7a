"""Generation: a batched engine over the latent cache."""

from core_model.generation.engine import Completion, Engine
from core_model.generation.sampling import SamplingParams

__all__ = ["Completion", "Engine", "SamplingParams"]
