"""Self-generated replay against forgetting: pictures that the model itself paints before training.

They are drawn from the model's own distribution, without guidance and at temperature 1. What is learned from
them is that distribution (Li and Hoiem 2017, "Learning without Forgetting", arXiv 1606.09282): the loss, its
divergence from what the model says now, is zero at first, and pulls the model back as it moves away.
"""

import os
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..blocks.errors import OptionError
from ..blocks.files import temporary_path
from ..janus.pipeline import JanusPipeline
from .examples import Examples
from .rows import PaintRow, read_text

PROMPTS_BYTES = 1 << 26
"""Largest file of prompts."""
AT_ONCE = 16
"""Pictures that are painted together."""


def read_prompts(path: Path) -> list[str]:
    """The prompts of a text file, one a line. Raises `OptionError`."""
    prompts = [line.strip() for line in read_text(path, PROMPTS_BYTES).splitlines() if line.strip()]
    if not prompts:
        raise OptionError(f"{path} holds no prompts; accepted: a text file with one a line")
    return prompts


def paint_replay(
    pipe: JanusPipeline,
    prompts: Sequence[str],
    count: int,
    seed: int,
    cache: Path,
    progress: Callable[[int], object] = lambda painted: None,
) -> Examples:
    """Paint `count` pictures, of the prompts in turn; those in the file `cache` are there already.

    `progress` is called with the number of pictures done since its last call.
    """
    asked = [prompts[number % len(prompts)] for number in range(count)]
    digest = sha256("\n".join([str(seed), *asked]).encode()).hexdigest()
    codes = _read(cache, digest)
    progress(len(codes))
    while len(codes) < count:
        part = asked[len(codes) : len(codes) + AT_ONCE]
        seeds = list(range(seed + len(codes), seed + len(codes) + len(part)))
        codes += pipe.generate(part, seed=seeds, guidance_scale=1.0, output_type="codes", progress=False)
        _write(cache, digest, codes)
        progress(len(part))
    rows = [PaintRow(f"replay {number + 1}", text, Path(f"{number}")) for number, text in enumerate(asked)]
    return Examples(
        pipe, rows, {row.picture: one for row, one in zip(rows, codes, strict=True)}, replayed=True
    )


def _read(path: Path, digest: str) -> list[Tensor]:
    try:
        with safe_open(path, "pt") as file:
            same = (file.metadata() or {}).get("digest") == digest
            return list(file.get_tensor("codes").long()) if same else []
    except (FileNotFoundError, SafetensorError):
        return []


def _write(path: Path, digest: str, codes: Sequence[Tensor]) -> None:
    with temporary_path(path) as temporary:
        save_file({"codes": torch.stack(list(codes)).int()}, temporary, {"digest": digest})
        os.replace(temporary, path)
