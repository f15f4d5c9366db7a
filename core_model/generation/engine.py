"""A batched generation engine: one prefill per distinct prompt, absorbed decoding, continuous batching, MTP drafts.

A step settles one token or more of every running sample, and reads a chunk of the prompts that wait to join them.
Which samples run together changes a sample's tokens only where two candidates are as good as equal: its random numbers
are its own, and its drafts are checked against the very token it would have chosen.

Shape suffixes: B rows in use, T tokens, J = 1 + drafts, W vocabulary, D model.
"""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from core_model.cache import LatentCache
from core_model.generation.request import Completion, Delta, FinishReason, Likeliest, Listener, Request, Sample
from core_model.generation.rows import Rows
from core_model.generation.sampling import SamplingParams, choose, likeliest, uniforms
from core_model.generation.speculation import SpeculationReport, SpeculationSwitch
from core_model.model import V3ForCausalLM
from core_model.moe.gate import Routing
from core_model.parallel.device import wait_for
from core_model.tokenizer import decode_tokens

log = logging.getLogger(__name__)

SPARE = 4  # times the room that is needed may stay in use
PREFILL_TOKENS = 4096  # of prompts in one forward: what the running samples wait for at most


@dataclass
class _Prefill:
    """Prompts on their way into the cache, in rows behind those in use; `read` tokens of each are there.

    samples: who waits for them; of[i]: the prompt of sample i. states: normed state of each prompt's last token.
    """

    samples: list[Sample]
    prompts: list[list[int]]
    of: list[int]
    first_row: int
    read: int = 0
    states: list[Tensor | None] = field(default_factory=list)
    routed: list[list[np.ndarray]] = field(default_factory=list)

    @property
    def longest(self) -> int:
        return max(map(len, self.prompts))


@dataclass
class _Pass:
    """One forward over rows from 0 on: what tokens are chosen from, and what drafts are made from.

    logits_BJW; hidden_BJD, normed; position_BJ, of the inputs.
    """

    logits: Tensor
    hidden: Tensor
    positions: Tensor


@dataclass(frozen=True)
class _Settled:
    """What one step added to a sample."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top: list[Likeliest] = field(default_factory=list)

    def delta(self, index: int, reason: FinishReason | None) -> Delta:
        return Delta(index, self.tokens, self.logprobs, reason, self.top)


class Engine:
    """Generates with a `V3ForCausalLM`, many samples at once.

    Args:
        model: shared, not copied, when `dtype` is its own; then weights are always current.
        tokenizer: kept for callers, and to find stop texts; the engine works on token ids.
        max_batch: rows decoded together.
        max_tokens: longest sequence, prompt included; default the model's max_position_embeddings.
        dtype: of activations and cache; default the parameters' own. Another dtype makes a copy of the weights,
            which `refresh_weights` renews.
        device: default the model's own.
        deterministic: one row at a time and no drafts, so that a sample is bitwise the same whatever else is
            generated; slow.
        speculate_always: draft whenever asked to, even where it does not pay.
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
        self.max_tokens = max_tokens or model.config.max_position_embeddings
        self.drafts = not deterministic and bool(model.config.num_nextn_predict_layers)
        self.speculation = SpeculationReport()
        shared = self.dtype == model.dtype and self.device == model.device
        self.model = model if shared else copy.deepcopy(model).to(self.device)  # type: ignore[arg-type]
        self.refresh_weights()
        self._always = speculate_always
        self._switch = SpeculationSwitch()
        self._cache: LatentCache | None = None
        self._rows = Rows(self.max_batch)
        self._prefill: _Prefill | None = None
        self._waiting: deque[Sample] = deque()
        self._inbox: deque[Request] = deque()  # its own, so that any thread may submit while another steps
        self._stepping = threading.RLock()
        self._wake = threading.Event()  # something was submitted
        self._users = 0  # of the model as generation wants it
        self._found: tuple[bool, torch.dtype | None] = (False, None)  # how the first of them found it
        self._seconds = 0.0  # of the latest pass over the rows
        self._routed = np.zeros((0, 0, 0, 0), dtype=np.int16)  # its experts, where somebody wants them
        self.has_driver = False  # whether a thread of its own takes the steps

    def refresh_weights(self) -> None:
        """Take over the source model's weights and routing biases after an update."""
        if self.model is not self.source:
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
        """
        settings = params if isinstance(params, list) else [params] * len(prompts)
        if len(prompts) != len(settings):
            raise ValueError(f"{len(prompts)} prompts but {len(settings)} sampling parameters")
        for number, (prompt, one) in enumerate(zip(prompts, settings, strict=True)):
            self.check(prompt, one, f"prompt {number}: ")
        # Prompts of like length are read together, with little padding.
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        requests = {index: self.submit(prompts[index], settings[index]) for index in order}
        try:
            with self._inference():
                return [requests[index].result() for index in range(len(prompts))]
        except BaseException:  # Ctrl-C, or no memory: nobody will ask for the rest
            for request in requests.values():
                request.abort()
            with self._stepping:
                self._receive()
                self._drop_aborted()
            raise

    def step(self) -> bool:
        """Settle a token or more of every running sample; False when there is nothing to do."""
        with self._stepping, self._inference():
            self._receive()
            self._drop_aborted()
            if not (self._waiting or self._prefill or len(self._rows)):
                return False
            done = self._decode() if len(self._rows) else None
            fresh = self._read_prompts()
            both = _joined(done, fresh)
            if both is not None:
                self._settle(both)
            return True

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
                    except Exception:
                        log.exception("a step of generation failed; what was running is aborted")
                        with self._stepping:
                            self._abandon()
                            self._cache = None
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
        job = self._prefill  # once: another thread may take it away
        reading = len(job.samples) if job else 0
        waiting = len(self._waiting) + sum(request.params.n for request in tuple(self._inbox))
        return len(self._rows) + reading, waiting

    def score(self, sequences: list[list[int]], top: int = 0) -> list[list[tuple[float, Likeliest]]]:
        """The log-probability of every token but the first given those before it, and the `top` likeliest there.

        Raises:
            ValueError: an empty sequence, or one longer than `max_tokens`.
        """
        for number, sequence in enumerate(sequences):
            if not 0 < len(sequence) <= self.max_tokens:
                raise ValueError(f"sequence {number}: {len(sequence)} tokens, expected 1 to {self.max_tokens}")
        scored: dict[int, list[tuple[float, Likeliest]]] = {}
        order = deque(sorted(range(len(sequences)), key=lambda number: len(sequences[number])))
        with self._stepping, self._inference():
            while order:
                batch = [order.popleft()]
                while order and (len(batch) + 1) * len(sequences[order[0]]) <= PREFILL_TOKENS:
                    batch.append(order.popleft())
                scored.update(zip(batch, self._score([sequences[number] for number in batch], top), strict=True))
        return [scored[number] for number in range(len(sequences))]

    def _score(self, sequences: list[list[int]], top: int) -> Iterator[list[tuple[float, Likeliest]]]:
        """One forward over sequences of like length; padding comes last, where nothing sees it."""
        longest = len(sequences[-1])
        ids = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in sequences], device=self.device)
        hidden = cast(Tensor, self.model.model(ids).last_hidden_state)
        for row, sequence in enumerate(sequences):
            logprobs = self.model.lm_head(hidden[row, : len(sequence) - 1]).float().log_softmax(dim=-1)
            own = logprobs.gather(1, ids[row, 1 : len(sequence), None]).squeeze(1).tolist()
            best = _pairs(*reversed(logprobs.topk(min(top, logprobs.shape[1]), dim=-1)))
            yield list(zip(own, best, strict=True))

    def _abandon(self) -> None:
        """Abort everything there is."""
        self._receive()
        for row in reversed(range(len(self._rows))):
            self._end(row, "abort", _Settled())
        prefill, self._prefill = self._prefill, None
        waiting = [*(prefill.samples if prefill else ()), *self._waiting]
        self._waiting.clear()
        for sample in waiting:
            self._never_started(sample)

    def _step_for_others(self) -> bool | None:
        """What a request calls that is waited for: whether there was anything to do; None where a driver does it."""
        return None if self.has_driver else self.step()

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """The model as generation wants it, until the last of those who asked for that has left."""
        model = self.model
        with self._stepping:
            if self._users == 0:
                self._found = model.training, model.compute_dtype
                model.eval()
                model.compute_dtype = self.dtype
            self._users += 1
        try:
            with torch.inference_mode():
                yield
        finally:
            with self._stepping:
                self._users -= 1
                if self._users == 0:
                    training, model.compute_dtype = self._found
                    model.train(training)

    def check(self, prompt: list[int], params: SamplingParams, which: str = "") -> None:
        """Whether `submit` would take this.

        Raises:
            ValueError: as `submit`; `which` begins the message.
        """
        if not prompt:
            raise ValueError(f"{which}the prompt is empty")
        if len(prompt) + params.max_new_tokens > self.max_tokens:
            raise ValueError(
                f"{which}{len(prompt)} tokens and {params.max_new_tokens} new ones exceed {self.max_tokens}"
            )
        if params.speculative and not self.model.config.num_nextn_predict_layers:
            raise ValueError(f"{which}the model has no MTP module to draft with")
        if params.stop and self.tokenizer is None:
            raise ValueError(f"{which}stop texts need an engine with a tokenizer")

    # -- joining and leaving

    def _receive(self) -> None:
        while self._inbox:
            request = self._inbox.popleft()
            decode = functools.partial(decode_tokens, self.tokenizer) if request.params.stop else None
            self._waiting.extend(Sample(request, index, decode) for index in range(request.params.n))

    def _drop_aborted(self) -> None:
        for row in reversed(range(len(self._rows))):
            if self._rows.samples[row].request.aborted:
                self._end(row, "abort", _Settled())
        for sample in [sample for sample in self._waiting if sample.request.aborted]:
            self._waiting.remove(sample)
            self._never_started(sample)
        job = self._prefill
        if job is not None and all(sample.request.aborted for sample in job.samples):
            self._prefill = None
            for sample in job.samples:
                self._never_started(sample)

    def _never_started(self, sample: Sample) -> None:
        sample.request.finish(sample.index, Completion([], [] if sample.params.logprobs else None, "abort"))
        sample.request.tell(_Settled().delta(sample.index, "abort"))

    def _end(self, row: int, reason: FinishReason, last_step: _Settled) -> None:
        """Take a row out, its sample ended, and close its gap with the last one."""
        completion = self._rows.completion(row, reason)
        sample, last = self._rows.pop(row)
        if row != last:
            assert self._cache is not None
            self._cache.move(last, row)
        sample.request.finish(sample.index, completion)
        sample.request.tell(last_step.delta(sample.index, reason))

    def _admit(self) -> None:
        """Take waiting samples into a new prefill, as many as there are rows free and tokens in a forward."""
        rows = self._rows
        free = self.max_batch - len(rows)
        # A few free rows are not worth a forward of their own while others are decoded.
        if not self._waiting or (len(rows) and free < max(1, self.max_batch // 4)):
            return
        distinct: dict[tuple[int, ...], int] = {}
        samples: list[Sample] = []
        longest = 0
        for sample in itertools.islice(self._waiting, free):
            prompt = tuple(sample.request.prompt)
            padded = max(longest, len(prompt)) * len(distinct.keys() | {prompt})
            if samples and padded > PREFILL_TOKENS:
                break
            longest = max(longest, len(prompt))
            distinct.setdefault(prompt, len(distinct))
            samples.append(sample)
        drafts = max(sample.params.speculative for sample in samples) if self.drafts else 0
        rows.make_room(max(sample.params.max_new_tokens for sample in samples), drafts)
        running = [*rows.samples, *samples]
        longest = max(len(sample.request.prompt) + sample.params.max_new_tokens for sample in running)
        widest = rows.drafts.shape[1]  # a pass may write as many positions past the end of a row
        self._reserve(len(running), longest + widest, bool(widest))
        self._prefill = _Prefill(
            samples,
            [list(prompt) for prompt in distinct],
            [distinct[tuple(sample.request.prompt)] for sample in samples],
            len(rows),
            states=[None] * len(distinct),
            routed=[[] for _ in distinct],
        )
        for _ in samples:  # now that there is room for them
            self._waiting.popleft()

    def _reserve(self, rows: int, positions: int, drafts: bool) -> None:
        """A cache of that size at least. While rows are in use it grows; else it is made anew where the one that is
        kept between calls is too small, or several times too large."""
        config, kept = self.model.config, self._cache
        if kept is not None:
            layers, old_rows, old_positions, _ = kept.buffer_LBSC.shape
            enough = layers >= config.num_hidden_layers + drafts and old_rows >= rows and old_positions >= positions
            if enough and (len(self._rows) or old_rows * old_positions <= SPARE * rows * positions):
                return
            if len(self._rows):
                rows, positions = max(rows, old_rows), max(positions, old_positions)
            else:
                self._cache = None  # before the next one is made: two may not fit
        grown = LatentCache(config, rows, positions, self.dtype, self.device, drafts)
        if kept is not None and len(self._rows):
            grown.buffer_LBSC[:layers, :old_rows, :old_positions] = kept.buffer_LBSC
        self._cache = grown

    # -- forwards

    def _forward(self, first_row: int, input_ids: Tensor, position_ids: Tensor) -> tuple[Tensor, list[Routing]]:
        """Normed states [B, T, D] and routings of rows from `first_row` on, their latents stored."""
        assert self._cache is not None
        self._cache.begin(first_row, position_ids)
        out = self.model.model(input_ids, position_ids=position_ids, past_key_values=self._cache)
        return cast(Tensor, out.last_hidden_state), out.routings or []

    def _draft_states(self, hidden: Tensor, next_ids: Tensor, first_row: int, position_ids: Tensor) -> Tensor:
        """The first MTP module's normed states [B, T, D], its latents stored.

        Args:
            hidden: [B, T, D], normed states of the inputs at `position_ids`.
            next_ids: [B, T], the tokens after them.
        """
        assert self._cache is not None
        backbone = self.model.model
        self._cache.begin(first_row, position_ids)
        shape = (position_ids.shape[0], position_ids.shape[1])
        context = backbone.attention_context(shape, position_ids, None, self._cache)
        state, _ = backbone.mtp_layers()[0].predict(hidden, backbone.embed(next_ids), context)
        return state

    def _decode(self) -> _Pass:
        """A pass over the newest token of every row and its drafts."""
        rows, count = self._rows, len(self._rows)
        width = int((rows.drafts[:count] >= 0).sum(axis=1).max(initial=0))
        inputs = np.concatenate((rows.newest()[:, None], rows.drafts[:count, :width].clip(min=0)), axis=1)
        positions = rows.length[:count, None] + np.arange(width + 1)
        input_ids = torch.from_numpy(inputs).to(self.device)
        position_ids = torch.from_numpy(positions).to(self.device)
        if width and not self._always and self._switch.needs_plain(count, width):
            started = self._now()
            self.model.lm_head(self._forward(0, input_ids[:, :1], position_ids[:, :1].contiguous())[0])
            self._switch.plain(count, width, self._now() - started)
        started = self._now()
        hidden, routings = self._forward(0, input_ids, position_ids)
        logits = self.model.lm_head(hidden).float()
        self._seconds = self._now() - started
        if any(sample.params.routed_experts for sample in rows.samples):
            self._routed = _chosen_experts(routings, count, width + 1)
        return _Pass(logits, hidden, position_ids)

    def _read_prompts(self) -> _Pass | None:
        """Read the next chunk of the prompts that wait; when it is their last, their samples become rows."""
        if self._prefill is None:
            self._admit()
        job = self._prefill
        if job is None:
            return None
        count, longest = len(job.prompts), job.longest
        stop = min(longest, job.read + max(1, PREFILL_TOKENS // count))
        chunk = torch.zeros(count, stop - job.read, dtype=torch.long)
        after = torch.zeros_like(chunk)  # the tokens after them
        for row, prompt in enumerate(job.prompts):
            part, following = prompt[job.read : stop], prompt[job.read + 1 : stop + 1]
            chunk[row, : len(part)] = torch.tensor(part, dtype=torch.long)
            after[row, : len(following)] = torch.tensor(following, dtype=torch.long)
        positions = torch.arange(job.read, stop, device=self.device).repeat(count, 1)
        hidden, routings = self._forward(job.first_row, chunk.to(self.device), positions)
        for row, prompt in enumerate(job.prompts):
            if job.read < len(prompt) <= stop:
                job.states[row] = hidden[row, len(prompt) - 1 - job.read]
        if self.drafts and any(sample.params.speculative for sample in job.samples):
            self._draft_states(hidden, after.to(self.device), job.first_row, positions)
        if any(sample.params.routed_experts for sample in job.samples):
            chosen = _chosen_experts(routings, count, stop - job.read)
            for row, prompt in enumerate(job.prompts):
                job.routed[row].append(chosen[row, : max(0, len(prompt) - job.read)])
        job.read = stop
        return self._join(job) if stop == longest else None

    def _join(self, job: _Prefill) -> _Pass:
        """Prompts are read: a row for each of their samples."""
        assert self._cache is not None
        self._prefill = None
        buffer, first, longest = self._cache.buffer_LBSC, len(self._rows), job.longest
        source = torch.tensor(job.of, device=self.device) + job.first_row
        target = slice(first, first + len(job.samples))
        if first != job.first_row or len(job.prompts) < len(job.samples):
            buffer[:, target, :longest] = buffer[:, source, :longest]
        for sample, prompt in zip(job.samples, job.of, strict=True):
            if sample.params.routed_experts:
                sample.routed = list(job.routed[prompt])
            self._rows.add(sample)
            if not self.drafts:
                self._rows.wanted[len(self._rows) - 1] = 0
        states = torch.stack([state for state in job.states if state is not None])[job.of]
        lengths = torch.tensor([[len(job.prompts[prompt]) - 1] for prompt in job.of], device=self.device)
        return _Pass(self.model.lm_head(states).float()[:, None], states[:, None], lengths)

    # -- tokens

    def _settle(self, ran: _Pass) -> None:
        """Choose the tokens of every row, end what ends, draft for the rest."""
        rows, count = self._rows, len(self._rows)
        width = ran.logits.shape[1]
        counters = rows.made[:count, None] + np.arange(width)
        tokens, logprobs = self._choose(ran.logits, counters)
        drafts = rows.drafts[:count, : width - 1]
        proposed = (drafts >= 0).sum(axis=1)
        agreed = np.cumprod((tokens[:, :-1] == drafts) & (drafts >= 0), axis=1).sum(axis=1)
        room = rows.limit[:count] - rows.made[:count]
        taken = np.minimum(agreed + 1, room)
        reasons: list[FinishReason | None] = ["length" if full else None for full in taken == room]
        stops = rows.stop_tokens(tokens)
        for row in np.flatnonzero((stops & (np.arange(width) < taken[:, None])).any(axis=1)).tolist():
            taken[row] = int(stops[row].argmax()) + 1
            reasons[row] = "stop"
        for row, sample in ((row, sample) for row, sample in enumerate(rows.samples) if sample.watched):
            chosen = tokens[row].copy()
            taken[row], reasons[row] = self._watch(sample, tokens[row], int(taken[row]), int(room[row]))
            for place in np.flatnonzero(tokens[row] != chosen).tolist():
                logprobs[row, place] = self._logprob(ran.logits[row, place], row, int(tokens[row, place]))
        self._keep_routing(taken)
        self._keep_likeliest(ran.logits, taken)
        rows.append(tokens, logprobs, taken)
        became = (tokens[:, :-1] == drafts) & (np.arange(width - 1) < np.minimum(agreed, taken)[:, None])
        accepted = became.sum(axis=1)
        rows.proposed[:count] += proposed
        rows.accepted[:count] += accepted
        self.speculation.add(proposed, accepted, taken)
        # A fresh row's prompt is in the cache; of the others, the inputs that were right have joined it.
        rows.length[:count] = ran.positions[:, 0].cpu().numpy() + taken
        started = self._now()
        self._draft(ran, tokens, taken, np.array([reason is None for reason in reasons]))
        if proposed.any():
            seconds = self._seconds + self._now() - started
            self._switch.drafted(count, int(proposed.max()), seconds, float(taken[proposed > 0].mean()))
        self._retire(tokens, logprobs, taken, reasons)

    def _choose(self, logits_BJW: Tensor, counters_BJ: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and log-probabilities [B, J], the `counters`-th of each row's sample."""
        count, width = counters_BJ.shape
        temperature, top_p, top_k = (
            setting.repeat_interleave(width) for setting in self._rows.on_device(logits_BJW.device)
        )
        uniform = uniforms(self._rows.streams[:count].repeat(width), counters_BJ.reshape(-1))
        tokens, logprobs = choose(logits_BJW.flatten(0, 1), temperature, top_p, top_k, uniform)
        shape = (count, width)
        return tokens.cpu().numpy().reshape(shape), logprobs.cpu().numpy().reshape(shape)

    def _logprob(self, logits_W: Tensor, row: int, token: int) -> float:
        temperature = float(self._rows.settings[row, 0]) or 1.0
        return float((logits_W / temperature).log_softmax(dim=-1)[token])

    def _watch(self, sample: Sample, tokens: np.ndarray, taken: int, room: int) -> tuple[int, FinishReason | None]:
        """Pass a row's tokens through its budget and its stop texts, one by one; changes `tokens`."""
        for place in range(taken):
            chosen = int(tokens[place])
            tokens[place] = token = sample.settle(chosen)
            if token in sample.params.stop_ids or sample.ends_with_stop(token):
                return place + 1, "stop"
            if token != chosen:  # what was computed after it followed another token
                taken = place + 1
                break
        return taken, "length" if taken == room else None

    def _draft(self, ran: _Pass, tokens: np.ndarray, taken: np.ndarray, goes_on: np.ndarray) -> None:
        """Draft the tokens after the newest of every row that wants it."""
        rows, count = self._rows, len(self._rows)
        rows.drafts[:count] = -1
        for row in np.flatnonzero(rows.wanted[:count]):
            if not self._always and not self._switch.pays(count, int(rows.wanted[row])):
                self._switch.declined(count, int(rows.wanted[row]))
                rows.wanted[row] = 0  # for good: its past in the MTP module has a gap from here on
        # No more than can still be used: the last token of all needs no draft after it.
        left = np.minimum(rows.wanted[:count], rows.limit[:count] - rows.made[:count] - 1) * goes_on
        depth = int(left.max(initial=0))
        if not depth:
            return
        last = torch.from_numpy(taken - 1).to(self.device)
        index = torch.arange(count, device=self.device)
        following = torch.from_numpy(tokens).to(self.device)
        states = self._draft_states(ran.hidden, following, 0, ran.positions)[index, last]
        positions = ran.positions[index, last, None]
        for step in range(depth):
            logits = self.model.lm_head(states[:, None]).float()
            drafted, _ = self._choose(logits, rows.made[:count, None] + step)
            rows.drafts[:count, step] = np.where(left > step, drafted[:, 0], -1)
            if step + 1 < depth:
                # The module goes on from its own state, one position further, as if it were the backbone's.
                positions = positions + 1
                states = self._draft_states(states[:, None], torch.from_numpy(drafted).to(self.device), 0, positions)
                states = states[:, 0]

    def _now(self) -> float:
        """Seconds, with all that was launched done: drafting is decided by them."""
        if len(self._rows.drafts[0]):
            wait_for(self.device)
        return time.perf_counter()

    def _keep_routing(self, taken: np.ndarray) -> None:
        """Note where the inputs that were right were routed, of the rows that were decoded."""
        for row, sample in enumerate(self._rows.samples):
            if sample.params.routed_experts and self._rows.made[row]:
                sample.routed.append(self._routed[row, : taken[row]])

    def _retire(
        self, tokens: np.ndarray, logprobs: np.ndarray, taken: np.ndarray, reasons: list[FinishReason | None]
    ) -> None:
        for row in reversed(range(len(self._rows))):
            sample, reason, count = self._rows.samples[row], reasons[row], int(taken[row])
            if reason is None and not sample.request.streams:
                continue
            top = sample.top[-count:] if sample.params.top_logprobs else []
            settled = _Settled(tokens[row, :count].tolist(), logprobs[row, :count].tolist(), top)
            if reason is not None:
                self._end(row, reason, settled)
            else:
                sample.request.tell(settled.delta(sample.index, None))

    def _keep_likeliest(self, logits_BJW: Tensor, taken: np.ndarray) -> None:
        """Note the likeliest tokens of the places that were settled, for the rows that want them."""
        rows = [row for row, sample in enumerate(self._rows.samples) if sample.params.top_logprobs]
        if not rows:
            return
        wanted = max(self._rows.samples[row].params.top_logprobs for row in rows)
        width = logits_BJW.shape[1]
        temperature = self._rows.on_device(logits_BJW.device)[0][rows].repeat_interleave(width)
        places = _pairs(*likeliest(logits_BJW[rows].flatten(0, 1), temperature, wanted))
        for number, row in enumerate(rows):
            sample = self._rows.samples[row]
            settled = places[number * width : number * width + int(taken[row])]
            sample.top += [place[: sample.params.top_logprobs] for place in settled]


def _joined(done: _Pass | None, fresh: _Pass | None) -> _Pass | None:
    """The passes over rows in use and over rows that join them, as one; the narrower padded."""
    if done is None or fresh is None:
        return done or fresh
    wide = done.logits.shape[1] - fresh.logits.shape[1]
    steps = torch.arange(1, wide + 1, device=fresh.positions.device)
    return _Pass(
        torch.cat((done.logits, torch.cat((fresh.logits, fresh.logits.expand(-1, wide, -1)), dim=1))),
        torch.cat((done.hidden, torch.cat((fresh.hidden, fresh.hidden.expand(-1, wide, -1)), dim=1))),
        torch.cat((done.positions, torch.cat((fresh.positions, fresh.positions + steps), dim=1))),
    )


def _pairs(tokens: Tensor, values: Tensor) -> list[Likeliest]:
    """[N, K] each, as a list of pairs for each of N places."""
    return [list(zip(*place, strict=True)) for place in zip(tokens.tolist(), values.tolist(), strict=True)]


def _chosen_experts(routings: list[Routing], rows: int, width: int) -> np.ndarray:
    """int16 [rows, width, MoE layers, K] of one forward."""
    indices = torch.stack([routing.indices_TK for routing in routings], dim=1)
    return indices.to(torch.int16).cpu().numpy().reshape(rows, width, *indices.shape[1:])
