"""Pictures by captured steps on CUDA: those of the eager runner, and the same in any batch."""

import gc

import pytest
import torch
from bifrons.blocks.engine.generate import scheduler_of
from bifrons.blocks.engine.plain_runner import PlainRunner
from bifrons.blocks.graphs.graph_runner import GraphRunner
from bifrons.janus.pipeline import JanusPipeline
from torch import Tensor

from ..models import SHAPES_JANUS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
TEXTS = ["a red circle", "a photo of two blue squares and a green star", "x", "three stars", "a big circle"]
OPTIONS = [
    {"guidance_scale": 1.0, "temperature": 0.0},
    {"guidance_scale": 3.0},
    {"guidance_scale": 1.0, "temperature": 0.7, "top_p": 0.8},
    {"guidance_scale": 2.0, "top_k": 9, "top_p": 0.9},
]


def load(dtype: str, **options: bool) -> JanusPipeline:
    return JanusPipeline.from_pretrained(
        SHAPES_JANUS, "cuda", dtype, parts="paint", progress=False, **options
    )


def codes(pipe: JanusPipeline, texts: list[str], seeds: list[int], **options: float) -> Tensor:
    return pipe.generate(texts, 1, seeds, output_type="codes", **options)


@pytest.mark.parametrize("options", OPTIONS)
def test_float32_codes_are_those_of_the_eager_runner(options: dict[str, float]) -> None:
    captured, eager = load("float32"), load("float32", capture=False)
    found = [codes(pipe, TEXTS[:3], [1, 2, 3], **options) for pipe in (captured, eager)]
    assert isinstance(scheduler_of(captured.model.decoder).runner, GraphRunner)
    assert isinstance(scheduler_of(eager.model.decoder).runner, PlainRunner)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_picture_is_the_same_in_any_batch(dtype: str) -> None:
    pipe, seeds = load(dtype), list(range(5))
    together = codes(pipe, TEXTS, seeds)
    for size in (1, 2, 3):
        parts = [
            codes(pipe, TEXTS[start : start + size], seeds[start : start + size])
            for start in range(0, 5, size)
        ]
        assert torch.equal(torch.cat(parts), together), f"batches of {size}"


def test_graphs_and_cache_go_with_their_model() -> None:
    left = []
    for _ in range(2):  # the first time allocates what stays: cuBLAS workspaces
        pipe = load("bfloat16")
        pipe.generate("a red circle", seed=1)
        del pipe
        gc.collect()
        torch.cuda.synchronize()
        left.append(torch.cuda.memory_allocated())
    assert left[1] - left[0] < 1 << 20
