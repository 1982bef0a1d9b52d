"""Warm-up: compiles kernels and captures graphs ahead, so that a first request is as fast as later ones."""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from PIL import Image

from ..blocks.chat.text_generation import text_head
from ..blocks.engine.scheduler import Scheduler
from ..blocks.graphs.cuda_graphs import uses_cuda_graphs
from ..blocks.graphs.graphed_module import BATCH_SIZES
from ..blocks.sampling.request import SamplingParams, TokenHead
from ..janus.image_generation import image_head
from .notes import is_quiet
from .pipelines import as_janus, as_text

if TYPE_CHECKING:
    from ..janus.pipeline import JanusPipeline
    from ..vl2.pipeline import VL2Pipeline
    from .pipelines import Pipeline

_LINE_SECONDS = 5.0
"""Time between two lines of progress where lines can't be rewritten."""


def warm_up(name: str, pipe: "Pipeline", scheduler: Scheduler) -> float | None:
    """Prepare what requests to a model and its scheduler will need; shows progress on stderr.

    Returns the seconds it took, or None where nothing is compiled or captured.
    """
    if not uses_cuda_graphs(pipe.model.decoder):
        return None
    progress, started = ProgressLine(f"{name}: warming up"), time.monotonic()
    towers = _towers(pipe)
    with torch.no_grad():
        for done, run in enumerate(towers, start=1):
            run()
            run()  # a part is captured on its second use
            progress(done, None)
    scheduler.warm_up(_heads(pipe), lambda done, total: progress(len(towers) + done, len(towers) + total))
    seconds = time.monotonic() - started
    progress.end(f"{name}: warm after {seconds:.1f} s")
    return seconds


def _heads(pipe: "Pipeline") -> list[tuple[TokenHead, SamplingParams]]:
    """The usual kinds of requests: greedy and sampled answers, guided pictures."""
    model = pipe.model
    text = text_head(model)
    heads = [(text, SamplingParams(0.0)), (text, SamplingParams(1.0))]
    if (janus := as_janus(pipe)) is not None:
        image = image_head(janus.model)
        heads.append((image, SamplingParams(guidance_scale=janus.guidance_scale)))
    return heads


def _towers(pipe: "Pipeline") -> list[Callable[[], object]]:
    """Calls of the vision encoder for all captured batches, of what prepares a question, and of the image
    decoder."""
    from ..vl2.model import VL2Model

    if as_text(pipe) is not None:
        return []
    pipe = cast("JanusPipeline | VL2Pipeline", pipe)
    device, dtype, side = pipe.device, pipe.dtype, pipe.model.config.vision.image_size
    janus = as_janus(pipe)
    encode = pipe.model.embed_tiles if isinstance(pipe.model, VL2Model) else pipe.model.embed_images
    calls: list[Callable[[], object]] = [
        partial(encode, torch.zeros(size, 3, side, side, device=device, dtype=dtype)) for size in BATCH_SIZES
    ]
    calls.append(partial(_embed_conversation, pipe))
    if janus is not None:
        from ..janus.image_generation import decode_images

        codes = torch.zeros(1, janus.model.config.num_codes, dtype=torch.long)
        calls.append(partial(decode_images, janus.model, codes))
    return calls


def _embed_conversation(pipe: "Pipeline") -> None:
    """Prepare and embed a question about a picture."""
    parts = [{"type": "image", "image": Image.new("RGB", (64, 64))}, {"type": "text", "text": "What is it?"}]
    inputs: Any = pipe.processor.chat_inputs([{"role": "user", "content": parts}])
    pipe.model.embed_prompts([inputs])


class ProgressLine:
    """Progress on stderr: a line that is rewritten on a terminal, a new line now and then elsewhere."""

    def __init__(self, label: str) -> None:
        self.label, self._shown = label, 0.0

    def __call__(self, done: int, total: int | None) -> None:
        """Show that `done` of `total` pieces of work are done; None where the total is not known yet."""
        if is_quiet():
            return
        text = f"{self.label}: {done} of {total}" if total is not None else f"{self.label}: {done}"
        if sys.stderr.isatty():
            print(f"\r{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._shown >= _LINE_SECONDS:
            print(text, file=sys.stderr, flush=True)
            self._shown = time.monotonic()

    def end(self, text: str) -> None:
        """Replace the line by a last one."""
        if is_quiet():
            return
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""
        print(f"{clear}{text}", file=sys.stderr, flush=True)


def kernel_cache() -> Path:
    """The folder in which Triton keeps compiled kernels."""
    default = Path.home() / ".triton" / "cache"
    return Path(os.environ.get("TRITON_CACHE_DIR") or default)
