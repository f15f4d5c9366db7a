"""MLA's unequal widths and packed documents on this device: our seam against SDPA on the tensors as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import BenchmarkRow, Comparison, compare
from benchmarks.train_step import PEER_FAULTS, gemm_rate
from core_model.attention_kernels import GatheredDocuments, Kernel, kernel_for, scaled_dot_product
from core_model.documents import Documents, find_documents
from core_model.parallel.device import training_device, wait_for
from core_model.precision import fastest_dtype

CASES = ((32, 256, 2, 48, 32), (8, 1024, 4, 48, 32), (1, 2048, 8, 192, 128))  # batch, length, heads, qk, v
# On an accelerator V3's own heads, at the length it is trained at, and a pack of documents with a long tail.
V3 = {"heads": 128, "width": 192, "value": 128}
LENGTH = 4096
DOCUMENTS = (2731, 4096, 1203, 640, 3001, 512, 97, 2048, 1024, 257, 431, 344)  # 16384 tokens
REPETITIONS = 15

Inputs = tuple[Tensor, Tensor, Tensor]


def run() -> Iterator[BenchmarkRow]:
    """Forward and backward, causal, in the dtype the device multiplies fastest; thousands of tokens a second."""
    if training_device().type != "cpu":
        yield from accelerator_rows()
        return
    for batch, length, heads, width, value in CASES:
        qkv, grad = _draw(batch, length, heads, width, value)
        name = f"batch {batch}, length {length}, {heads} heads, qk {width}, v {value}"
        ours, plain = _ours(qkv, grad), _plain(qkv, grad, None)
        yield compare(Comparison(name, "k tokens/s", batch * length / 1000, "SDPA, values unpadded"), ours, plain)


def accelerator_rows() -> Iterator[BenchmarkRow]:
    """Whole rows; a pack against SDPA under a mask, which is what transformers makes of one, and against batches."""
    device, heads, widths = training_device(), V3["heads"], (V3["width"], V3["value"])
    wait = functools.partial(wait_for, device)
    in_turn = functools.partial(compare, repetitions=REPETITIONS, wait=wait, faults=PEER_FAULTS)
    sizes = f"{heads} heads, qk {widths[0]}, v {widths[1]}"
    rate = gemm_rate(torch.bfloat16)
    qkv, grad = _draw(1, LENGTH, heads, *widths)
    kernel = kernel_for(device, torch.bfloat16, *widths, None)
    whole = Comparison(
        f"whole row of {LENGTH}, {sizes}: {kernel.name}",
        "k tokens/s",
        LENGTH / 1000,
        "SDPA, values unpadded",
        limit=rate * LENGTH / _flops((LENGTH,)) / 1000,
    )
    yield in_turn(whole, _ours(qkv, grad), _plain(qkv, grad, None))
    positions = torch.cat([torch.arange(length) for length in DOCUMENTS]).unsqueeze(0).to(device)
    total = sum(DOCUMENTS)
    documents = find_documents(positions, None, (1, total))
    assert documents is not None
    qkv, grad = _draw(1, total, heads, *widths)
    kernel = kernel_for(device, torch.bfloat16, *widths, documents)
    gathered = GatheredDocuments(documents)
    peers = {"SDPA under a mask": _plain(qkv, grad, _mask(documents)), gathered.name: _through(gathered, qkv, grad)}
    for name, peer in peers.items():
        packed = Comparison(
            f"{len(DOCUMENTS)} documents in {total}, {sizes}: {kernel.name}",
            "k tokens/s",
            total / 1000,
            name,
            limit=rate * total / _flops(DOCUMENTS) / 1000,
        )
        yield in_turn(packed, _through(kernel, qkv, grad), peer)


def _draw(batch: int, length: int, heads: int, width: int, value: int) -> tuple[Inputs, Tensor]:
    """Queries, keys, values and the gradient of the output."""
    device = training_device()
    dtype = fastest_dtype(device)

    def draw(size: int, learned: bool) -> Tensor:
        return torch.randn(batch, length, heads, size, dtype=dtype, device=device, requires_grad=learned)

    return (draw(width, True), draw(width, True), draw(value, True)), draw(value, False)


def _flops(lengths: tuple[int, ...]) -> float:
    """Of forward and backward: two products forward, five backward, where fused kernels make the scores again."""
    width, value = V3["width"], V3["value"]
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    return 2 * V3["heads"] * pairs * ((width + value) + (3 * width + 2 * value))


def _ours(qkv: Inputs, grad: Tensor) -> Callable[[], None]:
    scale = qkv[0].shape[-1] ** -0.5
    return lambda: scaled_dot_product(*qkv, scale, None).backward(grad)


def _through(kernel: Kernel, qkv: Inputs, grad: Tensor) -> Callable[[], None]:
    scale = qkv[0].shape[-1] ** -0.5

    def step() -> None:
        outs = kernel.attend(kernel.inputs(*qkv), scale, None)
        kernel.output(outs, grad.shape[-1], grad.dtype).backward(grad)

    return step


def _plain(qkv: Inputs, grad: Tensor, mask: Tensor | None) -> Callable[[], None]:
    scale = qkv[0].shape[-1] ** -0.5

    def step() -> None:
        q_BHTd, k_BHTd, v_BHTV = (x.transpose(1, 2) for x in qkv)
        out = F.scaled_dot_product_attention(
            q_BHTd, k_BHTd, v_BHTV, attn_mask=mask, is_causal=mask is None, scale=scale
        )
        out.transpose(1, 2).backward(grad)

    return step


def _mask(documents: Documents) -> Tensor:
    """Causal within documents, bool [1, 1, T, T]."""
    id_T = documents.id_BT[0]
    return ((id_T[:, None] == id_T) & torch.ones(len(id_T), len(id_T), device=id_T.device).tril().bool())[None, None]
