"""GenEval's object detector around transformers' Mask2Former: pictures in, instances out.

What happens before and after the network follows mmdet 2.x's test pipeline and instance post-processing for
`mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco`, which GenEval's scorer calls.

Shape suffixes: Q queries, K classes, N instances, H and W pixels of the picture, h and w of the mask logits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...blocks.errors import BifronsError, CheckpointError, PictureError
from .mask2former_convert import CHECKPOINT, SHA256_START, check_sha256, convert, read_checkpoint
from .opencv_resize import resize_linear

# COCO's 80 classes in its order, three of them under GenEval's names.
_NAMES = (
    "person;bicycle;car;motorcycle;airplane;bus;train;truck;boat;traffic light;fire hydrant;stop sign;"
    "parking meter;bench;bird;cat;dog;horse;sheep;cow;elephant;bear;zebra;giraffe;backpack;umbrella;handbag;"
    "tie;suitcase;frisbee;skis;snowboard;sports ball;kite;baseball bat;baseball glove;skateboard;surfboard;"
    "tennis racket;bottle;wine glass;cup;fork;knife;spoon;bowl;banana;apple;sandwich;orange;broccoli;carrot;"
    "hot dog;pizza;donut;cake;chair;couch;potted plant;bed;dining table;toilet;tv;laptop;computer mouse;"
    "tv remote;computer keyboard;cell phone;microwave;oven;toaster;sink;refrigerator;book;clock;vase;"
    "scissors;teddy bear;hair drier;toothbrush"
)
CLASSES: tuple[str, ...] = tuple(_NAMES.split(";"))

LONG_SIDE, SHORT_SIDE = 1333, 800
DIVISOR = 32
MAX_INSTANCES = 100
MEAN = np.array((123.675, 116.28, 103.53))  # ImageNet's, in 0..255
STD = np.array((58.395, 57.12, 57.375))
# Below this, Swin's last stage is no larger than a window: transformers then stops shifting, mmdet does not.
LEAST_PADDED_SIDE = 256


@dataclass(frozen=True)
class Instances:
    """N instances, unordered: boxes float32 [N, 4] (x0, y0, x1, y1 in pixels), scores float32 [N], labels
    int64 [N] (index into the classes), masks bool [N, H, W]."""

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Prepared:
    """Normalised and padded pixels, float32 [1, 3, padded H, padded W], and the size before padding."""

    pixels: Tensor
    resized: tuple[int, int]


def prepare(picture: Image.Image, long_side: int = LONG_SIDE, short_side: int = SHORT_SIDE) -> Prepared:
    """Resize within (1333, 800) keeping the ratio, normalise, pad with zeros to a multiple of 32."""
    pixels_HW3 = np.asarray(picture.convert("RGB"))
    height, width = pixels_HW3.shape[:2]
    scale = min(long_side / max(height, width), short_side / min(height, width))
    resized = int(height * scale + 0.5), int(width * scale + 0.5)
    small = resize_linear(pixels_HW3, *resized)
    # In two steps, each rounded to float32, as the official pipeline's library does it.
    centred = (small - MEAN).astype(np.float32)
    normal = torch.from_numpy((centred * (1 / STD)).astype(np.float32)).permute(2, 0, 1)[None]
    down, right = (-side % DIVISOR for side in resized)
    return Prepared(F.pad(normal, (0, right, 0, down)), resized)


def instances(
    classes_QK: Tensor,
    masks_Qhw: Tensor,
    padded: tuple[int, int],
    resized: tuple[int, int],
    size: tuple[int, int],
) -> Instances:
    """The network's outputs for one picture as instances.

    classes_QK: logits, the last class meaning "nothing"; masks_Qhw: mask logits; `padded` and `resized`
    are (height, width) of the network's input with and without padding, `size` of the picture.

    The mask logits are enlarged to the padded input, lose the padding, and are resized to the picture.
    The 100 best pairs of query and class are kept; a pair's score is its probability times the mean of the
    mask's sigmoid over its pixels with a positive logit (1e-6 added to their number).
    """
    masks = F.interpolate(masks_Qhw[None].float(), size=padded, mode="bilinear", align_corners=False)
    masks = masks[..., : resized[0], : resized[1]]
    masks_QHW = F.interpolate(masks, size=size, mode="bilinear", align_corners=False)[0]
    scores_QK = classes_QK.float().softmax(-1)[:, :-1]
    kinds = scores_QK.shape[1]
    scores_N, best_N = scores_QK.flatten().topk(min(MAX_INSTANCES, scores_QK.numel()), sorted=False)
    queries_N = torch.div(best_N, kinds, rounding_mode="floor")
    # A query's mask is the same for each of its classes: its figures are computed once.
    inside_QHW = masks_QHW > 0
    area_Q = inside_QHW.flatten(1).sum(1)
    sure_Q = (masks_QHW.sigmoid() * inside_QHW).flatten(1).sum(1) / (area_Q + 1e-6)
    boxes_Q4 = torch.stack([_box(mask) for mask in inside_QHW])
    return Instances(
        boxes=boxes_Q4[queries_N.cpu()].numpy(),
        scores=(scores_N * sure_Q[queries_N]).cpu().numpy(),
        labels=(best_N % kinds).cpu().numpy(),
        masks=inside_QHW[queries_N].cpu().numpy(),
    )


def _box(mask_HW: Tensor) -> Tensor:
    """[xmin, ymin, xmax + 1, ymax + 1] of the mask, float32 [4]; zeros for an empty one."""
    ys, xs = (torch.where(mask_HW.any(axis))[0].cpu() for axis in (1, 0))
    if not len(xs):
        return torch.zeros(4)
    return torch.stack((xs[0], ys[0], xs[-1] + 1, ys[-1] + 1)).float()


class Segmenter:
    """A Mask2Former of transformers with the official preparation and post-processing around it."""

    def __init__(self, model: Any, classes: tuple[str, ...] = CLASSES) -> None:
        if model.config.num_labels != len(classes):
            raise CheckpointError(
                f"the detector knows {model.config.num_labels} classes; accepted: COCO's {len(classes)}"
            )
        self.model = model.eval()
        self.classes = classes

    @torch.no_grad()
    def __call__(
        self, picture: Image.Image, long_side: int = LONG_SIDE, short_side: int = SHORT_SIDE
    ) -> Instances:
        """Instances of one RGB picture. Raises PictureError for one too narrow for the network's windows."""
        prepared = prepare(picture, long_side, short_side)
        padded = tuple(prepared.pixels.shape[-2:])
        if min(padded) < LEAST_PADDED_SIDE:
            raise PictureError(
                f"a picture of {picture.width} x {picture.height} is too narrow for the detector; accepted: "
                "no longer than five times its shorter side"
            )
        parameter = next(self.model.parameters())
        out = self.model(pixel_values=prepared.pixels.to(parameter.device, parameter.dtype))
        return instances(
            out.class_queries_logits[0],
            out.masks_queries_logits[0],
            (padded[0], padded[1]),
            prepared.resized,
            (picture.height, picture.width),
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
    """The official mmdet `.pth`, its sha256 checked, as a Mask2FormerForUniversalSegmentation."""
    check_sha256(path)
    return build(convert(read_checkpoint(path)), transformers, config or official_config(transformers))


def build(state: dict[str, Tensor], transformers: Any, config: Any) -> Any:
    """A model from tensors under transformers' published names; proves that all are there and fit."""
    # Belongs to the training loss; published files carry it.
    weights = torch.ones(config.num_labels + 1)
    weights[-1] = config.no_object_weight
    model, found = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
        None, config=config, state_dict={**state, "criterion.empty_weight": weights}, output_loading_info=True
    )
    _check_loaded(found)
    return model


def load_folder(folder: Path, transformers: Any) -> Any:
    """A transformers folder as a Mask2FormerForUniversalSegmentation; nothing may be missing or left over."""
    if not (folder / "config.json").is_file():
        raise BifronsError(
            f"{folder} has no config.json; accepted: facebook/mask2former-swin-small-coco-instance's files"
        )
    try:
        model, found = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(
            folder, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder} is no Mask2Former of transformers: {error}") from error
    _check_loaded(found)
    return model


def _check_loaded(found: dict[str, Any]) -> None:
    # transformers 5 gives the backbone a final norm that no feature map passes through.
    missing = sorted(name for name in found["missing_keys"] if ".encoder.swin.layernorm." not in name)
    wrong = {
        "missing": missing,
        "left over": sorted(found["unexpected_keys"]),
        "of another shape": sorted(str(item) for item in found["mismatched_keys"]),
    }
    if any(wrong.values()):
        told = "; ".join(f"{kind}: {', '.join(names[:4])}" for kind, names in wrong.items() if names)
        raise CheckpointError(f"the detector's tensors do not fit its network: {told}")


MISSING_OFFICIAL = (
    f"the official detector needs {CHECKPOINT} (from mmdetection's model zoo, configs/mask2former; mirrored "
    f"as tsbpp/geneval_mask2former; sha256 begins {SHA256_START}): download it anywhere and give its path "
    "with --detector-weights"
)
MISSING_HF = (
    "this detector needs a folder with facebook/mask2former-swin-small-coco-instance (config.json and "
    "model.safetensors): download it anywhere and give the folder with --detector-weights"
)
