"""What adapters are made of: layers by option, heads of low rank, and going on from one."""

import json
import os
from typing import Any

import pytest
import torch
from bifrons import JanusPipeline, VL2Pipeline
from bifrons.blocks.errors import CheckpointError, OptionError
from bifrons.blocks.placement.adapted import fits_graphs
from bifrons.learn.adapters import LoraOptions, add_adapter, continue_adapter, save_adapter
from bifrons.learn.fine_tuning import prepare_model

from ..models import SHAPES_JANUS, SHAPES_VL2

pytest.importorskip("peft")


def load(model=SHAPES_JANUS) -> Any:
    kind = VL2Pipeline if model == SHAPES_VL2 else JanusPipeline
    return kind.from_pretrained(model, "cpu", progress=False)


def saved(folder, options, model=SHAPES_JANUS, dtype=torch.float32) -> Any:
    """A pipeline with a new adapter of random numbers, which is saved."""
    pipe = load(model)
    config = prepare_model(pipe, options, 0)
    generator = torch.Generator().manual_seed(1)
    for name, weight in pipe.model.named_parameters():
        if "lora_B" in name:
            weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    save_adapter(pipe.model.eval(), config, folder, dtype=dtype)
    return pipe


def test_image_heads_of_low_rank_are_loaded_and_small(tmp_path) -> None:
    trained = saved(tmp_path / "low", LoraOptions(4, image_head="lora"))
    saved(tmp_path / "whole", LoraOptions(4, image_head="whole"))
    saved(tmp_path / "half", LoraOptions(4, image_head="lora"), dtype=torch.bfloat16)
    pipe, plain = load(), load()
    pipe.load_adapter(tmp_path / "low")
    beside = plain.with_adapter(tmp_path / "low")
    found, codes = trained.next_image_logits("a star"), torch.arange(5)
    assert not torch.allclose(plain.next_image_logits("a star"), found, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(plain.model.embed_codes(codes), trained.model.embed_codes(codes), atol=1e-3)
    for other in (pipe, beside):
        torch.testing.assert_close(other.next_image_logits("a star"), found, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(other.model.embed_codes(codes), trained.model.embed_codes(codes))
    settings = json.loads((tmp_path / "low" / "adapter_config.json").read_text())
    assert settings["modules_to_save"] is None
    sizes = [
        os.path.getsize(tmp_path / name / "adapter_model.safetensors") for name in ("low", "whole", "half")
    ]
    assert sizes[0] < 0.7 * sizes[1]
    assert sizes[2] < 0.55 * sizes[0]
    pipe.unload_adapter()
    pipe.load_adapter(tmp_path / "half")
    assert (pipe.next_image_logits("a star") - found).abs().max() < 0.02 * found.abs().max()


def test_captured_steps_have_room_for_adapters_without_experts(tmp_path) -> None:
    for experts in (False, True):
        folder = tmp_path / str(experts)
        trained = saved(folder, LoraOptions(4, experts=experts), SHAPES_VL2)
        pipe = load(SHAPES_VL2)
        pipe.load_adapter(folder)
        (adapter,) = pipe._adapters.adapters.values()
        assert fits_graphs(load(SHAPES_VL2).model, adapter) is not experts
        question = [{"role": "user", "content": "What is red?"}]
        found, expected = pipe.next_logits(question), trained.next_logits(question)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(OptionError, match="experts is True"):
        add_adapter(load().model, LoraOptions(4, experts=True), "base")


@pytest.mark.parametrize(
    ("model", "options"),
    [(SHAPES_JANUS, LoraOptions(4, image_head="whole")), (SHAPES_VL2, LoraOptions(2, experts=True))],
    ids=("janus", "vl2"),
)
def test_an_adapter_is_gone_on_from(model, options, tmp_path) -> None:
    trained = saved(tmp_path / "first", options, model)
    again = load(model)
    config = prepare_model(again, LoraOptions(start=str(tmp_path / "first")), 7)
    weights = {name: p for name, p in again.model.named_parameters() if p.requires_grad}
    before = {name: p for name, p in trained.model.named_parameters() if p.requires_grad}
    assert weights.keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    save_adapter(again.model, config, tmp_path / "second")
    first, second = (
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("first", "second")
    )
    assert first == second


def test_what_is_not_gone_on_from(tmp_path, random_adapter) -> None:
    with pytest.raises(CheckpointError, match="another model"):
        continue_adapter(load(SHAPES_VL2), random_adapter(SHAPES_JANUS))
    with pytest.raises(CheckpointError, match="is no adapter"):
        continue_adapter(load(), tmp_path)
