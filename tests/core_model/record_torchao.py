"""Record what torchao's blockwise quantisers make of fixed matrices into torchao_fp8.json, next to this file.

torchao itself is no test dependency: its module of FP8 kernels imports triton, and importing torchao changes what
transformers and accelerate believe to be installed. Recorded with torch 2.13.0 on CPU by

    pip install --no-deps --target /tmp/oracle torchao==0.18.0 triton==3.7.1
    PYTHONPATH=.:/tmp/oracle python tests/core_model/record_torchao.py
"""

from __future__ import annotations

import base64
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FIXTURE = Path(__file__).with_name("torchao_fp8.json")


def matrix(rows: int, columns: int) -> Tensor:
    """Numbers over fourteen binades from integer arithmetic alone: the same for every version of every library."""
    i = torch.arange(rows * columns, dtype=torch.int64)
    noise = (i * 1103515245 + 12345).bitwise_xor(i * 2654435761 >> 7) % 65521 - 32760
    return (noise.to(torch.float32) / 32768 / 4.0 ** (i % 7)).view(rows, columns)


def pack(tensor: Tensor) -> str:
    return base64.b64encode(zlib.compress(tensor.contiguous().view(torch.uint8).numpy().tobytes(), 9)).decode()


def unpack(text: str, dtype: torch.dtype, shape: list[int]) -> Tensor:
    content = bytearray(zlib.decompress(base64.b64decode(text)))
    return torch.frombuffer(content, dtype=torch.uint8).view(dtype).view(shape)


def record() -> dict[str, Any]:
    import torchao
    from torchao.prototype.blockwise_fp8_training import kernels

    made = {
        "1x128": ((6, 384), kernels.torch_blockwise_scale_act_quant_lhs),
        "128x1": ((256, 8), lambda x: kernels.torch_blockwise_scale_act_quant_rhs(x.repeat(1, 16))),
        "128x128": ((256, 128), kernels.torch_blockwise_scale_weight_quant),
    }
    cases: dict[str, Any] = {"torchao": torchao.__version__, "torch": torch.__version__}
    for name, (shape, quantise) in made.items():
        q, scale = quantise(matrix(*shape))
        q, scale = q[:, : shape[1]].contiguous(), scale[:, : shape[1]].float().contiguous()
        entry = {"shape": list(shape), "scale_shape": list(scale.shape)}
        cases[name] = entry | {"q": pack(q.view(torch.uint8)), "scale": pack(scale)}
    return cases


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(record(), indent=1) + "\n")
    sys.exit(0)
