"""Adapters of loaded models, merged and beside the weights, alone and several at once."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from bifrons import JanusPipeline, VL2Pipeline
from bifrons.blocks.errors import CheckpointError, ConfigError, OptionError
from safetensors.torch import load_file, save_file

from ...models import SHAPES_JANUS, SHAPES_VL2

QUESTION = [{"role": "user", "content": "What is red?"}]
PIPES = {SHAPES_JANUS: JanusPipeline, SHAPES_VL2: VL2Pipeline}


def load(model, **options):
    return PIPES[model].from_pretrained(model, device="cpu", progress=False, **options)


def close(a, b):
    return (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize("model", PIPES, ids=("janus", "vl2"))
def test_merged_equals_beside_and_leaves_no_trace(model, random_adapter):
    pipe, folder = load(model), random_adapter(model, 1, image_head=model == SHAPES_JANUS)
    plain = pipe.next_logits(QUESTION)
    beside = pipe.with_adapter(folder, "one")
    changed = beside.next_logits(QUESTION)
    assert not close(changed, plain)
    assert torch.equal(pipe.next_logits(QUESTION), plain)
    both = beside.with_adapter(random_adapter(model, 2), scale=0.5)
    assert both.adapters == {"one": 1.0, f"{Path(model).name}-2-False": 0.5}
    assert beside.adapters == {"one": 1.0}
    with_both = both.next_logits(QUESTION)
    pipe.load_adapter(folder)
    assert close(pipe.next_logits(QUESTION), changed)
    pipe.load_adapter(random_adapter(model, 2), scale=0.5)
    assert close(pipe.next_logits(QUESTION), with_both)
    assert not close(with_both, changed)
    pipe.unload_adapter(folder.name)
    pipe.unload_adapter()
    assert pipe.adapters == {}
    assert torch.equal(pipe.next_logits(QUESTION), plain)
    pipe.load_adapter(folder, scale=0)
    assert torch.equal(pipe.next_logits(QUESTION), plain)


def test_the_picture_of_an_adapter_is_painted_by_its_own_heads(random_adapter):
    pipe, folder = load(SHAPES_JANUS), random_adapter(image_head=True)
    beside = pipe.with_adapter(folder)
    logits = beside.next_image_logits("a star")
    merged = load(SHAPES_JANUS)
    merged.load_adapter(folder)
    assert close(merged.next_image_logits("a star"), logits)
    assert not close(pipe.next_image_logits("a star"), logits)
    described = json.loads(merged.description["adapters"])
    assert described[0].startswith(f"{folder}:1@")
    assert described == json.loads(beside.description["adapters"])
    assert "adapters" not in pipe.description


@pytest.mark.parametrize("model", PIPES, ids=("janus", "vl2"))
def test_adapters_of_quantized_weights(model, random_adapter, tmp_path):
    """They are computed beside the codes, which stay as they are."""
    pipe, folder = load(model, quantize="int8"), random_adapter(model, 1)
    plain = pipe.next_logits(QUESTION)
    pipe.load_adapter(folder)
    changed = pipe.next_logits(QUESTION)
    exact = load(model)
    exact.load_adapter(folder)
    expected = exact.next_logits(QUESTION)
    exact.unload_adapter()
    error = (changed - expected).abs().mean()
    assert error < 3 * (plain - exact.next_logits(QUESTION)).abs().mean() + 1e-6
    with pytest.raises(OptionError, match="beside its weights is not saved"):
        pipe.save_pretrained(tmp_path / "new")
    pipe.unload_adapter()
    assert torch.equal(pipe.next_logits(QUESTION), plain)


def test_what_moves_and_is_passed_on_keeps_its_adapters(random_adapter):
    pipe, folder = load(SHAPES_JANUS), random_adapter(seed=1)
    plain = pipe.next_logits(QUESTION)
    pipe.load_adapter(folder, "it", 0.5)
    changed = pipe.next_logits(QUESTION)
    again = pickle.loads(pickle.dumps(pipe))
    assert again.adapters == {"it": 0.5}
    assert torch.equal(again.next_logits(QUESTION), changed)
    pipe.to(torch.bfloat16).unload_adapter()
    assert {p.dtype for p in pipe.model.parameters()} == {torch.bfloat16}
    pipe.to(torch.float32)
    assert (pipe.next_logits(QUESTION) - plain).abs().max() < 0.05 * plain.abs().max()
    quantized = load(SHAPES_JANUS, quantize="int8")
    quantized.load_adapter(folder)
    before = quantized.next_logits(QUESTION)
    quantized.to(torch.bfloat16).to(torch.float32)
    assert (quantized.next_logits(QUESTION) - before).abs().max() < 0.05 * before.abs().max()


def test_parts_that_are_not_loaded_need_no_changes(random_adapter):
    folder = random_adapter(image_head=True)
    reader = load(SHAPES_JANUS, parts="read")
    reader.load_adapter(folder)
    whole = load(SHAPES_JANUS)
    whole.load_adapter(folder)
    assert torch.equal(reader.next_logits(QUESTION), whole.next_logits(QUESTION))


def damaged(source, target, settings=(), tensors=None):
    shutil.copytree(source, target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **dict(settings)}))
    if tensors is not None:
        weights = load_file(source / "adapter_model.safetensors")
        save_file(tensors(weights), target / "adapter_model.safetensors")
    return target


def first(weights, change):
    name = next(name for name in weights if ".lora_B." in name)
    return {**weights, name: change(weights[name]).contiguous()}


@pytest.mark.parametrize(
    ("settings", "tensors", "kind", "message"),
    [
        ({"use_dora": True}, None, ConfigError, "use_dora is True; accepted: False"),
        ({"peft_type": "IA3"}, None, ConfigError, "peft_type is 'IA3'; accepted: 'LORA'"),
        ({"bias": "all"}, None, ConfigError, "bias is 'all'; accepted: 'none'"),
        ({"init_lora_weights": "pissa"}, None, ConfigError, "changes the model's own weights"),
        ({"lora_alpha": 1e300}, None, ConfigError, "lora_alpha is 1e\\+300; accepted"),
        ({"alpha_pattern": {"(a+)+$": 1}}, None, ConfigError, "accepted: names of modules"),
        ({}, lambda w: first(w, lambda b: b[:-1]), CheckpointError, "another size of the model"),
        ({}, lambda w: first(w, lambda b: b[:, :-1]), CheckpointError, "no two factors that fit each other"),
        ({}, lambda w: first(w, lambda b: b * torch.inf), CheckpointError, "not finite"),
        ({}, lambda w: first(w, lambda b: b.long()), CheckpointError, "accepted: floats"),
        ({}, lambda w: {n.replace("self_attn", "attn"): t for n, t in w.items()}, CheckpointError, "another"),
    ],
)
def test_what_is_no_adapter_of_the_model_is_refused(
    settings, tensors, kind, message, shapes_janus, random_adapter, tmp_path
):
    folder = damaged(random_adapter(seed=1), tmp_path / "bad", settings, tensors)
    before = shapes_janus.next_logits(QUESTION)
    with pytest.raises(kind, match=message):
        shapes_janus.load_adapter(folder)
    assert shapes_janus.adapters == {}
    assert torch.equal(shapes_janus.next_logits(QUESTION), before)


def test_refusals(shapes_janus, random_adapter, tmp_path):
    with pytest.raises(CheckpointError, match=r"no adapter: it has no adapter_config\.json"):
        shapes_janus.load_adapter(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"belongs to another model \(it was trained on '.*shapes-vl2'\)"
    ):
        shapes_janus.load_adapter(random_adapter(SHAPES_VL2, 1))
    with pytest.raises(OptionError, match="no adapter is called 'dots'; loaded: none"):
        shapes_janus.unload_adapter("dots")
    with pytest.raises(OptionError, match="scale is 'big'"):
        shapes_janus.load_adapter(random_adapter(seed=1), scale="big")


@pytest.fixture(scope="module")
def shapes_janus():
    return load(SHAPES_JANUS)
