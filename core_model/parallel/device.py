"""The one file that knows device names."""

from __future__ import annotations

import torch

# Dense bf16 FLOP/s of the data sheets (without sparsity, which doubles the figure on their front pages), by the name
# that the driver gives: the same chip runs slower behind PCIe, under another name.
BF16_PEAK = {
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H800": 989e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
}


def training_device() -> torch.device:
    """The accelerator torch finds, else the CPU."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def wait_for(device: torch.device) -> None:
    """Return when everything launched on the device is done; at once on a CPU, where nothing is launched."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def nvidia_capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of an NVIDIA GPU, (9, 0) for Hopper; None for anything else."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return torch.cuda.get_device_capability(device)


def compiles_kernels(device: torch.device) -> bool:
    """Whether torch.compile makes Triton kernels for the device."""
    if device.type in ("cpu", "meta"):
        return False
    from torch.utils._triton import has_triton

    return has_triton()


def forgets_empty_groups(device: torch.device) -> bool:
    """Whether a grouped GEMM may leave as memory was the product of a group without rows, which is zero.

    Seen on NVIDIA's 10.0 (pytorch#172439), and with ROCm before pytorch#174314.
    """
    capability = nvidia_capability(device)
    return device.type == "cuda" if capability is None else capability >= (10, 0)


def device_name(device: torch.device) -> str:
    """What its driver calls it; "cpu" for the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def bf16_peak(device: torch.device) -> float | None:
    """Dense bf16 FLOP/s of its data sheet, where that is known."""
    return BF16_PEAK.get(device_name(device))


def release_memory(device: torch.device) -> None:
    """Give cached memory back, so that what comes next meets no fragments of what has gone."""
    if device.type != "cpu":
        torch.accelerator.empty_cache()
