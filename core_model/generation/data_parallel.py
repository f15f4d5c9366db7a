"""The same requests on every process, each process generating its share: data-parallel generation.

Started by `accelerate launch` or `torchrun`, every process makes an `accelerate.PartialState` or `Accelerator` (on
CPUs with `cpu=True`, else it finds no other process), then a generator with the whole model on its own device, then a
`DataParallelGenerator` over it.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol, TypeVar, cast

import torch.distributed as dist

from core_model.generation.generator import Generator, check_lengths, checked_settings
from core_model.generation.request import Completion, Scores
from core_model.generation.sampling import SamplingParams

Result = TypeVar("Result")
PATIENCE = timedelta(days=1)  # how long a process waits for the slowest one


class Processes(Protocol):
    """Which process this is; `accelerate.PartialState` and `accelerate.Accelerator` are such."""

    @property
    def num_processes(self) -> int: ...

    @property
    def process_index(self) -> int: ...


class DataParallelGenerator:
    """Divides the work of a generator among processes; on every one the results of all, in the order of the prompts.

    Every process calls the same methods with the same arguments. The results are those of one process but at near-ties:
    a sample's random numbers depend on its request's seed and its own index alone. The samples of one request stay on
    one process, so a few requests of many samples each use few processes.

    Args:
        generator: this process's own, with the same weights on all.
        processes: of `accelerate`; with one process everything passes through.
        patience: how long a process waits for the slowest one before it gives up.

    Raises:
        ValueError: torch.distributed's process group is not of these processes.
    """

    def __init__(self, generator: Generator, processes: Processes, *, patience: timedelta = PATIENCE) -> None:
        self.generator = generator
        self.rank, self.world = processes.process_index, processes.num_processes
        self._group: dist.ProcessGroup | None = None
        known = dist.get_world_size() if dist.is_initialized() else 1
        if known != self.world:  # some would not be waited for, or each would do all the work
            raise ValueError(f"{self.world} processes, but a torch.distributed process group of {known}")
        if self.world > 1:
            # A group of its own: objects pass from host to host without a detour through accelerators' memory, and
            # the wait for the longest share is not cut short by the limit meant for training's collectives.
            self._group = dist.new_group(backend="gloo", timeout=patience)

    @property
    def tokenizer(self) -> Any:
        """The generator's."""
        return self.generator.tokenizer

    @property
    def max_tokens(self) -> int:
        """The generator's."""
        return self.generator.max_tokens

    def refresh_weights(self) -> None:
        """Have this process's generator take over its model's weights; every process calls this."""
        self.generator.refresh_weights()

    def check(self, prompt: list[int], params: SamplingParams, which: str = "") -> None:
        """Whether `generate` would take this.

        Raises:
            ValueError: as the generator's.
        """
        self.generator.check(prompt, params, which)

    def generate(
        self, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]
    ) -> list[list[Completion]]:
        """Continue every prompt; result[i] holds the `n` samples of prompt i, on every process.

        Raises:
            ValueError: as the generator's, or processes that were given different requests.
            RuntimeError: another process failed; that one raises what it failed with.
        """
        if self._group is None:
            return self.generator.generate(prompts, params)
        settings = self._agreed(lambda: checked_settings(self.generator, prompts, params), prompts)
        costs = [one.n * (len(prompt) + one.max_new_tokens) for prompt, one in zip(prompts, settings, strict=True)]
        return self._divided(
            costs, lambda mine: self.generator.generate([prompts[i] for i in mine], [settings[i] for i in mine])
        )

    def score(self, sequences: list[list[int]], top: int = 0) -> list[Scores]:
        """The log-probability of every token but the first given those before it, and the `top` likeliest there.

        Raises:
            ValueError: as the generator's, or processes that were given different sequences.
            RuntimeError: another process failed; that one raises what it failed with.
        """
        if self._group is None:
            return self.generator.score(sequences, top)

        def checked_top() -> int:
            check_lengths(sequences, self.max_tokens)
            return top

        self._agreed(checked_top, sequences)
        return self._divided(
            [len(sequence) for sequence in sequences],
            lambda mine: self.generator.score([sequences[i] for i in mine], top),
        )

    def _agreed(self, make: Callable[[], Result], sequences: list[list[int]]) -> Result:
        """What `make` returns, when it and the sequences are the same on all processes.

        Raises:
            ValueError: they differ.
        """
        made, digests = self._gathered(make, lambda it: hashlib.sha256(repr((it, sequences)).encode()).hexdigest())
        if len(set(digests)) > 1:
            raise ValueError("the processes were given different requests")
        return made

    def _divided(self, costs: Sequence[int], work: Callable[[list[int]], list[Result]]) -> list[Result]:
        """Item i's result from the process whose share it was in; `work` is given a share."""
        shares = divide(costs, self.world)
        mine = shares[self.rank]
        _, parts = self._gathered(lambda: work(mine) if mine else [], lambda results: results)
        results: dict[int, Result] = {}
        for share, part in zip(shares, parts, strict=True):
            results.update(zip(share, part, strict=True))
        return [results[item] for item in range(len(costs))]

    def _gathered(self, work: Callable[[], Result], told: Callable[[Result], Any]) -> tuple[Result, list[Any]]:
        """What this process's `work` returns, and what each one tells of its own. When one fails, all raise.

        Pickling is cheap beside what it carries: a token is 3 to 5 bytes, 9 more with its log-probability, and takes
        far longer to generate than as many bytes to send. What is unpickled was written by this very program.
        """
        failure: Exception | None = None
        message: tuple[str | None, Any]
        try:
            done = work()
            message = None, told(done)
        except Exception as error:  # told to the others, who would wait for ever, and raised below
            failure, message = error, (f"{type(error).__name__}: {error}", None)
        messages: list[Any] = [None] * self.world
        dist.all_gather_object(messages, message, group=self._group)
        if failure is not None:
            raise failure
        for rank, (fault, _) in enumerate(messages):
            if fault is not None:
                raise RuntimeError(f"process {rank} of {self.world} failed: {fault}")
        return done, [part for _, part in cast(list[tuple[str | None, Any]], messages)]


def divide(costs: Sequence[int], shares: int) -> list[list[int]]:
    """The items of each share, such that shares cost about the same: the costliest first, each to the least burdened.

    Items of like cost are thereby dealt out in turn; within a share they keep their order.
    """
    burdens = [(0, share) for share in range(shares)]
    divided: list[list[int]] = [[] for _ in range(shares)]
    for item in sorted(range(len(costs)), key=lambda item: -costs[item]):
        burden, share = heapq.heappop(burdens)
        divided[share].append(item)
        heapq.heappush(burdens, (burden + costs[item], share))
    return [sorted(share) for share in divided]
