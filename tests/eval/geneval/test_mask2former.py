"""The official detector on a small random network: conversion of mmdet's checkpoint, loading, refusals."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from bifrons.blocks.errors import CheckpointError
from bifrons.eval.geneval.mask2former import (
    CLASSES,
    Segmenter,
    build,
    load_folder,
    load_official,
    official_config,
)
from bifrons.eval.geneval.mask2former_convert import convert, undo_merging_order
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")
pytest.importorskip("cv2")

SIZES = {"long_side": 427, "short_side": 256}


def small_config():
    backbone = transformers.SwinConfig(
        embed_dim=8,
        depths=[1, 2, 1, 1],
        num_heads=[1, 1, 2, 2],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return transformers.Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=len(CLASSES),
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=2,
        dim_feedforward=24,
        encoder_feedforward_dim=16,
        num_queries=7,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as transformers writes it, of a random network whose every tensor differs from its start."""
    torch.manual_seed(0)
    model = transformers.Mask2FormerForUniversalSegmentation(small_config())
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, 1.0 if "norm" in name and "weight" in name else 0.0, 0.2)
    path = tmp_path_factory.mktemp("mask2former")
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def published(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


# Written apart from the converter's table: transformers' published name -> mmdet's.
P, D = "panoptic_head.pixel_decoder.", "panoptic_head.transformer_decoder."
BACK = [
    (r"class_predictor\.", "panoptic_head.cls_embed."),
    (r"model\.transformer_module\.queries_embedder", "panoptic_head.query_embed"),
    (r"model\.transformer_module\.queries_features", "panoptic_head.query_feat"),
    (r"model\.transformer_module\.level_embed", "panoptic_head.level_embed"),
    (r"model\.transformer_module\.decoder\.layernorm", f"{D}post_norm"),
    (
        r"model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.0\.0",
        "panoptic_head.mask_embed.0",
    ),
    (
        r"model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.1\.0",
        "panoptic_head.mask_embed.2",
    ),
    (
        r"model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.2\.0",
        "panoptic_head.mask_embed.4",
    ),
    (r"model\.transformer_module\.decoder\.layers\.", f"{D}layers."),
    (r"model\.pixel_level_module\.decoder\.level_embed", f"{P}level_encoding.weight"),
    (r"model\.pixel_level_module\.decoder\.mask_projection", f"{P}mask_feature"),
    (r"model\.pixel_level_module\.decoder\.adapter_1\.0", f"{P}lateral_convs.0.conv"),
    (r"model\.pixel_level_module\.decoder\.adapter_1\.1", f"{P}lateral_convs.0.gn"),
    (r"model\.pixel_level_module\.decoder\.layer_1\.0", f"{P}output_convs.0.conv"),
    (r"model\.pixel_level_module\.decoder\.layer_1\.1", f"{P}output_convs.0.gn"),
    (r"model\.pixel_level_module\.decoder\.input_projections\.(\d)\.0", P + r"input_convs.\1.conv"),
    (r"model\.pixel_level_module\.decoder\.input_projections\.(\d)\.1", P + r"input_convs.\1.gn"),
    (r"model\.pixel_level_module\.decoder\.encoder\.layers\.", f"{P}encoder.layers."),
    (r"(panoptic_head\.pixel_decoder\.encoder\.layers\.\d)\.self_attn\.", r"\1.attentions.0."),
    (r"(panoptic_head\.pixel_decoder\.encoder\.layers\.\d)\.self_attn_layer_norm", r"\1.norms.0"),
    (r"(panoptic_head\.pixel_decoder\.encoder\.layers\.\d)\.final_layer_norm", r"\1.norms.1"),
    (r"(panoptic_head\.transformer_decoder\.layers\.\d)\.cross_attn\.", r"\1.attentions.0.attn."),
    (r"(panoptic_head\.transformer_decoder\.layers\.\d)\.self_attn\.", r"\1.attentions.1.attn."),
    (r"(panoptic_head\.transformer_decoder\.layers\.\d)\.cross_attn_layer_norm", r"\1.norms.0"),
    (r"(panoptic_head\.transformer_decoder\.layers\.\d)\.self_attn_layer_norm", r"\1.norms.1"),
    (r"(panoptic_head\.transformer_decoder\.layers\.\d)\.final_layer_norm", r"\1.norms.2"),
    (r"(panoptic_head\..*layers\.\d)\.fc1", r"\1.ffns.0.layers.0.0"),
    (r"(panoptic_head\..*layers\.\d)\.fc2", r"\1.ffns.0.layers.1"),
    (r"model\.pixel_level_module\.encoder\.embeddings\.patch_embeddings\.", "backbone.patch_embed."),
    (r"model\.pixel_level_module\.encoder\.embeddings\.norm", "backbone.patch_embed.norm"),
    (r"model\.pixel_level_module\.encoder\.hidden_states_norms\.stage1", "backbone.norm0"),
    (r"model\.pixel_level_module\.encoder\.hidden_states_norms\.stage2", "backbone.norm1"),
    (r"model\.pixel_level_module\.encoder\.hidden_states_norms\.stage3", "backbone.norm2"),
    (r"model\.pixel_level_module\.encoder\.hidden_states_norms\.stage4", "backbone.norm3"),
    (r"model\.pixel_level_module\.encoder\.encoder\.layers\.", "backbone.stages."),
    (r"(backbone\..*)layernorm_before", r"\1norm1"),
    (r"(backbone\..*)layernorm_after", r"\1norm2"),
    (r"(backbone\..*)attention\.self\.", r"\1attn.w_msa."),
    (r"(backbone\..*)attention\.output\.dense", r"\1attn.w_msa.proj"),
    (r"(backbone\..*)intermediate\.dense", r"\1ffn.layers.0.0"),
    (r"(backbone\..*)\.output\.dense", r"\1.ffn.layers.1"),
]


def as_mmdet(published: dict[str, Tensor]) -> dict[str, Tensor]:
    """What mmdet 2.x would have saved of the same network."""
    out, fused = {}, {}
    for name, tensor in published.items():
        if "swin.layernorm" in name or name == "criterion.empty_weight":
            continue
        for old, new in BACK:
            name = re.sub(f"^{old}", new, name)
        if ".downsample." in name:  # Swin's order to nn.Unfold's
            rows = tensor.reshape(-1, 4, tensor.shape[-1] // 4)[:, [0, 2, 1, 3]]
            tensor = rows.transpose(1, 2).reshape(tensor.shape)
        part = re.fullmatch(r"(.*w_msa)\.(query|key|value)\.(weight|bias)", name)
        if part:
            fused.setdefault(f"{part[1]}.qkv.{part[3]}", {})[part[2][0]] = tensor
        elif part := re.fullmatch(r"(.*attn)\.([qkv])_proj\.(weight|bias)", name):
            fused.setdefault(f"{part[1]}.in_proj_{part[3]}", {})[part[2]] = tensor
        else:
            out[name] = tensor
    out |= {name: torch.cat([parts[p] for p in "qkv"]) for name, parts in fused.items()}
    out["backbone.stages.0.blocks.0.attn.w_msa.relative_position_index"] = torch.zeros(49, 49).long()
    return out


@pytest.fixture
def picture() -> Image.Image:
    rng = np.random.default_rng(3)
    return Image.fromarray(rng.integers(0, 256, (90, 130, 3), dtype=np.uint8)).resize((260, 180))


def test_every_tensor_comes_back_from_mmdets_names_and_orders(published):
    back = convert(as_mmdet(published))
    expected = {k: v for k, v in published.items() if "swin.layernorm" not in k and "criterion" not in k}
    assert back.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(back[name], tensor), name


def test_the_converted_network_gives_the_same_instances(folder, published, tmp_path, monkeypatch, picture):
    path = tmp_path / "detector.pth"
    torch.save({"meta": {"CLASSES": CLASSES}, "state_dict": as_mmdet(published)}, path)
    monkeypatch.setattr(
        "bifrons.eval.geneval.mask2former_convert.SHA256_START",
        hashlib.sha256(path.read_bytes()).hexdigest()[:16],
    )
    ours = Segmenter(load_official(path, transformers, small_config()))(picture, **SIZES)
    theirs = Segmenter(load_folder(folder, transformers))(picture, **SIZES)
    assert len(ours.labels) == 100
    assert ours.scores.max() > 0
    for field in ("boxes", "scores", "labels", "masks"):
        assert np.array_equal(getattr(ours, field), getattr(theirs, field)), field


def test_merging_order_is_that_of_unfold():
    """mmdet's merging (nn.Unfold) and Swin's (slices) agree once the order is undone."""
    torch.manual_seed(1)
    channels, x = 5, torch.randn(1, 6, 8, 5)
    norm, reduction = torch.randn(20), torch.randn(10, 20)
    unfolded = nn.functional.unfold(x.permute(0, 3, 1, 2), 2, stride=2).transpose(1, 2)
    mmdet = nn.functional.layer_norm(unfolded, (20,), norm) @ reduction.T
    slices = [x[:, r::2, c::2] for r, c in ((0, 0), (1, 0), (0, 1), (1, 1))]
    joined = torch.cat(slices, -1).reshape(1, -1, 4 * channels)
    swin = nn.functional.layer_norm(joined, (20,), undo_merging_order(norm)) @ undo_merging_order(reduction).T
    torch.testing.assert_close(swin, mmdet)


def test_official_network_is_swin_s_with_80_classes_and_100_queries():
    """69 million parameters, as the Mask2Former paper (arXiv 2112.01527) has it for Swin-S."""
    with torch.device("meta"):
        model = transformers.Mask2FormerForUniversalSegmentation(official_config(transformers))
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(68.7e6, rel=0.01)
    assert model.config.backbone_config.depths == [2, 2, 18, 2]
    assert model.class_predictor.weight.shape == (81, 256)


def test_wrong_files_are_refused(published, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"state_dict": as_mmdet(published)}, path)
    with pytest.raises(CheckpointError, match="743b7d99015f1224"):
        load_official(path, transformers, small_config())
    with pytest.raises(CheckpointError, match=r"'bbox_head\.weight'"):
        convert({"bbox_head.weight": torch.zeros(1)})
    state = convert(as_mmdet(published))
    del state["class_predictor.weight"]
    with pytest.raises(CheckpointError, match=r"missing: class_predictor\.weight"):
        build(state, transformers, small_config())


def test_nothing_but_tensors_is_read(tmp_path, monkeypatch):
    class Harmful:
        def __reduce__(self):
            return (print, ("ran",))

    path = tmp_path / "bad.pth"
    torch.save({"state_dict": Harmful()}, path)
    monkeypatch.setattr("bifrons.eval.geneval.mask2former_convert.SHA256_START", "")
    with pytest.raises(CheckpointError, match="plain tensors"):
        load_official(path, transformers)
