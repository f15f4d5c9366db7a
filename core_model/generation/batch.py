"""The samples that are generated together: how they join, what one pass settles for each, how they leave.

One prefill per distinct prompt, read in chunks between the passes of those that run; decoding over the latent cache;
MTP drafts. Which samples run together changes a sample's tokens only where two candidates are as good as equal: its
random numbers are its own, and its drafts are checked against the very token it would have chosen.

Shape suffixes: B rows in use, T tokens, J = 1 + drafts, W vocabulary, D model.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from core_model.cache import LatentCache
from core_model.generation.decode import DecodePath
from core_model.generation.request import Completion, Delta, FinishReason, Likeliest, Request, Sample
from core_model.generation.rows import Rows, abort_not_finite
from core_model.generation.sampling import choose, likeliest, logprobs_of, pairs, uniforms
from core_model.generation.speculation import SpeculationReport, SpeculationSwitch
from core_model.model import V3ForCausalLM
from core_model.moe.gate import Routing
from core_model.parallel.device import wait_for
from core_model.tokenizer import decode_tokens

SPARE = 4  # times the room that is needed may stay in use
PREFILL_TOKENS = 4096  # of prompts in one forward while samples run: what these wait for at most
PREFILL_TOKENS_ALONE = 16384  # while none do
PATIENCE = 16  # passes that a sample waits for others to share its prefill


@dataclass
class _Prefill:
    """Prompts on their way into the cache, in rows behind those in use; `read` tokens of each are there, in `chunks`.

    samples: who waits for them; of[i]: the prompt of sample i. states: normed state of each prompt's last token.
    """

    samples: list[Sample]
    prompts: list[list[int]]
    of: list[int]
    first_row: int
    read: int = 0
    chunks: int = 0
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


class Batch:
    """Running and waiting samples of one model. Not for several threads: whoever uses it has the engine's lock.

    Args:
        model: in evaluation mode and the dtype of generation while a step is taken.
        max_rows: samples decoded together.
        dtype: of activations and cache.
        drafts: whether the model's MTP module may draft.
        always: draft whenever asked to, even where it does not pay.
        tokenizer: to find stop texts.
    """

    def __init__(
        self, model: V3ForCausalLM, max_rows: int, dtype: torch.dtype, drafts: bool, always: bool, tokenizer: Any
    ) -> None:
        self.model, self.max_rows, self.dtype, self.device = model, max_rows, dtype, model.device
        self.drafts, self.tokenizer = drafts, tokenizer
        self.path = DecodePath(model, dtype)
        self.speculation = SpeculationReport()
        self.rows = Rows(max_rows)
        self.cache: LatentCache | None = None
        self._waiting: deque[Sample] = deque()
        self._prefill: _Prefill | None = None
        self._always = always
        self._held_back = 0  # passes since samples wait although a row is free
        self._switch = SpeculationSwitch()
        self._seconds, self._timed = 0.0, 0  # of the latest pass over the rows, and how many they were
        self._routed = np.zeros((0, 0, 0, 0), dtype=np.int16)  # its experts, where somebody wants them

    @property
    def load(self) -> tuple[int, int]:
        """Samples running, and samples waiting; a snapshot for any thread."""
        job = self._prefill  # once: another thread may take it away
        return len(self.rows) + (len(job.samples) if job else 0), len(self._waiting)

    def add(self, request: Request) -> None:
        """Let the samples of a request wait for rows."""
        decode = functools.partial(decode_tokens, self.tokenizer) if request.params.stop else None
        self._waiting.extend(Sample(request, index, decode) for index in range(request.params.n))

    def step(self) -> bool:
        """Settle a token or more of every running sample, read on in the prompts; False with nothing to do."""
        if not (self._waiting or self._prefill or len(self.rows)):
            return False
        done = self._decode() if len(self.rows) else None
        fresh = self._read_prompts()
        both = _joined(done, fresh)
        if both is not None:
            self._settle(both)
        return True

    def abandon(self) -> None:
        """Abort everything there is."""
        for row in reversed(range(len(self.rows))):
            self._end(row, "abort", _Settled())
        prefill, self._prefill = self._prefill, None
        waiting = [*(prefill.samples if prefill else ()), *self._waiting]
        self._waiting.clear()
        for sample in waiting:
            self._never_started(sample)

    # -- joining and leaving

    def drop_aborted(self) -> None:
        """End what was aborted."""
        for row in reversed(range(len(self.rows))):
            if self.rows.samples[row].request.aborted:
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
        completion = self.rows.completion(row, reason)
        sample, last = self.rows.pop(row)
        if row != last:
            assert self.cache is not None
            self.cache.move(last, row)
        sample.request.finish(sample.index, completion)
        sample.request.tell(last_step.delta(sample.index, reason))

    def _admit(self) -> None:
        """Take waiting samples into a new prefill, as many as there are rows free and tokens in a forward."""
        rows = self.rows
        free = self.max_rows - len(rows)
        if not self._waiting or not free:
            return
        # A few free rows are not worth a forward of their own while others are decoded, or not at once.
        if len(rows) and free < self.max_rows // 4 and self._held_back < PATIENCE:
            self._held_back += 1
            return
        self._held_back = 0
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
        config, kept = self.model.config, self.cache
        positions = -(-positions // self.path.page) * self.path.page
        if kept is not None:
            layers, old_rows, old_positions, _ = kept.buffer_LBSC.shape
            enough = layers >= config.num_hidden_layers + drafts and old_rows >= rows and old_positions >= positions
            if enough and (len(self.rows) or old_rows * old_positions <= SPARE * rows * positions):
                return
            if len(self.rows):
                rows, positions = max(rows, old_rows), max(positions, old_positions)
            else:
                self.cache = None  # before the next one is made: two may not fit
        grown = LatentCache(config, rows, positions, self.dtype, self.device, drafts)
        if kept is not None and len(self.rows):
            grown.buffer_LBSC[:layers, :old_rows, :old_positions] = kept.buffer_LBSC
        self.cache = grown

    # -- forwards

    def _read(self, first_row: int, input_ids: Tensor, position_ids: Tensor) -> tuple[Tensor, list[Routing]]:
        """The model's own forward: normed states [B, T, D] and routings of rows from `first_row` on."""
        assert self.cache is not None
        self.cache.begin(first_row, position_ids)
        out = self.model.model(input_ids, position_ids=position_ids, past_key_values=self.cache)
        return cast(Tensor, out.last_hidden_state), out.routings or []

    def _read_for_drafts(self, first_row: int, hidden: Tensor, next_ids: Tensor, position_ids: Tensor) -> None:
        """Let the first MTP module store its latents of [B, T] inputs: `hidden` and the tokens after them."""
        assert self.cache is not None
        backbone = self.model.model
        self.cache.begin(first_row, position_ids)
        shape = (position_ids.shape[0], position_ids.shape[1])
        context = backbone.attention_context(shape, position_ids, None, self.cache)
        backbone.mtp_layers()[0](hidden, backbone.embed(next_ids), context)

    def _decode(self) -> _Pass:
        """A pass over the newest token of every row and its drafts."""
        assert self.cache is not None
        rows, count = self.rows, len(self.rows)
        width = int((rows.drafts[:count] >= 0).sum(axis=1).max(initial=0))
        inputs = np.concatenate((rows.newest()[:, None], rows.drafts[:count, :width].clip(min=0)), axis=1)
        positions = rows.length[:count, None] + np.arange(width + 1)
        input_ids = torch.from_numpy(inputs).to(self.device)
        position_ids = torch.from_numpy(positions).to(self.device)
        if width and not self._always and self._switch.needs_plain(count, width):
            started = self._now()
            self.path.logits(self.path.forward(input_ids[:, :1], position_ids[:, :1].contiguous(), self.cache)[0])
            self._switch.plain(count, width, self._now() - started)
        started = self._now()
        hidden, routings = self.path.forward(input_ids, position_ids, self.cache)
        logits = self._logits(hidden, rows.samples)
        self._seconds, self._timed = self._now() - started, count
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
        limit = PREFILL_TOKENS if len(self.rows) else PREFILL_TOKENS_ALONE
        stop = min(longest, job.read + max(1, limit // count))
        chunk = torch.zeros(count, stop - job.read, dtype=torch.long)
        after = torch.zeros_like(chunk)  # the tokens after them
        for row, prompt in enumerate(job.prompts):
            part, following = prompt[job.read : stop], prompt[job.read + 1 : stop + 1]
            chunk[row, : len(part)] = torch.tensor(part, dtype=torch.long)
            after[row, : len(following)] = torch.tensor(following, dtype=torch.long)
        positions = torch.arange(job.read, stop, device=self.device).repeat(count, 1)
        hidden, routings = self._read(job.first_row, chunk.to(self.device), positions)
        for row, prompt in enumerate(job.prompts):
            if job.read < len(prompt) <= stop:
                job.states[row] = hidden[row, len(prompt) - 1 - job.read]
        if self.drafts and any(sample.params.speculative for sample in job.samples):
            self._read_for_drafts(job.first_row, hidden, after.to(self.device), positions)
        if any(sample.params.routed_experts for sample in job.samples):
            chosen = _chosen_experts(routings, count, stop - job.read)
            for row, prompt in enumerate(job.prompts):
                del job.routed[row][job.chunks :]
                job.routed[row].append(chosen[row, : max(0, len(prompt) - job.read)])
        done = self._join(job) if stop == longest else None
        job.read, job.chunks = stop, job.chunks + 1  # at the end: what fails is read again
        return done

    def _join(self, job: _Prefill) -> _Pass:
        """Prompts are read: a row for each of their samples."""
        assert self.cache is not None
        states = torch.stack([state for state in job.states if state is not None])[job.of]
        logits = self._logits(states, job.samples)[:, None]
        lengths = torch.tensor([[len(job.prompts[prompt]) - 1] for prompt in job.of], device=self.device)
        buffer, first, longest = self.cache.buffer_LBSC, len(self.rows), job.longest
        source = torch.tensor(job.of, device=self.device) + job.first_row
        target = slice(first, first + len(job.samples))
        if first != job.first_row or len(job.prompts) < len(job.samples):
            buffer[:, target, :longest] = buffer[:, source, :longest]
        # Nothing fails from here on: a sample is always in the prefill or in a row.
        self._prefill = None
        for sample, prompt in zip(job.samples, job.of, strict=True):
            if sample.params.routed_experts:
                sample.routed = list(job.routed[prompt])
            self.rows.add(sample)
            if not self.drafts:
                self.rows.wanted[len(self.rows) - 1] = 0
        return _Pass(logits, states[:, None], lengths)

    def _logits(self, hidden: Tensor, samples: list[Sample]) -> Tensor:
        """[..., W] of the states after which tokens are settled; nothing has changed yet where this fails."""
        logits = self.path.logits(hidden)
        abort_not_finite(logits, samples)
        return logits

    # -- tokens

    def _settle(self, ran: _Pass) -> None:
        """Choose the tokens of every row, end what ends, draft for the rest."""
        rows, count = self.rows, len(self.rows)
        width = ran.logits.shape[1]
        counters = rows.made[:count, None] + np.arange(width)
        tokens = self._choose(ran.logits, counters)
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
            taken[row], reasons[row] = self._watch(sample, tokens[row], int(taken[row]), int(room[row]))
        logprobs = self._logprobs(ran.logits, tokens)
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
        if proposed.any() and self._timed == count:  # else rows have joined since
            seconds = self._seconds + self._now() - started
            self._switch.drafted(count, int(proposed.max()), seconds, float(taken[proposed > 0].mean()))
        self._retire(tokens, logprobs, taken, reasons)

    def _choose(self, logits_BJW: Tensor, counters_BJ: np.ndarray) -> np.ndarray:
        """Tokens [B, J], the `counters`-th of each row's sample."""
        count, width = counters_BJ.shape
        if not self.rows.settings[:count, 0].any():  # all greedy
            return logits_BJW.argmax(dim=-1).cpu().numpy()
        temperature, top_p, top_k = (
            setting.repeat_interleave(width) for setting in self.rows.on_device(logits_BJW.device)
        )
        uniform = uniforms(self.rows.streams[:count].repeat(width), counters_BJ.reshape(-1))
        tokens = choose(logits_BJW.flatten(0, 1), temperature, top_p, top_k, uniform)
        return tokens.cpu().numpy().reshape(count, width)

    def _logprobs(self, logits_BJW: Tensor, tokens_BJ: np.ndarray) -> np.ndarray:
        """Log-probabilities [B, J] of the tokens; zeros where no sample asked for them."""
        if not any(sample.params.logprobs for sample in self.rows.samples):
            return np.zeros(tokens_BJ.shape, dtype=np.float32)
        temperature = self._logprob_temperature(logits_BJW.device).repeat_interleave(tokens_BJ.shape[1])
        tokens = torch.from_numpy(tokens_BJ).to(logits_BJW.device).flatten()
        return logprobs_of(tokens, logits_BJW.flatten(0, 1), temperature).cpu().numpy().reshape(tokens_BJ.shape)

    def _logprob_temperature(self, device: torch.device) -> Tensor:
        """[B]: what logits are divided by before log-probabilities are taken; 0 stands for 1."""
        raw = [sample.params.raw_logprobs for sample in self.rows.samples]
        temperature = self.rows.settings[: len(self.rows), 0]
        return torch.from_numpy(np.where(raw, np.float32(1), temperature)).to(device)

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
        rows, count = self.rows, len(self.rows)
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
        assert self.cache is not None
        last = torch.from_numpy(taken - 1).to(self.device)
        index = torch.arange(count, device=self.device)
        following = torch.from_numpy(tokens).to(self.device)
        states = self.path.draft(ran.hidden, following, ran.positions, self.cache)[index, last]
        positions = ran.positions[index, last, None]
        for step in range(depth):
            logits = self.path.logits(states[:, None])
            drafted = self._choose(logits, rows.made[:count, None] + step)
            rows.drafts[:count, step] = np.where(left > step, drafted[:, 0], -1)
            if step + 1 < depth:
                # The module goes on from its own state, one position further, as if it were the backbone's.
                positions = positions + 1
                following = torch.from_numpy(drafted).to(self.device)
                states = self.path.draft(states[:, None], following, positions, self.cache)[:, 0]

    def _now(self) -> float:
        """Seconds, with all that was launched done: drafting is decided by them."""
        if len(self.rows.drafts[0]):
            wait_for(self.device)
        return time.perf_counter()

    def _keep_routing(self, taken: np.ndarray) -> None:
        """Note where the inputs that were right were routed, of the rows that were decoded."""
        for row, sample in enumerate(self.rows.samples):
            if sample.params.routed_experts and self.rows.made[row]:
                sample.routed.append(self._routed[row, : taken[row]])

    def _retire(
        self, tokens: np.ndarray, logprobs: np.ndarray, taken: np.ndarray, reasons: list[FinishReason | None]
    ) -> None:
        for row in reversed(range(len(self.rows))):
            sample, reason, count = self.rows.samples[row], reasons[row], int(taken[row])
            if reason is None and not sample.request.streams:
                continue
            top = sample.top[-count:] if sample.params.top_logprobs else []
            own = logprobs[row, :count].tolist() if sample.params.logprobs else []
            settled = _Settled(tokens[row, :count].tolist(), own, top)
            if reason is not None:
                self._end(row, reason, settled)
            else:
                sample.request.tell(settled.delta(sample.index, None))

    def _keep_likeliest(self, logits_BJW: Tensor, taken: np.ndarray) -> None:
        """Note the likeliest tokens of the places that were settled, for the rows that want them."""
        rows = [row for row, sample in enumerate(self.rows.samples) if sample.params.top_logprobs]
        if not rows:
            return
        wanted = max(self.rows.samples[row].params.top_logprobs for row in rows)
        width = logits_BJW.shape[1]
        temperature = self._logprob_temperature(logits_BJW.device)[rows].repeat_interleave(width)
        places = pairs(*likeliest(logits_BJW[rows].flatten(0, 1), temperature, wanted))
        for number, row in enumerate(rows):
            sample = self.rows.samples[row]
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


def _chosen_experts(routings: list[Routing], rows: int, width: int) -> np.ndarray:
    """int16 [rows, width, MoE layers, K] of one forward."""
    indices = torch.stack([routing.indices_TK for routing in routings], dim=1)
    return indices.to(torch.int16).cpu().numpy().reshape(rows, width, *indices.shape[1:])
