"""A learned detector for the world of things: classes, colors and boxes from an image's pixels.

A small convolutional network finds the centers of things (after CenterNet: Zhou et al. 2019, "Objects as
Points", arXiv:1904.07850): a heatmap of centers, and at each point the distances to the four sides of the
box, the class and the color. One heatmap for all classes learns faster than one for each. The network is
trained by `nano/recipes/detector.py` on rendered scenes, and is none of the models that it judges.

Shape suffixes: B images, C classes, H height and W width in points, STRIDE pixels apart; K colors, N things;
3 is red, green, blue; 4 is x0, y0, x1, y1 or left, top, right, bottom.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import batched_nms

from ...blocks.checkpoints.reader import TensorReader, list_tensors
from ...blocks.conversion.quantized_writer import stored_in_int8
from ...blocks.conversion.writer import write_safetensors
from ...blocks.errors import BifronsError, CheckpointError, check_number
from ...blocks.json_config import read_section
from .catalog import PAINTS, things
from .detector import Detection

SIDE = 192
"""Pictures are scaled so that their shorter side has this many pixels."""
STRIDE = 4
WEIGHTS = Path(__file__).parents[1] / "weights" / "world-detector"
"""The folder of the trained weights."""
WIDTHS = range(16, 257, 16)
"""Widths of the network that are accepted."""
MIN_SCORE = 0.3
"""Fainter detections are left out, unless the weights' `config.json` has another `threshold`."""

_MAX_ASPECT = 4.0
_MAX_THINGS = 64
_SAME_THING = 0.65  # IoU from which on the fainter of two detections of a class is left out
_TIMES = 8  # pixels by which the network's distances are multiplied
FILE, _CONFIG = "model.safetensors", "config.json"


class Maps(NamedTuple):
    """What the network says at each point: logits of a center `[B, H, W]`, distances in pixels to the sides
    of the box `[B, 4, H, W]`, class logits `[B, C, H, W]` and color logits `[B, K, H, W]`."""

    heat: Tensor
    sides: Tensor
    thing: Tensor
    color: Tensor


class Peaks(NamedTuple):
    """Candidates, the likeliest first, on the CPU: scores, classes and colors (indices) [N], boxes in pixels
    of the network's input [N, 4]; or those of B pictures."""

    score: Tensor
    thing: Tensor
    color: Tensor
    box: Tensor


class _Block(nn.Module):
    """Two convolutions and a residual connection, at another stride and width where asked."""

    def __init__(self, narrow: int, wide: int, stride: int = 1) -> None:
        super().__init__()
        self.first = nn.Conv2d(narrow, wide, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(8, wide) for _ in range(2))
        self.skip = nn.Conv2d(narrow, wide, 1, stride, bias=False) if (narrow, stride) != (wide, 1) else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        return F.relu(y + (x if self.skip is None else self.skip(x)))


class CenterNet(nn.Module):
    """A residual network down to a stride of 32, and up again to STRIDE. width: channels at STRIDE."""

    def __init__(self, classes: int, colors: int, width: int = 48) -> None:
        super().__init__()
        self.width, widths = width, (width, width * 2, width * 3, width * 4)
        self.stem = nn.Sequential(
            nn.Conv2d(3, width // 2, 5, 2, 2, bias=False), nn.GroupNorm(8, width // 2), nn.ReLU()
        )
        previous = (width // 2, *widths)
        self.down = nn.ModuleList(
            nn.Sequential(_Block(narrow, wide, 2), _Block(wide, wide))
            for narrow, wide in zip(previous, widths, strict=False)
        )
        self.across = nn.ModuleList(nn.Conv2d(wide, width * 2, 1) for wide in widths)
        self.merge = nn.ModuleList(_Block(width * 2, width * 2) for _ in widths[:-1])
        self.parts = (1, 4, classes, colors)
        self.head = nn.Sequential(_Block(width * 2, width * 2), nn.Conv2d(width * 2, sum(self.parts), 1))
        with torch.no_grad():
            self.head[-1].bias[0] = -4.0  # pyright: ignore

    def forward(self, pixels_B3HW: Tensor) -> Maps:
        """pixels: in -1..1, with sides that are multiples of 32."""
        x, levels = self.stem(pixels_B3HW), []
        for stage in self.down:
            x = stage(x)
            levels.append(x)
        x = self.across[-1](levels[-1])
        for level, across, merge in zip(levels[-2::-1], self.across[-2::-1], self.merge[::-1], strict=True):
            x = merge(F.interpolate(x, scale_factor=2.0) + across(level))
        heat, sides, thing, color = self.head(x).float().split(self.parts, dim=1)
        return Maps(heat[:, 0], F.softplus(sides) * _TIMES, thing, color)


def boxes_at(sides_N4: Tensor, rows_N: Tensor, columns_N: Tensor) -> Tensor:
    """Boxes in pixels, from the distances to their sides at points of the map."""
    x, y = (columns_N + 0.5) * STRIDE, (rows_N + 0.5) * STRIDE
    left, top, right, bottom = sides_N4.unbind(-1)
    return torch.stack((x - left, y - top, x + right, y + bottom), dim=-1)


class ThingsDetector:
    """The network with its weights. classes: names of things. report: what was measured of its errors.
    threshold: the score from which on a detection counts."""

    def __init__(
        self,
        model: CenterNet,
        classes: tuple[str, ...],
        report: dict[str, float],
        threshold: float = MIN_SCORE,
    ) -> None:
        self.model, self.classes, self.report, self.threshold = model.eval(), classes, report, threshold

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.stem[0].weight.device  # pyright: ignore

    def detect(self, image: Image.Image) -> list[Detection]:
        """The things in a picture, the surest first: GenEval's names, colors and boxes in pixels."""
        return self.detect_all([image])[0]

    @torch.inference_mode()
    def detect_all(self, images: Sequence[Image.Image], batch: int = 64) -> list[list[Detection]]:
        """`detect` for each picture; those of one size are looked at together, `batch` at a time."""
        prepared = [prepare(image) for image in images]
        sizes: dict[torch.Size, list[int]] = {}
        for number, (pixels_3HW, _) in enumerate(prepared):
            sizes.setdefault(pixels_3HW.shape, []).append(number)
        found: list[list[Detection]] = [[] for _ in images]
        for numbers in sizes.values():
            for start in range(0, len(numbers), batch):
                part = numbers[start : start + batch]
                pixels_B3HW = torch.stack([prepared[n][0] for n in part]).to(self.device)
                peaks = _peaks(self.model(pixels_B3HW))
                for i, n in enumerate(part):
                    one = Peaks(*(tensor[i] for tensor in peaks))
                    found[n] = self._read(one, images[n].size, prepared[n][1])
        return found

    def _read(self, peaks: Peaks, size: tuple[int, int], scale: float) -> list[Detection]:
        """The detections of one picture of this size, which was scaled so, from its peaks."""
        count = int((peaks.score > self.threshold).sum())
        scores_N, labels_N, colors_N, boxes_N4 = (tensor[:count] for tensor in peaks)
        boxes_N4 = torch.minimum((boxes_N4 / scale).clamp(min=0), torch.tensor([*size, *size]))
        chosen = batched_nms(boxes_N4, scores_N, labels_N, _SAME_THING)
        return [
            _detection(self.classes[int(labels_N[i])], int(colors_N[i]), boxes_N4[i], float(scores_N[i]))
            for i in chosen.tolist()
        ]


def _peaks(maps: Maps) -> Peaks:
    """The points of B pictures where a center is likeliest among its neighbors."""
    heat_BHW = maps.heat.sigmoid()
    surest = maps.thing.softmax(1).max(1)
    peaks_BHW = heat_BHW * (F.max_pool2d(heat_BHW, 3, 1, 1) == heat_BHW) * surest.values
    width = heat_BHW.shape[2]
    scores_BN, places_BN = peaks_BHW.flatten(1).topk(min(_MAX_THINGS, peaks_BHW[0].numel()))
    rows_BN, columns_BN = places_BN // width, places_BN % width
    labels_BN = surest.indices.flatten(1).gather(1, places_BN)
    colors_BN = maps.color.argmax(1).flatten(1).gather(1, places_BN)
    sides_BN4 = maps.sides.flatten(2).gather(2, places_BN[:, None].expand(-1, 4, -1)).transpose(1, 2)
    found = scores_BN, labels_BN, colors_BN, boxes_at(sides_BN4, rows_BN, columns_BN)
    return Peaks(*(tensor.cpu() for tensor in found))


def _detection(label: str, color: int, box_4: Tensor, score: float) -> Detection:
    x0, y0, x1, y1 = box_4.tolist()
    return Detection(label, tuple(PAINTS)[color], (x0, y0, x1, y1), score)


def prepare(image: Image.Image) -> tuple[Tensor, float]:
    """A picture as float32 [3, H, W] in -1..1, scaled to SIDE and padded with gray on the right and below to
    multiples of 32, and the scale."""
    image = image.convert("RGB")
    scale = SIDE / max(min(image.size), max(image.size) / _MAX_ASPECT)
    width, height = (max(1, round(side * scale)) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels_HW3 = torch.from_numpy(np.array(image)).float() / 127.5 - 1
    return F.pad(pixels_HW3.permute(2, 0, 1), (0, -width % 32, 0, -height % 32)), scale


def save_detector(folder: Path, model: nn.Module, width: int, report: dict[str, float]) -> None:
    """Write weights (int8, small ones bfloat16) and `config.json`: classes, width, and the errors that were
    measured."""
    weights = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items()}
    specs = [(k, partial(weights.__getitem__, k), tuple(v.shape), v.dtype) for k, v in weights.items()]
    write_safetensors(folder, stored_in_int8(specs))
    config = {"classes": list(things()), "colors": list(PAINTS), "width": width, "report": report}
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_detector(folder: Path = WEIGHTS, device: str | torch.device = "cpu") -> ThingsDetector:
    """The trained detector. Raises BifronsError where its weights are missing, and CheckpointError where they
    are of another world or damaged."""
    if not (folder / FILE).is_file() or not (folder / _CONFIG).is_file():
        raise BifronsError(
            f"the detector of the world of things has no weights in {folder}; "
            "train it with `python -m bifrons.nano.recipes.train detector`"
        )
    config = read_section(folder / _CONFIG)
    classes, report = config.get("classes"), config.get("report", {})
    threshold = config.get("threshold", MIN_SCORE)
    if (
        config.get("colors") != list(PAINTS)
        or not isinstance(classes, list)
        or not set(classes) <= set(things())
    ):
        raise CheckpointError(
            f"{folder} was trained on other things or colors than this world's; train it anew"
        )
    width = config.integer("width")
    if width not in WIDTHS:
        raise CheckpointError(f"{folder / _CONFIG}: width is {width}; accepted: multiples of 16 to 256")
    check_number(f"threshold in {folder / _CONFIG}", threshold, 0.0, 1.0)
    model = CenterNet(len(classes), len(PAINTS), width)
    with TensorReader() as reader:
        weights = {name: reader.read(entry).float() for name, entry in list_tensors(folder).items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{folder / FILE} has other tensors than {folder / _CONFIG} says") from error
    return ThingsDetector(model.to(device), tuple(classes), report, threshold)
