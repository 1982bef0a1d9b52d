"""New weights: the same for a seed, with parts that were trained before; they are saved and loaded."""

from pathlib import Path

import pytest
import torch
from bifrons.janus.pipeline import JanusPipeline
from bifrons.learn.scratch import from_scratch
from bifrons.vl2.pipeline import VL2Pipeline
from safetensors.torch import save_file

from ..models import SHAPES_JANUS, SHAPES_VL2


@pytest.mark.parametrize(("model", "kind"), [(SHAPES_JANUS, JanusPipeline), (SHAPES_VL2, VL2Pipeline)])
def test_new_weights_are_saved_and_loaded(model, kind, tmp_path) -> None:
    config = tmp_path / "config"
    config.mkdir()
    for path in Path(model).glob("*.json"):
        (config / path.name).write_bytes(path.read_bytes())
    pipe = from_scratch(config, seed=3)
    assert type(pipe) is kind
    assert pipe.dtype == torch.float32
    decoder = pipe.model.decoder
    narrow = decoder.get_parameter("layers.0.mlp.down_proj.weight")
    assert abs(decoder.embed_tokens.weight.std().item() - 0.02) < 1e-3
    assert abs(narrow.std().item() - 0.02 / (2 * len(decoder.layers)) ** 0.5) < 1e-3
    same = from_scratch(config, seed=3)
    key = next(name for name, p in pipe.model.named_parameters() if p.ndim == 2)
    weight = pipe.model.get_parameter(key)
    assert torch.equal(weight, same.model.get_parameter(key))

    pipe.save_pretrained(tmp_path / "model")
    loaded = kind.from_pretrained(tmp_path / "model", "cpu", "float32")
    state = loaded.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in pipe.model.state_dict().items())

    part = "language_model.model.norm" if model == SHAPES_JANUS else "language.model.norm"
    save_file({"weight": torch.full_like(pipe.model.decoder.norm.weight, 2.0)}, tmp_path / "norm.safetensors")
    joined = from_scratch(config, parts={part: tmp_path / "norm.safetensors"})
    assert (joined.model.decoder.norm.weight == 2).all()
    assert not torch.equal(weight, joined.model.get_parameter(key))  # of another seed
