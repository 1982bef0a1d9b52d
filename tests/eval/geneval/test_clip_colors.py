"""GenEval's colours on a small random CLIP: both forms of weights, the crop, the texts, the verdict."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from bifrons.blocks.errors import BifronsError, CheckpointError
from bifrons.eval.geneval.clip_colors import COLORS, ColorClassifier, load_color_classifier
from bifrons.eval.geneval.clip_convert import convert_open_clip
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor

transformers = pytest.importorskip("transformers")

WORDS = ["a", "photo", "of", "colored", "object", "-", "cow", "[UNK]", *COLORS]
START, END = len(WORDS), len(WORDS) + 1


def tokenizer() -> Tokenizer:
    vocabulary = {word: i for i, word in enumerate([*WORDS, "<start>", "<end>"])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", START), ("<end>", END)]
    )
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    both = {
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "hidden_act": "quick_gelu",
        "projection_dim": 16,
    }
    config = transformers.CLIPConfig(
        projection_dim=16,
        vision_config={
            **both,
            "hidden_size": 32,
            "intermediate_size": 128,
            "image_size": 28,
            "patch_size": 14,
        },
        text_config={
            **both,
            "hidden_size": 24,
            "intermediate_size": 96,
            "vocab_size": END + 1,
            "max_position_embeddings": 12,
            "bos_token_id": START,
            "eos_token_id": END,
        },
    )
    model = transformers.CLIPModel(config)
    for name, parameter in model.named_parameters():  # what is seen, and the words, must matter
        strong = "patch_embedding" in name or "token_embedding" in name
        torch.nn.init.normal_(parameter, 0.0, 1.0 if strong else 0.3)
    path = tmp_path_factory.mktemp("clip")
    model.save_pretrained(path)
    tokenizer().save(str(path / "tokenizer.json"))
    return path


def as_open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What open_clip would have saved of the same network; written apart from the converter's table."""
    names = {
        "vision_model.embeddings.class_embedding": "visual.class_embedding",
        "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
        "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "logit_scale": "logit_scale",
    }
    for kind in ("weight", "bias"):
        names[f"vision_model.pre_layrnorm.{kind}"] = f"visual.ln_pre.{kind}"
        names[f"vision_model.post_layernorm.{kind}"] = f"visual.ln_post.{kind}"
        names[f"text_model.final_layer_norm.{kind}"] = f"ln_final.{kind}"
    out = {new: state[old] for old, new in names.items()}
    out["visual.proj"] = state["visual_projection.weight"].T.contiguous()
    out["text_projection"] = state["text_projection.weight"].T.contiguous()
    for tower, home in (("vision", "visual."), ("text", "")):
        for layer in range(2):
            old, new = f"{tower}_model.encoder.layers.{layer}", f"{home}transformer.resblocks.{layer}"
            for kind in ("weight", "bias"):
                parts = [state[f"{old}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                out[f"{new}.attn.in_proj_{kind}"] = torch.cat(parts)
                out[f"{new}.attn.out_proj.{kind}"] = state[f"{old}.self_attn.out_proj.{kind}"]
                out[f"{new}.ln_1.{kind}"] = state[f"{old}.layer_norm1.{kind}"]
                out[f"{new}.ln_2.{kind}"] = state[f"{old}.layer_norm2.{kind}"]
                out[f"{new}.mlp.c_fc.{kind}"] = state[f"{old}.mlp.fc1.{kind}"]
                out[f"{new}.mlp.c_proj.{kind}"] = state[f"{old}.mlp.fc2.{kind}"]
    return out


@pytest.fixture(scope="module")
def open_clip_folder(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("open_clip")
    save_file(as_open_clip(load_file(folder / "model.safetensors")), path / "open_clip_model.safetensors")
    (path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    vision = {"width": 32, "layers": 2, "image_size": 28, "patch_size": 14, "head_width": 16}
    text = {"width": 24, "layers": 2, "heads": 2, "context_length": 12, "vocab_size": END + 1}
    settings = {"embed_dim": 16, "quick_gelu": True, "vision_cfg": vision, "text_cfg": text}
    (path / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings}))
    return path


@pytest.fixture(scope="module")
def things() -> tuple[Image.Image, np.ndarray, np.ndarray]:
    """A picture of noise, 20 boxes and the masks that fill them in part."""
    rng = np.random.default_rng(2)
    picture = (
        Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)).resize((45, 30)).resize((90, 60))
    )
    masks = np.zeros((20, 60, 90), bool)
    boxes = np.zeros((20, 4), np.float32)
    for i in range(20):
        x, y, w, h = rng.integers(0, 50), rng.integers(0, 30), rng.integers(8, 40), rng.integers(8, 30)
        masks[i, y : y + h, x : x + w] = rng.random((h, w)) < 0.8
        boxes[i] = x, y, x + w, y + h
    return picture, boxes, masks


def test_open_clips_tensors_come_back(folder):
    state = load_file(folder / "model.safetensors")
    back = convert_open_clip(as_open_clip(state))
    assert back.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(back[name], tensor), name
    with pytest.raises(CheckpointError, match=r"visual\.trunk\.x"):
        convert_open_clip({"visual.trunk.x": torch.zeros(1)})


def test_both_forms_name_the_same_colours(folder, open_clip_folder, things):
    one, other = (load_color_classifier(path, transformers) for path in (folder, open_clip_folder))
    named = one.classify(things[0], things[1], things[2], "cow")
    assert named == other.classify(things[0], things[1], things[2], "cow")
    assert len(named) == 20
    assert len(set(named)) > 1
    assert not one.verified


def test_verdicts_against_plain_arithmetic(folder, things):
    """Templates, normalise, mean, normalise, argmax of the cosine; each thing and each text alone."""
    colors = load_color_classifier(folder, transformers)
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    words = tokenizer()
    with torch.no_grad():
        centres = []
        for color in COLORS:
            rows = []
            for text in (
                f"a photo of a {color} cow",
                f"a photo of a {color}-colored cow",
                f"a photo of a {color} object",
            ):
                out = model.text_model(input_ids=torch.tensor([words.encode(text).ids])).pooler_output
                row = model.text_projection(out)[0].double()
                rows.append(row / row.norm())
            mean = torch.stack(rows).mean(0)
            centres.append(mean / mean.norm())
        expected = []
        for box, mask in zip(things[1], things[2], strict=True):
            pixels = colors.crop(things[0], box, mask)[None]
            seen = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)[0].double()
            expected.append(COLORS[int((torch.stack(centres) @ (seen / seen.norm())).argmax())])
    assert colors.classify(things[0], things[1], things[2], "cow") == expected


def test_crop_is_the_thing_on_grey(folder):
    """A thing of one colour in the left half of its box: grey #999 on the right, nothing from outside."""
    colors = load_color_classifier(folder, transformers)
    pixels = np.full((50, 50, 3), (0, 255, 0), np.uint8)
    pixels[10:30, 10:40] = (200, 0, 40)
    mask = np.zeros((50, 50), bool)
    mask[10:30, 10:20] = True
    seen = colors.crop(Image.fromarray(pixels), np.array([10, 10, 30, 30, 0.9], np.float32), mask)
    assert seen.shape == (3, 28, 28)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    for column, rgb in ((3, (200, 0, 40)), (25, (0x99, 0x99, 0x99))):
        expected = (torch.tensor(rgb) / 255 - mean) / std
        torch.testing.assert_close(seen[:, :, column], expected[:, None].expand(3, 28))


def test_wide_things_lose_their_ends(folder):
    """The shorter side fills the square and the middle is kept, as CLIP's preparation does."""
    colors = load_color_classifier(folder, transformers)
    pixels = np.zeros((28, 84, 3), np.uint8)
    pixels[:, 28:56] = 255
    seen = colors.crop(Image.fromarray(pixels), np.array([0, 0, 84, 28]), np.ones((28, 84), bool))
    assert (seen > 1.5).all()


def test_incomplete_folders_say_what_to_get(folder, tmp_path):
    with pytest.raises(BifronsError, match=r"(?s)openai/clip-vit-large-patch14.*--clip-weights"):
        load_color_classifier(tmp_path, transformers)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_color_classifier(tmp_path, transformers)


def test_too_long_a_class_name_is_refused(folder):
    colors = load_color_classifier(folder, transformers)
    box, mask = np.array([[0, 0, 9, 9]]), np.ones((1, 9, 9), bool)
    with pytest.raises(BifronsError, match="accepted by the classifier: 12"):
        colors.classify(Image.new("RGB", (9, 9)), box, mask, "cow " * 9)


def test_only_openais_weights_count_as_verified(folder, monkeypatch, tmp_path):
    from bifrons.eval.geneval import clip_colors

    monkeypatch.setenv("BIFRONS_CACHE", str(tmp_path))
    digest = clip_colors.sha256(folder / "model.safetensors")
    monkeypatch.setattr(clip_colors, "OPENAI_SHA256", frozenset((digest,)))
    colors = load_color_classifier(folder, transformers)
    assert isinstance(colors, ColorClassifier)
    assert colors.verified


def test_the_same_tensors_count_in_any_format(folder, open_clip_folder, monkeypatch, tmp_path):
    """Once a file of known sha256 was loaded; other tensors never do."""
    from bifrons.eval.geneval import clip_colors

    monkeypatch.setenv("BIFRONS_CACHE", str(tmp_path / "cache"))
    assert not load_color_classifier(open_clip_folder, transformers).verified
    digest = clip_colors.sha256(folder / "model.safetensors")
    monkeypatch.setattr(clip_colors, "OPENAI_SHA256", frozenset((digest,)))
    official = load_color_classifier(folder, transformers)
    same = load_color_classifier(open_clip_folder, transformers)
    assert same.sha256 != official.sha256
    assert same.tensors == official.tensors
    assert same.verified
    other = tmp_path / "other"
    shutil.copytree(open_clip_folder, other)
    state = load_file(other / "open_clip_model.safetensors")
    state["visual.ln_post.bias"][0] += 1e-6
    save_file(state, other / "open_clip_model.safetensors")
    assert not load_color_classifier(other, transformers).verified
    torch.save(
        load_file(open_clip_folder / "open_clip_model.safetensors"), other / "open_clip_pytorch_model.bin"
    )
    (other / "open_clip_model.safetensors").unlink()
    assert load_color_classifier(other, transformers).verified
