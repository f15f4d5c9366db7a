"""Keep freed memory in the process.

glibc gives large buffers back to the system at each free and takes them again, zeroed page by page, at the next
allocation. In a training step on CPU that costs as much as the arithmetic: an fp32 softmax over [1024, 2048] takes
9.4 ms so and 0.7 ms with its pages kept (LABBOOK.md).
"""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
MMAP_THRESHOLD_MAX = 32 * 1024 * 1024  # glibc's upper limit on 64 bits; larger values are refused


def keep_freed_memory() -> bool:
    """Set glibc's thresholds; False where the C library is another one and nothing was changed."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_THRESHOLD, MMAP_THRESHOLD_MAX), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 1024 * 1024))
    accepted = [mallopt(name, value) == 1 for name, value in settings]
    return all(accepted)
