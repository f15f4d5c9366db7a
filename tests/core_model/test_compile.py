"""A model under torch.compile."""

from __future__ import annotations

import pytest
import torch
from reference import random_tokens, relative_difference

from core_model import V3Config, V3ForCausalLM
from core_model.moe import experts

# Of complex numbers RoPE's are looked at as pairs of real ones, which warns as well.
pytestmark = [pytest.mark.filterwarnings(f"ignore:{of}:UserWarning") for of in ("Dynamo", "Torchinductor")]


def test_torch_compile_after_a_forward_takes_each_layers_own_weights():
    config = V3Config.preset("nano", num_nextn_predict_layers=0)
    model, tokens = V3ForCausalLM(config).initialize(0.15, 0), random_tokens(2, 20)
    model(tokens, labels=tokens).loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    torch.compile(model, backend="eager")(tokens, labels=tokens).loss.backward()
    assert all(relative_difference(p.grad, expected[name]) < 1e-4 for name, p in model.named_parameters())


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_layer_is_one_graph_where_experts_are_grouped(backend, monkeypatch):
    """As on an accelerator: its products and what lies between them, with a backward."""
    monkeypatch.setattr(experts, "looped_experts", experts.grouped_experts)
    model = V3ForCausalLM(V3Config.preset("nano", num_nextn_predict_layers=0)).initialize(0.1, 0).train()
    model.compute_dtype = torch.bfloat16
    tokens = random_tokens(2, 20)
    x, context = model.model.embed(tokens).detach(), model.model.attention_context((2, 20), None, None, None)
    layer = model.model.layers[-1]
    found = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend=backend)):
        model.zero_grad()
        y, routing = run(x, context)
        y.float().square().mean().backward()
        found.append([y.detach().float(), routing.weights_TK.detach(), *(p.grad for p in layer.parameters())])
    # The router's gradient is of differences between experts' outputs in bf16.
    names = ["y", "weights", *(name for name, _ in layer.named_parameters())]
    for name, single, whole in zip(names, *found, strict=True):
        assert relative_difference(whole, single) < (0.1 if "mlp.gate." in name else 0.03), name
