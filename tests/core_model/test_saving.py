"""Saving a model: over others, interrupted, of states and dtypes that are none, and what transformers calls it with."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from reference import random_model, tiny_config

from core_model.checkpoint import convert_folder
from core_model.checkpoint import folder as folder_module
from core_model.errors import InputError
from core_model.model import V3ForCausalLM


def test_a_model_saved_over_one_in_shards_is_the_one_that_is_loaded(tmp_path):
    first, second = random_model(tiny_config(), seed=1), random_model(tiny_config(), seed=2)
    first.save_pretrained(tmp_path / "first")
    convert_folder(tmp_path / "first", tmp_path / "model", shard_bytes=9000)
    assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 2
    (tmp_path / "model" / "model-notes.safetensors").write_text("somebody's own")
    second.save_pretrained(tmp_path / "model")
    loaded = V3ForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in second.state_dict().items())
    left = {path.name for path in (tmp_path / "model").iterdir()}
    assert left == {"config.json", "manifest.json", "model.safetensors", "model-notes.safetensors"}


def test_weights_beside_an_index_that_leaves_them_out_are_refused(tmp_path):
    random_model(tiny_config()).save_pretrained(tmp_path / "first")
    convert_folder(tmp_path / "first", tmp_path / "model", shard_bytes=9000)
    (tmp_path / "model" / "manifest.json").unlink()
    shutil.copy(tmp_path / "first" / "model.safetensors", tmp_path / "model")
    with pytest.raises(InputError, match=r"expected the index of all weights .* model.safetensors beside it"):
        V3ForCausalLM.from_pretrained(tmp_path / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("lm_head.weight") is None or state, r"missing \['lm_head.weight'\], unexpected \[\]"),
        (
            lambda state: {f"_orig_mod.{name}": x for name, x in state.items()},
            r"unexpected \['_orig_mod.lm_head.weight'",
        ),
        (lambda state: state | {"more": torch.zeros(1)}, r"missing \[\], unexpected \['more'\]"),
        (
            lambda state: state | {"lm_head.weight": torch.zeros(3, 4)},
            r"lm_head.weight must be \[48, 32\], not \[3, 4\]",
        ),
    ],
)
def test_a_state_that_is_not_the_models_is_refused_before_anything_is_written(tmp_path, change, message):
    model = random_model(tiny_config())
    with pytest.raises(ValueError, match=message):
        model.save_pretrained(tmp_path / "model", state_dict=change(model.state_dict()))
    assert not (tmp_path / "model").exists()


def test_a_state_is_saved_of_a_model_that_holds_none_of_it(tmp_path):
    """As under ZeRO-3, where a process has its own part alone and the state is gathered."""
    model, expected = random_model(tiny_config()), random_model(tiny_config()).state_dict()
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    model.save_pretrained(tmp_path / "model", state_dict=expected)
    found = V3ForCausalLM.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    model.save_pretrained(tmp_path / "none", state_dict={})  # what transformers' Trainer passes to be removed again
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("sharded", [False, True])
def test_a_save_that_fails_leaves_the_model_that_was_there(tmp_path, sharded):
    first, folder = random_model(tiny_config(), seed=1), tmp_path / "model"
    first.save_pretrained(tmp_path / "first")
    convert_folder(tmp_path / "first", folder, shard_bytes=9000 if sharded else 10**9)
    second = random_model(tiny_config(), seed=2)
    with torch.no_grad():
        second.model.layers[2].self_attn.o_proj.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="inf or NaN in"):  # in the midst of the file
        second.save_pretrained(folder, dtype=torch.float8_e4m3fn)
    assert not list(folder.glob("*.partial"))
    found = V3ForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in first.state_dict().items())


@pytest.mark.parametrize("step", ["_replace_weights", "remove_shards", "write_config", "write_manifest"])
@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_save_that_is_killed_near_its_end_leaves_a_folder_that_is_refused(
    tmp_path, monkeypatch, step, sharded, foreign
):
    first, folder = random_model(tiny_config(), seed=1), tmp_path / "model"
    first.save_pretrained(tmp_path / "first")
    convert_folder(tmp_path / "first", folder, shard_bytes=9000 if sharded else 10**9)

    if foreign:  # other programs write no manifest
        (folder / "manifest.json").unlink()

    def killed(*args: object, **keys: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(folder_module, step, killed)
        with pytest.raises(KeyboardInterrupt):
            random_model(tiny_config(), seed=2).save_pretrained(folder)
    if step == "_replace_weights":  # nothing has happened to the model that was there
        found = V3ForCausalLM.from_pretrained(folder).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in first.state_dict().items())
        return
    if not (foreign and step == "write_manifest"):  # whole by then, as far as anybody can tell
        with pytest.raises(InputError):
            V3ForCausalLM.from_pretrained(folder)
    random_model(tiny_config(), seed=2).save_pretrained(folder)
    V3ForCausalLM.from_pretrained(folder)
    assert not (folder / "config.json.old").exists()


def test_weights_that_cannot_take_their_name_leave_the_model_that_was_there(tmp_path, monkeypatch):
    first, folder = random_model(tiny_config(), seed=1), tmp_path / "model"
    first.save_pretrained(folder)
    move = Path.replace

    def busy(path: Path, target: Path) -> Path:
        if path.name.endswith("safetensors.partial"):
            raise OSError(16, "busy")
        return move(path, target)

    with monkeypatch.context() as patched, pytest.raises(OSError, match="busy"):
        patched.setattr(Path, "replace", busy)
        random_model(tiny_config(), seed=2).save_pretrained(folder)
    found = V3ForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in first.state_dict().items())
    assert {path.name for path in folder.iterdir()} == {"config.json", "manifest.json", "model.safetensors"}


def test_files_of_other_programs_may_change_beside_the_model(tmp_path):
    """transformers' Trainer writes training_args.bin anew at every save, after ours."""
    model = random_model(tiny_config())
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "training_args.bin").write_text("first")
    model.save_pretrained(tmp_path)
    (tmp_path / "training_args.bin").write_text("second")
    V3ForCausalLM.from_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        V3ForCausalLM.from_pretrained(tmp_path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e5m2, "bfloat16"])
def test_weights_are_not_saved_in_a_dtype_that_loses_them(tmp_path, dtype):
    with pytest.raises(ValueError, match=r"weights are stored in one of torch\.float64, "):
        random_model(tiny_config()).save_pretrained(tmp_path / "model", dtype=dtype)
    assert not (tmp_path / "model").exists()


def test_keywords_of_save_pretrained_are_kept_or_refused(tmp_path):
    model = random_model(tiny_config())
    model.save_pretrained(tmp_path / "model", is_main_process=False, safe_serialization=True)
    assert not (tmp_path / "model").exists()
    with pytest.raises(TypeError, match="not push_to_hub, variant"):
        model.save_pretrained(tmp_path / "model", push_to_hub=True, variant="fp16", token=None)
    with pytest.raises(TypeError, match="safetensors only"):
        model.save_pretrained(tmp_path / "model", safe_serialization=False)
    model.save_pretrained(tmp_path / "model", max_shard_size="1GB", push_to_hub=False)  # as `push_to_hub` calls it
    assert (tmp_path / "model" / "model.safetensors").is_file()
