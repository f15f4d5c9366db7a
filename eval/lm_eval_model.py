"""Trivium's models, and those of transformers by Trivium's generator, as a model of EleutherAI's lm-eval.

Importing this registers the model `trivium` with lm-eval, which must be installed beside Trivium (docs/lm_eval.md);
`python -m eval.lm_eval_model` does that and hands over to lm-eval's own command line.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from core_model.errors import InputError
from eval.likelihood import Encoder, Likelihood, Pair, rolling_windows, score_pairs
from recipes.progress import progress_bar
from recipes.rows import sha256_of
from recipes.schema import StrictModel

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as missing:
    message = f"eval.lm_eval_model: expected lm-eval 0.4.13 beside Trivium (docs/lm_eval.md); found: {missing}"
    if __name__ != "__main__":
        raise ImportError(message) from missing
    print(message, file=sys.stderr)
    sys.exit(2)

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from core_model.generation.generator import Generator
    from core_model.generation.request import Completion
    from core_model.generation.sampling import SamplingParams

TOGETHER = 256  # requests between two steps of the progress bar, and of lm-eval's cache
DESCRIPTION = """\
Evaluate a model with lm-eval's tasks. All arguments are lm-eval's (`run` is taken for granted, and `--model trivium`);
those of the model, after --model_args as key=value:

"""
EPILOG = """\
examples:
  python -m eval.lm_eval_model --model_args path=runs/nano/rl --tasks arc_easy,hellaswag --output_path out
  python -m eval.lm_eval_model --model_args path=runs/nano/rl think_end_token='</think>' --apply_chat_template \\
      --include_path my_tasks --tasks my_task --gen_kwargs max_gen_toks=1024
  python -m eval.lm_eval_model run --help          lm-eval's arguments
  python -m eval.lm_eval_model ls tasks            lm-eval's tasks
"""


class ModelArguments(StrictModel):
    """What `--model_args` takes."""

    path: Path = Field(description="a run folder with a model/, or a model folder; nothing is fetched")
    backend: Literal["auto", "trivium", "transformers"] = Field(
        default="auto", description="our engine or transformers; auto: the engine where config.json says deepseek_v3"
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        default=None, description="of activations; none: as the weights are stored"
    )
    max_length: int | None = Field(
        default=None, ge=2, description="longest sequence, tokens, what is predicted included; none: the model's"
    )
    max_gen_toks: int = Field(default=256, ge=1, description="new tokens where a task does not say")
    max_batch: int = Field(default=64, ge=1, description="samples decoded together (--batch_size is not used)")
    seed: int = Field(default=0, ge=0, description="of what is sampled, with the prompt and how often it was asked")
    think_end_token: str | None = Field(
        default=None, min_length=1, description="what ends a thought: the answer is what follows, `until` applies there"
    )


def open_generator(arguments: ModelArguments, device: str | None = None) -> Generator:
    """The model of these arguments, loaded.

    Args:
        device: as torch names it; None: the accelerator there is, or else the CPU.

    Raises:
        InputError: no such model, a damaged one, one without so much room as `max_length` says, or no such device.
    """
    import torch

    from core_model.generation import Engine, HuggingFaceGenerator
    from core_model.generation.chat import find_model
    from core_model.model import V3ForCausalLM
    from core_model.parallel.device import training_device
    from core_model.tokenizer import load_tokenizer

    folder, longest = find_model(arguments.path), arguments.max_length
    config = _read_config(folder / "config.json")
    room = config.get("max_position_embeddings")
    if longest is not None and isinstance(room, int) and longest > room:
        raise InputError("--model_args", where="max_length", expected=f"at most {room}", found=str(longest))
    place = training_device() if device is None else device
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        raise InputError("lm-eval", where="--device", expected="a device of this machine", found=str(error)) from error
    dtype = None if arguments.dtype is None else getattr(torch, arguments.dtype)
    backend = arguments.backend
    if backend == "auto":
        backend = "trivium" if config.get("model_type") == "deepseek_v3" else "transformers"
    if backend == "transformers":
        return HuggingFaceGenerator.from_pretrained(
            folder, max_batch=arguments.max_batch, max_tokens=longest, dtype=dtype, device=place
        )
    tokenizer = load_tokenizer(folder)
    model = V3ForCausalLM.from_pretrained(folder).eval()
    return Engine(
        model.to(place),
        tokenizer,
        max_batch=arguments.max_batch,
        max_tokens=longest,
        dtype=dtype,
    )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(path, expected="JSON", found=str(error)) from error
    if not isinstance(config, dict):
        raise InputError(path, expected="a model's config", found=type(config).__name__)
    return config


@register_model("trivium")
class TriviumLM(LM):
    """A generator of ours behind lm-eval's interface. Greedy unless a task or --gen_kwargs sets a temperature.

    A context that begins with the bos token spelt out is a rendered chat prompt, whose special tokens are read as
    such; any other is text (see eval/likelihood.py, whose numbers these are).

    Args:
        device: lm-eval's, which names an accelerator even where there is none: that one means whatever there is.
        batch_size, max_batch_size: lm-eval's, which are not used: `max_batch` is.
        model_args: as `ModelArguments`.

    Raises:
        InputError: arguments there are not, a model that is not there, or several processes.
    """

    def __init__(
        self,
        *,
        device: str | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        **model_args: Any,
    ) -> None:
        super().__init__()
        if int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise InputError(
                "lm-eval", where="accelerate launch", expected="one process", found=os.environ["WORLD_SIZE"]
            )
        self.arguments = _checked_arguments(model_args)
        self.generator = open_generator(self.arguments, None if device == EvaluatorConfig().device else device)
        self.tokenizer = self.generator.tokenizer
        self.encoder = Encoder(self.tokenizer)
        self._asked: Counter[str] = Counter()

    @property
    def max_length(self) -> int:
        """Longest sequence, tokens."""
        return self.generator.max_tokens

    @property
    def tokenizer_name(self) -> str:
        """Names lm-eval's cache of requests, which are rendered prompts."""
        return str(self.arguments.path).replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's text; None where none is to be applied.

        Raises:
            InputError: one is asked for by name, or the model has none.
        """
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            expected = "no name: the template is the model's own"
            raise InputError("lm-eval", where="--apply_chat_template", expected=expected, found=chat_template)
        if not self.tokenizer.chat_template:
            raise InputError(self.arguments.path, where="chat_template", expected="a chat template", found="none")
        return str(self.tokenizer.chat_template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The rendered prompt; without a generation prompt the last message is left open, to be continued.

        Raises:
            InputError: the template refuses these messages.
        """
        from jinja2 import TemplateError

        try:
            return str(
                self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )
        except (TemplateError, ValueError) as error:
            expected = "messages that the model's template takes"
            raise InputError(self.arguments.path, where="chat_template", expected=expected, found=str(error)) from error

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """For each (context, continuation) its log-likelihood, and whether greedy decoding would write it.

        Raises:
            InputError: a continuation that is empty, or too long for the model.
        """
        pairs = []
        for context, continuation in (request.args for request in requests):
            try:
                pairs.append(self.encoder.pair(context, continuation, rendered=self._is_rendered(context)))
            except ValueError as error:
                raise InputError("lm-eval's request", expected="text to be weighed", found=str(error)) from error
        found: list[tuple[float, bool]] = []
        with progress_bar(len(pairs), "log-likelihoods", unit="requests") as bar:
            for start in range(0, len(pairs), TOGETHER):
                for score in self._scored(pairs[start : start + TOGETHER]):
                    answer = (score.logprob, score.greedy)
                    self.cache_hook.add_partial("loglikelihood", requests[len(found)].args, answer)
                    found.append(answer)
                    bar.advance()
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each text, in windows where it is longer than the model's."""
        found: list[float] = []
        with progress_bar(len(requests), "texts", unit="texts") as bar:
            for start in range(0, len(requests), TOGETHER):
                block = [self._windows(*request.args) for request in requests[start : start + TOGETHER]]
                scores = iter(self._scored([window for windows in block for window in windows]))
                for windows in block:
                    total = math.fsum(next(scores).logprob for _ in windows)
                    self.cache_hook.add_partial("loglikelihood_rolling", requests[len(found)].args, total)
                    found.append(total)
                    bar.advance()
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until one of the stop texts, which is left out; a context too long loses its beginning.

        Raises:
            InputError: a generation setting that is not known or out of range.
        """
        found: list[str] = []
        with progress_bar(len(requests), "generate", unit="requests") as bar:
            for start in range(0, len(requests), TOGETHER):
                block = [request.args for request in requests[start : start + TOGETHER]]
                asked = [self._prompt_and_params(context, settings) for context, settings in block]
                completions = self.generator.generate([prompt for prompt, _ in asked], [params for _, params in asked])
                for (context, settings), (completion,) in zip(block, completions, strict=True):
                    found.append(self._answer(completion, normalize_gen_kwargs(settings)["until"]))
                    self.cache_hook.add_partial("generate_until", (context, settings), found[-1])
                bar.advance(len(block))
        return found

    def _is_rendered(self, context: str) -> bool:
        return bool(self.tokenizer.bos_token) and context.startswith(self.tokenizer.bos_token)

    def _windows(self, text: str) -> list[Pair]:
        return rolling_windows(self.encoder.text(text), self.encoder.prefix, self.max_length)

    def _scored(self, pairs: Sequence[Pair]) -> list[Likelihood]:
        try:
            return score_pairs(self.generator, pairs)
        except ValueError as error:
            expected = f"continuations that fit into {self.max_length} tokens (max_length)"
            raise InputError("lm-eval's request", expected=expected, found=str(error)) from error

    @property
    def _stop_ids(self) -> tuple[int, ...]:
        """What ends a reply: of a model of transformers as its folder says, else eos."""
        found = getattr(self.generator, "stop_ids", None)
        return (self.tokenizer.eos_token_id,) if found is None else found

    def _prompt_and_params(self, context: str, settings: Mapping[str, Any]) -> tuple[list[int], SamplingParams]:
        from core_model.generation.sampling import SamplingParams

        wanted = dict(normalize_gen_kwargs(dict(settings), self.arguments.max_gen_toks))
        until = tuple(text for text in wanted.pop("until") if text)
        new, temperature = wanted.pop("max_gen_toks"), float(wanted.pop("temperature", 0.0))
        top_p, top_k = float(wanted.pop("top_p", 1.0)), int(wanted.pop("top_k", 0))
        wanted.pop("do_sample")  # it has set the temperature
        if wanted:
            known = "until, max_gen_toks, do_sample, temperature, top_p or top_k"
            raise InputError("lm-eval's generation settings", expected=known, found=", ".join(wanted))
        room = self.max_length - new
        if room < 1:
            expected = f"less than the model's room of {self.max_length} tokens"
            raise InputError("lm-eval's generation settings", where="max_gen_toks", expected=expected, found=str(new))
        if self._is_rendered(context):
            prompt = self.encoder.rendered(context)
        else:
            prompt = [*self.encoder.first, *self.encoder.text(context)] or [self.encoder.prefix]
        request = sha256_of(context, dict(settings))
        self._asked[request] += 1  # a task's repeats are the same request again, and other samples
        try:
            params = SamplingParams(
                new,
                temperature=temperature,
                top_p=top_p,
                top_k=top_k,
                seed=int(sha256_of(self.arguments.seed, request, self._asked[request])[:12], 16),
                stop_ids=self._stop_ids,
                # A stop text within a thought must not end it.
                stop=() if self.arguments.think_end_token else until,
            )
        except ValueError as error:
            expected = "settings in range"
            raise InputError("lm-eval's generation settings", expected=expected, found=str(error)) from error
        return prompt[-room:], params

    def _answer(self, completion: Completion, until: Sequence[str]) -> str:
        """The completion's text after its thought and before the first stop text."""
        ids = completion.token_ids
        if ids and ids[-1] in self._stop_ids:
            ids = ids[:-1]
        end = self.arguments.think_end_token
        # What ends a thought may be a special token.
        text = str(self.tokenizer.decode(ids, skip_special_tokens=end is None))
        if end is not None:
            text = text.rpartition(end)[2].lstrip()
        places = [place for place in (text.find(stop) for stop in until if stop) if place >= 0]
        return text[: min(places)] if places else text


def _checked_arguments(given: Mapping[str, Any]) -> ModelArguments:
    try:
        return ModelArguments.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(ModelArguments.model_fields)
        expected = {"extra_forbidden": f"one of {known}", "missing": "a run or model folder"}.get(
            first["type"], first["msg"]
        )
        found = "nothing" if first["type"] == "missing" else str(first["input"])
        raise InputError(
            "--model_args", where=".".join(map(str, first["loc"])), expected=expected, found=found
        ) from error


def _help() -> argparse.ArgumentParser:
    fields = ModelArguments.model_fields.items()
    described = "".join(f"  {name:<16} {field.description}\n" for name, field in fields)
    return argparse.ArgumentParser(
        prog="python -m eval.lm_eval_model",
        usage="%(prog)s --model_args path=RUN [KEY=VALUE ...] --tasks TASK,... [lm-eval's arguments]",
        description=DESCRIPTION + described,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def main(arguments: Sequence[str]) -> int:
    """The exit status."""
    from lm_eval.__main__ import cli_evaluate

    if not arguments or arguments[0] in ("-h", "--help"):
        _help().print_help()
        return 0
    if arguments[0] in ("ls", "validate"):
        given = list(arguments)
    else:
        given = ["run", "--model", "trivium", *arguments[arguments[0] == "run" :]]
    sys.argv = ["lm-eval", *given]  # where lm-eval reads them
    try:
        cli_evaluate()
    except InputError as error:
        print(f"eval.lm_eval_model: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
