"""The official detector's preprocessing and post-processing, against OpenCV and a slow reference."""

import hashlib

import numpy as np
import pytest
import torch
from bifrons.eval.geneval.mask2former import postprocess, preprocess
from PIL import Image

cv2 = pytest.importorskip("cv2")


OPENCV = {
    (48, 62): "b024ad0c14e4a3bb",
    (50, 65): "546d29efbc512975",
    (12, 15): "19d4d970b6605978",
    (17, 31): "f18e49993412266e",
    (12, 16): "9fd9e54392cf79ce",
    (800, 1033): "061fa48ee3a5b83a",
}
"""The first 16 digits of the sha256 of what OpenCV 4.8 and 5.0 make of `pattern`, with INTER_LINEAR."""
EVEN_HALF = "e3a0e36a32d208d7"
"""The same for the first 30 columns at exactly half the size, (12, 15), which OpenCV averages."""


@pytest.fixture
def pattern() -> np.ndarray:
    """uint8 [24, 31, 3]"""
    y, x = np.mgrid[0:24, 0:31]
    channels = [(y * 37 + x * 11) % 256, (y * y * 5 + x * 3) % 256, (x * x * 7 + y) % 256]
    return np.stack(channels, -1).astype(np.uint8)


def digest(pixels: np.ndarray) -> str:
    return hashlib.sha256(pixels.tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("size", OPENCV)
def test_the_installed_opencv_resizes_as_the_official_one(pattern, size):
    resized = cv2.resize(pattern, size[::-1], interpolation=cv2.INTER_LINEAR)
    assert resized.shape == (*size, 3)
    assert digest(resized) == OPENCV[size]
    half = cv2.resize(np.ascontiguousarray(pattern[:, :30]), (15, 12), interpolation=cv2.INTER_LINEAR)
    assert digest(half) == EVEN_HALF


@pytest.mark.parametrize(
    ("columns", "short_side", "size", "expected"),
    [
        (31, 800, (800, 1033), OPENCV[800, 1033]),
        (31, 48, (48, 62), OPENCV[48, 62]),
        (31, 12, (12, 16), OPENCV[12, 16]),
        (30, 12, (12, 15), EVEN_HALF),
    ],
)
def test_preprocessing_resizes_as_opencv(pattern, columns, short_side, size, expected):
    """The network's input, with the normalisation undone."""
    inputs = preprocess(Image.fromarray(pattern[:, :columns]), short_side=short_side)
    assert inputs.resized == size
    normal = inputs.pixels[0, :, : size[0], : size[1]].permute(1, 2, 0).double().numpy()
    pixels = normal * np.array((58.395, 57.12, 57.375)) + np.array((123.675, 116.28, 103.53))
    assert digest(np.rint(pixels).astype(np.uint8)) == expected


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((384, 384), (800, 800), (800, 800)),
        ((1024, 768), (800, 1067), (800, 1088)),
        ((300, 900), (1333, 444), (1344, 448)),
        ((1600, 1600), (800, 800), (800, 800)),
    ],
)
def test_preparation(size, resized, padded):
    picture = Image.new("RGB", size, (255, 0, 128))
    prepared = preprocess(picture)
    assert prepared.resized == resized
    assert prepared.pixels.shape == (1, 3, *padded)
    inside = prepared.pixels[0, :, : resized[0], : resized[1]]
    expected = (torch.tensor([255, 0, 128.0]) - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor(
        [58.395, 57.12, 57.375]
    )
    torch.testing.assert_close(inside, expected[:, None, None].expand_as(inside))


@pytest.mark.parametrize("size", [(64, 64), (100, 70), (31, 200), (9, 100)])
def test_preparation_is_that_of_mmdet_bit_for_bit(size):
    """Its steps on OpenCV: BGR, resize, pad with 128, float32, RGB, subtract and multiply by a scalar."""
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    prepared = preprocess(Image.fromarray(pixels)).pixels[0].permute(1, 2, 0).numpy()
    scale = min(1333 / max(size), 800 / min(size))
    resized = int(width * scale + 0.5), int(height * scale + 0.5)
    image = cv2.resize(np.ascontiguousarray(pixels[:, :, ::-1]), resized, interpolation=cv2.INTER_LINEAR)
    grey, corner = (128, 128, 128), (0, -resized[1] % 32, 0, -resized[0] % 32)
    image = cv2.copyMakeBorder(image, *corner, cv2.BORDER_CONSTANT, value=grey).astype(np.float32)
    mean, std = (
        np.float64(np.array(values, np.float32).reshape(1, -1))
        for values in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375])
    )
    cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
    cv2.subtract(image, mean, image)
    cv2.multiply(image, 1 / std, image)
    assert np.array_equal(prepared, image)
    if size != (64, 64):
        assert prepared[-1, -1] == pytest.approx([0.0741, 0.2052, 0.4265], abs=1e-4)


def bilinear(grid, height, width):
    """Plain bilinear enlargement at pixel centres, float64, written as a loop."""
    rows, columns = grid.shape
    out = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            y = min(max((i + 0.5) * rows / height - 0.5, 0), rows - 1)
            x = min(max((j + 0.5) * columns / width - 0.5, 0), columns - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, rows - 1), min(x0 + 1, columns - 1)
            top = grid[y0, x0] * (1 - (x - x0)) + grid[y0, x1] * (x - x0)
            low = grid[y1, x0] * (1 - (x - x0)) + grid[y1, x1] * (x - x0)
            out[i, j] = top * (1 - (y - y0)) + low * (y - y0)
    return out


def test_post_processing_against_a_slow_reference():
    rng = np.random.default_rng(7)
    queries, kinds = 9, 14  # 126 pairs: the 100 best are a real choice
    logits = rng.normal(0, 2, (queries, kinds + 1)).astype(np.float32)
    masks = rng.normal(0, 3, (queries, 8, 12)).astype(np.float32)
    masks[4] = -5  # an empty mask
    padded, resized, size = (32, 48), (28, 41), (21, 30)
    got = postprocess(torch.from_numpy(logits), torch.from_numpy(masks), padded, resized, size)

    expected = []
    for query in range(queries):
        grid = bilinear(bilinear(masks[query], *padded)[: resized[0], : resized[1]], *size)
        on = grid > 0
        sure = (1 / (1 + np.exp(-grid[on]))).sum() / (on.sum() + 1e-6)
        ys, xs = np.nonzero(on)
        box = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1] if on.any() else [0, 0, 0, 0]
        exps = np.exp(logits[query].astype(float))
        for kind in range(kinds):
            expected.append((exps[kind] / exps.sum(), kind, sure, box, on))
    expected = sorted(expected, key=lambda row: -row[0])[:100]

    pairs = sorted(range(100), key=lambda i: (got.labels[i], got.scores[i], *got.boxes[i]))
    wanted = sorted(expected, key=lambda row: (row[1], row[0] * row[2], *row[3]))
    for i, (probability, kind, sure, box, on) in zip(pairs, wanted, strict=True):
        assert got.labels[i] == kind
        assert got.scores[i] == pytest.approx(probability * sure, rel=1e-4, abs=1e-9)
        assert got.boxes[i].tolist() == box
        assert np.array_equal(got.masks[i], on)
