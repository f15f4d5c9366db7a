"""The dtype that recipes take where they leave it open."""

from __future__ import annotations

import pytest
import torch

from core_model.precision import fastest_dtype
from recipes.loader import load_recipe


@pytest.mark.parametrize(
    ("device", "bf16", "amx", "expected"),
    [
        ("cpu", False, False, torch.float32),
        ("cpu", True, False, torch.bfloat16),
        ("cpu", False, True, torch.bfloat16),
        ("meta", False, False, torch.bfloat16),  # any accelerator
    ],
)
def test_bf16_only_where_it_is_multiplied(device, bf16, amx, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert fastest_dtype(torch.device(device)) is expected


@pytest.mark.parametrize(("amx", "expected"), [(False, "float32"), (True, "bfloat16")])
def test_recipes_say_which_one_it_was(repository, amx, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    path = repository / "recipes/nano/pretrain.yaml"
    assert load_recipe(path, []).model_dump(mode="json")["compute_dtype"] == expected
    assert load_recipe(path, ["compute_dtype=bfloat16"]).compute_dtype == "bfloat16"
