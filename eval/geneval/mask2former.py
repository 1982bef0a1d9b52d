"""GenEval's object detector, on transformers' Mask2Former.

Preprocessing and post-processing follow mmdet 2.x's test pipeline for
`mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco`, which GenEval's scorer calls.

Shape suffixes: Q queries, K classes, N instances, H and W pixels of the image, h and w of the mask logits.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...blocks.errors import BifronsError, CheckpointError
from ..optional_packages import import_opencv
from .mask2former_convert import CHECKPOINT, SHA256_START, check_sha256, convert, read_checkpoint
from .official import CLASSES

LONG_SIDE, SHORT_SIDE = 1333, 800
DIVISOR = 32
MAX_INSTANCES = 100
PADDING = 128  # a pixel value, so that the padding is not zero once it is normalised
# Of ImageNet's pixels, 0 to 255; rounded to float32 and then used in float64, as in the official pipeline.
MEAN = np.array((123.675, 116.28, 103.53), np.float32).astype(np.float64)
STD = np.array((58.395, 57.12, 57.375), np.float32).astype(np.float64)


@dataclass(frozen=True)
class Instances:
    """N detected instances, unordered.

    boxes: float32 [N, 4], (x0, y0, x1, y1) in pixels. scores: float32 [N]. labels: int64 [N], indices into
    the classes. masks: bool [N, H, W].
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Preprocessed:
    """Normalised and padded pixels, float32 [1, 3, padded H, padded W], and the size before padding."""

    pixels: Tensor
    resized: tuple[int, int]


def preprocess(image: Image.Image, long_side: int = LONG_SIDE, short_side: int = SHORT_SIDE) -> Preprocessed:
    """Resize to fit (1333, 800) at the same aspect ratio, pad with grey to a multiple of 32, normalise.

    Bit for bit what mmdet's test pipeline does. It resizes with OpenCV, whose 8-bit bilinear resize no other
    library matches exactly.
    """
    cv2 = import_opencv()
    pixels_HW3 = np.asarray(image.convert("RGB"))
    height, width = pixels_HW3.shape[:2]
    scale = min(long_side / max(height, width), short_side / min(height, width))
    resized = max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    small = cv2.resize(pixels_HW3, resized[::-1], interpolation=cv2.INTER_LINEAR)
    down, right = (-side % DIVISOR for side in resized)
    padded = np.pad(small, ((0, down), (0, right), (0, 0)), constant_values=PADDING)
    # In two steps, each rounded to float32.
    centred = (padded - MEAN).astype(np.float32)
    normal = torch.from_numpy((centred * (1 / STD)).astype(np.float32))
    return Preprocessed(normal.permute(2, 0, 1)[None].contiguous(), resized)


def postprocess(
    classes_QK: Tensor,
    masks_Qhw: Tensor,
    padded: tuple[int, int],
    resized: tuple[int, int],
    size: tuple[int, int],
) -> Instances:
    """The network's outputs for one image as instances.

    classes_QK: class logits, the last class meaning "no object". masks_Qhw: mask logits. padded, resized:
    (height, width) of the network's input with and without padding; size: of the image.

    Mask logits are upsampled to the padded input, cropped to the resized one, and resized to the image.
    The 100 best pairs of query and class are kept; a pair's score is its probability times the mean sigmoid
    of the mask's positive logits (with 1e-6 added to their number).
    """
    masks = F.interpolate(masks_Qhw[None].float(), size=padded, mode="bilinear", align_corners=False)
    masks = masks[..., : resized[0], : resized[1]]
    masks_QHW = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)[0]
    scores_QK = classes_QK.float().softmax(-1)[:, :-1]
    classes = scores_QK.shape[1]
    scores_N, best_N = scores_QK.flatten().topk(min(MAX_INSTANCES, scores_QK.numel()), sorted=False)
    queries_N = torch.div(best_N, classes, rounding_mode="floor")
    # All classes of a query share its mask: area, confidence and box are computed once per query.
    inside_QHW = masks_QHW > 0
    area_Q = inside_QHW.flatten(1).sum(1)
    confidence_Q = (masks_QHW.sigmoid() * inside_QHW).flatten(1).sum(1) / (area_Q + 1e-6)
    boxes_Q4 = torch.stack([_box(mask) for mask in inside_QHW])
    return Instances(
        boxes=boxes_Q4[queries_N.cpu()].numpy(),
        scores=(scores_N * confidence_Q[queries_N]).cpu().numpy(),
        labels=(best_N % classes).cpu().numpy(),
        masks=inside_QHW[queries_N].cpu().numpy(),
    )


def _box(mask_HW: Tensor) -> Tensor:
    """[xmin, ymin, xmax + 1, ymax + 1] of the mask, float32 [4]; zeros for an empty one."""
    ys, xs = (torch.where(mask_HW.any(axis))[0].cpu() for axis in (1, 0))
    if not len(xs):
        return torch.zeros(4)
    return torch.stack((xs[0], ys[0], xs[-1] + 1, ys[-1] + 1)).float()


class Segmenter:
    """A Mask2Former of transformers with the official preprocessing and post-processing.

    Raises CheckpointError where the model does not have COCO's 80 classes.
    """

    def __init__(self, model: Any, classes: tuple[str, ...] = CLASSES) -> None:
        if model.config.num_labels != len(classes):
            raise CheckpointError(
                f"the detector knows {model.config.num_labels} classes; accepted: COCO's {len(classes)}"
            )
        self.model = model.eval()
        self.classes = classes

    @torch.no_grad()
    def __call__(
        self, image: Image.Image, long_side: int = LONG_SIDE, short_side: int = SHORT_SIDE
    ) -> Instances:
        """The instances in one image, however narrow."""
        inputs = preprocess(image, long_side, short_side)
        padded = tuple(inputs.pixels.shape[-2:])
        parameter = next(self.model.parameters())
        out = self.model(pixel_values=inputs.pixels.to(parameter.device, parameter.dtype))
        return postprocess(
            out.class_queries_logits[0],
            out.masks_queries_logits[0],
            (padded[0], padded[1]),
            inputs.resized,
            (image.height, image.width),
        )


def official_config(transformers: Any) -> Any:
    """The Mask2FormerConfig of the official checkpoint: Swin-S, 80 classes, 100 queries."""
    backbone = transformers.SwinConfig(
        image_size=224,
        patch_size=4,
        embed_dim=96,
        depths=[2, 2, 18, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    return transformers.Mask2FormerConfig(backbone_config=backbone, num_labels=len(CLASSES))


def load_official(path: Path, transformers: Any, config: Any = None) -> Any:
    """The official mmdet `.pth` as a Mask2FormerForUniversalSegmentation.

    Raises CheckpointError where its sha256 or a tensor is not the official one's.
    """
    check_sha256(path)
    return build(convert(read_checkpoint(path)), transformers, config or official_config(transformers))


def build(state: dict[str, Tensor], transformers: Any, config: Any) -> Any:
    """A model from tensors under transformers' published names. Raises CheckpointError unless all fit."""
    weights = torch.ones(config.num_labels + 1)  # of the training loss, which published files carry
    weights[-1] = config.no_object_weight
    model, loading = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        None, config=config, state_dict={**state, "criterion.empty_weight": weights}, output_loading_info=True
    )
    _check_loaded(loading)
    return model


def load_folder(folder: Path, transformers: Any) -> Any:
    """A transformers folder as a Mask2FormerForUniversalSegmentation.

    Raises BifronsError where it has no config, CheckpointError where a tensor is missing or left over.
    """
    if not os.path.isfile(folder / "config.json"):
        raise BifronsError(
            f"{folder} has no config.json; accepted: facebook/mask2former-swin-small-coco-instance's files"
        )
    try:
        model, loading = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} is no Mask2Former of transformers: {error}") from error
    _check_loaded(loading)
    return model


def _check_loaded(loading: dict[str, Any]) -> None:
    # transformers 5 gives the backbone a final norm that no feature map passes through.
    missing = sorted(name for name in loading["missing_keys"] if ".encoder.swin.layernorm." not in name)
    wrong = {
        "missing": missing,
        "left over": sorted(loading["unexpected_keys"]),
        "of another shape": sorted(str(item) for item in loading["mismatched_keys"]),
    }
    if any(wrong.values()):
        listed = "; ".join(f"{kind}: {', '.join(names[:4])}" for kind, names in wrong.items() if names)
        raise CheckpointError(f"the detector's tensors do not fit its network: {listed}")


MISSING_OFFICIAL = (
    f"the official detector needs {CHECKPOINT} (from mmdetection's model zoo, configs/mask2former; mirrored "
    f"as tsbpp/geneval_mask2former; sha256 begins {SHA256_START}): download it anywhere and give its path "
    "with --detector-weights"
)
MISSING_HF = (
    "this detector needs a folder with facebook/mask2former-swin-small-coco-instance (config.json and "
    "model.safetensors): download it anywhere and give the folder with --detector-weights"
)
