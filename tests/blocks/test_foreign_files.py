"""What is no model of ours is named, with the next step: files, folders, configs and names of tensors."""

import json

import pytest
import torch
from bifrons.blocks.checkpoints.hub import find_model_folder, open_model
from bifrons.blocks.checkpoints.reader import list_tensors
from bifrons.blocks.errors import CheckpointError, ConfigError
from bifrons.blocks.foreign_files import model_type_error, plain_names
from bifrons.blocks.json_config import Section, read_json
from bifrons.blocks.tokenizer_file import read_tokenizer
from safetensors.torch import save_file

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>model.safetensors</title></head></html>"
BASE = {"base_model_name_or_path": "deepseek-ai/Janus-Pro-1B", "peft_type": "LORA"}


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "Git LFS pointer.*run `git lfs pull`"),
        (PAGE, "saved web page.*download"),
        (b"GGUF\3\0\0\0", "GGUF file"),
    ],
)
def test_weights_that_are_something_else(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is a {message}"):
        list_tensors(tmp_path)


def test_weights_under_the_name_of_the_other_format(tmp_path):
    torch.save({"x": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"rename it to pytorch_model\.bin"):
        list_tensors(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    save_file({"x": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"rename it to model\.safetensors"):
        list_tensors(tmp_path)


@pytest.mark.parametrize(("content", "message"), [(LFS, "git lfs pull"), (PAGE, "saved web page")])
def test_json_files_that_are_something_else(tmp_path, content, message):
    for name in ("config.json", "tokenizer.json", "model.safetensors.index.json"):
        (tmp_path / name).write_bytes(content)
    for read in (
        lambda: read_json(tmp_path / "config.json"),
        lambda: read_tokenizer(tmp_path / "tokenizer.json"),
        lambda: list_tensors(tmp_path),
    ):
        with pytest.raises(CheckpointError, match=message):
            read()


def test_an_adapter_is_no_model(tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps(BASE))
    save_file({"base_model.model.x.lora_A.weight": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    message = r"is a LoRA adapter of 'deepseek-ai/Janus-Pro-1B', not a model; merge it"
    with pytest.raises(CheckpointError, match=message):
        find_model_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=message):
        list_tensors(tmp_path)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match="is a LoRA adapter, not a model"):
        list_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors", "pytorch_model.bin"])
def test_an_adapter_beside_weights_is_not_read_and_said(tmp_path, name, caplog):
    (tmp_path / "adapter_config.json").write_text(json.dumps(BASE))
    save_file({"a.lora_A.weight": torch.zeros(2)}, tmp_path / "adapter_model.safetensors")
    save = torch.save if name.endswith(".bin") else save_file
    save({"x": torch.zeros(2)}, tmp_path / name)
    assert list(list_tensors(tmp_path)) == ["x"]
    assert "holds an adapter beside the weights, which is not applied" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "a.gguf",
        "model.safetensors.incomplete",
        "model.onnx",
        "weights.npz",
        "x.pth",
        "x.ckpt",
        "flax_model.msgpack",
    ],
)
def test_a_folder_without_weights_says_what_it_holds(tmp_path, name):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        CheckpointError, match=rf"no weights that can be read: '{name}' is .*(take|save|name|downl)"
    ):
        list_tensors(tmp_path)


def test_a_folder_without_a_config_says_what_it_holds(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="is a GGUF file; take the plain folder"):
        find_model_folder(tmp_path)
    inner = tmp_path / "models--deepseek-ai--Janus-Pro-1B" / "snapshots" / "abc"
    inner.mkdir(parents=True)
    (inner / "config.json").write_text("{}")
    (tmp_path / "a.gguf").unlink()
    for folder in (tmp_path, inner.parent.parent, inner.parent):
        with pytest.raises(CheckpointError) as caught:
            find_model_folder(folder)
        assert str(caught.value).endswith(f"give the folder of one model: {inner}")
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="folder of diffusers"):
        find_model_folder(tmp_path)


def test_a_file_in_place_of_its_folder(tmp_path):
    for name, content, message in (
        ("model.safetensors", b"x" * 20, r"is a file; accepted: the folder .* not one file of it"),
        ("model.gguf", b"GGUF\3\0\0\0", "is a GGUF file"),
        ("pointer", LFS, "run `git lfs pull`"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            find_model_folder(tmp_path / name)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=f"; give {tmp_path}$"):
        find_model_folder(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("janus:7b", "Names with a colon are Ollama's"),
        ("someone/janus-pro:latest", "Names with a colon are Ollama's"),
        ("https://huggingface.co/deepseek-ai/Janus-Pro-1B", "give deepseek-ai/Janus-Pro-1B$"),
        ("https://huggingface.co/deepseek-ai/Janus-Pro-1B/tree/main", "give deepseek-ai/Janus-Pro-1B$"),
    ],
)
def test_names_of_other_places(name, message):
    with pytest.raises(CheckpointError, match=message):
        find_model_folder(name)


@pytest.mark.parametrize(
    ("model_type", "message"),
    [
        ("deepseek_v2", "text model .*deepseek-ai/deepseek-vl2-tiny"),
        ("deepseek_v3", "DeepSeek-V3"),
        ("deepseek_vl", "DeepSeek-VL 1; use DeepSeek-VL2"),
        ("deepseek_vl_hybrid", "DeepSeek-VL 1"),
        ("janusflow", "use deepseek-ai/Janus-Pro-1B"),
        ("llava", "another family"),
        ("qwen2_vl", "use transformers or vLLM"),
        ("llama", "inner model of Janus"),
    ],
)
def test_relatives(model_type, message):
    error = model_type_error(Section({"model_type": model_type}, "x"), ("janus",))
    with pytest.raises(
        ConfigError, match=f"x: model_type is '{model_type}'; accepted: janus. It is .*{message}"
    ):
        raise error


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "multi_modality", "aligner_config": {}}, "It is DeepSeek-VL 1; use DeepSeek-VL2"),
        ({"model_type": "multi_modality", "vision_gen_dec_config": {}}, "It is JanusFlow"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "by bitsandbytes"),
        ({"quantization_config": {"quant_method": "awq"}}, "by AWQ"),
        ({"quantization_config": {"quant_method": "gptq"}}, "by GPTQ"),
        ({"quantization_config": {"quant_method": "fp8"}}, "by fp8 of another form"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "by 'compressed-tensors'"),
        ({"quantization": {"group_size": 64, "bits": 4}, "quantization_config": {"bits": 4}}, "by MLX"),
    ],
)
def test_configs(tmp_path, config, message):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=message) as caught:
        _ = open_model(tmp_path).config
    assert "quantized" not in message or "--quantize int4" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("a.weight.absmax", "bitsandbytes"),
        ("a.weight.quant_state.bitsandbytes__nf4", "bitsandbytes"),
        ("a.SCB", "bitsandbytes"),
        ("a.qweight", "GPTQ or AWQ"),
        ("a.weight_packed", "compressed-tensors"),
        ("a.biases", "MLX"),
    ],
)
def test_quantized_tensors(tmp_path, name, method):
    with pytest.raises(CheckpointError, match=rf"quantized by {method} \('{name}'\).*--quantize int4"):
        plain_names(tmp_path, ["a.weight", name])


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_of_training_tools_are_dropped(tmp_path, prefix):
    save_file({f"{prefix}a.x": torch.ones(2), f"{prefix}b": torch.zeros(1)}, tmp_path / "model.safetensors")
    entries = list_tensors(tmp_path)
    assert [(name, entry.name) for name, entry in entries.items()] == [("a.x", "a.x"), ("b", "b")]


def test_prefixes_are_dropped_inside_and_for_all_or_none(tmp_path):
    assert list(plain_names(tmp_path, ["a._orig_mod.b", "c"]).values()) == ["a.b", "c"]
    assert list(plain_names(tmp_path, ["module.b", "c"]).values()) == ["module.b", "c"]
    with pytest.raises(CheckpointError, match=r"'a\.b' is there twice"):
        plain_names(tmp_path, ["a._orig_mod.b", "a.b"])
    with pytest.raises(CheckpointError, match=r"LoRA adapter inside the weights.*merge it first"):
        plain_names(tmp_path, ["base_model.model.q_proj.base_layer.weight"])
