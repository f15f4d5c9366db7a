"""Generation: a batched engine over the latent cache."""

from core_model.generation.engine import Engine
from core_model.generation.request import Completion, Delta, Request
from core_model.generation.sampling import SamplingParams, ThinkingBudget

__all__ = ["Completion", "Delta", "Engine", "Request", "SamplingParams", "ThinkingBudget"]
