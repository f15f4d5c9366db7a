"""The generation engine: requests come and go, from any thread, while a `Batch` of samples is decoded.

A step settles one token or more of every running sample, and reads a chunk of the prompts that wait to join them.
"""

from __future__ import annotations

import copy
import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from core_model.generation.batch import PREFILL_TOKENS, Batch
from core_model.generation.decode import refuse_replaced
from core_model.generation.generator import check_lengths, check_prompt, check_tokens, checked_settings
from core_model.generation.request import Completion, Listener, Request, Scores
from core_model.generation.sampling import SamplingParams, token_scores
from core_model.generation.speculation import SpeculationReport
from core_model.loss import CHUNK
from core_model.model import V3ForCausalLM

log = logging.getLogger(__name__)


@dataclass
class _Use:
    """A model as generation wants it: how many want it so, and how the first of them found it."""

    users: int = 0
    training: bool = False
    compute_dtype: torch.dtype | None = None


# Of the model, not of an engine: two engines may share one, and the first to end must not take it from the other.
_uses: WeakKeyDictionary[V3ForCausalLM, _Use] = WeakKeyDictionary()
_uses_lock = threading.Lock()


class Engine:
    """Generates with a `V3ForCausalLM`, many samples at once.

    Args:
        model: shared, not copied, when `dtype` is its own. After an update of its weights call `refresh_weights`.
        tokenizer: kept for callers, and to find stop texts; the engine works on token ids.
        max_batch: rows decoded together.
        max_tokens: longest sequence, prompt included; default the model's max_position_embeddings.
        dtype: of activations and cache; default the parameters' own. Another dtype makes a copy of the weights.
        device: default the model's own.
        deterministic: one row at a time and no drafts, so that a sample is bitwise the same whatever else is
            generated; slow.
        speculate_always: draft whenever asked to, even where it does not pay.

    Raises:
        ValueError: no room for a row, or for a prompt and a token.
    """

    def __init__(
        self,
        model: V3ForCausalLM,
        tokenizer: Any = None,
        *,
        max_batch: int = 64,
        max_tokens: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        deterministic: bool = False,
        speculate_always: bool = False,
    ) -> None:
        self.source, self.tokenizer = model, tokenizer
        self.dtype = dtype or model.dtype
        # By way of a tensor, which says which device of a kind it is on.
        self.device = model.device if device is None else torch.empty(0, device=device).device
        self.max_batch = 1 if deterministic else max_batch
        self.max_tokens = model.config.max_position_embeddings if max_tokens is None else max_tokens
        if max_batch < 1 or self.max_tokens < 2:
            raise ValueError(f"a batch of at least 1 and 2 tokens are needed, not {max_batch} and {self.max_tokens}")
        shared = self.dtype == model.dtype and self.device == model.device
        self.model = model if shared else copy.deepcopy(model).to(self.device)  # type: ignore[arg-type]
        drafts = not deterministic and bool(model.config.num_nextn_predict_layers)
        self._take_weights()
        self.batch = Batch(self.model, self.max_batch, self.dtype, drafts, speculate_always, tokenizer)
        self._inbox: deque[Request] = deque()  # its own, so that any thread may submit while another steps
        self._stepping = threading.RLock()
        self._next = threading.Lock()  # whose turn it is to wait for `_stepping`, which alone is not fair
        self._wake = threading.Event()  # something was submitted
        self.has_driver = False  # whether a thread of its own takes the steps

    @property
    def speculation(self) -> SpeculationReport:
        """What the drafts have come to so far."""
        return self.batch.speculation

    def refresh_weights(self) -> None:
        """Take over the model's weights and routing biases after an update: decoding uses what is derived from them."""
        with self._turn():
            self._take_weights()
            self.batch.path.refresh()

    def _take_weights(self) -> None:
        if self.model is not self.source:
            refuse_replaced(self.source)
            self.model.load_state_dict(self.source.state_dict())
            for name, parameter in self.model.named_parameters():
                if "norm" not in name and not name.endswith("gate.weight"):
                    parameter.data = parameter.data.to(self.dtype)

    def submit(self, prompt: list[int], params: SamplingParams, stream: bool | Listener = False) -> Request:
        """Hand in a prompt; it is worked on whenever the engine takes a step.

        Args:
            stream: keep what each step adds for `Request.stream`; or a function that is told.

        Raises:
            ValueError: an empty prompt, or one that leaves no room below `max_tokens`.
        """
        self.check(prompt, params)
        request = Request(prompt, params, self._step_for_others, stream)
        self._inbox.append(request)
        self._wake.set()
        return request

    def generate(
        self, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]
    ) -> list[list[Completion]]:
        """Continue every prompt; result[i] holds the `n` samples of prompt i.

        Raises:
            ValueError: as `submit`, or lists of unequal length.
            FloatingPointError: the model's logits are not finite.
        """
        settings = checked_settings(self, prompts, params)
        # Prompts of like length are read together, with little padding.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        requests = {index: self.submit(prompts[index], settings[index]) for index in order}
        try:
            with self._inference():
                return [requests[index].result() for index in range(len(prompts))]
        except BaseException:  # Ctrl-C, or no memory: nobody will ask for the rest
            for request in requests.values():
                request.abort()
            with self._turn():
                self._receive()
                self.batch.drop_aborted()
            raise

    def step(self) -> bool:
        """Settle a token or more of every running sample; False when there is nothing to do."""
        with self._turn(), self._inference():
            self._receive()
            self.batch.drop_aborted()
            return self.batch.step()

    def drive(self, stop: threading.Event) -> None:
        """Take steps until told to stop, for others that submit: the work of a thread of its own.

        A step that fails (there may be no memory for what was asked) aborts what there is, is logged, and the next
        requests are served again. What runs at the end is aborted, so that nobody waits for it. Set the event, then
        call `wake`.
        """
        self.has_driver = True
        try:
            with self._inference():
                while not stop.is_set():
                    self._wake.clear()
                    try:
                        busy = self.step()
                    except FloatingPointError as error:  # whose requests it has aborted
                        log.error("%s; what asked for them is aborted", error)
                        continue
                    except Exception:
                        log.exception("a step of generation failed; what was running is aborted")
                        with self._stepping:
                            self._abandon()
                            self.batch.cache = None
                        continue
                    if not busy:
                        self._wake.wait()
        finally:
            with self._stepping:
                self.has_driver = False
                self._abandon()

    def wake(self) -> None:
        """Make an idle driver look around."""
        self._wake.set()

    @property
    def load(self) -> tuple[int, int]:
        """Samples running, and samples waiting; a snapshot."""
        running, waiting = self.batch.load
        return running, waiting + sum(request.params.n for request in tuple(self._inbox))

    def score(self, sequences: list[list[int]], top: int = 0) -> list[Scores]:
        """The log-probability of every token but the first given those before it, and the `top` likeliest there.

        Raises:
            ValueError: an empty sequence, or one longer than `max_tokens`.
        """
        scored: dict[int, Scores] = {}
        for batch in self.score_batches(sequences, top):
            scored.update(batch)
        return [scored[number] for number in range(len(sequences))]

    def score_batches(self, sequences: list[list[int]], top: int = 0) -> Iterator[dict[int, Scores]]:
        """As `score`, batch by batch: the numbers of some sequences and their scores.

        Steps are taken between two batches where there are any to take, and whoever asked may give up there.

        Raises:
            ValueError: as `score`, before the first batch.
        """
        check_lengths(sequences, self.max_tokens)
        for number, sequence in enumerate(sequences):
            check_tokens(sequence, self.model.config.vocab_size, f"sequence {number}: ")
        order = deque(sorted(range(len(sequences)), key=lambda number: len(sequences[number])))
        while order:
            batch = [order.popleft()]
            while order and (len(batch) + 1) * len(sequences[order[0]]) <= PREFILL_TOKENS:
                batch.append(order.popleft())
            with self._turn(), self._inference():
                scores = list(self._score([sequences[number] for number in batch], top))
            yield dict(zip(batch, scores, strict=True))

    def _score(self, sequences: list[list[int]], top: int) -> Iterator[Scores]:
        """One forward over sequences of like length; padding comes last, where nothing sees it."""
        longest = len(sequences[-1])
        ids = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in sequences], device=self.device)
        hidden = cast(Tensor, self.model.model(ids).last_hidden_state)
        for row, sequence in enumerate(sequences):
            scores: Scores = []
            for start in range(0, len(sequence) - 1, CHUNK):  # of 128K tokens the logits would take 68 GB
                part = slice(start, min(start + CHUNK, len(sequence) - 1))
                following = ids[row, part.start + 1 : part.stop + 1]
                scores += token_scores(self.model.lm_head(hidden[row, part]), following, top)
            yield scores

    def _abandon(self) -> None:
        """Abort everything there is."""
        self._receive()
        self.batch.abandon()

    def _receive(self) -> None:
        while self._inbox:
            self.batch.add(self._inbox.popleft())

    def _step_for_others(self) -> bool | None:
        """What a request calls that is waited for: whether there was anything to do; None where a driver does it."""
        return None if self.has_driver else self.step()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The engine's lock, in turns: who lets it go and wants it again at once comes after those who wait."""
        with self._next:
            self._stepping.acquire()
        try:
            yield
        finally:
            self._stepping.release()

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """The model as generation wants it, until the last of those who asked for that has left."""
        model = self.model
        with _uses_lock:
            use = _uses.setdefault(model, _Use())
            if use.users == 0:
                use.training, use.compute_dtype = model.training, model.compute_dtype
                model.eval()
                model.compute_dtype = self.dtype
            use.users += 1
        try:
            with torch.inference_mode():
                yield
        finally:
            with _uses_lock:
                use.users -= 1
                if use.users == 0:
                    model.compute_dtype = use.compute_dtype
                    model.train(use.training)

    def check(self, prompt: list[int], params: SamplingParams, which: str = "") -> None:
        """Whether `submit` would take this.

        Raises:
            ValueError: as `submit`; `which` begins the message.
        """
        check_prompt(self, prompt, params, self.model.config.vocab_size, which)
        if params.speculative and not self.model.config.num_nextn_predict_layers:
            raise ValueError(f"{which}the model has no MTP module to draft with")
        config = self.model.config
        if params.routed_experts and not any(map(config.is_moe_layer, range(config.num_hidden_layers))):
            raise ValueError(f"{which}routed_experts: the model has no routed experts")
