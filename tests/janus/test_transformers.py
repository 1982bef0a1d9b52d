"""A saved `JanusForConditionalGeneration` of transformers, random weights, gives its logits through us."""

import shutil
from pathlib import Path

import pytest
import torch
from bifrons import JanusPipeline
from bifrons.janus.processor import JanusProcessor
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")

SIZES = {
    "text_config": {
        "hidden_size": 96,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 704,
        "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    },
    "vision_config": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 96,
        "patch_size": 16,
        "projection_dim": 96,
        "num_image_tokens": 36,
    },
    "vq_config": {
        "base_channels": 32,
        "latent_channels": 64,
        "num_embeddings": 512,
        "projection_dim": 96,
        "image_token_embed_dim": 96,
    },
    "image_token_id": 509,
}


@pytest.fixture(scope="module", params=["tied", "untied", "no prefix"])
def saved(request, tmp_path_factory, janus_mini: Path):
    """The model, and the folder that it was saved to, with the tokenizer of the small parity checkpoint."""
    torch.manual_seed(0)
    tied = request.param == "tied"
    model = transformers.JanusForConditionalGeneration(
        transformers.JanusConfig(**SIZES, tie_word_embeddings=tied)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2 if parameter.ndim > 1 else 0.5)
    folder = tmp_path_factory.mktemp("hf")
    model.save_pretrained(folder)
    if request.param == "no prefix":
        weights = load_file(folder / "model.safetensors")
        renamed = {name.removeprefix("model."): value for name, value in weights.items()}
        save_file(renamed, folder / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(janus_mini / name, folder)
    return model, JanusPipeline.from_pretrained(folder, device="cpu", progress=False)


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() < 2e-4 * expected.abs().max()


def test_text_logits(saved, parity_picture) -> None:
    model, pipe = saved
    content = "<image_placeholder>\nWhat is this?"
    messages = [{"role": "user", "content": content, "images": [parity_picture(1, 200, 131)]}]
    prepared = pipe.processor.chat_inputs(messages)
    with torch.no_grad():
        expected = model(input_ids=prepared.ids[None], pixel_values=prepared.pixels).logits[0, -1]
    close(pipe.next_logits(messages), expected)


def test_image_logits_and_decoded_picture(saved) -> None:
    model, pipe = saved
    cond, uncond = pipe.processor.generation_ids("a red cube")
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(torch.stack((cond, uncond)))
        hidden = model.model.language_model(inputs_embeds=embeddings).last_hidden_state[:, -1]
        conditional, unconditional = model.model.generation_head(hidden)
    close(pipe.next_image_logits("a red cube"), unconditional + 5 * (conditional - unconditional))
    codes = torch.arange(36) * 7
    with torch.no_grad():
        expected = model.model.vqmodel.decode(codes[None]).squeeze(0)
        found = pipe.model.gen_vision_model.decode(codes[None], (6, 6))[0]
    close(found, expected)


def test_pictures_of_a_folder_of_transformers_5(saved, tmp_path, parity_picture, janus_mini) -> None:
    """Its processor keeps the settings of pictures inside processor_config.json alone."""
    _, plain = saved
    mean, std = [0.4, 0.5, 0.6], [0.3, 0.5, 0.2]
    theirs = transformers.JanusImageProcessorPil(
        size={"height": 96, "width": 96}, image_mean=mean, image_std=std, background_color=[1, 2, 3]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(janus_mini / "tokenizer.json"),
        extra_special_tokens={"image_token": "<image_placeholder>", "boi_token": "x", "eoi_token": "y"},
    )
    processor = transformers.JanusProcessor(theirs, tokenizer, chat_template="", num_image_tokens=36)
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    ours = JanusProcessor.from_folder(tmp_path, plain.tokenizer, 96, 36)
    # Sides that neither truncation nor rounding changes.
    picture = parity_picture(1, 192, 96)
    expected = theirs(picture, return_tensors="pt")["pixel_values"][0]
    assert (ours.preprocess(picture) - expected).abs().max() < 1e-5
