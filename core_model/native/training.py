"""What training on CPU calls of compiled code (train.cpp), over tensors; whole layers are in decoder.py.

In fp32 it serves processors with AVX2; in bf16 those with AVX-512 BF16 and without AMX, whose products PyTorch does
faster. Everything else takes PyTorch's operations.

Shape suffixes: B sequences, T tokens of one, N tokens, D model, E experts, W vocabulary.
"""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode

from core_model import native

LANES = 16  # widths are multiples of it
MOST_VOCABULARY = 16384  # 3 MB of logits a thread

KINDS = {torch.float32: 0, torch.bfloat16: 1}  # as train.cpp numbers them


@functools.cache
def reason_against(dtype: torch.dtype) -> str | None:
    """Why training steps of this dtype take PyTorch's operations; None where they are compiled."""
    if dtype not in KINDS:
        return f"not for {dtype}"
    if dtype == torch.bfloat16 and not torch.cpu._is_avx512_bf16_supported():
        return "no AVX-512 BF16"
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        return "AMX, which PyTorch's own products use"
    if not torch.cpu._is_avx2_supported():
        return "no AVX2"
    return native.reason_against("train")


def compiled(dtype: torch.dtype) -> bool:
    """Whether there is code for products of this dtype, and nobody wants them in another or sees every operation."""
    if reason_against(dtype) is not None or native.library("train") is None:
        return False
    # A counter of FLOPs, say; or vmap, whose tensors have no address.
    if _get_current_dispatch_mode() is not None or torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return dtype != torch.float32 or not torch.is_autocast_enabled("cpu")


def serves(x: Tensor, weight: Tensor) -> bool:
    """Whether compiled code takes states [..., D], of any number, over an fp32 weight of rows of D."""
    return (
        not torch.compiler.is_compiling()
        and type(x) is Tensor
        and x.device.type == "cpu"
        and x.numel() > 0
        and is_stored(weight)
        and x.shape[-1] == weight.shape[-1]
        and not weight.shape[-1] % LANES
        and compiled(x.dtype)
    )


def serves_loss(hidden_ND: Tensor, weight_WD: Tensor) -> bool:
    """Whether compiled code works out this cross-entropy."""
    vocabulary, dim = weight_WD.shape
    return (
        not torch.compiler.is_compiling()
        and hidden_ND.device.type == "cpu"
        and is_stored(weight_WD)
        and not (vocabulary % LANES or dim % LANES or vocabulary > MOST_VOCABULARY)
        and compiled(hidden_ND.dtype)
    )


def is_stored(weight: Tensor) -> bool:
    """Whether its numbers lie in memory as fp32, row after row."""
    return (
        type(weight) in (Tensor, nn.Parameter)
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and weight.is_contiguous()
        and not (weight.is_neg() or weight._is_zerotensor())
    )


def serves_embedding(ids: Tensor, weight_WD: Tensor) -> bool:
    """Whether compiled code sums the gradient of this table."""
    return type(ids) is Tensor and ids.numel() > 0 and serves(weight_WD.detach(), weight_WD)


def serves_scores(scores_TE: Tensor, top_k: int) -> bool:
    """Whether compiled code works out a balance loss of these."""
    return (
        not torch.compiler.is_compiling()
        and type(scores_TE) is Tensor
        and scores_TE.device.type == "cpu"
        and scores_TE.dtype == torch.float32
        and scores_TE.numel() > 0
        and 0 < top_k <= scores_TE.shape[-1]
        and compiled(torch.float32)
    )


def serves_norm(tensors: Sequence[Tensor]) -> bool:
    """Whether compiled code works out the norm of all of these together."""
    return all(map(is_stored, tensors)) and compiled(torch.float32)


def cross_entropy(
    hidden_ND: Tensor, weight_WD: Tensor, labels_N: Tensor, dhidden: Tensor | None, dweight: Tensor | None
) -> float:
    """Sum of -log p(label); its gradients are written into the tensors given for them, [N, D] and fp32 [W, D].

    Raises:
        IndexError: a label that is no token.
    """
    vocabulary, dim = weight_WD.shape
    if len(labels_N) and not 0 <= int(labels_N.min()) <= int(labels_N.max()) < vocabulary:
        raise IndexError(
            f"labels reach from {int(labels_N.min())} to {int(labels_N.max())}, tokens from 0 to {vocabulary - 1}"
        )
    hidden, labels = plain(hidden_ND), plain(labels_N.to(torch.int64))
    return library().trivium_cross_entropy(
        KINDS[hidden.dtype], address(hidden), address(weight_WD), address(labels), len(labels),
        dim, vocabulary, torch.get_num_threads(), address(dhidden), address(dweight),
    )  # fmt: skip


def norm(x: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """RMSNorm of the last dimension of `plain` states."""
    y = torch.empty_like(x)
    library().trivium_norm_forward(
        KINDS[x.dtype], address(x), address(weight_D), x.numel() // len(weight_D), len(weight_D), eps,
        torch.get_num_threads(), address(y),
    )  # fmt: skip
    return y


def norm_backward(x: Tensor, weight_D: Tensor, eps: float, dy: Tensor, dweight: Tensor | None) -> Tensor:
    """The gradient of x; that of the weight is written into the tensor given for it."""
    dx = torch.empty_like(x)
    library().trivium_norm_backward(
        KINDS[x.dtype], address(x), address(weight_D), x.numel() // len(weight_D), len(weight_D), eps,
        torch.get_num_threads(), address(dy), address(dx), address(dweight),
    )  # fmt: skip
    return dx


def total_norm(tensors: Sequence[Tensor]) -> float:
    """Root of the sum of all squares of tensors that are `is_stored`."""
    many = len(tensors)
    addresses = (ctypes.c_void_p * many)(*(one.data_ptr() for one in tensors))
    sizes = (ctypes.c_int64 * many)(*(one.numel() for one in tensors))
    return math.sqrt(library().trivium_squares(addresses, sizes, many, torch.get_num_threads()))


def embedding_backward(ids: Tensor, dy: Tensor, vocabulary: int) -> Tensor:
    """[W, D] fp32: of each token the sum of its rows of dy, fp32 [..., D]; ids int64 [...], both `plain`."""
    dim = dy.shape[-1]
    dweight = torch.zeros(vocabulary, dim, dtype=torch.float32, device="cpu")
    library().trivium_embedding_backward(
        address(ids), address(dy), ids.numel(), dim, torch.get_num_threads(), address(dweight)
    )
    return dweight


def sequence_balance(scores_BTE: Tensor, top_k: int, real_BT: Tensor | None, dscores: Tensor | None) -> float:
    """`core_model.moe.balance.sequence_balance_loss` of `plain` fp32 scores; its gradient is written into the tensor
    given for it. real_BT: bool, `plain`."""
    sequences, length, experts = scores_BTE.shape
    return library().trivium_sequence_balance(
        address(scores_BTE), address(real_BT), sequences, length, experts, top_k, torch.get_num_threads(),
        address(dscores),
    )  # fmt: skip


def library() -> ctypes.CDLL:
    """With its functions' types declared; call it where `compiled` holds."""
    return _declared(cast(ctypes.CDLL, native.library("train")))


_AT, _INT, _LONG, _FLOAT = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64, ctypes.c_float
_ARGUMENTS: dict[str, tuple[type, ...]] = {  # as in train.cpp
    "layer_forward": (_INT, *(_AT,) * 6),
    "layer_backward": (_INT, *(_AT,) * 10),
    "cross_entropy": (_INT, _AT, _AT, _AT, _LONG, _INT, _INT, _INT, _AT, _AT),
    "norm_forward": (_INT, _AT, _AT, _LONG, _INT, _FLOAT, _INT, _AT),
    "norm_backward": (_INT, _AT, _AT, _LONG, _INT, _FLOAT, _INT, _AT, _AT, _AT),
    "squares": (_AT, _AT, _INT, _INT),
    "embedding_backward": (_AT, _AT, _LONG, _INT, _INT, _AT),
    "sequence_balance": (_AT, _AT, _LONG, _LONG, _INT, _INT, _INT, _AT),
}
_SUMS = ("cross_entropy", "sequence_balance", "squares")  # which return a double; the others nothing


@functools.cache
def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    for name, arguments in _ARGUMENTS.items():
        function = getattr(library, f"trivium_{name}")
        function.argtypes, function.restype = arguments, ctypes.c_double if name in _SUMS else None
    return library


def plain(x: Tensor) -> Tensor:
    """The same numbers, contiguous in memory: torch has tensors that only say that they are negated, or zero."""
    return torch.zeros(x.shape, dtype=x.dtype, device=x.device) if x._is_zerotensor() else x.resolve_neg().contiguous()


def address(tensor: Tensor | None) -> int | None:
    """Of its numbers, for compiled code; None for none."""
    return None if tensor is None else tensor.data_ptr()
