"""What many tests share: the parity checkpoint of Janus and the rule that makes its pictures."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from bifrons.apps.cli.main import main
from hypothesis import settings
from PIL import Image

# Triton's kernels run in its interpreter where there is no GPU; it reads this when it is imported.
os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")

# Shared machines are slow now and then: a time limit an example would make a test fail for no reason of ours.
settings.register_profile("bifrons", deadline=None, derandomize=True, database=None)
settings.load_profile("bifrons")


@pytest.fixture(scope="session")
def bitwise_products() -> bool:
    """Whether float32 products of a row don't depend on the number of rows; measured on AMD with AVX-512."""
    cpuinfo = Path("/proc/cpuinfo")
    amd = cpuinfo.exists() and "AuthenticAMD" in cpuinfo.read_text()
    return amd and torch.backends.cpu.get_cpu_capability() == "AVX512"


@pytest.fixture(scope="session")
def janus_mini() -> Path:
    """Folder of the small checkpoint in Janus-Pro's format, with the reference's figures."""
    return Path(__file__).parent / "data" / "janus-mini"


@pytest.fixture
def bifrons_main() -> Callable[..., int]:
    """`bifrons_main("info", folder)`: the status of one command."""

    def run(*argv: object) -> int:
        return main([str(word) for word in argv])

    return run


@pytest.fixture(scope="session")
def parity_picture() -> Callable[[int, int, int], Image.Image]:
    """`parity_picture(i, w, h)`: picture i, of w x h pixels, that the figures were made with."""

    def picture(i: int, w: int, h: int) -> Image.Image:
        yy, xx = np.mgrid[0:h, 0:w].astype(np.float64)
        r = 127 + 120 * np.sin(xx / (7 + i) + i)
        g = 127 + 120 * np.cos(yy / (5 + i))
        b = (3 * xx + 5 * yy + 40 * i) % 256
        a = np.stack([r, g, b], axis=-1)
        a[h // 4 : h // 2, w // 3 : w // 2] = (250, 20 * (i % 10), 5)
        return Image.fromarray(np.clip(a, 0, 255).astype(np.uint8))

    return picture
