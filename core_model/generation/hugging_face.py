"""Any causal language model of transformers behind the engine's protocol: a plain decoding loop over its own cache.

`transformers.generate` draws from one global random stream for a whole batch; here every sample has its own, by the
same functions as the engine's, so that its tokens do not depend on what is generated beside it. Slower than `Engine`
(a group of samples is decoded until its last one ends), and general.

Shape suffixes: B rows in use, P distinct prompts, T tokens, W vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from core_model.errors import InputError
from core_model.generation.batch import PREFILL_TOKENS
from core_model.generation.generator import check_lengths, check_prompt, check_tokens, checked_settings
from core_model.generation.request import Completion, FinishReason, Request, Sample, Scores
from core_model.generation.rows import Rows
from core_model.generation.sampling import SamplingParams, choose, likeliest, logprobs_of, pairs, token_scores, uniforms
from core_model.parallel.device import training_device

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class HuggingFaceGenerator:
    """Generates with an `AutoModelForCausalLM`, up to `max_batch` samples at once. Not for several threads.

    Args:
        model: shared, not copied, when `dtype` and `device` are its own. After an update of its weights call
            `refresh_weights`.
        tokenizer: for `render`, and to find stop texts.
        max_batch: samples decoded together; their distinct prompts are read in one forward.
        max_tokens: longest sequence, prompt included; default the config's max_position_embeddings.
        dtype: of the parameters; default their own. Another dtype makes a copy of the model.
        device: default the model's own. Another device makes a copy of the model.

    Raises:
        ValueError: a model without the usual cache, or one whose config names no longest sequence.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_batch: int = 64,
        max_tokens: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self._accepted = frozenset(inspect.signature(model.forward).parameters)
        if "past_key_values" not in self._accepted:
            raise ValueError(f"{type(model).__name__} keeps its past elsewhere than in past_key_values")
        longest = max_tokens or getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if longest is None:
            raise ValueError(f"the config of {type(model).__name__} names no longest sequence: pass max_tokens")
        self.source, self.tokenizer, self.max_batch, self.max_tokens = model, tokenizer, max_batch, int(longest)
        wanted = dtype or model.dtype
        # By way of a tensor, which says which device of a kind it is on.
        target = model.device if device is None else torch.empty(0, device=device).device
        shared = wanted == model.dtype and target == model.device
        self.model = model if shared else _copy(model, wanted).to(target)  # type: ignore[arg-type]

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        max_batch: int = 64,
        max_tokens: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> HuggingFaceGenerator:
        """Load model and tokenizer from a local folder; nothing is fetched, and no code of the folder is run.

        Args:
            dtype: default the checkpoint's.
            device: default the accelerator that torch finds, else the CPU.

        Raises:
            InputError: the folder holds no causal language model with its tokenizer, or a damaged one.
        """
        model, tokenizer = _load(Path(folder), dtype)
        model.to(training_device() if device is None else device)  # type: ignore[arg-type]
        return cls(model, tokenizer, max_batch=max_batch, max_tokens=max_tokens)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end a reply, as the model's generation config or else its tokenizer has them."""
        config = self.model.generation_config
        found = None if config is None else config.eos_token_id
        if found is None and self.tokenizer is not None:
            found = self.tokenizer.eos_token_id
        if found is None:
            return ()
        return tuple(found) if isinstance(found, list) else (int(found),)

    @property
    def _vocabulary(self) -> int:
        """Tokens that the embedding has."""
        return len(cast(Tensor, self.model.get_input_embeddings().weight))

    def render(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Token ids of a conversation up to where the assistant speaks, by the chat template of the tokenizer.

        Special tokens that a message spells become special tokens: that is how these templates work.

        Raises:
            InputError: the tokenizer has no chat template, or the template refuses the messages.
        """
        from jinja2 import TemplateError

        if self.tokenizer is None or not self.tokenizer.chat_template:
            place = getattr(self.tokenizer, "name_or_path", "") or "the tokenizer"
            raise InputError(place, where="chat_template", expected="a chat template", found="none")
        try:
            ids = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, return_dict=False
            )
        except TemplateError as error:
            place = self.tokenizer.name_or_path or "the tokenizer"
            raise InputError(place, where="chat_template", expected="messages it takes", found=str(error)) from error
        return cast(list[int], ids)

    def refresh_weights(self) -> None:
        """Take over the model's weights after an update; where they are shared there is nothing to do."""
        if self.model is not self.source:
            self.model.load_state_dict(self.source.state_dict())

    def generate(
        self, prompts: list[list[int]], params: SamplingParams | list[SamplingParams]
    ) -> list[list[Completion]]:
        """Continue every prompt; result[i] holds the `n` samples of prompt i.

        Raises:
            ValueError: as `check`, or lists of unequal length.
        """
        settings = checked_settings(self, prompts, params)
        requests = [Request(*asked, lambda: False, False) for asked in zip(prompts, settings, strict=True)]
        # Prompts of like length are read together, with little padding.
        ordered = sorted(requests, key=lambda request: len(request.prompt))
        samples = [Sample(request, i, self._decode) for request in ordered for i in range(request.params.n)]
        with self._inference():
            for first in range(0, len(samples), self.max_batch):
                _Group(self.model, samples[first : first + self.max_batch], self._accepted).run()
        return [request.result() for request in requests]

    def score(self, sequences: list[list[int]], top: int = 0) -> list[Scores]:
        """The log-probability of every token but the first given those before it, and the `top` likeliest there.

        Raises:
            ValueError: an empty sequence, or one longer than `max_tokens`.
        """
        check_lengths(sequences, self.max_tokens)
        for number, sequence in enumerate(sequences):
            check_tokens(sequence, self._vocabulary, f"sequence {number}: ")
        scored: dict[int, Scores] = {}
        batch: list[int] = []
        with self._inference():
            for number in sorted(range(len(sequences)), key=lambda number: len(sequences[number])):
                if batch and (len(batch) + 1) * len(sequences[number]) > PREFILL_TOKENS:
                    scored.update(zip(batch, self._score([sequences[i] for i in batch], top), strict=True))
                    batch = []
                batch.append(number)
            if batch:
                scored.update(zip(batch, self._score([sequences[i] for i in batch], top), strict=True))
        return [scored[number] for number in range(len(sequences))]

    def check(self, prompt: list[int], params: SamplingParams, which: str = "") -> None:
        """Whether `generate` would take this.

        Raises:
            ValueError: an empty prompt, one that leaves no room below `max_tokens`, stop texts without a tokenizer, or
                what only the engine can do (`speculative`, `routed_experts`); `which` begins the message.
        """
        check_prompt(self, prompt, params, self._vocabulary, which)
        if params.speculative:
            raise ValueError(f"{which}speculative={params.speculative}: a Hugging Face model is decoded without drafts")
        if params.routed_experts:
            raise ValueError(f"{which}routed_experts: a Hugging Face model does not tell where its tokens went")

    def _score(self, sequences: list[list[int]], top: int) -> Iterator[Scores]:
        """One forward over sequences, the longest last; padding comes last, where nothing sees it."""
        longest, device = len(sequences[-1]), self.model.device
        ids = torch.tensor([sequence + [0] * (longest - len(sequence)) for sequence in sequences], device=device)
        lengths = torch.tensor([len(sequence) for sequence in sequences], device=device)
        real = (torch.arange(longest, device=device) < lengths[:, None]).long()
        logits = self.model(input_ids=ids, attention_mask=real, use_cache=False).logits
        for row, sequence in enumerate(sequences):
            yield token_scores(logits[row, : len(sequence) - 1], ids[row, 1 : len(sequence)], top)

    def _decode(self, token_ids: list[int]) -> str:
        assert self.tokenizer is not None  # `check` has seen to it
        return cast(str, self.tokenizer.decode(token_ids, skip_special_tokens=False))

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """The model in evaluation mode, and as it was found afterwards."""
        training = self.model.training
        self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            self.model.train(training)


class _Group:
    """Samples decoded together until the last one ends; those that have ended make the batch smaller.

    Row i of the cache belongs to row i of `rows`. Prompts are padded on the left, so that all rows end together;
    mask_BT says which places are real, and positions count these alone.
    """

    def __init__(self, model: PreTrainedModel, samples: list[Sample], accepted: frozenset[str]) -> None:
        """
        Args:
            accepted: the arguments that the model's forward takes.
        """
        self.model, self.samples, self._accepted = model, samples, accepted
        self.rows = Rows(len(samples))
        self.rows.make_room(max(sample.params.max_new_tokens for sample in samples), 0)
        self.cache = DynamicCache(config=model.config.get_text_config(decoder=True))
        self.mask_BT = torch.empty(0)

    def run(self) -> None:
        """Generate all of every sample, and finish it with its request."""
        rows = self.rows
        logits_BW = self._read_prompts()
        while True:
            self._settle(logits_BW)
            if not len(rows):
                return
            count = len(rows)
            newest = torch.from_numpy(rows.newest()[:, None]).to(self.mask_BT.device)
            positions = torch.from_numpy(rows.length[:count, None]).to(self.mask_BT.device)
            self.mask_BT = torch.cat((self.mask_BT, self.mask_BT.new_ones(count, 1)), dim=1)
            logits_BW = self._forward(newest, positions)
            rows.length[:count] += 1

    def _read_prompts(self) -> Tensor:
        """Read every distinct prompt once and make a row for each of its samples; the logits [B, W] after them."""
        distinct: dict[tuple[int, ...], int] = {}
        of = [distinct.setdefault(tuple(sample.request.prompt), len(distinct)) for sample in self.samples]
        longest, device = max(map(len, distinct)), self.model.device
        ids_PT = torch.zeros(len(distinct), longest, dtype=torch.long)
        mask_PT = torch.zeros_like(ids_PT)
        for row, prompt in enumerate(distinct):
            ids_PT[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask_PT[row, longest - len(prompt) :] = 1
        self.mask_BT = mask_PT.to(device)
        logits_PW = self._forward(ids_PT.to(device), (self.mask_BT.cumsum(dim=1) - 1).clamp_min(0))
        for sample in self.samples:
            self.rows.add(sample)
        self._select(of)
        return logits_PW[of]

    def _forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Logits [B, W] after the last of the tokens, which join the cache."""
        extra: dict[str, Tensor | int] = {}
        if "position_ids" in self._accepted:  # a model without takes them from the mask, or has no positions
            extra["position_ids"] = position_ids
        if "logits_to_keep" in self._accepted:
            extra["logits_to_keep"] = 1
        out = self.model(
            input_ids=input_ids, attention_mask=self.mask_BT, past_key_values=self.cache, use_cache=True, **extra
        )
        return cast(Tensor, out.logits)[:, -1]

    def _select(self, rows: list[int]) -> None:
        """Let row i be what row rows[i] was."""
        if rows != list(range(len(self.mask_BT))):
            index = torch.tensor(rows, device=self.mask_BT.device)
            self.mask_BT = self.mask_BT[index]
            self.cache.reorder_cache(index)  # type: ignore[arg-type]

    def _settle(self, logits_BW: Tensor) -> None:
        """Choose the next token of every row, and take out those that end with it."""
        rows, count = self.rows, len(self.rows)
        temperature_B, top_p_B, top_k_B = rows.on_device(logits_BW.device)
        if rows.settings[:count, 0].any():
            uniform_B = uniforms(rows.streams[:count], rows.made[:count])
            chosen_B = choose(logits_BW, temperature_B, top_p_B, top_k_B, uniform_B)
        else:  # all greedy
            chosen_B = logits_BW.argmax(dim=-1)
        settled = [sample.settle(token) for sample, token in zip(rows.samples, chosen_B.tolist(), strict=True)]
        raw_B = torch.tensor([sample.params.raw_logprobs for sample in rows.samples], device=logits_BW.device)
        told_B = temperature_B.masked_fill(raw_B, 1.0)  # of the log-probabilities that are told
        logprobs_B = np.zeros(count, dtype=np.float32)
        if any(sample.params.logprobs for sample in rows.samples):
            tokens_B = torch.tensor(settled, device=logits_BW.device)
            logprobs_B = logprobs_of(tokens_B, logits_BW, told_B).cpu().numpy()
        wanted = max(sample.params.top_logprobs for sample in rows.samples)
        if wanted:
            for sample, place in zip(rows.samples, pairs(*likeliest(logits_BW, told_B, wanted)), strict=True):
                sample.top.append(place[: sample.params.top_logprobs])
        tokens_B1 = np.array(settled)[:, None]
        rows.append(tokens_B1, logprobs_B[:, None], np.ones(count, dtype=np.int64))
        self._retire(rows.stop_tokens(tokens_B1)[:, 0])

    def _retire(self, stops_B: np.ndarray) -> None:
        """Take out the rows whose newest token is a stop token, completes a stop text, or is the last allowed."""
        rows = self.rows
        left = list(range(len(rows)))
        for row in reversed(range(len(rows))):
            sample, token = rows.samples[row], int(rows.tokens[row, rows.made[row] - 1])
            reason: FinishReason | None = "length" if rows.made[row] == rows.limit[row] else None
            if sample.ends_with_stop(token) or stops_B[row]:
                reason = "stop"
            if reason is not None:
                completion = rows.completion(row, reason)
                left[row] = left[rows.pop(row)[1]]  # the last row has taken its place
                left.pop()
                sample.request.finish(sample.index, completion)
        if left:
            self._select(left)


def _copy(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """A copy with its parameters in `dtype`, but for those that the model's class wants in fp32.

    Buffers stay as they are: rotary frequencies in BF16 would move the positions.
    """
    copied = copy.deepcopy(model)
    kept = set(copied._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:  # those that overflow there, and are safe in BF16
        kept |= set(copied._keep_in_fp32_modules or ())
    for name, parameter in copied.named_parameters():
        if parameter.is_floating_point() and not any(f".{part}." in f".{name}." for part in kept):
            parameter.data = parameter.data.to(dtype)
    return copied


def _load(folder: Path, dtype: torch.dtype | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer of a folder.

    Raises:
        InputError: one of them is missing or damaged.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    expected = "a folder with a causal language model and its tokenizer"
    if not (folder / "config.json").is_file():
        raise InputError(folder, expected=expected, found="no config.json" if folder.is_dir() else "no such folder")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        loaded = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # looked for below, by name
        )
    except (OSError, ValueError, SafetensorError) as error:
        found = str(error).strip().partition("\n")[0]
        raise InputError(folder, expected=expected, found=found or type(error).__name__) from error
    # What `output_loading_info` adds is unknown to the annotations.
    model, loading = cast(tuple[PreTrainedModel, dict[str, Iterable[Any]]], loaded)
    # transformers only warns of these, and makes up random numbers in their place.
    lacking = [f"no {name}" for name in loading["missing_keys"]]
    lacking += [f"{name} of {list(found)}, not {list(wanted)}" for name, found, wanted in loading["mismatched_keys"]]
    if lacking:
        found = min(lacking) + (f" ({len(lacking)} such weights)" if len(lacking) > 1 else "")
        raise InputError(folder, expected="the weights that its config.json describes", found=found)
    return model, tokenizer
