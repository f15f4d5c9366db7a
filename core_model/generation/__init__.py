"""Generation: a batched engine over the latent cache, and the same for any Hugging Face model and several processes."""

from core_model.generation.data_parallel import DataParallelGenerator
from core_model.generation.engine import Engine
from core_model.generation.generator import Generator
from core_model.generation.hugging_face import HuggingFaceGenerator
from core_model.generation.request import Completion, Delta, Request
from core_model.generation.sampling import SamplingParams, ThinkingBudget

__all__ = [
    "Completion",
    "DataParallelGenerator",
    "Delta",
    "Engine",
    "Generator",
    "HuggingFaceGenerator",
    "Request",
    "SamplingParams",
    "ThinkingBudget",
]
