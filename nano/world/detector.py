"""The exact detector: finds and names the small world's shapes in a picture, from its pixels alone.

Background from the border, foreground by colour distance, pieces by connectivity and colour, and for each
piece the shape whose rendering, fitted in place and size, overlaps it best. A piece that no shape fits, or
whose colour is none of the palette's, is reported as "unknown".

Shape suffixes: H height, W width, N candidates; 3 is red, green, blue, or x, y, size in pixels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage

from ...blocks.errors import PictureError
from .renderer import coverage
from .scene import COLORS, Box
from .shapes import EXTENTS, OUTLINES, SHAPES

UNKNOWN = "unknown"
MIN_IOU = 0.88
"""A piece that fits no shape this well is no shape. In a study at 128 pixels, rendered shapes fit at 0.97 and
better; blurred by 1 pixel and compressed as JPEG at quality 60, at 0.86 and better, all but three in a
thousand above 0.9; shapes that lost a quarter or a half of their area at 0.78 and 0.67 (medians); shapes
turned by 15 degrees at 0.84 or less (but a turned hexagon passes for a circle), and those stretched by
1.35 : 1 at 0.86 or less."""

_FOREGROUND = 34.0  # RGB distance from the background: far above noise, below half of any object's
_NEAR_COLOR = 60.0  # RGB distance to the palette; the palette's closest colours are 99 apart
_COLOR_RATIO = 0.75  # the nearest colour must be this much nearer than the second
_OFF_LINE = 70.0  # a pixel this far from every mixture of background and colour is something else
_FLAT = 40.0  # range within 3 x 3 pixels, below which a pixel belongs to an even surface
_SPECK = 0.002  # pieces below this share of the shorter side squared are ignored (a 23-pixel star: 0.008)
_SEED = 0.08  # an even surface of a second colour counts if it is this share of its component
_SOFTNESS = (0.0, 0.5, 1.0, 1.5, 2.0)  # blurs of a rendering, in pixels, of which the best is taken
_RIVAL = 0.15  # a second shape is fitted too if it starts this near to the first
_WINDOW = 80  # larger windows are averaged down before fitting
_EIGHT = np.ones((3, 3), dtype=bool)
_NAMES = tuple(COLORS)
_PALETTE = np.array(list(COLORS.values()), dtype=np.float32)


@dataclass(frozen=True)
class Detection:
    """One thing: shape or "unknown", colour name or "unknown", box in pixels, best overlap in [0, 1]."""

    label: str
    color: str
    box: Box
    score: float


def _pixels(picture: Image.Image | np.ndarray) -> np.ndarray:
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
    """The commonest colour along the border: float32 [3]."""
    rim = max(1, min(pixels_HW3.shape[:2]) // 48)
    inner = np.zeros(pixels_HW3.shape[:2], dtype=bool)
    inner[rim:-rim, rim:-rim] = True
    border = pixels_HW3[~inner]
    bins, counts = np.unique(border.astype(np.int32) // 20, axis=0, return_counts=True)
    guess = bins[counts.argmax()] * 20 + 10
    near = border[np.linalg.norm(border - guess, axis=1) < 30]
    return np.median(near, axis=0)


def _nearest_color(rgb: np.ndarray) -> str:
    distances = np.linalg.norm(_PALETTE - rgb, axis=1)
    first, second = np.argsort(distances)[:2]
    clear = distances[first] <= min(_NEAR_COLOR, _COLOR_RATIO * distances[second])
    return _NAMES[first] if clear else UNKNOWN


def _interior_color(pixels_HW3: np.ndarray, mask_HW: np.ndarray) -> np.ndarray:
    depth = np.zeros(np.add(mask_HW.shape, 2))
    ndimage.distance_transform_edt(np.pad(mask_HW, 1), distances=depth)
    depth = depth[1:-1, 1:-1]
    return np.median(pixels_HW3[depth >= min(3.0, 0.6 * depth.max())], axis=0)


def _label(mask_HW: np.ndarray) -> np.ndarray:
    """Numbers from 1 for each connected part (diagonals connect), 0 elsewhere: int32 [H, W]."""
    labels = np.zeros(mask_HW.shape, dtype=np.int32)
    ndimage.label(mask_HW, _EIGHT, output=labels)
    return labels


def _islands(mask_HW: np.ndarray) -> list[np.ndarray]:
    labels = _label(mask_HW)
    return [labels == i for i in range(1, int(labels.max()) + 1)]


def _split_by_color(pixels_HW3: np.ndarray, component_HW: np.ndarray, speck: float) -> list[np.ndarray]:
    """A connected component as one mask per even surface of one palette colour (touching things)."""
    spread = ndimage.maximum_filter(pixels_HW3, (3, 3, 1)) - ndimage.minimum_filter(pixels_HW3, (3, 3, 1))
    distances_HWN = np.linalg.norm(pixels_HW3[:, :, None] - _PALETTE, axis=-1)
    nearest_HW = distances_HWN.argmin(-1)
    even_HW = component_HW & (spread.max(-1) < _FLAT) & (distances_HWN.min(-1) < _NEAR_COLOR)
    least = max(speck / 2, _SEED * component_HW.sum())
    seeds = []
    for color in np.unique(nearest_HW[even_HW]):
        islands = _islands(even_HW & (nearest_HW == color))
        seeds += [(color, island) for island in islands if island.sum() >= least]
    if len({color for color, _ in seeds}) < 2:
        return [component_HW]
    colors = sorted({color for color, _ in seeds})
    owner_HW = np.array(colors)[distances_HWN[:, :, colors].argmin(-1)]
    parts = []
    for color in colors:
        seed_HW = np.any([seed for c, seed in seeds if c == color], axis=0)
        parts += [part for part in _islands(component_HW & (owner_HW == color)) if np.any(part & seed_HW)]
    return parts


def _pieces(
    pixels_HW3: np.ndarray, background: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, int, int]]:
    """For each thing: (opacity [H, W] in [0, 1] in a window, its colour [3], the window's x and y)."""
    speck = _SPECK * min(pixels_HW3.shape[:2]) ** 2
    foreground_HW = np.linalg.norm(pixels_HW3 - background, axis=-1) > _FOREGROUND
    labels = _label(foreground_HW)
    for index, where in enumerate(ndimage.find_objects(labels), 1):
        y, x = (max(0, part.start - 4) for part in where)
        window = (slice(y, where[0].stop + 4), slice(x, where[1].stop + 4))
        component_HW = labels[window] == index
        if component_HW.sum() < speck:
            continue
        crop_HW3 = pixels_HW3[window]
        for part_HW in _split_by_color(crop_HW3, component_HW, speck):
            color = _interior_color(crop_HW3, part_HW)
            opacity_HW = _opacity(crop_HW3, part_HW, color, background)
            solid_HW = opacity_HW > 0.5
            for island_HW in _islands(solid_HW):
                if island_HW.sum() >= speck:
                    near_HW = np.logical_and(
                        ndimage.binary_dilation(island_HW, _EIGHT, 2), island_HW | ~solid_HW
                    )
                    yield opacity_HW * near_HW, color, x, y


def _opacity(
    pixels_HW3: np.ndarray, part_HW: np.ndarray, color: np.ndarray, background: np.ndarray
) -> np.ndarray:
    """How far each pixel is on the way from the background to the colour, with the ramp made twice as steep.

    Zero off the line between the two, and away from the part. The steeper ramp keeps the half-way contour
    where it is, so that a soft edge costs little overlap.
    """
    way = color - background
    along_HW = (pixels_HW3 - background) @ way / max(float(way @ way), 1.0)
    off_HW = np.linalg.norm(pixels_HW3 - background - np.clip(along_HW, 0, 1)[..., None] * way, axis=-1)
    reach_HW = ndimage.binary_dilation(part_HW, _EIGHT, 1)
    return np.clip(2 * along_HW - 0.5, 0, 1) * (reach_HW & (off_HW < _OFF_LINE))


@lru_cache(maxsize=1)
def _moments() -> np.ndarray:
    """Area and centroid (x, y) of each shape at size 1, from its outline: float64 [8, 3] (shoelace)."""
    rows = []
    for name in SHAPES:
        a = np.array(OUTLINES[name])
        b = np.roll(a, -1, axis=0)
        cross = a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]
        area = cross.sum() / 2
        centroid = ((a + b) * cross[:, None]).sum(0) / (6 * area)
        rows.append((abs(area), *centroid))
    return np.array(rows)


def _soften(drawn_NHW: torch.Tensor, sigma: float) -> torch.Tensor:
    """A Gaussian blur; `sigma` in pixels, 0 for none."""
    if sigma == 0:
        return drawn_NHW
    reach = int(3 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    rows = F.conv2d(drawn_NHW[:, None], kernel[:, :, None], padding=(0, reach))
    return F.conv2d(rows, kernel[..., None], padding=(reach, 0))[:, 0]


def _overlaps(
    opacity_HW: torch.Tensor, shapes_N: np.ndarray, places_N3: np.ndarray, sigma: float
) -> np.ndarray:
    """Soft intersection over union of each candidate's rendering, softened, with the opacity: [N]."""
    height, width = opacity_HW.shape
    places = torch.from_numpy(places_N3.astype(np.float32))
    drawn_NHW = _soften(coverage(torch.from_numpy(shapes_N), places, height, width, 1), sigma)
    drawn_NHW = (2 * drawn_NHW - 0.5).clamp(0, 1)
    union = torch.maximum(drawn_NHW, opacity_HW).sum((1, 2))
    return (torch.minimum(drawn_NHW, opacity_HW).sum((1, 2)) / union).numpy()


_STEPS = np.concatenate((np.zeros((1, 3)), np.diag((1.0, 1.0, 2.0)), -np.diag((1.0, 1.0, 2.0))))


def _climb(
    opacity: torch.Tensor, shape: int, place: np.ndarray, sigma: float, steps: Sequence[float]
) -> tuple[float, np.ndarray]:
    """Move and scale one candidate to a better overlap, one look at its six neighbours for each step size."""
    best = 0.0
    for step in steps:
        tried = place + step * _STEPS
        tried[:, 2] = np.maximum(tried[:, 2], 1.0)
        overlaps = _overlaps(opacity, np.full(len(tried), shape), tried, sigma)
        best, place = float(overlaps.max()), tried[overlaps.argmax()]
    return best, place


def fit(opacity_HW: np.ndarray) -> list[tuple[float, str, np.ndarray]]:
    """The best-fitting shapes, best first: (overlap, shape, (x, y, size) in pixels of the window).

    Each shape starts with the piece's area and centroid and the softness that suits it best; the best and
    a near rival are then moved and scaled.
    """
    ys, xs = np.mgrid[: opacity_HW.shape[0], : opacity_HW.shape[1]]
    total = opacity_HW.sum()
    centroid = np.array([(xs * opacity_HW).sum() / total + 0.5, (ys * opacity_HW).sum() / total + 0.5])
    moments = _moments()
    sizes = np.sqrt(total / moments[:, 0])
    places = np.concatenate((centroid - moments[:, 1:] * sizes[:, None], sizes[:, None]), axis=1)
    opacity = torch.from_numpy(opacity_HW.astype(np.float32))
    starts = np.stack([_overlaps(opacity, np.arange(len(SHAPES)), places, sigma) for sigma in _SOFTNESS])
    scores = starts.max(0)
    found = []
    first, second = np.argsort(-scores)[:2]
    for index in (first, second) if scores[second] > scores[first] - _RIVAL else (first,):
        place, sigma = places[index], _SOFTNESS[starts[:, index].argmax()]
        _, place = _climb(opacity, index, place, sigma, (1.0, 0.5, 0.5))
        # With the place about right, the softness is judged again.
        softer = [_overlaps(opacity, np.array([index]), place[None], s)[0] for s in _SOFTNESS]
        best, place = _climb(opacity, index, place, _SOFTNESS[int(np.argmax(softer))], (0.5, 0.5, 0.25))
        found.append((best, SHAPES[index], place))
    return sorted(found, key=lambda row: -row[0])


def _shrink(opacity_HW: np.ndarray) -> tuple[np.ndarray, int]:
    """The window averaged down by a whole factor until its longer side is at most _WINDOW, and the factor."""
    factor = -(-max(opacity_HW.shape) // _WINDOW)
    if factor == 1:
        return opacity_HW, 1
    padded = np.pad(opacity_HW, [(0, -side % factor) for side in opacity_HW.shape])
    height, width = padded.shape
    return padded.reshape(height // factor, factor, width // factor, factor).mean((1, 3)), factor


def _name(opacity_HW: np.ndarray, rgb: np.ndarray, left: int, top: int) -> Detection:
    small_HW, factor = _shrink(opacity_HW)
    score, label, place = fit(small_HW)[0]
    color = _nearest_color(rgb)
    if score < MIN_IOU or color == UNKNOWN:
        rows, columns = (np.flatnonzero((opacity_HW > 0.5).any(axis)) for axis in (1, 0))
        box = (left + columns[0], top + rows[0], left + columns[-1] + 1, top + rows[-1] + 1)
        return Detection(UNKNOWN, color, (float(box[0]), float(box[1]), float(box[2]), float(box[3])), score)
    x, y, size = place * factor
    w, h = EXTENTS[label]
    x, y, dx, dy = float(left + x), float(top + y), float(w * size / 2), float(h * size / 2)
    return Detection(label, color, (x - dx, y - dy, x + dx, y + dy), score)


def detect(picture: Image.Image | np.ndarray) -> list[Detection]:
    """All things in a picture (PIL, or uint8 [H, W, 3]), from top to bottom of their first pixels.

    Pieces too small to be meant are left out; pieces that are no shape of the world, or have none of its
    colours, are labelled "unknown". Raises PictureError for anything but a picture of 32 x 32 or more.
    """
    pixels_HW3 = _pixels(picture)
    background = background_color(pixels_HW3)
    return [_name(*piece) for piece in _pieces(pixels_HW3, background)]


def to_geneval(detections: Sequence[Detection]) -> dict[str, Any]:
    """Detections as GenEval's scorer takes them, without the unknown ones.

    {"boxes": {class: [[x0, y0, x1, y1, score], ...]}, "colors": {class: [name, ...]}}, in the same order.
    """
    boxes: dict[str, list[list[float]]] = {}
    colors: dict[str, list[str]] = {}
    for found in detections:
        if found.label != UNKNOWN:
            boxes.setdefault(found.label, []).append([*found.box, found.score])
            colors.setdefault(found.label, []).append(found.color)
    return {"boxes": boxes, "colors": colors}
