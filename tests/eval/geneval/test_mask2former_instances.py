"""Which instances are kept: the detector against the official pipeline in a few plain lines, in float64.

The network's attention masks are hard, so that in float32 rounding alone can keep other instances.
"""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bifrons.eval.geneval.mask2former import CLASSES, Segmenter
from PIL import Image
from torch import Tensor, nn

transformers = pytest.importorskip("transformers")
cv2 = pytest.importorskip("cv2")

LONG, SHORT = 427, 256
SIZES = [(96, 96), (130, 90), (90, 130), (70, 400), (400, 70), (30, 300), (300, 9)]
"""Square, 3:2 both ways, a little beyond 5:1, 10:1, and 33:1."""


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    backbone = transformers.SwinConfig(
        embed_dim=8,
        depths=[2, 2, 2, 2],
        num_heads=[1, 1, 2, 2],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=len(CLASSES),
        hidden_dim=32,
        feature_size=32,
        mask_feature_size=32,
        encoder_layers=2,
        decoder_layers=3,
        num_attention_heads=2,
        dim_feedforward=24,
        encoder_feedforward_dim=16,
        num_queries=12,
    )
    model = transformers.Mask2FormerForUniversalSegmentation(config).double().eval()
    for name, parameter in model.named_parameters():
        centred = "mask_projection.bias" in name or "mask_embedder.2.0.bias" in name  # masks of both signs
        strong = "class_predictor" in name or "patch_embeddings.projection" in name
        nn.init.normal_(
            parameter,
            1.0 if "norm" in name and "weight" in name else 0.0,
            0.0 if centred else 1.0 if strong else 0.25,
        )
    return model


def picture(width: int, height: int) -> np.ndarray:
    """uint8 [H, W, 3], smooth."""
    rng = np.random.default_rng(width)
    small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def official_input(pixels: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
    """mmdet's Resize, Pad, Normalize on BGR pixels: float32 [1, 3, h, w], and the size before padding."""
    height, width = pixels.shape[:2]
    scale = min(LONG / max(height, width), SHORT / min(height, width))
    size = int(width * scale + 0.5), int(height * scale + 0.5)
    image = cv2.resize(np.ascontiguousarray(pixels[..., ::-1]), size, interpolation=cv2.INTER_LINEAR)
    image = cv2.copyMakeBorder(
        image, 0, -size[1] % 32, 0, -size[0] % 32, cv2.BORDER_CONSTANT, value=(128, 128, 128)
    )
    image = cv2.cvtColor(image.astype(np.float32), cv2.COLOR_BGR2RGB)
    cv2.subtract(image, np.float64(np.float32([[123.675, 116.28, 103.53]])), image)
    cv2.multiply(image, 1 / np.float64(np.float32([[58.395, 57.12, 57.375]])), image)
    return torch.from_numpy(image).permute(2, 0, 1)[None], size[::-1]


def official_kept(model, pixels: np.ndarray, threshold: float) -> list[tuple]:
    """mmdet's instances above the threshold: (class, box, score), sorted."""
    inputs, (height, width) = official_input(pixels)
    with torch.no_grad():
        out = model(pixel_values=inputs.double())
    masks = F.interpolate(out.masks_queries_logits, inputs.shape[-2:], mode="bilinear", align_corners=False)
    masks = F.interpolate(
        masks[..., :height, :width], pixels.shape[:2], mode="bilinear", align_corners=False
    )[0]
    scores = out.class_queries_logits[0].softmax(-1)[:, :-1]
    best = scores.flatten().argsort(descending=True)[:100]
    kept = []
    for index in best.tolist():
        query, cls = divmod(index, len(CLASSES))
        on = masks[query] > 0
        score = float(scores[query, cls] * masks[query].sigmoid()[on].sum() / (on.sum() + 1e-6))
        if score > threshold:
            ys, xs = torch.where(on)
            box = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
            kept.append((cls, box, score))
    return sorted(kept)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_kept_instances_are_the_official_ones(network, size):
    pixels = picture(*size)
    found = Segmenter(copy.deepcopy(network))(Image.fromarray(pixels), LONG, SHORT)
    threshold = float(np.sort(found.scores)[-9:-7].mean())  # so that eight are kept
    reference = copy.deepcopy(network)
    mmdet_windows(reference)
    expected = official_kept(reference, pixels, threshold)
    got = [
        (int(found.labels[i]), found.boxes[i].astype(int).tolist(), float(found.scores[i]))
        for i in np.flatnonzero(found.scores > threshold)
    ]
    assert len(got) == 8
    for ours, theirs in zip(sorted(got), expected, strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2] == pytest.approx(theirs[2], rel=1e-5)


def mmdet_windows(model) -> None:
    """Put mmdet's shifted window attention, written out, in place of that of transformers."""
    blocks = [module for module in model.modules() if hasattr(module, "layernorm_before")]
    assert len(blocks) == 8
    for i, block in enumerate(blocks):  # two a stage, of which the second is shifted

        def forward(x, size, *_, block=block, shift=3 * (i % 2), **__):
            return swin(block, x, size, shift), None

        block.forward = forward


def regions(length: int, shift: int) -> Tensor:
    """Along one side: 0, then 1 and 2 for the last window's parts that a roll by `shift` brings together."""
    place = torch.arange(length)
    return (place >= length - 7).long() + (place >= length - shift).long()


def swin(block, x_BNC: Tensor, size: tuple[int, int], shift: int) -> Tensor:
    """A Swin block with windows of 7: pad, roll by `shift`, and mask what the roll brought together."""
    (height, width), attention, channels = size, block.attention, x_BNC.shape[-1]
    tall, wide = (-(-side // 7) * 7 for side in size)
    grid = block.layernorm_before(x_BNC).view(height, width, channels)
    grid = F.pad(grid, (0, 0, 0, wide - width, 0, tall - height)).roll((-shift, -shift), (0, 1))
    region = (3 * regions(tall, shift)[:, None] + regions(wide, shift)) * (shift > 0)
    steps = [(i, j) for i in range(7) for j in range(7)]
    place = torch.tensor([[(a - c + 6) * 13 + b - d + 6 for c, d in steps] for a, b in steps])
    bias = attention.relative_position_bias.relative_position_bias_table[place].permute(2, 0, 1)
    out = torch.zeros_like(grid)
    for cut in ((slice(y, y + 7), slice(x, x + 7)) for y in range(0, tall, 7) for x in range(0, wide, 7)):
        tokens, of = grid[cut].reshape(-1, channels), region[cut].flatten()
        q, k, v = (
            layer(tokens).view(49, attention.num_attention_heads, -1).transpose(0, 1)
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5 + bias
        mixed = (logits - 100.0 * (of[:, None] != of)).softmax(-1) @ v
        out[cut] = attention.o_proj(mixed.transpose(0, 1).reshape(-1, channels)).view(7, 7, channels)
    x = x_BNC + out.roll((shift, shift), (0, 1))[:height, :width].reshape(1, -1, channels)
    return x + block.mlp(block.layernorm_after(x))
