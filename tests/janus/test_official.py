"""The three official checkpoints, as far as their names and shapes go: on meta, nothing is computed."""

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import torch
from bifrons.blocks.checkpoints.formats import TensorEntry
from bifrons.blocks.checkpoints.key_mapping import check
from bifrons.janus.config import read_config
from bifrons.janus.model import JanusModel
from bifrons.janus.weight_names import pick_key_map

DATA = Path(__file__).parent.parent / "data"
RELEASES = ("janus-1.3b", "janus-pro-1b", "janus-pro-7b")
LANGUAGE = {
    "janus-pro-7b": {"num_hidden_layers": 30},
}
SMALL = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 16, "num_hidden_layers": 24}


def official_config(release: str) -> dict[str, Any]:
    """What the official config.json states that matters here; the 7B's leaves most to Llama's defaults."""
    stated = LANGUAGE.get(release, SMALL)
    hidden = stated.get("hidden_size", 4096)

    def params(**values: Any) -> dict[str, Any]:
        return {"params": values}

    return {
        "model_type": "multi_modality",
        "aligner_config": params(depth=2, input_dim=1024, n_embed=hidden, projector_type="mlp_gelu"),
        "gen_aligner_config": params(depth=2, input_dim=8, n_embed=hidden, projector_type="mlp_gelu"),
        "gen_head_config": params(image_token_embed=hidden, image_token_size=16384, n_embed=hidden),
        "gen_vision_config": params(image_token_size=16384, n_embed=8),
        "language_config": {"max_position_embeddings": 16384, "vocab_size": 102400, **stated},
        "vision_config": params(
            image_size=384, model_name="siglip_large_patch16_384", select_feature="same", select_layer=-1
        ),
    }


@pytest.mark.parametrize("release", RELEASES)
def test_official_names_and_shapes_load_strictly(release, tmp_path) -> None:
    names = json.loads(lzma.decompress((DATA / "janus_names.json.xz").read_bytes()))["shapes"][release]
    (tmp_path / "config.json").write_text(json.dumps(official_config(release)))
    config, model_type = read_config(tmp_path)
    with torch.device("meta"):
        model = JanusModel(config)
    entries = {
        name: TensorEntry(name, torch.bfloat16, tuple(shape), tmp_path / "x", 0, 0)
        for name, shape in names.items()
    }
    report = check(model, entries, pick_key_map(entries, model_type))
    assert report.ok, report.summary()
    assert len(report.unused) == 14  # the pooling head of SigLIP (13) and the codebook's usage counts
    entries.pop("language_model.lm_head.weight")
    assert not check(model, entries, pick_key_map(entries, model_type)).ok
