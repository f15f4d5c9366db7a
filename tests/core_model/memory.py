"""What torch's allocator hands out while a function runs; unlike autograd's hooks it sees what kernels take inside."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any, NamedTuple

from torch.profiler import ProfilerActivity, profile


class Allocated(NamedTuple):
    """Bytes that the function left allocated (its result alive), and the most it had allocated at once."""

    kept: int
    peak: int


def measure(run: Callable[[], Any]) -> Allocated:
    gc.collect()  # else what an earlier caller left could be freed meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    del result
    return Allocated(now, peak)
