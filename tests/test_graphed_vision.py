"""Vision towers of both families and the image tokenizer as captured graphs; on the CPU a replay runs the
captured work again."""

import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bifrons.blocks.chat import text_generation
from bifrons.blocks.graphs import graphed_module
from bifrons.blocks.graphs.graphed_module import graphed_module_of
from bifrons.janus.config import read_config as read_janus
from bifrons.janus.model import JanusModel
from bifrons.janus.pipeline import JanusPipeline
from bifrons.vl2.config import read_config as read_vl2
from bifrons.vl2.model import VL2Model
from bifrons.vl2.pipeline import VL2Pipeline
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=on_cuda)]
DATA = Path(__file__).parent / "data"
FAMILIES = {"janus-mini": JanusPipeline, "vl2-mini-mha": VL2Pipeline}


class HostFreeMode(TorchDispatchMode):
    """Fails on what cannot be captured: tensors on the CPU, and reading values from the device."""

    def __init__(self) -> None:
        super().__init__()
        self.launched = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
        assert all(x.device.type == "cuda" for x in tensors), f"{func} is given a tensor on the CPU"
        assert not any(word in str(func) for word in ("nonzero", "_local_scalar")), f"{func} waits"
        self.launched += 1
        return out


@pytest.fixture(scope="session")
def host_free_mode() -> type[HostFreeMode]:
    """A mode for fake GPUs that fails on what cannot be captured, and counts operations in `launched`."""
    return HostFreeMode


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=FAMILIES)
def pipe(
    request: pytest.FixtureRequest, device: str, warm_up_capturer, monkeypatch: pytest.MonkeyPatch
) -> JanusPipeline | VL2Pipeline:
    """A model in float32 whose tower is captured, on the CPU too."""
    name = request.param
    pipe = FAMILIES[name].from_pretrained(DATA / name, device, "float32", progress=False)
    if device == "cpu":
        monkeypatch.setattr(graphed_module, "uses_cuda_graphs", lambda decoder: decoder.capture is not False)
        graphed_module_of(pipe.model, pipe.device).capturer = warm_up_capturer()
    return pipe


def embed(model: Any, pixels: Tensor) -> Tensor:
    """Features of images, or of VL2's tiles."""
    return (model.embed_images if isinstance(model, JanusModel) else model.embed_tiles)(pixels)


def encode(model: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return embed(model, pixels)


def encode_eagerly(model: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model._encode_vision(pixels)


def random_pixels(model: Any, count: int, seed: int = 0) -> Tensor:
    side, generator = model.config.vision.image_size, torch.Generator().manual_seed(seed)
    return (2 * torch.rand(count, 3, side, side, generator=generator) - 1).to(model.decoder.device)


def assert_same(found: Tensor, expected: Tensor) -> None:
    if found.device.type == "cpu":
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected)


def captures_made(model: Any) -> int:
    return graphed_module_of(model, model.decoder.device).capturer.made


def test_captured_output_is_the_eager_one_and_the_callers_own(pipe: JanusPipeline | VL2Pipeline) -> None:
    model, outputs = pipe.model, []
    for seed in range(4):
        for count in (1, 3):
            outputs.append((count, seed, encode(model, random_pixels(model, count, seed))))
    assert captures_made(model) == 2
    for count, seed, found in outputs:  # after all runs: none wrote into an earlier output
        assert_same(found, encode_eagerly(model, random_pixels(model, count, seed)))


def test_moved_weights_are_captured_anew(pipe: JanusPipeline | VL2Pipeline) -> None:
    model = pipe.model
    for _ in range(3):
        encode(model, random_pixels(model, 1))
    weight = next(model.get_submodule(model.per_image_modules[1]).parameters())
    weight.data = -weight.data
    assert_same(encode(model, random_pixels(model, 1)), encode_eagerly(model, random_pixels(model, 1)))
    assert captures_made(model) == 2
    with torch.no_grad():
        weight.mul_(-2)  # in place: the graph reads the new values
    assert_same(encode(model, random_pixels(model, 1)), encode_eagerly(model, random_pixels(model, 1)))
    assert captures_made(model) == 2


def test_gradients_eager_mode_and_other_devices_are_not_captured(
    pipe: JanusPipeline | VL2Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pipe.model
    for _ in range(3):
        model.requires_grad_(True)
        assert embed(model, random_pixels(model, 1)).requires_grad
        model.requires_grad_(False)
    model.decoder.capture = False
    for _ in range(3):
        encode(model, random_pixels(model, 1))
    model.decoder.capture = None
    monkeypatch.undo()
    if pipe.device.type == "cpu":
        for _ in range(3):
            encode(model, random_pixels(model, 1))
    assert captures_made(model) == 0


def test_inference_mode_changes_nothing(pipe: JanusPipeline | VL2Pipeline) -> None:
    model = pipe.model
    for _ in range(2):
        with torch.inference_mode():
            for _ in range(2):
                assert_same(
                    encode(model, random_pixels(model, 2)), encode_eagerly(model, random_pixels(model, 2))
                )
        assert_same(encode(model, random_pixels(model, 2)), encode_eagerly(model, random_pixels(model, 2)))


def test_threads_get_the_output_of_their_own_images(pipe: JanusPipeline | VL2Pipeline) -> None:
    """While other threads capture and replay, beside one that answers."""
    model, wrong = pipe.model, []
    with torch.no_grad():
        expected = {s: encode_eagerly(model, random_pixels(model, 1 + s % 2, s)) for s in range(6)}
    image = Image.new("RGB", (80, 60), (200, 30, 30))
    answer = pipe.ask(image, "What is this?", 8)

    def work(seed: int) -> None:
        for _ in range(10):
            found = encode(model, random_pixels(model, 1 + seed % 2, seed))
            if not torch.allclose(found, expected[seed], rtol=1e-4, atol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    answers = {pipe.ask(image, "What is this?", 8) for _ in range(3)}
    for thread in threads:
        thread.join()
    assert not wrong
    assert answers == {answer}


def conversations(pipe: JanusPipeline | VL2Pipeline) -> list[Any]:
    """Of one, none, three and two images."""
    images = [Image.new("RGB", (90 - 9 * i, 40 + 20 * i), (60 * i, 90, 30)) for i in range(3)]
    return [pipe.question_messages(images[:count], "What is this?") for count in (1, 0, 3, 2)]


def test_conversations_are_embedded_together_as_alone(pipe: JanusPipeline | VL2Pipeline) -> None:
    together = pipe.prompts(conversations(pipe), 8)
    for messages, prompt in zip(conversations(pipe), together, strict=True):
        (alone,) = pipe.prompts([messages], 8)
        assert torch.equal(alone.ids, prompt.ids)
        assert_same(alone.embeddings_TD, prompt.embeddings_TD)
    assert pipe.prompts([], 8) == []


def test_one_pass_of_the_tower_embeds_all_conversations(pipe: JanusPipeline | VL2Pipeline) -> None:
    """As on CUDA: here the same but for rounding."""
    model, alone = pipe.model, pipe.prompts(conversations(pipe), 8)
    inputs = [pipe.processor.chat_inputs(messages) for messages in conversations(pipe)]
    with torch.no_grad():
        embed: Any = model.image_embeddings
        prompts = text_generation._embed_together(model, inputs, embed)
    assert [prompt.ids.tolist() for prompt in prompts] == [prompt.ids.tolist() for prompt in alone]
    for prompt, one in zip(prompts, alone, strict=True):
        torch.testing.assert_close(prompt.embeddings_TD, one.embeddings_TD)


@on_cuda
@pytest.mark.parametrize("name", FAMILIES)
def test_conversations_have_the_same_bits_alone_on_cuda(name: str) -> None:
    pipe = FAMILIES[name].from_pretrained(DATA / name, "cuda", "bfloat16", progress=False)
    for _ in range(3):  # eager, captured and replayed
        together = pipe.prompts(conversations(pipe), 8)
        for messages, prompt in zip(conversations(pipe), together, strict=True):
            assert torch.equal(pipe.prompts([messages], 8)[0].embeddings_TD, prompt.embeddings_TD)


def test_answers_about_images_are_the_same(pipe: JanusPipeline | VL2Pipeline) -> None:
    image = Image.new("RGB", (80, 60), (200, 30, 30))
    answers = [pipe.ask(image, "What is this?", 12) for _ in range(3)]
    assert captures_made(pipe.model) == 1
    pipe.model.decoder.capture = False
    assert set(answers) == {pipe.ask(image, "What is this?", 12)}


@pytest.mark.parametrize("pipe", ["janus-mini"], indirect=True)
def test_images_are_decoded_by_a_captured_graph(
    pipe: JanusPipeline, warm_up_capturer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is fused, one at a time; the image tokenizer has graphs of its own, beside the tower's."""
    model = pipe.model
    vq, grid, total = model.gen_vision_model, model.config.grid, model.config.num_codes
    codes = torch.randint(model.config.vq.codebook_size, (2, total), device=pipe.device)
    model.decode_codes(codes)
    assert not vq.uses_fused()  # in float32
    capturer = (
        warm_up_capturer() if pipe.device.type == "cpu" else graphed_module_of(vq, pipe.device).capturer
    )
    graphed_module_of(vq, pipe.device).capturer = capturer
    model.decode_codes(codes)
    assert capturer.made == 0
    book_NE = vq.quantize.vectors()
    monkeypatch.setattr(vq, "uses_fused", lambda: True)
    monkeypatch.setattr(vq, "_decode_fused", lambda x, grid: vq.decoder(vq._latents(book_NE[x], grid)))
    with torch.no_grad():
        for seed in range(3):
            assert_same(model.decode_codes(codes.roll(seed, 1)), vq.decode(codes.roll(seed, 1), grid))
            encode(model, random_pixels(model, 1))
        model.decode_codes(codes.repeat(2, 1))
    assert capturer.made == 1
    assert captures_made(model) == 1
    images = pipe.decode_codes(codes)
    monkeypatch.undo()
    for one, other in zip(images, pipe.decode_codes(codes), strict=True):
        difference = torch.tensor(np.asarray(one, dtype=int) - np.asarray(other, dtype=int))
        assert difference.abs().max() <= 1


@on_cuda
def test_graphs_go_with_their_model() -> None:
    pipe = VL2Pipeline.from_pretrained(DATA / "vl2-mini-mha", "cuda", progress=False)
    pixels = random_pixels(pipe.model, 2).to(pipe.dtype)
    for _ in range(2):
        encode(pipe.model, pixels)
    assert captures_made(pipe.model) == 1
    model_ref = weakref.ref(pipe.model)
    del pipe
    gc.collect()
    assert model_ref() is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["janus-mini", "vl2-mini-mha", "vl2-mini-mla", "vl2-mini-noaux"])
def test_the_tower_never_waits_for_the_device(
    name: str, dtype: torch.dtype, on_fake_gpu: Callable[..., FakeTensorMode], host_free_mode: Any
) -> None:
    with torch.device("meta"):
        janus = name.startswith("janus")
        model = JanusModel(read_janus(DATA / name)[0]) if janus else VL2Model(read_vl2(DATA / name))
    side = model.config.vision.image_size
    with on_fake_gpu(model, dtype), torch.no_grad(), host_free_mode() as watched:
        model._encode_vision(torch.empty(5, 3, side, side, device="cuda", dtype=dtype))
    assert watched.launched
