"""The kernels themselves, on an accelerator: what kernel_stand_ins.py stands in for elsewhere.

`python -m pytest -m gpu tests/core_model`
"""

from __future__ import annotations

import importlib.util

import pytest
import torch
from reference import relative_difference
from torch.nn.attention import SDPBackend, sdpa_kernel

from core_model.attention_kernels import (
    FlexDocuments,
    GatheredDocuments,
    WholeRows,
    compiled_flex_attention,
    kernel_for,
    offers,
)
from core_model.cache import PAGE, LatentCache
from core_model.config import V3Config
from core_model.documents import find_documents
from core_model.generation.latent_kernels import FlashMLA, Products, flash_mla, flash_mla_serves
from core_model.generation.merged import Step
from core_model.parallel.device import compiles_kernels, nvidia_capability, training_device

DEVICE = training_device()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE.type == "cpu", reason="needs an accelerator")]
FUSED = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
LENGTHS = (700, 129, 1, 64, 391, 251)  # 1536 tokens
BF16 = 2e-2


def inputs(length: int, heads: int, dtype: torch.dtype, widths=(192, 128)):
    draw = torch.Generator().manual_seed(0)
    sizes = (widths[0], widths[0], widths[1], widths[1])
    made = [torch.randn(1, length, heads, size, generator=draw).to(DEVICE, dtype) for size in sizes]
    return [x.requires_grad_() for x in made[:3]], made[3]


def run(kernel, qkv, grad) -> list[torch.Tensor]:
    """Output and gradients, without SDPA's unfused way out."""
    with sdpa_kernel(FUSED):
        outs = kernel.attend(kernel.inputs(*qkv), 0.1, None)
        out = kernel.output(outs, grad.shape[-1], grad.dtype)
        return [out.detach(), *torch.autograd.grad(out, qkv, grad)]


def documents(lengths=LENGTHS):
    positions = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0).to(DEVICE)
    return find_documents(positions, None, (1, len(positions[0])))


def expected(dtype: torch.dtype, packed, heads: int = 4) -> list[torch.Tensor]:
    """In fp32, padded to one width."""
    qkv, grad = inputs(sum(LENGTHS), heads, dtype)
    exact = [x.detach().float().requires_grad_() for x in qkv]
    return run(GatheredDocuments(packed) if packed else WholeRows(padded=True), exact, grad.float())


@pytest.mark.parametrize("rows", ["whole rows", "packed"])
def test_the_kernel_that_is_chosen_gives_the_numbers_of_fp32(rows):
    packed = documents() if rows == "packed" else None
    kernel = kernel_for(DEVICE, torch.bfloat16, 192, 128, packed)
    found = run(kernel, *inputs(sum(LENGTHS), 4, torch.bfloat16))
    for ours, exact in zip(found, expected(torch.bfloat16, packed), strict=True):
        assert relative_difference(ours.float(), exact) < BF16, kernel.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_flex_attention_gives_the_numbers_of_fp32(dtype):
    if not compiles_kernels(DEVICE):
        pytest.skip("no Triton")
    packed = documents()
    found = run(FlexDocuments(packed, compiled_flex_attention()), *inputs(sum(LENGTHS), 4, dtype))
    for ours, exact in zip(found, expected(dtype, packed), strict=True):
        assert relative_difference(ours.float(), exact) < BF16


def test_documents_go_through_flash_on_ampere_and_later():
    capability = nvidia_capability(DEVICE)
    if capability is None or capability < (8, 0):
        pytest.skip("another accelerator")
    assert offers(DEVICE, torch.bfloat16, 192, 128).varlen is not None


@pytest.mark.parametrize("lengths", [(131072,), (65536, 32768, 32768)])
def test_128k_tokens_take_memory_in_their_number(lengths):
    packed = documents(lengths) if len(lengths) > 1 else None
    kernel = kernel_for(DEVICE, torch.bfloat16, 192, 128, packed)
    qkv, grad = inputs(131072, 4, torch.bfloat16)
    torch.accelerator.reset_peak_memory_stats()
    before = torch.accelerator.memory_allocated()
    run(kernel, qkv, grad)
    used = torch.accelerator.max_memory_allocated() - before
    assert used < 24 * sum(x.nbytes for x in qkv)  # the scores of one head alone would take 34 GB


def test_flash_mla_gives_the_numbers_of_products():
    if not flash_mla_serves(nvidia_capability(DEVICE), torch.bfloat16, 512, 64):
        pytest.skip("not Hopper")
    if importlib.util.find_spec("flash_mla") is None:
        pytest.skip("FlashMLA is not installed")
    config = V3Config.preset("671b", num_hidden_layers=1, num_nextn_predict_layers=0)
    cache = LatentCache(config, 3, 4 * PAGE, torch.bfloat16, DEVICE)
    cache.buffer_LBSC.normal_()
    for length in (1, 3):
        positions = (torch.tensor([[5], [200], [77]]) + torch.arange(length)).to(DEVICE)
        cache.begin(0, positions)
        step = Step(cache, positions, torch.ones(32, device=DEVICE), 1.0)
        q = torch.randn(3, length, 128, 576, dtype=torch.bfloat16, device=DEVICE) * 0.1
        kv = cache.update(torch.randn(3, length, 576, device=DEVICE), 0)
        ours = FlashMLA(flash_mla()).attend(q, kv, step, 0)
        assert relative_difference(ours.float(), Products(512).attend(q, kv, step, 0).float()) < BF16
