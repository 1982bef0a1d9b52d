"""Analysis-by-synthesis detector for the synthetic world: shapes, colors and boxes from an image's pixels.

The background color is taken from the border. The foreground is segmented by color distance, connectivity and
color, and each segment is classified as the shape whose rendering, fitted in position and size, has the best
IoU with it. Segments that fit no shape or have no palette color are reported as "unknown".

Shape suffixes: H height, W width, N palette colors; 3 is red, green, blue, or x, y, size in pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage

from ...blocks.errors import PictureError
from .fitting import fit
from .scene import COLORS, Box
from .shapes import EXTENTS

UNKNOWN = "unknown"
MIN_IOU = 0.88
"""Minimum soft IoU of a segment with its best fit. Measured at 128 pixels: rendered shapes reach 0.97 or
more; blurred by 1 pixel and JPEG-compressed at quality 60, 0.86 or more, and 99.7% of them above 0.9; shapes
with a quarter or a half of their area cut off, 0.78 and 0.67 (medians); rotated by 15 degrees, at most 0.84
(but a rotated hexagon passes for a circle); stretched by 1.35 : 1, at most 0.86."""

_FOREGROUND = 34.0  # min RGB distance from the background: far above noise, below half of any object's
_NEAR_COLOR = 60.0  # max RGB distance from a palette color; the closest palette colors are 99 apart
_COLOR_RATIO = 0.75  # max ratio of the distances from the nearest and the second nearest palette color
_MAX_MIXTURE_ERROR = 70.0  # max RGB distance of a segment's pixel from the line between background and color
_FLAT = 40.0  # max RGB range in a flat pixel's 3 x 3 neighborhood
_MIN_AREA = 0.002  # min area of a segment / (shorter side)^2; a 23-pixel star has 0.008
_MIN_SEED = 0.08  # min area of a flat region of a second color / area of its component
_MAX_WINDOW = 80  # windows with a longer side in pixels are downsampled before fitting
_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)
_NAMES = tuple(COLORS)
_PALETTE = np.array(list(COLORS.values()), dtype=np.float32)


@dataclass(frozen=True)
class Detection:
    """One object: shape or "unknown", color name or "unknown", box in pixels, IoU of the best fit."""

    label: str
    color: str
    box: Box
    score: float


def _pixels(picture: Image.Image | np.ndarray) -> np.ndarray:
    """float32 [H, W, 3]; raises PictureError for other types and shapes, and below 32 x 32 pixels."""
    if isinstance(picture, Image.Image):
        picture = np.asarray(picture.convert("RGB"))
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise PictureError(
            f"a picture is a PIL image or uint8 [H, W, 3], not {picture.dtype} {list(picture.shape)}"
        )
    if min(picture.shape[:2]) < 32:
        raise PictureError(
            f"the picture is {picture.shape[1]} x {picture.shape[0]}; at least 32 x 32 is needed"
        )
    return picture.astype(np.float32)


def background_color(pixels_HW3: np.ndarray) -> np.ndarray:
    """The most frequent color along the image border: float32 [3]."""
    width = max(1, min(pixels_HW3.shape[:2]) // 48)
    inner = np.zeros(pixels_HW3.shape[:2], dtype=bool)
    inner[width:-width, width:-width] = True
    border = pixels_HW3[~inner]
    bins, counts = np.unique(border.astype(np.int32) // 20, axis=0, return_counts=True)
    mode = bins[counts.argmax()] * 20 + 10
    return np.median(border[np.linalg.norm(border - mode, axis=1) < 30], axis=0)


def _nearest_color(rgb: np.ndarray) -> str:
    """Name of the nearest palette color, or "unknown" if it is far or the second is nearly as close."""
    distances = np.linalg.norm(_PALETTE - rgb, axis=1)
    first, second = np.argsort(distances)[:2]
    clear = distances[first] <= min(_NEAR_COLOR, _COLOR_RATIO * distances[second])
    return _NAMES[first] if clear else UNKNOWN


def _interior_color(pixels_HW3: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    """Median color [3] of a mask's pixels that are farthest from its edge."""
    depth = np.zeros(np.add(mask_HW.shape, 2))
    ndimage.distance_transform_edt(np.pad(mask_HW, 1), distances=depth)
    depth = depth[1:-1, 1:-1]
    return np.median(pixels_HW3[depth >= min(3.0, 0.6 * depth.max())], axis=0)


def _label(mask_HW: np.ndarray) -> np.ndarray:
    """8-connected components numbered from 1, 0 elsewhere: int32 [H, W]."""
    labels = np.zeros(mask_HW.shape, dtype=np.int32)
    ndimage.label(mask_HW, _EIGHT_CONNECTED, output=labels)
    return labels


def _components(mask_HW: np.ndarray) -> list[np.ndarray]:
    """Masks of the 8-connected components, bool [H, W] each."""
    labels = _label(mask_HW)
    return [labels == i for i in range(1, int(labels.max()) + 1)]


def _split_by_color(pixels_HW3: np.ndarray, component_HW: np.ndarray, min_area: float) -> list[np.ndarray]:
    """Split a component into touching objects: one mask per flat region of one palette color."""
    ranges = ndimage.maximum_filter(pixels_HW3, (3, 3, 1)) - ndimage.minimum_filter(pixels_HW3, (3, 3, 1))
    distances_HWN = np.linalg.norm(pixels_HW3[:, :, None] - _PALETTE, axis=-1)
    nearest_HW = distances_HWN.argmin(-1)
    flat_HW = component_HW & (ranges.max(-1) < _FLAT) & (distances_HWN.min(-1) < _NEAR_COLOR)
    min_seed = max(min_area / 2, _MIN_SEED * component_HW.sum())
    seeds = []
    for color in np.unique(nearest_HW[flat_HW]):
        regions = _components(flat_HW & (nearest_HW == color))
        seeds += [(color, region) for region in regions if region.sum() >= min_seed]
    if len({color for color, _ in seeds}) < 2:
        return [component_HW]
    colors = sorted({color for color, _ in seeds})
    owner_HW = np.array(colors)[distances_HWN[:, :, colors].argmin(-1)]
    parts = []
    for color in colors:
        seed_HW = np.any([seed for c, seed in seeds if c == color], axis=0)
        parts += [part for part in _components(component_HW & (owner_HW == color)) if np.any(part & seed_HW)]
    return parts


def _segments(
    pixels_HW3: np.ndarray, background: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, int, int]]:
    """For each object: its alpha matte [H, W] in a window, its color [3], and the window's left and top."""
    min_area = _MIN_AREA * min(pixels_HW3.shape[:2]) ** 2
    labels = _label(np.linalg.norm(pixels_HW3 - background, axis=-1) > _FOREGROUND)
    for index, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        top, left = max(0, rows.start - 4), max(0, columns.start - 4)
        window = (slice(top, rows.stop + 4), slice(left, columns.stop + 4))
        component_HW = labels[window] == index
        if component_HW.sum() < min_area:
            continue
        crop_HW3 = pixels_HW3[window]
        for part_HW in _split_by_color(crop_HW3, component_HW, min_area):
            color = _interior_color(crop_HW3, part_HW)
            alpha_HW = _alpha(crop_HW3, part_HW, color, background)
            solid_HW = alpha_HW > 0.5
            for core_HW in _components(solid_HW):
                if core_HW.sum() >= min_area:
                    dilated_HW = ndimage.binary_dilation(core_HW, _EIGHT_CONNECTED, 2)
                    yield alpha_HW * np.logical_and(dilated_HW, core_HW | ~solid_HW), color, left, top


def _alpha(
    pixels_HW3: np.ndarray, part_HW: np.ndarray, color: np.ndarray, background: np.ndarray
) -> np.ndarray:
    """Alpha of each pixel as a mixture of background and color, with the contrast doubled around 0.5: [H, W].

    Zero for pixels that are no such mixture, and more than a pixel outside the part. The doubled contrast
    leaves the 0.5 contour in place, so that a blurred edge costs little IoU.
    """
    direction = color - background
    mix_HW = (pixels_HW3 - background) @ direction / max(float(direction @ direction), 1.0)
    error_HW = np.linalg.norm(pixels_HW3 - background - np.clip(mix_HW, 0, 1)[..., None] * direction, axis=-1)
    dilated_HW = ndimage.binary_dilation(part_HW, _EIGHT_CONNECTED, 1)
    return np.clip(2 * mix_HW - 0.5, 0, 1) * (dilated_HW & (error_HW < _MAX_MIXTURE_ERROR))


def _downsample(alpha_HW: np.ndarray) -> tuple[np.ndarray, int]:
    """The window averaged over square blocks to at most _MAX_WINDOW a side, and the side of a block."""
    factor = -(-max(alpha_HW.shape) // _MAX_WINDOW)
    if factor == 1:
        return alpha_HW, 1
    padded = np.pad(alpha_HW, [(0, -side % factor) for side in alpha_HW.shape])
    height, width = padded.shape
    return padded.reshape(height // factor, factor, width // factor, factor).mean((1, 3)), factor


def _classify(alpha_HW: np.ndarray, rgb: np.ndarray, left: int, top: int) -> Detection:
    """The detection for one segment; its box is the fitted shape's, or the segment's own if unknown."""
    small_HW, factor = _downsample(alpha_HW)
    score, label, place = fit(small_HW)[0]
    color = _nearest_color(rgb)
    if score < MIN_IOU or color == UNKNOWN:
        rows, columns = (np.flatnonzero((alpha_HW > 0.5).any(axis)) for axis in (1, 0))
        box = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
        return Detection(UNKNOWN, color, (float(box[0]), float(box[1]), float(box[2]), float(box[3])), score)
    x, y, size = place * factor
    w, h = EXTENTS[label]
    x, y, dx, dy = float(left + x), float(top + y), float(w * size / 2), float(h * size / 2)
    return Detection(label, color, (x - dx, y - dy, x + dx, y + dy), score)


def detect(picture: Image.Image | np.ndarray) -> list[Detection]:
    """All objects in an image (PIL, or uint8 [H, W, 3]), ordered by the row of their topmost pixels.

    Specks are ignored; segments without a known shape or color are
    labeled "unknown". Raises PictureError for anything but an image of at least 32 x 32 pixels.
    """
    pixels_HW3 = _pixels(picture)
    background = background_color(pixels_HW3)
    return [_classify(*segment) for segment in _segments(pixels_HW3, background)]


def to_geneval(detections: Sequence[Detection]) -> dict[str, Any]:
    """Detections of known shapes in the format of GenEval's scorer.

    {"boxes": {class: [[x0, y0, x1, y1, score], ...]}, "colors": {class: [name, ...]}}, in the same order.
    """
    boxes: dict[str, list[list[float]]] = {}
    colors: dict[str, list[str]] = {}
    for detection in detections:
        if detection.label != UNKNOWN:
            boxes.setdefault(detection.label, []).append([*detection.box, detection.score])
            colors.setdefault(detection.label, []).append(detection.color)
    return {"boxes": boxes, "colors": colors}
