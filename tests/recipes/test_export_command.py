"""`trivium export` and `trivium import`: folders, options, messages."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from core_model.config import V3Config
from core_model.errors import InputError
from core_model.manifest import verify_manifest
from core_model.model import V3ForCausalLM
from core_model.tokenizer import load_tokenizer, train_tokenizer
from recipes.cli import app, main
from recipes.exchange import parse_size


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """A run with a nano model and its tokenizer, as a stage leaves it."""
    run = tmp_path_factory.mktemp("runs") / "sft"
    tokenizer = train_tokenizer(["one two three four", "12 + 34 = 46"] * 20, vocab_size=320)
    tokenizer.save_pretrained(run / "model")
    config = V3Config.preset("nano", vocab_size=len(tokenizer), num_hidden_layers=2)
    V3ForCausalLM(config).initialize(0.1, 0).save_pretrained(run / "model")
    return run


def trivium(*arguments: object):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def fails(monkeypatch, capsys, *arguments: object) -> str:
    """The one message of a command that exits with 2."""
    monkeypatch.setattr(sys, "argv", ["trivium", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("trivium: ") and error.count("\n") == 1
    return error


def test_export_takes_a_run_and_everything_travels(run_folder, tmp_path):
    result = trivium("export", run_folder, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "weights as bfloat16" in result.stdout and "1 MTP module; with tokenizer.json" in result.stdout
    assert "converting: " in result.stderr and "tensors" in result.stderr
    verify_manifest(tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    assert tensors["lm_head.weight"].dtype == torch.bfloat16
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (run_folder / "model" / name).read_bytes()
    assert (
        load_tokenizer(tmp_path / "out").get_chat_template() == load_tokenizer(run_folder / "model").get_chat_template()
    )


def test_export_in_fp8_and_back_by_import(run_folder, tmp_path):
    options = ["--dtype", "fp8", "--scale", "ue8m0", "--no-mtp", "--shard-size", "200KB"]
    assert trivium("export", run_folder / "model", tmp_path / "fp8", *options).exit_code == 0
    config = json.loads((tmp_path / "fp8" / "config.json").read_text())
    assert config["quantization_config"]["scale_fmt"] == "ue8m0" and config["num_nextn_predict_layers"] == 0
    assert len(list((tmp_path / "fp8").glob("model-*-of-*.safetensors"))) > 2
    result = trivium("import", tmp_path / "fp8", tmp_path / "back")
    assert "128 does not divide" not in result.stderr
    assert result.exit_code == 0 and "weights as bfloat16" in result.stdout and "no MTP module;" in result.stdout
    before = V3ForCausalLM.from_pretrained(tmp_path / "fp8").state_dict()
    after = V3ForCausalLM.from_pretrained(tmp_path / "back").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)  # powers of two: BF16 holds every value


def test_fp8_that_transformers_would_read_wrongly_is_said(run_folder, tmp_path):
    """nano's kv_b_proj has 192 rows: two rows of scales, of which it makes blocks of 96."""
    result = trivium("export", run_folder, tmp_path / "fp8", "--dtype", "fp8")
    assert result.exit_code == 0
    assert "3 weights have a size above 128 that 128 does not divide" in result.stderr
    assert "give --whole-blocks" in result.stderr and "128 does not divide" not in result.stdout
    result = trivium("export", run_folder, tmp_path / "whole", "--dtype", "fp8", "--whole-blocks")
    assert result.exit_code == 0 and "128 does not divide" not in result.stderr
    result = trivium("export", run_folder, tmp_path / "bf16", "--whole-blocks")
    assert "--whole-blocks: expected it together with --dtype fp8" in str(result.exception)


def test_import_keeps_the_type_unless_told(run_folder, tmp_path):
    for options, dtype in (([], torch.float32), (["--dtype", "bf16"], torch.bfloat16)):
        out = tmp_path / str(dtype)
        assert trivium("import", run_folder / "model", out, *options).exit_code == 0
        assert load_file(out / "model.safetensors")["lm_head.weight"].dtype == dtype


@pytest.mark.parametrize("damage", ["truncated", "missing", "index", "scale"])
def test_damage_is_one_message_and_status_2(run_folder, tmp_path, monkeypatch, capsys, damage):
    source, out = tmp_path / "fp8", tmp_path / "out"
    assert trivium("export", run_folder, source, "--dtype", "fp8", "--shard-size", "200KB").exit_code == 0
    (source / "manifest.json").unlink()
    index = source / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    name = "model.layers.1.mlp.experts.3.up_proj.weight_scale_inv"
    shard = source / content["weight_map"][name]
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
        expected = (shard.name, "cut short")
    elif damage == "missing":
        shard.unlink()
        expected = (shard.name, "no such file")
    elif damage == "index":
        content["weight_map"]["model.layers.9.x"] = shard.name
        index.write_text(json.dumps(content))
        expected = (index.name, "model.layers.9.x")
    else:
        raw = shard.read_bytes()  # the shape in the header, the length kept
        written = f'"{name}":{{"dtype":"F32","shape":[1,1]'.encode()
        assert written in raw
        shard.write_bytes(raw.replace(written, written.replace(b"[1,1]", b"[1]  ")))
        expected = (shard.name, name, "[1, 1]", "[1]")
    message = fails(monkeypatch, capsys, "import", source, out)
    assert all(part in message for part in expected)
    assert [path.name for path in tmp_path.iterdir()] == ["fp8"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "nowhere", "out"], "nowhere: expected a run folder with a model/"),
        (["import", "nowhere", "out"], "nowhere"),
        (["export", "RUN", "RUN/model"], "expected a folder that is not there yet"),
        (["export", "RUN", "out", "--shard-size", "many"], "--shard-size: expected a size such as 5GB"),
        (["export", "RUN", "out", "--scale", "ue8m0"], "--scale: expected ue8m0 together with --dtype fp8"),
        (["import", "RUN/model", "out", "--scale", "ue8m0"], "--scale"),
        (["export", "RUN", "RUN/model/config.json/out"], "config.json"),
    ],
)
def test_bad_arguments(run_folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(run_folder, tmp_path / "run")
    assert message in fails(monkeypatch, capsys, *(word.replace("RUN", str(run)) for word in arguments))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    verify_manifest(run / "model")


@pytest.mark.parametrize("command", ["export", "import"])
def test_help_teaches(command):
    result = trivium(command, "--help")
    assert result.exit_code == 0
    for word in (
        "--dtype",
        "fp32|bf16|fp8",
        "--scale",
        "--no-mtp",
        "--shard-size",
        "For example",
        f"trivium {command}",
    ):
        assert word in result.output


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("500 MB", 5 * 10**8), ("1.5g", 15 * 10**8), ("1e6", 10**6), ("7", 7)]
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-5GB", "0", "0.1", "5XB", "1.2.3", "nan", "5GBs", "1e999"])
def test_no_sizes(text):
    with pytest.raises(InputError):
        parse_size(text)
