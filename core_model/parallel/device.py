"""The one file that knows device names."""

from __future__ import annotations

import torch


def training_device() -> torch.device:
    """The accelerator torch finds, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def wait_for(device: torch.device) -> None:
    """Return when everything launched on the device is done; at once on a CPU, where nothing is launched."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
