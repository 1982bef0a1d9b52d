"""Weights in fp8 blocks, as V3 and R1 are stored: dequantized, kept, converted, refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bifrons import CheckpointError, TextPipeline
from bifrons.blocks.checkpoints.hub import ModelFolder
from bifrons.blocks.checkpoints.key_mapping import match, saved_tensors
from bifrons.blocks.checkpoints.quantize import quantized_dtypes, quantized_key_map, replace_with_quantized
from bifrons.blocks.device import module_bytes
from bifrons.blocks.json_config import Section
from bifrons.blocks.kernels.codec import FP8_BLOCKS
from bifrons.blocks.model.quantized_weight import QuantizedWeight
from bifrons.blocks.placement.device_map import LoadOptions
from bifrons.blocks.placement.fp8_blocks import keep_blocks
from bifrons.blocks.placement.loading import load_model
from bifrons.blocks.placement.memory_estimate import model_bytes
from bifrons.text.config import parse_config
from bifrons.text.model import TextModel
from bifrons.text.weight_names import keep_float32, pick_key_map, stored_tensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from .test_weight_names import V3, all_keys, entries_of

USER = [{"role": "user", "content": "what is the sum of the first ten numbers?"}]
METHOD = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
SIZES = {
    "model_type": "deepseek_v3", "vocab_size": 64, "hidden_size": 160, "intermediate_size": 200,
    "moe_intermediate_size": 136, "num_hidden_layers": 2, "first_k_dense_replace": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 144, "kv_lora_rank": 130,
    "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 72, "n_routed_experts": 4, "n_group": 1,
    "topk_group": 1, "num_experts_per_tok": 2, "max_position_embeddings": 64, "quantization_config": METHOD,
}  # fmt: skip
"""Of layers with several blocks, of which the last are smaller."""


def in_blocks(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight as fp8 codes and the scales of blocks of 128 x 128."""
    rows, columns = (-(-size // 128) for size in weight.shape)
    scale = torch.zeros(rows, columns)
    codes = torch.zeros(weight.shape, dtype=torch.float8_e4m3fn)
    for i in range(rows):
        for j in range(columns):
            block = weight[i * 128 : i * 128 + 128, j * 128 : j * 128 + 128]
            scale[i, j] = block.abs().max() / 448
            codes[i * 128 : i * 128 + 128, j * 128 : j * 128 + 128] = (block / scale[i, j]).to(codes.dtype)
    return codes, scale


def dequantized(codes: Tensor, scale: Tensor) -> Tensor:
    whole = scale.repeat_interleave(128, 0)[: codes.shape[0]]
    return codes.float() * whole.repeat_interleave(128, 1)[:, : codes.shape[1]]


def test_fp8_in_blocks_is_its_dequantized_weights(text_pair, tmp_path, bifrons_main, capsys):
    """As V3 and R1 are stored: loaded, converted, and refused with a scale that doesn't fit."""
    folder = text_pair("deepseek_v3").pipe.source.folder.path
    tensors = load_file(folder / "model.safetensors")
    blocks, plain = {}, {}
    for name, tensor in tensors.items():
        blocks[name] = plain[name] = tensor
        if tensor.ndim == 2 and ".layers." in name and ".gate." not in name:
            blocks[name], blocks[f"{name}_scale_inv"] = in_blocks(tensor)
            plain[name] = dequantized(blocks[name], blocks[f"{name}_scale_inv"])
    config = json.loads((folder / "config.json").read_text())
    for kind, content in (("blocks", blocks), ("plain", plain)):
        (tmp_path / kind).mkdir()
        save_file(content, tmp_path / kind / "model.safetensors")
        added = {"quantization_config": METHOD} if kind == "blocks" else {}
        (tmp_path / kind / "config.json").write_text(json.dumps({**config, **added}))
        (tmp_path / kind / "tokenizer.json").symlink_to(folder / "tokenizer.json")
    expected = TextPipeline.from_pretrained(tmp_path / "plain", "cpu").next_logits(USER)
    assert torch.equal(TextPipeline.from_pretrained(tmp_path / "blocks", "cpu").next_logits(USER), expected)
    stay = TextPipeline.from_pretrained(tmp_path / "blocks", "cpu", quantize="fp8")
    stay.save_pretrained(tmp_path / "saved")
    for pipe in (stay, TextPipeline.from_pretrained(tmp_path / "saved", "cpu")):
        assert pipe.quantization == "fp8_blocks"
        torch.testing.assert_close(pipe.next_logits(USER), expected, rtol=1e-5, atol=1e-5)
    layer = stay.model.decoder.layers[-1]
    for part in (layer.self_attn.o_proj, layer.mlp.experts.gate_up, layer.mlp.experts.down):
        assert isinstance(part, QuantizedWeight)
        assert part.codes.dtype == torch.float8_e4m3fn
    half = TextPipeline.from_pretrained(tmp_path / "plain", "cpu", "bfloat16").next_logits(USER)
    assert bifrons_main("convert", tmp_path / "blocks", tmp_path / "converted") == 0
    for found in ("blocks", "converted"):
        other = TextPipeline.from_pretrained(tmp_path / found, "cpu", "bfloat16")
        assert torch.equal(other.next_logits(USER), half)
    capsys.readouterr()
    assert bifrons_main("info", tmp_path / "blocks") == 0
    assert "weights with --quantize fp8 (as stored)" in capsys.readouterr().out
    name = next(name for name in blocks if name.endswith("_scale_inv"))
    for wrong in (torch.ones(3, 3), None):
        content = {**blocks, name: wrong} if wrong is not None else blocks
        content = {
            n: t for n, t in content.items() if wrong is not None or n != name.removesuffix("_scale_inv")
        }
        save_file(content, tmp_path / "blocks" / "model.safetensors")
        with pytest.raises(CheckpointError, match="is no scale of fp8 weights in blocks of 128 x 128"):
            TextPipeline.from_pretrained(tmp_path / "blocks", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder of a model of `SIZES`."""
    path = tmp_path_factory.mktemp("blocks")
    torch.manual_seed(0)
    model = TextModel(parse_config(Section(SIZES, "sizes")))
    files: dict[str, Tensor] = {}
    for param, tensor in saved_tensors(model).items():
        for name, part in stored_tensors(param, tensor.detach()):
            weight = part if part.ndim == 1 else 0.1 * torch.randn(part.shape)
            if part.ndim == 2 and ".layers." in name and ".gate." not in name:
                files[name], files[f"{name}_scale_inv"] = in_blocks(weight)
            else:
                files[name] = weight.contiguous()
    save_file(files, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(SIZES))
    return path


def load(folder: Path, quantize: str | None) -> TextModel:
    with torch.device("meta"):
        model = TextModel(parse_config(Section(SIZES, "sizes")))
    options = LoadOptions("cpu", "float32", quantize, progress=False)
    load_model(model, ModelFolder("m", folder), pick_key_map(2), options, keep_float32=keep_float32)
    return model


@pytest.mark.parametrize("shape", [(), (160,), (160, 160, 1)])
def test_codes_of_another_shape_are_refused(folder, tmp_path, shape):
    files = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    files[name] = torch.zeros(shape, dtype=torch.float8_e4m3fn)
    files[f"{name}_scale_inv"] = torch.ones([-(-size // 128) for size in shape])
    save_file(files, tmp_path / "model.safetensors")
    (tmp_path / "config.json").symlink_to(folder / "config.json")
    with pytest.raises(CheckpointError, match="of the wrong shape"):
        load(tmp_path, "fp8")


@torch.no_grad()
def test_kept_blocks_stand_for_the_dequantized_weights(folder):
    kept, plain = load(folder, "fp8"), load(folder, None)
    weights = {name: part for name, part in kept.named_modules() if isinstance(part, QuantizedWeight)}
    assert len(weights) == 2 * 4 + 3 + 5
    for name, weight in weights.items():
        expected = plain.get_parameter(name if weight.codes.ndim == 3 else f"{name}.weight")
        assert torch.equal(weight.decode(torch.float32), expected)
    x = plain.embed_text(torch.arange(9)[None])
    torch.testing.assert_close(kept.decoder(x), plain.decoder(x), rtol=1e-5, atol=1e-5)
    with torch.device("meta"):
        network = TextModel(plain.config)
    assert module_bytes(kept) == model_bytes(network, torch.float32, FP8_BLOCKS, keep_float32)


def test_weights_that_are_not_all_in_blocks_are_encoded_anew(folder, tmp_path):
    files = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    files[name] = dequantized(files[name], files.pop(f"{name}_scale_inv"))
    save_file(files, tmp_path / "model.safetensors")
    (tmp_path / "config.json").symlink_to(folder / "config.json")
    parts = load(tmp_path, "fp8").modules()
    assert {part.kind for part in parts if isinstance(part, QuantizedWeight)} == {"fp8"}


def test_published_tensors_of_v3_fill_the_kept_model():
    """Its first four layers, of which one has experts."""
    sizes = {**V3, "num_hidden_layers": 4}
    entries = entries_of(all_keys(sizes))
    for name, entry in entries.items():
        if len(entry.shape) == 2 and ".layers." in name and ".gate." not in name:
            blocks = tuple(-(-size // 128) for size in entry.shape)
            scale = replace(entry, name=f"{name}_scale_inv", dtype=torch.float32, shape=blocks)
            entries[name] = replace(entry, dtype=torch.float8_e4m3fn, scale=scale)
    with torch.device("meta"):
        model = TextModel(parse_config(Section(sizes, "config.json"), entries))
    kept = keep_blocks(model, entries, pick_key_map(4))
    assert kept is not None
    replace_with_quantized(model, kept[2].kind)
    key_map = quantized_key_map(kept[1], quantized_dtypes(model))
    report = match(saved_tensors(model), kept[0], key_map)[1]
    assert report.ok, report.summary()
