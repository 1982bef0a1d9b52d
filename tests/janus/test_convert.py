import json
import shutil
from pathlib import Path

import pytest
import torch
from bifrons.blocks.checkpoints.loader import load_weights
from bifrons.blocks.checkpoints.reader import TensorReader, list_tensors
from bifrons.blocks.conversion.convert import convert_folder
from bifrons.blocks.errors import CheckpointError, ConfigError
from bifrons.janus.config import read_config
from bifrons.janus.convert import original_config, to_original
from bifrons.janus.model import JanusModel
from bifrons.janus.weight_names import pick_key_map
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

FORMATS = {"multi_modality": None, "deepseek_vl_v2": None, "janus": to_original}
HIDDEN = 32
TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 64,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
}
VISION = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "mlp_ratio": 2.0,
    "projection_dim": HIDDEN,
    "num_image_tokens": 4,
}
VQ = {
    "embed_dim": 8,
    "num_embeddings": 48,
    "latent_channels": 16,
    "base_channels": 32,
    "channel_multiplier": [1, 2],
    "num_res_blocks": 1,
    "projection_dim": HIDDEN,
    "image_token_embed_dim": HIDDEN,
    "num_patches": 8,
}


@pytest.fixture(scope="module")
def community(tmp_path_factory) -> tuple[Path, dict[str, torch.Tensor]]:
    """A small, random Janus as transformers saves it, and its tensors."""
    torch.manual_seed(0)
    config = transformers.JanusConfig(
        text_config=TEXT, vision_config=VISION, vq_config=VQ, tie_word_embeddings=False
    )
    folder = tmp_path_factory.mktemp("community")
    transformers.JanusForConditionalGeneration(config).save_pretrained(folder)
    (folder / "tokenizer.json").write_text('{"added_tokens": ["<|User|>"]}')
    (folder / "processor_config.json").write_text('{"image_processor": {"min_size": 7}}')
    return folder, load_file(folder / "model.safetensors")


def convert(src: Path, dst: Path, **options: int) -> Path:
    return convert_folder(src, dst, FORMATS, **options)


def load(folder: Path) -> JanusModel:
    config, model_type = read_config(folder)
    with torch.device("meta"):
        model = JanusModel(config)
    entries = list_tensors(folder)
    keys = pick_key_map(entries, model_type, config.tied)
    load_weights(model, folder, keys, device="cpu", dtype=None, entries=entries)
    return model


def test_transformers_folder_becomes_an_original_one(community, tmp_path):
    src, theirs = community
    assert convert(src, tmp_path / "out", max_shard_bytes=100_000) == tmp_path / "out"
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    with TensorReader() as reader:
        ours = {name: reader.read(entry) for name, entry in list_tensors(tmp_path / "out").items()}
    block = "model.vision_model.encoder.layers.1.self_attn"
    qkv = torch.cat([theirs[f"{block}.{k}_proj.weight"] for k in "qkv"])
    assert torch.equal(ours["vision_model.vision_tower.blocks.1.attn.qkv.weight"], qkv)
    pos = theirs["model.vision_model.embeddings.position_embedding.weight"]
    assert torch.equal(ours["vision_model.vision_tower.pos_embed"], pos[None])
    assert torch.equal(ours["language_model.lm_head.weight"], theirs["lm_head.weight"])
    last = theirs["model.vqmodel.decoder.up.1.block.1.conv2.weight"]
    assert torch.equal(ours["gen_vision_model.decoder.conv_blocks.1.res.1.conv2.weight"], last)
    assert sum(t.numel() for t in ours.values()) == sum(t.numel() for t in theirs.values())

    before, after = load(src).state_dict(), load(tmp_path / "out").state_dict()
    assert before.keys() == after.keys() == ours.keys()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert read_config(tmp_path / "out") == (read_config(src)[0], "multi_modality")


def test_files_beside_the_weights_are_the_original_ones(community, tmp_path):
    convert(community[0], tmp_path / "out")
    names = {"config.json", "model.safetensors", "tokenizer.json"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names | {
        "processor_config.json",
        "preprocessor_config.json",
    }
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["vision_config"]["params"]["width"] == 16
    assert config["gen_vision_config"]["params"]["ch_mult"] == [1, 2]
    assert config["language_config"]["rope_theta"] == 5000.0
    assert config["torch_dtype"] == "float32"
    processor = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert (processor["num_image_tokens"], processor["sft_format"]) == (4, "deepseek")
    assert json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["min_size"] == 7


def test_official_sizes_need_no_extension(tmp_path):
    config = transformers.JanusConfig(text_config={"max_position_embeddings": 16384}).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config))
    written = original_config(read_config(tmp_path)[0], "bfloat16")
    params = written["vision_config"]["params"]
    assert params.keys() == {"image_size", "model_name", "select_feature", "select_layer"}
    assert params["model_name"] == "siglip_large_patch16_384"
    assert written["gen_vision_config"]["params"] == {"image_token_size": 16384, "n_embed": 8}


def test_a_tied_folder_without_a_head_gets_one(community, tmp_path):
    src = shutil.copytree(community[0], tmp_path / "src")
    tensors = load_file(src / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, src / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing from the file:\n  language_model\.lm_head\.weight"):
        convert(src, tmp_path / "out")
    config = json.loads((src / "config.json").read_text())
    (src / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    model = load(convert(src, tmp_path / "out"))
    assert torch.equal(model.language_model.lm_head.weight, model.decoder.embed_tokens.weight)


@pytest.mark.parametrize("model_type", ["multi_modality", "deepseek_vl_v2"])
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_original_folders_keep_every_tensor_and_text(tmp_path, kind, model_type):
    state = {"x": torch.randn(40, 5).bfloat16(), "unknown": torch.arange(9), "nan": torch.tensor([torch.nan])}
    src = tmp_path / "src"
    src.mkdir()
    if kind == "bin":
        torch.save(state, src / "odd.bin")
        index = {"weight_map": dict.fromkeys(state, "odd.bin")}
        (src / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    else:
        save_file(state, src / "model-00001-of-000001.safetensors")
    config = json.dumps({"model_type": model_type, "z": 1})
    texts = {"config.json": config, "any.json": "[1]", "LICENSE-X": "free"}
    for name, text in texts.items():
        (src / name).write_text(text)
    (src / "code.py").write_text("never copied")
    (tmp_path / "out").mkdir()
    convert(src, tmp_path / "out", max_shard_bytes=100)
    entries = list_tensors(tmp_path / "out")
    assert entries.keys() == state.keys()
    with TensorReader() as reader:
        for name, entry in entries.items():
            assert entry.dtype == state[name].dtype
            assert reader.read(entry).view(torch.uint8).equal(state[name].view(torch.uint8))
    shards = {f"model-0000{i}-of-00002.safetensors" for i in (1, 2)} | {"model.safetensors.index.json"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == texts.keys() | shards
    assert all((tmp_path / "out" / name).read_text() == text for name, text in texts.items())


def test_places_and_kinds_that_are_refused(community, tmp_path):
    src = community[0]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("keep")
    places = {src: "the same", src / "sub" / "out": "inside", tmp_path / "full": "not an empty"}
    places[tmp_path / "a\0b"] = "no folder's name"
    for dst, word in places.items():
        with pytest.raises(CheckpointError, match=word):
            convert(src, dst)
    assert (tmp_path / "full" / "mine").read_text() == "keep"
    with pytest.raises(CheckpointError, match="not a folder"):
        convert(tmp_path / "gone", tmp_path / "out")
    (tmp_path / "full" / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(ConfigError, match="'llava'; accepted: multi_modality, deepseek_vl_v2, janus"):
        convert(tmp_path / "full", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["full"]


def test_a_failure_leaves_nothing_behind(community, tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(CheckpointError, match="No space left"):
        convert(community[0], tmp_path / "out")
    assert not list(tmp_path.iterdir())
