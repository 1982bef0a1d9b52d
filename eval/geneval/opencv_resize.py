"""Bilinear resizing of 8-bit pictures as OpenCV does it, to the last bit.

The official detector's pictures went through OpenCV's `resize` with `INTER_LINEAR`, which works in whole
numbers: weights of 1/2048, columns first, two truncating shifts, no smoothing when shrinking. The
arithmetic here is its, and equals OpenCV 4.8 and 5.0 in every byte that was compared.

Shape suffixes: H height, W width, C channels of the result.
"""

import numpy as np

from ...blocks.errors import PictureError

_ONE = 2048  # a weight of 1


def resize_linear(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [h, w, C] -> uint8 [height, width, C]. Raises PictureError for other arrays or empty sizes."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or 0 in pixels.shape:
        raise PictureError(f"a picture is uint8 [H, W, C], not {pixels.dtype} {list(pixels.shape)}")
    if height < 1 or width < 1:
        raise PictureError(f"can't resize to {width} x {height} pixels; accepted: 1 x 1 or more")
    if pixels.shape[:2] == (2 * height, 2 * width):  # OpenCV takes its means of four for exact halves
        four = pixels.reshape(height, 2, width, 2, -1).astype(np.int32).sum((1, 3))
        return ((four + 2) >> 2).astype(np.uint8)
    top, low, top_weight, low_weight = _taps(pixels.shape[0], height, keep_weights=True)
    left, right, left_weight, right_weight = _taps(pixels.shape[1], width, keep_weights=False)
    wide = pixels.astype(np.int32)
    rows = wide[:, left] * left_weight[:, None] + wide[:, right] * right_weight[:, None]
    rows >>= 4
    weighted = (rows[top] * top_weight[:, None, None] >> 16) + (rows[low] * low_weight[:, None, None] >> 16)
    return np.clip((weighted + 2) >> 2, 0, 255).astype(np.uint8)


def _taps(old: int, new: int, keep_weights: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each new place the two old ones and their weights in 1/2048, all int32 [new].

    Beyond the border both places are the border's. Along columns OpenCV then gives all the weight to one;
    along rows it keeps both weights (`keep_weights`), and the truncation of the two products shows.
    """
    scale = 1.0 / (new / old)
    at = ((np.arange(new) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(at).astype(np.int32)
    part = at - first.astype(np.float32)
    if not keep_weights:
        part[(first < 0) | (first >= old - 1)] = 0
    weights = [np.rint(share * np.float32(_ONE)).astype(np.int32) for share in (np.float32(1) - part, part)]
    return np.clip(first, 0, old - 1), np.clip(first + 1, 0, old - 1), weights[0], weights[1]
