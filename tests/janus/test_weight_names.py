"""The table against the official key lists (tests/data/janus_names.json.xz: names and shapes of the
published checkpoints, and of their transformers versions) and against transformers itself."""

import json
import lzma
import re
from pathlib import Path

import pytest
import torch
from bifrons.blocks.checkpoints.key_mapping import ParameterSlice
from bifrons.blocks.errors import CheckpointError, ConfigError
from bifrons.janus.weight_names import original_keys, pick_key_map, transformers_keys

NAMES = json.loads(lzma.decompress((Path(__file__).parents[1] / "data" / "janus_names.json.xz").read_bytes()))
UNUSED = 14  # attn_pool (13) and codebook_used


@pytest.mark.parametrize("model", ["janus-1.3b", "janus-pro-1b", "janus-pro-7b"])
def test_official_names_are_the_models_own(model):
    places = {name: original_keys(name) for name in NAMES["shapes"][model]}
    unused = [name for name, to in places.items() if to is None]
    assert len(unused) == UNUSED
    assert all("attn_pool" in name or name.endswith("codebook_used") for name in unused)
    assert all(to == ParameterSlice(name) for name, to in places.items() if to)


@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("model", ["janus-pro-1b", "janus-pro-7b"])
def test_transformers_names_with_and_without_prefix(model, prefix):
    reached = set()
    for ours, theirs in NAMES["transformers"][model]:
        if theirs is None:
            assert original_keys(ours) is None
            continue
        group = theirs if isinstance(theirs, list) else [theirs]
        for i, name in enumerate(group):
            name = prefix + name.removeprefix("model.") if name != "lm_head.weight" else name
            part = (i, 3) if len(group) == 3 else None
            reshape = ours == "vision_model.vision_tower.pos_embed"
            assert transformers_keys(name) == ParameterSlice(ours, part=part, reshape=reshape)
            assert name not in reached
            reached.add(name)
    assert len(reached) == {"janus-pro-1b": 964, "janus-pro-7b": 1018}[model]


def test_no_name_has_two_meanings():
    for ours, theirs in NAMES["transformers"]["janus-pro-1b"]:
        if ours.startswith("language_model."):
            with pytest.raises(KeyError):
                transformers_keys(ours)
            with pytest.raises(KeyError):
                original_keys(theirs)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "model.lm_head.weight",
        "lm_head.bias",
        "model.model.aligner.fc1.weight",
        "model.aligner.fc1.weight.extra",
        "language_model.model.layers.x.input_layernorm.weight",
        "gen_vision_model.encoder.mid.3.norm1.weight",
    ],
)
def test_unknown_names_are_key_errors(name):
    for keys in (original_keys, transformers_keys):
        with pytest.raises(KeyError):
            keys(name)


def test_the_map_follows_the_model_type_and_the_names():
    ours = list(NAMES["shapes"]["janus-pro-1b"])
    pairs = NAMES["transformers"]["janus-pro-1b"]
    theirs = [n for _, t in pairs for n in (t if isinstance(t, list) else [t]) if n]
    assert pick_key_map(ours, "multi_modality") is original_keys
    assert pick_key_map(theirs, "janus", tied=True) is transformers_keys
    with pytest.raises(ConfigError, match="multi_modality, janus"):
        pick_key_map(ours, "llava")
    with pytest.raises(CheckpointError, match="named as in 'janus'"):
        pick_key_map(theirs, "multi_modality")
    with pytest.raises(CheckpointError, match="named as in 'multi_modality'"):
        pick_key_map(ours, "janus")


def test_a_tied_file_without_a_head_fills_it_from_the_embedding():
    name = "model.language_model.embed_tokens.weight"
    keys = pick_key_map([name], "janus", tied=True)
    embed, head = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
    assert keys(name) == (ParameterSlice(embed), ParameterSlice(head))
    assert pick_key_map([name], "janus")(name) == ParameterSlice(embed)


def test_the_table_fits_transformers_itself():
    """Every tensor of a real (small) transformers Janus has a place, and the pieces cover each parameter."""
    transformers = pytest.importorskip("transformers")
    config = transformers.JanusConfig(
        text_config={"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2},
        vision_config={"num_hidden_layers": 2, "projection_dim": 64},
        vq_config={"projection_dim": 64, "image_token_embed_dim": 64},
    )
    with torch.device("meta"):
        model = transformers.JanusForConditionalGeneration(config)
    shapes = NAMES["shapes"]["janus-pro-1b"]
    reached: dict[str, int] = {}
    for name, tensor in model.state_dict().items():
        to = transformers_keys(name)
        assert to is not None
        assert to.param in shapes
        reached[to.param] = reached.get(to.param, 0) + tensor.numel()
        if to.param.startswith(("vision_model", "gen_vision_model")):  # these have their official sizes
            want = torch.Size(shapes[to.param]).numel() // (to.part[1] if to.part else 1)
            assert tensor.numel() == want
    later = re.compile(r"(vision_model\.vision_tower\.blocks|language_model\.model\.layers)\.(?![01]\.)")
    deep = {name for name in shapes if later.match(name)}
    assert reached.keys() == {n for n in shapes if original_keys(n)} - deep
