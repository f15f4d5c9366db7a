"""What a configuration costs: parameters, operations, bytes. `python -m core_model.accounting` prints it."""

from core_model.accounting.counts import ParameterCount, flops_per_token, kv_bytes_per_token, parameters
from core_model.accounting.memory import ActivationBytes, Dtypes, StateBytes, activation_bytes, state_bytes

__all__ = [
    "ActivationBytes",
    "Dtypes",
    "ParameterCount",
    "StateBytes",
    "activation_bytes",
    "flops_per_token",
    "kv_bytes_per_token",
    "parameters",
    "state_bytes",
]
