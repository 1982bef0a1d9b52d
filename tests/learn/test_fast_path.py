"""A model computes by kernels while it is trained, with the results and gradients of its plain layers."""

import pytest
import torch
from bifrons import JanusPipeline
from bifrons.blocks.kernels import dispatch
from bifrons.learn.adapters import LoraOptions, add_adapter
from bifrons.learn.examples import PaintExample
from bifrons.learn.fast_path import prepare_computation, training_dtype
from bifrons.learn.losses import TrainingModel, collate

from ..models import SHAPES_JANUS

pytest.importorskip("peft")
pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def gradients(lora: bool, fast: bool, monkeypatch) -> dict[str, torch.Tensor]:
    """Of the decoder's first layer alone: the interpreter of kernels is slow."""
    pipe = JanusPipeline.from_pretrained(SHAPES_JANUS, DEVICE, "float32", progress=False)
    model = pipe.model.requires_grad_(not lora)
    del model.decoder.layers[1:]
    if lora:
        torch.manual_seed(0)
        add_adapter(model, LoraOptions(4, image_head="whole"), "base")
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
    monkeypatch.setattr(dispatch, "device_has_kernels", lambda device: fast)
    prepare_computation(model, recompute=fast)
    ids = pipe.processor.generation_ids("a photo of a red star")[0]
    codes = torch.randint(0, 512, (64,), generator=torch.Generator().manual_seed(0))
    TrainingModel(model)(collate([PaintExample(ids, codes)], 0, [False]))["image"].backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lora", [False, True])
def test_gradients_are_those_of_the_plain_layers(lora, monkeypatch) -> None:
    plain, fast = (gradients(lora, fast, monkeypatch) for fast in (False, True))
    assert plain.keys() == fast.keys()
    assert any("lora_A" in name for name in plain) == lora
    for name, expected in plain.items():
        assert (fast[name] - expected).abs().max() < 1e-4 * expected.abs().max() + 1e-6, name


def test_dtypes() -> None:
    pipe = JanusPipeline.from_pretrained(SHAPES_JANUS, "cpu", dtype="bfloat16", progress=False)
    model = pipe.model.requires_grad_(False)
    add_adapter(model, LoraOptions(4, image_head="whole"), "base")
    prepare_computation(model, recompute=False)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    assert training_dtype(model) == torch.bfloat16
    hidden = torch.ones(1, model.decoder.config.hidden_size, dtype=torch.bfloat16)
    assert model.image_logits(hidden).dtype == torch.bfloat16  # by a head in float32
    assert training_dtype(model.half()) == torch.float32  # the CPU has no fast bfloat16
