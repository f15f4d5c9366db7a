"""The training engine: one protocol, adapters behind it."""

from core_model.parallel.engine.torch_engine import MicroBatch, StepLosses, TorchEngine

__all__ = ["MicroBatch", "StepLosses", "TorchEngine"]
