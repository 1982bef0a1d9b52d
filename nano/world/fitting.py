"""Which shape, at which place and size, a segment of a picture fits best: the detector's second half.

Shape suffixes: H height, W width, N candidates; 3 is x, y, size in pixels.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

from .renderer import coverage
from .shapes import OUTLINES, SHAPES

_SIGMAS = (0.0, 0.5, 1.0, 1.5, 2.0)  # Gaussian blurs of a rendering to try, in pixels
_RUNNER_UP = 0.15  # the second best shape is refined too if its initial IoU is this close to the best


@lru_cache(maxsize=1)
def _moments() -> np.ndarray:
    """Area and centroid (x, y) of each shape at size 1, by the shoelace formula: float64 [len(SHAPES), 3]."""
    rows = []
    for name in SHAPES:
        a = np.array(OUTLINES[name])
        b = np.roll(a, -1, axis=0)
        cross = a[:, 0] * b[:, 1] - b[:, 0] * a[:, 1]
        area = cross.sum() / 2
        centroid = ((a + b) * cross[:, None]).sum(0) / (6 * area)
        rows.append((abs(area), *centroid))
    return np.array(rows)


def _blur(images_NHW: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur; `sigma` in pixels, 0 for none."""
    if sigma == 0:
        return images_NHW
    radius = int(3 * sigma + 0.5)
    kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2)
    kernel = (kernel / kernel.sum())[None, None]
    rows = F.conv2d(images_NHW[:, None], kernel[:, :, None], padding=(0, radius))
    return F.conv2d(rows, kernel[..., None], padding=(radius, 0))[:, 0]


def _soft_ious(
    alpha_HW: torch.Tensor,
    shapes_N: np.ndarray,
    places_N3: np.ndarray,
    sigma: float,
) -> np.ndarray:
    """Soft IoU of the alpha matte with each candidate's rendering, blurred and with doubled contrast: [N].

    `shapes_N` holds indices into SHAPES."""
    height, width = alpha_HW.shape
    places = torch.from_numpy(places_N3.astype(np.float32))
    rendered_NHW = _blur(coverage(torch.from_numpy(shapes_N), places, height, width, 1), sigma)
    rendered_NHW = (2 * rendered_NHW - 0.5).clamp(0, 1)
    union = torch.maximum(rendered_NHW, alpha_HW).sum((1, 2))
    return (torch.minimum(rendered_NHW, alpha_HW).sum((1, 2)) / union).numpy()


_DIRECTIONS = np.concatenate((np.zeros((1, 3)), np.diag((1.0, 1.0, 2.0)), -np.diag((1.0, 1.0, 2.0))))


def _hill_climb(
    alpha: torch.Tensor,
    shape: int,
    place: np.ndarray,
    sigma: float,
    steps: Sequence[float],
) -> tuple[float, np.ndarray]:
    """Refine (x, y, size) of one candidate: one move to the best neighbor for each step size, in pixels."""
    best = 0.0
    for step in steps:
        neighbors = place + step * _DIRECTIONS
        neighbors[:, 2] = np.maximum(neighbors[:, 2], 1.0)
        ious = _soft_ious(alpha, np.full(len(neighbors), shape), neighbors, sigma)
        best, place = float(ious.max()), neighbors[ious.argmax()]
    return best, place


def fit(alpha_HW: np.ndarray) -> list[tuple[float, str, np.ndarray]]:
    """Best-fitting shapes for an alpha matte, best first: (IoU, shape, (x, y, size) in the window's pixels).

    Each shape starts at the segment's area and centroid, with the blur that fits best. The best shape, and
    the second if it is close, are refined by hill climbing.
    """
    ys, xs = np.mgrid[: alpha_HW.shape[0], : alpha_HW.shape[1]]
    area = alpha_HW.sum()
    centroid = np.array([(xs * alpha_HW).sum() / area + 0.5, (ys * alpha_HW).sum() / area + 0.5])
    moments = _moments()
    sizes = np.sqrt(area / moments[:, 0])
    places = np.concatenate((centroid - moments[:, 1:] * sizes[:, None], sizes[:, None]), axis=1)
    alpha = torch.from_numpy(alpha_HW.astype(np.float32))
    every = np.arange(len(SHAPES))
    initial = np.stack([_soft_ious(alpha, every, places, sigma) for sigma in _SIGMAS])
    scores = initial.max(0)
    fits = []
    first, second = np.argsort(-scores)[:2]
    for index in (first, second) if scores[second] > scores[first] - _RUNNER_UP else (first,):
        place, sigma = places[index], _SIGMAS[initial[:, index].argmax()]
        _, place = _hill_climb(alpha, index, place, sigma, (1.0, 0.5, 0.5))
        # Choose the blur again at the improved position.
        by_sigma = [_soft_ious(alpha, np.array([index]), place[None], s)[0] for s in _SIGMAS]
        sigma = _SIGMAS[int(np.argmax(by_sigma))]
        best, place = _hill_climb(alpha, index, place, sigma, (0.5, 0.5, 0.25))
        fits.append((best, SHAPES[index], place))
    return sorted(fits, key=lambda row: -row[0])
