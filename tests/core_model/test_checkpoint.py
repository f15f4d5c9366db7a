"""DeepSeek's folder format: exact round trips, published names, and one clear error for every kind of damage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import YARN_TINY, random_model, random_tokens, shared_model, tiny_config
from safetensors.torch import load_file, save_file

from core_model.checkpoint.config_file import CONFIG_FIELDS, NO_ROUTER, read_config, scale_format
from core_model.config import YARN_V3, V3Config
from core_model.errors import InputError
from core_model.manifest import verify_manifest, write_manifest
from core_model.model import V3ForCausalLM


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder of the shared tiny model; tests that spoil it take a copy."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    shared_model().save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def change_tensors(folder: Path, change) -> None:
    """Edit the weights as another program would: no manifest afterwards."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "manifest.json").unlink()


def change_config(folder: Path, **fields) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))
    (folder / "manifest.json").unlink(missing_ok=True)


def published_names() -> set[str]:
    """deepseek_v3's names for 3 layers (1 dense), 8 experts, 1 MTP module, with a query latent."""
    attention = [
        f"self_attn.{name}.weight"
        for name in (
            "q_a_proj",
            "q_a_layernorm",
            "q_b_proj",
            "kv_a_proj_with_mqa",
            "kv_a_layernorm",
            "kv_b_proj",
            "o_proj",
        )
    ] + ["input_layernorm.weight", "post_attention_layernorm.weight"]
    dense = [f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
    moe = ["mlp.gate.weight", "mlp.gate.e_score_correction_bias"]
    for expert in ["shared_experts", *(f"experts.{e}" for e in range(8))]:
        moe += [f"mlp.{expert}.{part}_proj.weight" for part in ("gate", "up", "down")]
    mtp = ["embed_tokens.weight", "enorm.weight", "hnorm.weight", "eh_proj.weight"]
    mtp += ["shared_head.norm.weight", "shared_head.head.weight"]
    layers = {0: attention + dense, 1: attention + moe, 2: attention + moe, 3: attention + moe + mtp}
    names = {f"model.layers.{i}.{name}" for i, names in layers.items() for name in names}
    return names | {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"q_lora_rank": None, "num_nextn_predict_layers": 2},
        {"num_nextn_predict_layers": 0, "rope_scaling": YARN_TINY},
        {"n_routed_experts": None},
        {"n_routed_experts": None, "n_group": 1, "topk_group": 4},  # of no router
    ],
)
def test_a_round_trip_is_bit_exact(overrides, tmp_path):
    model = random_model(tiny_config(**overrides))
    model.save_pretrained(tmp_path / "model")
    loaded = V3ForCausalLM.from_pretrained(tmp_path / "model")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    routing = {*NO_ROUTER, "first_k_dense_replace"} - {"n_routed_experts"}
    for field in CONFIG_FIELDS:
        if field not in routing or model.config.n_routed_experts is not None:  # else it says nothing
            assert getattr(loaded.config, field) == getattr(model.config, field), field
    tokens = random_tokens(1, 5)
    assert torch.equal(loaded.eval()(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    "overrides",
    [
        {"first_k_dense_replace": 1},
        {"n_group": 2, "topk_group": 1},
        {"num_experts_per_tok": 2},
        {"num_hidden_layers": 9},
    ],
)
def test_a_dense_model_stays_dense_whatever_is_replaced(overrides, tmp_path):
    random_model(tiny_config(n_routed_experts=None)).save_pretrained(tmp_path / "model")
    assert read_config(tmp_path / "model", overrides).n_routed_experts is None
    assert read_config(tmp_path / "model", {"n_routed_experts": 8, **overrides}).n_routed_experts == 8


def test_a_field_that_does_not_fit_may_be_replaced(copy):
    change_config(copy, scoring_func="softmax", n_group=3)
    assert read_config(copy, {"scoring_func": "sigmoid", "n_group": 4}).n_group == 4


def test_names_on_disk_are_the_published_ones(saved):
    assert set(load_file(saved / "model.safetensors")) == published_names()


def test_experts_are_unstacked_gate_before_up_and_mtp_has_copies(saved):
    disk, state = load_file(saved / "model.safetensors"), shared_model().state_dict()
    stacked = state["model.layers.2.mlp.experts.gate_up_proj"]
    assert torch.equal(disk["model.layers.2.mlp.experts.5.gate_proj.weight"], stacked[5, :16])
    assert torch.equal(disk["model.layers.2.mlp.experts.5.up_proj.weight"], stacked[5, 16:])
    down = state["model.layers.2.mlp.experts.down_proj"]
    assert torch.equal(disk["model.layers.2.mlp.experts.5.down_proj.weight"], down[5])
    assert torch.equal(disk["model.layers.3.embed_tokens.weight"], disk["model.embed_tokens.weight"])
    assert torch.equal(disk["model.layers.3.shared_head.head.weight"], disk["lm_head.weight"])


def test_the_config_on_disk_says_deepseek_v3(saved):
    config = json.loads((saved / "config.json").read_text())
    expected = {
        "model_type": "deepseek_v3",
        "architectures": ["DeepseekV3ForCausalLM"],
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "num_nextn_predict_layers": 1,
        "torch_dtype": "float32",
    }
    assert {key: config[key] for key in expected} == expected
    assert shared_model().config.model_type == "trivium_v3"


def test_bf16_on_disk_keeps_the_routing_bias_fp32(tmp_path):
    model = shared_model()
    model.save_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    disk = load_file(tmp_path / "model" / "model.safetensors")
    bias = disk.pop("model.layers.1.mlp.gate.e_score_correction_bias")
    assert torch.equal(bias, model.model.layers[1].mlp.gate.e_score_correction_bias)
    assert {t.dtype for n, t in disk.items() if not n.endswith("correction_bias")} == {torch.bfloat16}
    loaded = V3ForCausalLM.from_pretrained(tmp_path / "model")
    assert loaded.lm_head.weight.dtype == torch.float32
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.to(torch.bfloat16).float())


def test_a_state_dict_from_a_trainer_is_what_gets_written(tmp_path):
    model = shared_model()
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "model", state_dict=state)
    loaded = V3ForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight + 1)


def test_a_stage_changes_rope_on_load(saved):
    model = V3ForCausalLM.from_pretrained(saved, rope_scaling=YARN_TINY, max_position_embeddings=512)
    assert model.config.rope_scaling == YARN_TINY and model.config.max_position_embeddings == 512
    assert not torch.equal(model.model.inv_freq, shared_model().model.inv_freq)
    assert model.model.layers[0].self_attn.scale != shared_model().model.layers[0].self_attn.scale
    assert torch.equal(model.lm_head.weight, shared_model().lm_head.weight)


@pytest.mark.parametrize("depth", [0, 1])
def test_mtp_modules_may_be_left_out_on_load(tmp_path, depth):
    model = random_model(tiny_config(num_nextn_predict_layers=2))
    model.save_pretrained(tmp_path / "model")
    loaded = V3ForCausalLM.from_pretrained(tmp_path / "model", num_nextn_predict_layers=depth)
    assert len(loaded.model.mtp_layers()) == depth
    assert torch.equal(loaded.eval()(random_tokens(1, 4)).logits, model(random_tokens(1, 4)).logits)


def test_sharded_folders_of_other_programs_load(copy):
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    shards = {"model-00001-of-00002.safetensors": names[:40], "model-00002-of-00002.safetensors": names[40:]}
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, copy / file)
    weight_map = {name: file for file, part in shards.items() for name in part}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (copy / "model.safetensors").unlink()
    (copy / "manifest.json").unlink()
    loaded = V3ForCausalLM.from_pretrained(copy)
    assert torch.equal(loaded.lm_head.weight, shared_model().lm_head.weight)
    (copy / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="model-00002-of-00002") as caught:
        V3ForCausalLM.from_pretrained(copy)
    assert caught.value.path.name == "model-00002-of-00002.safetensors"


@given(st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_anywhere_names_the_file(saved, tmp_path_factory, data):
    file = data.draw(st.sampled_from(["config.json", "model.safetensors"]), "file")
    content = bytearray((saved / file).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1), "byte")] ^= 1 << data.draw(st.integers(0, 7), "bit")
    folder = Path(shutil.copytree(saved, tmp_path_factory.mktemp("flipped") / "model"))
    (folder / file).write_bytes(content)
    with pytest.raises(InputError) as caught:
        V3ForCausalLM.from_pretrained(folder)
    assert caught.value.path == folder / file and "sha256" in caught.value.expected


@pytest.mark.parametrize("with_manifest", [True, False])
@pytest.mark.parametrize("keep", [0, 5, 0.5, -1])
def test_truncated_weights_name_the_file(copy, keep, with_manifest):
    path = copy / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    if not with_manifest:
        (copy / "manifest.json").unlink()
    with pytest.raises(InputError) as caught:
        V3ForCausalLM.from_pretrained(copy)
    assert caught.value.path == path


def test_a_save_that_was_cut_short_is_found_out(copy):
    """New weights over an old manifest: what a kill in the middle of saving into the same folder leaves."""
    random_model(tiny_config(), seed=9).save_pretrained(copy.parent / "other")
    shutil.copy(copy.parent / "other" / "model.safetensors", copy / "model.safetensors")
    with pytest.raises(InputError, match="damaged"):
        V3ForCausalLM.from_pretrained(copy)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("with_manifest", [True, False])
def test_a_missing_file_is_named(copy, file, with_manifest):
    (copy / file).unlink()
    if not with_manifest:
        (copy / "manifest.json").unlink()
    with pytest.raises(InputError) as caught:
        V3ForCausalLM.from_pretrained(copy)
    assert caught.value.path == copy / file


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        V3ForCausalLM.from_pretrained(tmp_path / "nowhere")


EXPERT = "model.layers.1.mlp.experts.3.{}_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), "model.norm.weight"),
        (lambda t: t.pop("model.layers.1.mlp.gate.e_score_correction_bias"), "e_score_correction_bias"),
        (lambda t: t.pop(EXPERT.format("up")), r"experts\.3\.up_proj"),
        (lambda t: [t.pop(EXPERT.format(p)) for p in ("gate", "up", "down")], r"experts\.3\.gate_proj"),
        (
            lambda t: [t.pop(EXPERT.replace(".3.", ".7.").format(p)) for p in ("gate", "up", "down")],
            r"experts\.7\.gate_proj",
        ),
        (lambda t: t.update({EXPERT.format("up"): torch.zeros(3, 3)}), r"\(3, 3\)"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(48, 31)}), r"\(48, 32\).*\(48, 31\)"),
        (lambda t: t.update({"model.layers.0.self_attn.q_proj.weight": torch.zeros(2)}), r"unexpected.*q_proj"),
        (lambda t: t.update({"lm_head.weight_scale_inv": torch.zeros(1, 1)}), r"unexpected.*weight_scale_inv"),
    ],
)
def test_weights_of_another_shape_or_number_are_refused(copy, change, message):
    change_tensors(copy, change)
    with pytest.raises(InputError, match=message):
        V3ForCausalLM.from_pretrained(copy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "llama"}, "model_type: expected deepseek_v3; found 'llama'"),
        ({"model_type": None}, "model_type"),
        ({"hidden_size": "big"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"n_group": 3}, "n_group"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"rope_scaling": {"type": "yarn"}}, "factor"),
        ({"rope_theta": None}, "rope_theta"),
        ({"rope_interleave": False}, "rope_interleave: expected true"),
        ({"rope_parameters": [1]}, "rope_parameters: expected a JSON object"),
        ({"vocab_size": 49}, r"\(49, 32\)"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(copy, fields, message):
    change_config(copy, **fields)
    with pytest.raises(InputError, match=message):
        V3ForCausalLM.from_pretrained(copy)


def test_v3s_own_config_is_the_preset(copy):
    """The published file has fields that are no concern of ours, and none of `pad_token_id`."""
    quantization = {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }
    others = {"aux_loss_alpha": 0.001, "seq_aux": True, "attention_dropout": 0.0, "initializer_range": 0.02}
    others |= {"auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "transformers_version": "4.33.1"}
    expected = V3Config.preset("671b", rope_scaling=YARN_V3)
    fields = {name: getattr(expected, name) for name in CONFIG_FIELDS if name != "pad_token_id"} | {"rope_theta": 10000}
    change_config(copy, **fields, **others, quantization_config=quantization)
    config = read_config(copy)
    assert all(getattr(config, name) == getattr(expected, name) for name in CONFIG_FIELDS)
    assert scale_format(copy) is None
    change_config(copy, quantization_config={**quantization, "scale_fmt": "ue8m0"})  # V3.1
    assert scale_format(copy) == "ue8m0"


@pytest.mark.parametrize("own", [{}, {"rope_theta": 5e5}, {"rope_theta": 5e5, "rope_scaling": None}])
def test_rope_as_transformers_writes_it_counts_beside_deepseeks_fields(copy, own):
    yarn = {"rope_type": "yarn", "rope_theta": 2e4, "factor": 4, "original_max_position_embeddings": 16}
    fields = json.loads((copy / "config.json").read_text())
    fields = {name: value for name, value in fields.items() if not name.startswith("rope_")}
    (copy / "config.json").write_text(json.dumps({**fields, **own, "rope_parameters": yarn}))
    config = read_config(copy)
    assert config.rope_theta == 2e4 and config.rope_scaling["factor"] == 4


def test_shards_without_an_index_are_refused_by_its_name(copy):
    (copy / "manifest.json").unlink()
    (copy / "model.safetensors").rename(copy / "model-00001-of-00001.safetensors")
    with pytest.raises(InputError, match=r"index\.json: .*shards without one"):
        V3ForCausalLM.from_pretrained(copy)


def test_nesting_that_no_file_has_is_refused(copy):
    (copy / "manifest.json").unlink()
    (copy / "model.safetensors").write_bytes((100_000).to_bytes(8, "little") + b"[" * 100_000)
    with pytest.raises(InputError, match="header"):
        V3ForCausalLM.from_pretrained(copy)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000])
@pytest.mark.parametrize("file", ["config.json", "manifest.json", "model.safetensors.index.json"])
def test_json_that_is_none_or_no_object_is_refused(copy, file, content):
    (copy / file).write_bytes(content)
    if file != "manifest.json":
        (copy / "manifest.json").unlink()
    with pytest.raises(InputError) as caught:
        V3ForCausalLM.from_pretrained(copy)
    assert caught.value.path == copy / file


@pytest.mark.parametrize(
    "files", [[], None, 3, {"config.json": {}}, {"config.json": 3}, {"config.json": {"bytes": "x"}}]
)
def test_a_manifest_of_another_form_is_refused(copy, files):
    (copy / "manifest.json").write_text(json.dumps({"files": files}))
    with pytest.raises(InputError, match=r"manifest\.json"):
        V3ForCausalLM.from_pretrained(copy)


def test_an_index_cannot_reach_outside_the_folder(copy):
    shutil.move(copy / "model.safetensors", copy.parent / "outside.safetensors")
    (copy / "manifest.json").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../outside.safetensors"}}))
    with pytest.raises(InputError, match="no such file"):
        V3ForCausalLM.from_pretrained(copy)


def test_a_mistyped_override_is_refused(saved):
    with pytest.raises(InputError, match=r"overrides: expected fields of its configuration; found .* rope_scalling"):
        V3ForCausalLM.from_pretrained(saved, rope_scalling=None)


def test_the_manifest_covers_every_file_below_and_may_be_renewed(copy):
    (copy / "assets").mkdir()
    (copy / "assets" / "tokenizer.json").write_text("{}")
    write_manifest(copy)
    files = json.loads((copy / "manifest.json").read_text())["files"]
    assert set(files) == {"config.json", "model.safetensors", "assets/tokenizer.json"}
    (copy / "assets" / "tokenizer.json").write_text("[]")
    with pytest.raises(InputError, match="damaged"):
        verify_manifest(copy)


def test_a_missing_manifest_is_an_error_only_where_one_is_required(copy):
    (copy / "manifest.json").unlink()
    verify_manifest(copy, required=False)
    with pytest.raises(InputError, match="never finished"):
        verify_manifest(copy)
