"""The model in other people's hands: adapters in it, caches and wrappers of other libraries around it, odd calls."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from transformers import DynamicCache, StaticCache

from core_model import V3ForCausalLM
from core_model import loss as loss_module
from core_model.cache import LatentCache
from core_model.checkpoint import load_weights
from core_model.embedding import Embedding
from core_model.generation import Engine, SamplingParams
from core_model.loss import IGNORE
from core_model.model import V3Model
from core_model.moe.balance import update_routing_bias
from core_model.mtp import targets
from core_model.parallel.engine import MicroBatch, TorchEngine
from core_model.precision import Linear
from tests.core_model.reference import random_model, random_tokens, relative_difference, tiny_config


class Adapter(nn.Module):
    """A layer and a low-rank change of it, behind dropout; shows the layer's weight as its own, as adapters do."""

    def __init__(self, base: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.base, self.dropout = base, nn.Dropout(dropout)
        out_features, in_features = base.weight.shape
        self.down, self.up = nn.Linear(in_features, 4, bias=False), nn.Linear(4, out_features, bias=False)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(self.dropout(x)))


def adapted(name: str, dropout: float = 0.0) -> V3ForCausalLM:
    torch.manual_seed(0)
    model = random_model(tiny_config())
    parent, _, child = name.rpartition(".")
    owner = model.get_submodule(parent)
    setattr(owner, child, Adapter(getattr(owner, child), dropout))
    return model


def logits_over(model: V3ForCausalLM, tokens: Tensor, first: int, cache: object, **keys: object) -> Tensor:
    """Logits by way of a cache: `first` tokens together, then the others one by one."""
    parts = [model(tokens[:, :first], past_key_values=cache, use_cache=True).logits]
    for place in range(first, tokens.shape[1]):
        parts.append(model(tokens[:, place : place + 1], past_key_values=cache, use_cache=True).logits)
    return torch.cat(parts, dim=1)


@torch.no_grad()
@pytest.mark.parametrize("first", [1, 3, 12])
@pytest.mark.parametrize("room", [14, 40])
def test_a_cache_of_fixed_length_is_read_as_far_as_it_is_filled(first, room):
    model, tokens = random_model(tiny_config()), random_tokens(2, 14)
    cache = StaticCache(config=model.config, max_cache_len=room)
    torch.testing.assert_close(logits_over(model, tokens, first, cache), model(tokens).logits)


def test_generate_takes_a_cache_of_fixed_length_padding_included():
    model, tokens = random_model(tiny_config()), random_tokens(2, 12)
    mask = torch.ones_like(tokens)
    mask[0, :5] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False, "pad_token_id": 0}
    plain = model.generate(tokens, **settings)
    assert torch.equal(model.generate(tokens, cache_implementation="static", **settings), plain)


@torch.no_grad()
def test_decoding_goes_by_way_of_an_adapter_on_the_up_projection():
    model, tokens = adapted("model.layers.1.self_attn.kv_b_proj"), random_tokens(2, 14)
    torch.testing.assert_close(logits_over(model, tokens, 5, DynamicCache(config=model.config)), model(tokens).logits)


@pytest.mark.parametrize(
    "name",
    [
        f"model.layers.1.self_attn.{part}"
        for part in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
    ]
    + [f"model.layers.0.mlp.{part}" for part in ("gate_proj", "up_proj", "down_proj")]
    + ["model.layers.2.mlp.shared_experts.up_proj", "model.layers.3.eh_proj", "lm_head", "model.embed_tokens"],
)
def test_the_engine_refuses_an_adapter_that_it_would_leave_out(name):
    with pytest.raises(ValueError, match=rf"{name} is a .*\.Adapter that does more than its weight says"):
        Engine(adapted(name))


@pytest.mark.parametrize("chunk", [4, 1024])
def test_losses_go_by_way_of_an_adapter_on_the_head(chunk, monkeypatch):
    monkeypatch.setattr(loss_module, "CHUNK", chunk)
    model, tokens = adapted("lm_head").train(), random_tokens(2, 9)
    model.loss_weights.mtp = 0.3
    labels = tokens.masked_fill(tokens < 9, IGNORE)
    out = model(tokens, labels=labels)
    out.loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    backbone = model.model(tokens)
    depths = [backbone.last_hidden_state, *(hidden for hidden, _ in model.mtp_states(tokens, backbone))]
    wanted = [targets(labels, depth, None, IGNORE).flatten() for depth in range(2)]
    lm, mtp = (
        F.cross_entropy(model.lm_head(hidden).flatten(0, 1), label, ignore_index=IGNORE, reduction="sum")
        for hidden, label in zip(depths, wanted, strict=True)
    )
    loss = (lm + 0.3 * mtp) / (wanted[0] != IGNORE).sum()
    torch.testing.assert_close(out.loss, loss)
    loss.backward()
    assert found["lm_head.up.weight"].any()
    for name, gradient in found.items():
        assert relative_difference(gradient, model.get_parameter(name).grad) < 1e-5, name
    nothing = model(tokens, labels=torch.full_like(tokens, IGNORE))
    nothing.loss.backward()
    assert nothing.loss == 0


def test_hooks_that_watch_do_not_stop_training():
    """As ZeRO-3, offloading of activations and wandb register them, on every module."""
    model, tokens = random_model(tiny_config()).train(), random_tokens(2, 9)
    expected = model(tokens, labels=tokens).loss
    for module in model.modules():
        module.register_forward_pre_hook(lambda module, args: None)
        module.register_forward_hook(lambda module, args, out: None)
    torch.testing.assert_close(model(tokens, labels=tokens).loss, expected)


def test_the_engine_takes_a_model_that_was_checkpointed_and_hooks_of_the_backward():
    model = random_model(tiny_config())
    model.gradient_checkpointing_enable()
    model.gradient_checkpointing_disable()
    model.model.layers[1].self_attn.register_full_backward_hook(lambda *_: None)
    assert Engine(model).generate([[1, 2]], SamplingParams(3))


def test_the_engine_looks_at_the_model_that_it_copied():
    model = random_model(tiny_config())
    engine = Engine(model, dtype=torch.bfloat16)
    model.lm_head.register_forward_hook(lambda module, args, out: -out)
    with pytest.raises(ValueError, match=r"lm_head is a core_model\.precision\.linear\.Linear that does more"):
        engine.refresh_weights()


def test_the_engine_refuses_a_backbone_or_a_model_that_does_more():
    model = random_model(tiny_config())
    model.model.register_forward_hook(lambda module, args, out: None)
    with pytest.raises(ValueError, match=r"and model is a .*\.V3Model that does more"):
        Engine(model)
    other = random_model(tiny_config())
    other.__class__ = type("Negated", (V3ForCausalLM,), {"forward": lambda self, *args, **keys: None})
    with pytest.raises(ValueError, match=r"the model is a .*Negated that does more"):
        Engine(other)
    watched = random_model(tiny_config())
    watched.register_forward_hook(lambda module, args, out: None)
    watched.forward = watched.forward  # as accelerate does
    assert Engine(watched)


def test_an_embedding_that_does_more_stays_what_it_is():
    model = random_model(tiny_config())
    model.set_input_embeddings(nn.Embedding(48, 32, max_norm=0.1))
    with pytest.raises(ValueError, match=r"embed_tokens is a torch\.nn\.modules\.sparse\.Embedding"):
        Engine(model)


def test_replicas_that_would_forget_their_load_are_refused():
    model, tokens = random_model(tiny_config()).train(), random_tokens(2, 9)
    for module in model.modules():
        module._is_replica = True  # as nn.DataParallel marks them
    with pytest.raises(RuntimeError, match="use DistributedDataParallel"):
        model(tokens, labels=tokens)


class Doubled(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


CHANGES = {
    "a forward": lambda layer: setattr(layer, "forward", lambda x: x @ layer.weight.T * 2),
    "a hook": lambda layer: layer.register_forward_hook(lambda module, args, out: out * 2),
    "a hook before": lambda layer: layer.register_forward_pre_hook(lambda module, args: (args[0] * 2,)),
    "a class": lambda layer: setattr(layer, "__class__", Doubled),
}


@torch.no_grad()
@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_that_does_more_than_its_class_counts_as_replaced(change):
    model, tokens = random_model(tiny_config()), random_tokens(2, 14)
    CHANGES[change](model.model.layers[1].self_attn.kv_b_proj)
    torch.testing.assert_close(logits_over(model, tokens, 5, DynamicCache(config=model.config)), model(tokens).logits)
    with pytest.raises(ValueError, match=r"kv_b_proj is a .* that does more than its weight says"):
        Engine(model)
    CHANGES[change](model.lm_head)
    logits = model(tokens).logits[:, :-1]
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(model(tokens, labels=tokens).lm_loss, expected)


@pytest.mark.parametrize("name", ["self_attn", "mlp.experts", "mlp.gate", "input_layernorm"])
def test_the_engine_refuses_other_parts_that_it_would_leave_out(name):
    model = random_model(tiny_config())
    part = model.model.layers[1].get_submodule(name)
    part.forward = part.forward
    with pytest.raises(ValueError, match=rf"model\.layers\.1\.{name} is a .* that does more"):
        Engine(model)


@pytest.mark.parametrize("first", [2, 6])
def test_generate_goes_by_way_of_adapters(first):
    model = adapted("model.layers.1.self_attn.kv_b_proj")
    tokens, settings = random_tokens(2, first), {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    plain = tokens
    for _ in range(6):
        plain = torch.cat((plain, model(plain).logits[:, -1].argmax(-1, keepdim=True)), dim=1)
    for cache in ("dynamic", "static"):
        found = model.generate(tokens, attention_mask=torch.ones_like(tokens), cache_implementation=cache, **settings)
        assert torch.equal(found, plain)


@pytest.mark.parametrize("part", ["q_b_proj", "kv_b_proj", "o_proj"])
def test_dropout_in_an_adapter_is_the_same_when_it_runs_again(part):
    model, tokens = adapted(f"model.layers.1.self_attn.{part}", dropout=0.3).train(), random_tokens(3, 11)
    model.model.layers[2].self_attn.q_b_proj = Adapter(model.model.layers[2].self_attn.q_b_proj, 0.3)
    found = {}
    for policy in ("none", "v3", "layer"):
        model.recompute = policy
        torch.manual_seed(7)
        model(tokens, labels=tokens).loss.backward()
        after = torch.rand(1)  # what backward draws again must not move the generator
        found[policy] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}, after
        model.zero_grad()
    assert found["none"][1] == found["v3"][1] == found["layer"][1]
    for policy in ("v3", "layer"):
        for name, gradient in found["none"][0].items():
            assert relative_difference(found[policy][0][name], gradient) < 1e-5, (policy, name)


def test_packed_rows_over_a_cache_are_refused_and_padding_is_not():
    model, tokens = random_model(tiny_config()), random_tokens(2, 8)
    packed = torch.arange(4).repeat(2)[None]
    apart = torch.tensor([[1, 1, 1, 0, 1, 1, 1, 1]]).expand(2, -1)  # padding between two documents
    later = {"past_key_values": DynamicCache(config=model.config), "use_cache": True}
    model(tokens[:, :4], **later)
    for first, last, keys in (
        (0, 8, {"position_ids": packed, "use_cache": True}),
        (0, 8, {"position_ids": packed, "use_cache": True, "attention_mask": apart}),
        (4, 8, {"position_ids": packed[:, :4], **later}),
        (4, 5, {"position_ids": packed[:, :1], **later}),
    ):
        with pytest.raises(ValueError, match="positions restart behind a document"):
            model(tokens[:, first:last], **keys)
    mask = torch.ones_like(tokens)
    mask[:, :3] = 0
    padded = (mask.cumsum(1) - 1).clamp_min(0)
    found = model(tokens, attention_mask=mask, position_ids=padded, use_cache=True).logits[:, 3:]
    torch.testing.assert_close(found, model(tokens[:, 3:]).logits)


def test_a_mask_beside_a_latent_cache_is_refused():
    model, tokens = random_model(tiny_config()), random_tokens(2, 8)
    cache, positions = LatentCache(model.config, 2, 8, torch.float32), torch.arange(8).expand(2, -1)
    cache.begin(0, positions)
    with pytest.raises(ValueError, match="takes no attention_mask"):
        model(tokens, attention_mask=torch.ones_like(tokens), position_ids=positions, past_key_values=cache)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"attention_mask": torch.ones(2, 7)}, r"attention_mask must be \[2, 8\], not \[2, 7\]"),
        ({"attention_mask": torch.ones(2, 1, 8, 8)}, r"attention_mask must be \[2, 8\], not \[2, 1, 8, 8\]"),
        ({"position_ids": torch.arange(8)}, r"position_ids must be \[2, 8\], not \[8\]"),
        ({"position_ids": torch.arange(7)[None]}, r"position_ids must be \[2, 8\], not \[1, 7\]"),
        ({"output_hidden_states": True}, "output_hidden_states must be False"),
        ({"return_dict": False}, "return_dict must be True"),
    ],
)
def test_what_the_model_does_not_take_is_said(keys, message):
    model = random_model(tiny_config())
    for called in (model, model.model):
        with pytest.raises(ValueError, match=message):
            called(random_tokens(2, 8), **keys)


def test_a_model_from_the_meta_device_is_whole_after_initialisation():
    config = tiny_config()
    with torch.device("meta"):
        model = V3ForCausalLM(config)
    model.to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(3)
    model.initialize(0.1, seed=0)
    expected = V3ForCausalLM(config).initialize(0.1, seed=0)
    for (name, a), b in zip(model.named_buffers(), expected.buffers(), strict=True):
        assert torch.equal(a, b), name
    for (name, a), b in zip(model.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_a_model_from_the_meta_device_is_whole_after_loading(tmp_path):
    saved = random_model(tiny_config())
    saved.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = V3ForCausalLM(saved.config)
    model.to_empty(device="cpu")
    for buffer in model.buffers():
        buffer.fill_(3)
    load_weights(model, tmp_path)
    for (name, a), b in zip(model.named_buffers(), saved.named_buffers(), strict=True):
        assert torch.equal(a, b[1]), name


def test_the_backbone_is_loaded_with_its_experts_and_not_saved_alone(tmp_path):
    model, tokens = random_model(tiny_config()), random_tokens(2, 9)
    model.save_pretrained(tmp_path)
    found = V3Model.from_pretrained(tmp_path).eval()(tokens).last_hidden_state
    assert torch.equal(found, model.model(tokens).last_hidden_state)
    with pytest.raises(TypeError, match="save the V3ForCausalLM"):
        model.model.save_pretrained(tmp_path / "backbone")
    assert not (tmp_path / "backbone").exists()


def test_resized_embeddings_follow_the_compute_dtype():
    model = random_model(tiny_config())
    model.resize_token_embeddings(64)
    assert type(model.lm_head) is Linear and type(model.model.embed_tokens) is Embedding
    assert model.lm_head.weight.shape == model.model.embed_tokens.weight.shape == (64, 32)
    model.compute_dtype = torch.bfloat16
    tokens = random_tokens(2, 9, vocabulary=64)
    assert model(tokens).logits.shape == (2, 9, 64) and model(tokens, labels=tokens).loss.isfinite()
    assert Engine(model).generate([[63]], SamplingParams(3))


def test_a_step_counts_no_target_across_documents():
    model, tokens = random_model(tiny_config()).train(), random_tokens(1, 12)
    positions = torch.arange(4).repeat(3)[None]
    batch = MicroBatch(tokens, tokens, positions)
    assert batch.targets == 9
    losses = TorchEngine(model).forward_backward([batch])
    assert losses.lm == pytest.approx(float(model(tokens, labels=tokens, position_ids=positions).lm_loss), rel=1e-6)
    with pytest.raises(ValueError, match="none of the step's 1 micro-batches"):
        TorchEngine(model).forward_backward([MicroBatch(tokens, tokens, torch.zeros_like(tokens))])


def test_no_sequences_at_all_have_losses_of_nothing():
    model = random_model(tiny_config()).train()
    model.loss_weights.mtp, model.loss_weights.balance = 0.3, 0.01
    none = torch.zeros(0, 5, dtype=torch.long)
    out = model(none, labels=none)
    assert out.loss == 0
    out.loss.backward()


def test_experts_follow_autocast():
    model, tokens = random_model(tiny_config()).train(), random_tokens(2, 32)
    seen = set()
    experts = model.model.layers[1].mlp.experts
    experts.register_forward_hook(lambda module, args, out: seen.add(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(tokens, labels=tokens).loss.backward()
    assert seen == {torch.bfloat16} and experts.down_proj.grad.dtype == torch.float32


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_layers_sharded_one_by_one_train_with_mtp(one_process):
    plain, tokens = random_model(tiny_config()).train(), random_tokens(2, 16)
    model = random_model(tiny_config()).train()
    for one in (plain, model):
        one.loss_weights.mtp = 0.3
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    with pytest.raises(ValueError, match="is sharded: gather the weights"):
        model.save_pretrained("nowhere")
    assert model.initialize(0.15, seed=1) and plain.initialize(0.15, seed=1)  # whole matrices, whatever the shard
    for one in (plain, model):
        one(tokens, labels=tokens).loss.backward()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert relative_difference(a.grad.full_tensor(), b.grad) < 1e-5, name


RANKS = 2


def test_processes_move_their_biases_by_the_load_of_all_of_them(tmp_path):
    command = [sys.executable, "-m", "tests.core_model.test_importers", str(tmp_path / "store")]
    ranks = [
        subprocess.Popen([*command, str(rank)], cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True)
        for rank in range(RANKS)
    ]
    try:
        biases = [rank.communicate(timeout=120)[0].splitlines()[-1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks) and biases[0] == biases[1]
    # One process with the tokens of both.
    assert biases[0] == str(trained_biases(random_model(tiny_config()), list(range(2 * RANKS))))


class Wrapped(nn.Module):
    """The model inside another module, as adapters and value heads are added."""

    def __init__(self, model: V3ForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: object, **keys: object) -> object:
        return self.model(*args, **keys)


def trained_biases(wrapped: nn.Module, seeds: list[int]) -> list[float]:
    """The first router's biases after a step over some micro-batches."""
    model = next(module for module in wrapped.modules() if isinstance(module, V3ForCausalLM))
    wrapped.train()
    for seed in seeds:
        tokens = random_tokens(2, 24, seed=seed)
        wrapped(tokens, labels=tokens.masked_fill(tokens == 0, IGNORE)).loss.backward()
    update_routing_bias(model.model.routers(), 0.01)
    return model.model.routers()[0].e_score_correction_bias.tolist()


def main(store: str, rank: int) -> None:
    """One process: its own micro-batches through DistributedDataParallel."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, RANKS), rank=rank, world_size=RANKS)
    model = nn.parallel.DistributedDataParallel(Wrapped(random_model(tiny_config())), find_unused_parameters=True)
    print(trained_biases(model, [rank, RANKS + rank]))
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # to take the group apart waits now and then for a process that has gone


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
