"""Compiled code as processors other than this one run it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from compiled import CONFIGURATIONS, both, check_against_fp32, needs_compiler, training_model
from reference import random_model, random_tokens, tiny_config

from core_model import native
from core_model.generation import Engine, SamplingParams
from core_model.loss import cross_entropy_sum
from core_model.native import training

AVX512_IN_PARTS = Path(__file__).with_name("avx512_in_parts.h")
PROCESSORS = {
    "AVX-512 BF16": ("-include", str(AVX512_IN_PARTS), "-Wno-psabi"),
    "four numbers a register": ("-mno-avx",),
}
x86 = pytest.mark.skipif(not torch.cpu._is_avx2_supported(), reason="an x86 processor of the last ten years")


@pytest.fixture
def compiled_for(monkeypatch, tmp_path_factory):
    """compiled_for("train", flags): that library as those flags make it, in place of this processor's."""
    for name in ("train", "decode"):
        native.library(name)  # this processor's, which is kept elsewhere
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "compiled"))

    def put(name: str, flags: tuple[str, ...]) -> None:
        monkeypatch.setattr(native, "FLAGS", ("-O1", *native.FLAGS[1:], *flags))
        library, others = native._opened(name), native.library
        monkeypatch.setattr(native, "library", lambda asked: library if asked == name else others(asked))

    return put


@pytest.mark.parametrize(
    ("avx2", "bf16", "amx", "served"),
    [
        (False, False, False, set()),
        (True, False, False, {torch.float32}),
        (True, True, False, {torch.float32, torch.bfloat16}),
        (True, True, True, {torch.float32}),  # PyTorch's products in bf16 are faster
    ],
)
def test_which_training_is_compiled(avx2, bf16, amx, served, monkeypatch):
    for name, value in {"avx2": avx2, "avx512_bf16": bf16, "amx_tile": amx}.items():
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda value=value: value)
    monkeypatch.setattr(native, "reason_against", lambda name: None)
    asked = (torch.float32, torch.bfloat16, torch.float16)
    assert {dtype for dtype in asked if training.reason_against.__wrapped__(dtype) is None} == served


@x86
@needs_compiler
@both
@pytest.mark.usefixtures("wherever_it_compiles")
@pytest.mark.parametrize("flags", PROCESSORS.values(), ids=PROCESSORS)
def test_training(flags, dtype, compiled_for):
    """Blocks and panels of other widths, instructions that are not here: the same sums."""
    compiled_for("train", flags)
    for changes in ({}, CONFIGURATIONS["widths of several panels"]):
        check_against_fp32(training_model(dtype, **changes), random_tokens(3, 101, vocabulary=48))
    hidden, weight, labels = torch.randn(70, 32).to(dtype), torch.randn(80, 32), torch.arange(70)
    expected = F.cross_entropy(hidden.float() @ weight.T, labels, reduction="sum")
    torch.testing.assert_close(cross_entropy_sum(hidden, weight, labels), expected, rtol=5e-3, atol=0)


@x86
@needs_compiler
@pytest.mark.parametrize("flags", PROCESSORS.values(), ids=PROCESSORS)
def test_decoding(flags, compiled_for):
    model, prompts = random_model(tiny_config()), [random_tokens(n).tolist() for n in (9, 30)]
    params = SamplingParams(12, temperature=0.0)
    expected = [out[0].token_ids for out in Engine(model).generate(prompts, params)]
    compiled_for("decode", flags)
    assert [out[0].token_ids for out in Engine(model).generate(prompts, params)] == expected


@needs_compiler
@pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="no AVX-512 BF16 to compare with")
def test_instructions_in_parts_are_the_processors(tmp_path):
    """Every bit of random numbers, NaN, infinities and subnormal numbers among them."""
    program = tmp_path / "check"
    source = AVX512_IN_PARTS.with_name("avx512_in_parts_check.cpp")
    compiler = shutil.which("g++") or shutil.which("clang++")
    command = [compiler, "-O1", "-march=native", "-std=c++17", "-Wno-psabi", "-o", program, source]
    subprocess.run(command, check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
