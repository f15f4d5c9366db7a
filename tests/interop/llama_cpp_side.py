"""What llama.cpp makes of an exported folder; run by exported_folders.py in an environment with llama-cpp-python.

    python llama_cpp_side.py JOB ANSWERS

JOB and ANSWERS are as in vllm_side.py; JOB has `sources` besides, the folder of llama.cpp's sources. A GGUF file in
FP32 is made of the folder and decoded greedily. llama.cpp reads no MTP module of V3.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from llama_cpp_convert import convert


def rendered(model: Any, messages: list[dict[str, str]]) -> list[int]:
    """A conversation by the chat template in the GGUF file, in llama.cpp's tokens."""
    from llama_cpp.llama_chat_format import Jinja2ChatFormatter

    bos, eos = (model._model.token_get_text(token) for token in (model.token_bos(), model.token_eos()))
    formatter = Jinja2ChatFormatter(model.metadata["tokenizer.chat_template"], eos_token=eos, bos_token=bos)
    text = formatter(messages=messages).prompt
    return model.tokenize(text.encode(), add_bos=False, special=True)


def continued(model: Any, prompt: list[int], new_tokens: int, stop: list[int]) -> dict[str, Any]:
    model.reset()
    tokens: list[int] = []
    logprobs: list[float] = []
    given = prompt
    while len(tokens) < new_tokens and not (tokens and tokens[-1] in stop):
        model.eval(given)
        logits = model.scores[model.n_tokens - 1].astype(np.float64)
        token = int(logits.argmax())
        tokens.append(token)
        logprobs.append(float(logits[token] - np.logaddexp.reduce(logits)))
        given = [token]
    return {"prompt": prompt, "tokens": tokens, "logprobs": logprobs}


def main(job_file: str, answers_file: str) -> None:
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "model.gguf"
        convert(Path(job["sources"]), [job["folder"], "--outtype", "f32", "--outfile", str(file)])
        from llama_cpp import GGML_TYPE_F32, Llama

        # Its cache is FP16 unless told otherwise, which costs up to 0.2 of a log-probability.
        kinds = {"type_k": GGML_TYPE_F32, "type_v": GGML_TYPE_F32}
        model = Llama(str(file), n_ctx=job["context"], logits_all=True, verbose=False, **kinds)
        prompts = job.get("prompts") or [rendered(model, messages) for messages in job["conversations"]]
        answers = [continued(model, prompt, job["new_tokens"], job["stop"]) for prompt in prompts]
        model.close()
    Path(answers_file).write_text(json.dumps({"answers": answers, "drafted": 0, "accepted": 0}))


if __name__ == "__main__":
    main(*sys.argv[1:])
