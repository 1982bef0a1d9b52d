"""Adapters that PEFT made on transformers' models give transformers' logits here."""

import pytest
import torch
from bifrons import JanusPipeline

from ..transformers_janus import make_pair

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def transformers_pair(tmp_path_factory, janus_mini):
    """transformers' model with random weights, and ours with the same."""
    return make_pair(tmp_path_factory.mktemp("hf"), janus_mini)


def adapted(model, folder, **settings):
    """transformers' model with a random adapter, which is saved."""
    torch.manual_seed(3)
    settings = {"target_modules": LINEAR, "r": 4, "lora_alpha": 12, "init_lora_weights": False, **settings}
    model = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
    for name, weight in model.named_parameters():
        if "modules_to_save" in name:
            weight.data.add_(0.05 * torch.randn_like(weight))
    model.save_pretrained(folder)
    return model


def text_logits(model, ids):
    with torch.no_grad():
        return model(input_ids=ids[None]).logits[0, -1]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.mlp.up_proj": 3}},
        {"target_modules": ["q_proj"], "modules_to_save": ["generation_head", "generation_aligner"]},
        {"target_modules": r".*(language_model|vision_model).*\.(q_proj|fc1)"},
    ],
    ids=["all layers", "patterns", "whole modules", "vision"],
)
def test_an_adapter_of_the_whole_model(settings, transformers_pair, parity_picture, tmp_path):
    theirs, ours = transformers_pair
    theirs = adapted(theirs, tmp_path, **settings)
    messages = [{"role": "user", "content": "What is it?"}]
    ids = ours.processor.chat_inputs(messages).ids
    beside = ours.with_adapter(tmp_path)
    expected = text_logits(theirs, ids)
    found = beside.next_logits(messages)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    inputs = ours.processor.chat_inputs(
        [{"role": "user", "content": "<image_placeholder>\nWhat?", "images": [parity_picture(0, 64, 48)]}]
    )
    with torch.no_grad():
        features = theirs.base_model.model.model.get_image_features(inputs.pixels)
        features = getattr(features, "pooler_output", features)
        embedded = beside.model.embed_images(inputs.pixels)
        hidden = torch.randn(3, 64)
        their_head = theirs.base_model.model.model.generation_head(hidden)
        found_head = beside.model.image_logits(hidden)
    torch.testing.assert_close(embedded.flatten(), features.flatten(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found_head, their_head, rtol=1e-5, atol=1e-5)
    ours.load_adapter(tmp_path)
    merged = ours.next_logits(messages)
    ours.unload_adapter()
    assert (merged - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", [None, "int8"])
def test_a_folder_of_transformers_is_merged(kind, transformers_pair, bifrons_main, parity_picture, tmp_path):
    """With heads, vision and language; before it is quantized, if it is."""
    theirs, ours = transformers_pair
    targets = r".*(language_model|vision_model).*\.(q_proj|down_proj|fc1)"
    adapted(theirs, tmp_path / "it", target_modules=targets, modules_to_save=["generation_head"])
    options = ["--merge-adapter", f"{tmp_path / 'it'}:0.5", *(["--quantize", kind] if kind else [])]
    assert bifrons_main("convert", ours.source.folder.path, tmp_path / "new", *options) == 0
    found = JanusPipeline.from_pretrained(tmp_path / "new", "cpu", dtype="float32", progress=False)
    picture = parity_picture(0, 64, 48)
    messages = [{"role": "user", "content": "<image_placeholder>\nWhat?", "images": [picture]}]
    plain = ours.next_logits(messages), ours.next_image_logits("a star")
    ours.load_adapter(tmp_path / "it", scale=0.5)
    expected = ours.next_logits(messages), ours.next_image_logits("a star")
    merged = found.next_logits(messages), found.next_image_logits("a star")
    for before, wanted, got in zip(plain, expected, merged, strict=True):
        error = (got - wanted).norm() / (before - wanted).norm()
        assert error < (0.3 if kind else 1e-5)


def test_an_adapter_of_the_language_model_alone(transformers_pair, tmp_path):
    """As other trainers make it, on the Llama model that is within Janus."""
    theirs, ours = transformers_pair
    llama = transformers.LlamaForCausalLM(theirs.config.text_config).eval()
    llama.model.load_state_dict(theirs.model.language_model.state_dict())
    llama.lm_head.load_state_dict(theirs.lm_head.state_dict())
    messages = [{"role": "user", "content": "What is it?"}]
    llama = adapted(llama, tmp_path)
    expected = text_logits(llama, ours.processor.chat_inputs(messages).ids)
    found = ours.with_adapter(tmp_path).next_logits(messages)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert ours.adapters == {}
