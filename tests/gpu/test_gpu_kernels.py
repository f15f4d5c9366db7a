"""The kernels themselves, on an accelerator: what tests/core_model/kernel_stand_ins.py stands in for elsewhere.

`python -m pytest tests/gpu`; it needs no more than torch, transformers and pytest.
"""

from __future__ import annotations

import importlib.util
import inspect

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel

from core_model import V3Config, V3ForCausalLM, fused, loss, norm, rope, swiglu
from core_model.attention_kernels import (
    FlexDocuments,
    GatheredDocuments,
    WholeRows,
    compiled_flex_attention,
    kernel_for,
    offers,
)
from core_model.cache import PAGE, LatentCache
from core_model.documents import find_documents
from core_model.generation.latent_kernels import FlashMLA, Products, flash_mla, flash_mla_serves
from core_model.generation.merged import Step
from core_model.moe import experts
from core_model.parallel.device import compiles_kernels, nvidia_capability, training_device

DEVICE = training_device()
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE.type == "cpu", reason="needs an accelerator")]
FUSED = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
LENGTHS = (700, 129, 1, 64, 391, 251)  # 1536 tokens
BF16 = 2e-2


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours.float() - theirs).abs().max() / theirs.abs().max())


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
        assert relative_difference(ours, exact) < BF16, kernel.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_flex_attention_gives_the_numbers_of_fp32(dtype):
    if not compiles_kernels(DEVICE):
        pytest.skip("no Triton")
    packed = documents()
    found = run(FlexDocuments(packed, compiled_flex_attention(), dtype), *inputs(sum(LENGTHS), 4, dtype))
    for ours, exact in zip(found, expected(dtype, packed), strict=True):
        assert relative_difference(ours, exact) < BF16


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
        assert relative_difference(ours, Products(512).attend(q, kv, step, 0).float()) < BF16


FUSED_FUNCTIONS = {
    "rms_norm": (norm.rms_norm, lambda x: (x(4096, 768), x(768).float(), 1e-6)),
    "rms_norm_backward": (
        norm.rms_norm_backward,
        lambda x: (x(4096, 768), x(4096, 768), x(4096, 1).float().abs(), x(768).float()),
    ),
    "swiglu": (swiglu.activation, lambda x: (x(4096, 256), x(4096, 256))),
    "swiglu backward": (swiglu.gradients, lambda x: (x(4096, 256), x(4096, 256), x(4096, 256))),
    "experts' swiglu": (swiglu.weighted_activation, lambda x: (x(4096, 512), x(4096))),
    "experts' swiglu backward": (swiglu.weighted_gradients, lambda x: (x(4096, 256), x(4096, 512), x(4096))),
    "sums of rows": (
        experts.gathered_sum,
        lambda x: (x(4096, 768), torch.randint(0, 4096, (512, 8), device=DEVICE), None),
    ),
    "rotated heads": (
        rope.rotated_tail,
        lambda x: (x(2, 300, 8, 192), torch.randn(1, 300, 32, 2, device=DEVICE)),
    ),
    "loss": (
        loss.loss_and_dlogits,
        lambda x: (x(1000, 32768), torch.randint(0, 32768, (1000, 1), device=DEVICE), x(1).dtype),
    ),
}


@pytest.mark.parametrize("case", FUSED_FUNCTIONS)
def test_fused_functions_compile_and_give_the_numbers_of_fp32(case):
    if not fused.compiles_on(DEVICE):
        pytest.skip("no Triton, or TRIVIUM_NATIVE is 0")
    run, draw = FUSED_FUNCTIONS[case]
    torch.manual_seed(0)
    args = draw(lambda *shape: torch.randn(shape, device=DEVICE).to(torch.bfloat16))
    exact = [x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x for x in args]
    exact = [torch.float32 if x is torch.bfloat16 else x for x in exact]
    compiled = counters["stats"]["unique_graphs"]
    found, expected = run(*args), inspect.unwrap(run)(*exact)
    assert counters["stats"]["unique_graphs"] > compiled
    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
    assert all(relative_difference(ours, theirs) < BF16 for ours, theirs in pairs)
    assert not fused.faults


@pytest.mark.parametrize("rows", ["whole rows", "packed", "padded"])
def test_a_step_has_the_loss_and_gradients_of_fp32_under_every_policy(rows):
    torch.manual_seed(0)
    model = V3ForCausalLM(V3Config.preset("nano", num_hidden_layers=2)).initialize(0.06, 0).train().to(DEVICE)
    model.loss_weights.mtp = 0.3
    ids = torch.randint(0, model.config.vocab_size, (2, 200), device=DEVICE)
    mask, labels = torch.ones_like(ids), ids.clone()
    positions = torch.arange(200, device=DEVICE).expand(2, -1)
    if rows == "packed":
        positions = torch.stack((positions[0] % 60, positions[0] % 130))
    if rows == "padded":
        mask[1, 77:] = 0
        labels[1, 77:] = -100

    def step(dtype: torch.dtype, policy: str) -> list[torch.Tensor]:
        model.compute_dtype, model.recompute = dtype, policy
        model.zero_grad()
        loss = model(ids, attention_mask=mask, position_ids=positions, labels=labels).loss
        loss.backward()
        projections = [layer.self_attn.kv_b_proj.weight.grad.clone() for layer in model.model.layers]
        return [loss.detach(), *projections]

    exact = step(torch.float32, "none")
    for policy in ("none", "v3", "layer"):
        for ours, theirs in zip(step(torch.bfloat16, policy), exact, strict=True):
            assert relative_difference(ours, theirs) < 5e-2, policy


@pytest.mark.parametrize("capped", [False, True])
def test_experts_without_tokens_and_pairs_left_out_add_nothing(capped):
    """Groups of no rows, and rows behind the last group: what a grouped product leaves there must not be read."""
    draw = torch.Generator().manual_seed(0)
    x, gate_up, down = (torch.randn(*shape, generator=draw) for shape in ((300, 64), (16, 64, 64), (16, 64, 32)))
    weights = torch.rand(300, 2, generator=draw)
    indices = torch.stack((torch.full((300,), 3), torch.randint(5, 9, (300,), generator=draw)), dim=1)
    kept = torch.rand(300, 2, generator=draw) < 0.5 if capped else None
    found = []
    for run, device, dtype in (
        (experts.grouped_experts, DEVICE, torch.bfloat16),
        (experts.looped_experts, torch.device("cpu"), torch.float32),
    ):
        given = [one.to(device, dtype).requires_grad_() for one in (x, gate_up / 8, down / 6)]
        scales = weights.to(device).requires_grad_()
        y = run(given[0], indices.to(device), scales, *given[1:], None if kept is None else kept.to(device))
        y.float().square().mean().backward()
        found.append([y.detach().cpu(), *(one.grad.cpu() for one in (scales, *given))])
    for ours, exact in zip(*found, strict=True):
        assert relative_difference(ours, exact) < BF16
    idle = [expert for expert in range(16) if not (indices == expert).any()]
    assert not found[0][3][idle].any() and not found[0][4][idle].any()
