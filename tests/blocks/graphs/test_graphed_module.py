"""Vision towers by recordings, on CUDA by graphs, on the CPU by the work itself."""

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bifrons.blocks.graphs import graphed_module
from bifrons.blocks.graphs.cuda_graphs import GraphCapturer, Work
from bifrons.blocks.graphs.graphed_module import graphed_module_of
from bifrons.janus.pipeline import JanusPipeline
from bifrons.vl2.pipeline import VL2Pipeline
from PIL import Image
from torch import Tensor

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=on_cuda)]
FOLDER = Path(__file__).parent.parent.parent / "data"


class Twice(GraphCapturer):
    """Runs the work while it is recorded, as graphs' capturer does to warm up."""

    def __call__(self, work: Work) -> Work:
        work()
        return super().__call__(work)


@pytest.fixture(params=["janus-mini", "vl2-mini-mha"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=DEVICES)
def pipe(request: pytest.FixtureRequest, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model in float32 whose tower is recorded, on the CPU too."""
    family = JanusPipeline if name.startswith("janus") else VL2Pipeline
    pipe = family.from_pretrained(FOLDER / name, request.param, "float32", progress=False)
    if request.param == "cpu":
        monkeypatch.setattr(graphed_module, "uses_cuda_graphs", lambda decoder: decoder.capture is not False)
        graphed_module_of(pipe.model, pipe.device).capturer = Twice()
    return pipe


def see(model: Any, pixels: Tensor) -> Tensor:
    """Through the plain signature."""
    with torch.no_grad():
        return getattr(model, "embed_tiles", model.embed_images)(pixels)


def see_plainly(model: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model._encode_vision(pixels)


def pictures(model: Any, count: int, seed: int = 0) -> Tensor:
    side, numbers = model.config.vision.image_size, torch.Generator().manual_seed(seed)
    return (2 * torch.rand(count, 3, side, side, generator=numbers) - 1).to(model.decoder.device)


def close(found: Tensor, wanted: Tensor) -> None:
    if found.device.type == "cpu":
        assert torch.equal(found, wanted)
    torch.testing.assert_close(found, wanted)


def kept(model: Any) -> list[int]:
    """Inputs of the batches that there are recordings for, those used last at the end."""
    return graphed_module_of(model, model.decoder.device).captured_batches


def made(model: Any) -> int:
    return graphed_module_of(model, model.decoder.device).capturer.made


def test_recorded_is_plain_and_the_callers_own(pipe: Any) -> None:
    model, held = pipe.model, []
    for seed in range(4):
        for count in (1, 3):
            held.append((count, seed, see(model, pictures(model, count, seed))))
    assert made(model) == 2
    for count, seed, found in held:  # after all runs: none wrote into what an earlier one gave back
        close(found, see_plainly(model, pictures(model, count, seed)))


def test_a_count_that_comes_once_is_not_recorded(pipe: Any) -> None:
    model = pipe.model
    for count in (1, 2, 3, 4):
        see(model, pictures(model, count))
    assert kept(model) == []
    see(model, pictures(model, 2))
    assert kept(model) == [2]


def test_recordings_are_few_and_of_small_batches(pipe: Any) -> None:
    model = pipe.model
    for _ in range(3):
        see(model, pictures(model, 17))
    assert made(model) == 0
    for count in range(1, 12):
        for _ in range(2):
            see(model, pictures(model, count))
    assert kept(model) == [4, 5, 6, 7, 8, 9, 10, 11]
    see(model, pictures(model, 4))
    see(model, pictures(model, 1))
    assert kept(model) == [6, 7, 8, 9, 10, 11, 4, 1]
    assert made(model) == 12


def test_moved_weights_make_new_recordings(pipe: Any) -> None:
    model = pipe.model
    for _ in range(3):
        see(model, pictures(model, 1))
    weight = next(model._modules[model.per_image_modules[1]].parameters())
    weight.data = -weight.data
    close(see(model, pictures(model, 1)), see_plainly(model, pictures(model, 1)))
    assert made(model) == 2
    with torch.no_grad():
        weight.mul_(-2)  # in place: the recording reads what is there
    close(see(model, pictures(model, 1)), see_plainly(model, pictures(model, 1)))
    assert made(model) == 2


def test_gradients_eager_and_other_devices_are_plain(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = pipe.model
    entrance = getattr(model, "embed_tiles", model.embed_images)
    for _ in range(3):
        model.requires_grad_(True)
        assert entrance(pictures(model, 1)).requires_grad
        model.requires_grad_(False)
    model.decoder.capture = False
    for _ in range(3):
        see(model, pictures(model, 1))
    model.decoder.capture = None
    monkeypatch.undo()
    if pipe.device.type == "cpu":
        for _ in range(3):
            see(model, pictures(model, 1))
    assert made(model) == 0


def test_inference_mode_changes_nothing(pipe: Any) -> None:
    model = pipe.model
    for _ in range(2):
        with torch.inference_mode():
            for _ in range(2):
                close(see(model, pictures(model, 2)), see_plainly(model, pictures(model, 2)))
        close(see(model, pictures(model, 2)), see_plainly(model, pictures(model, 2)))


def test_threads_see_their_own_pictures(pipe: Any) -> None:
    """While other threads record and run, beside one that answers."""
    model, wrong = pipe.model, []
    with torch.no_grad():
        wanted = {s: see_plainly(model, pictures(model, 1 + s % 2, s)) for s in range(6)}
    picture = Image.new("RGB", (80, 60), (200, 30, 30))
    said = pipe.ask(picture, "What is this?", 8)

    def work(seed: int) -> None:
        for _ in range(10):
            found = see(model, pictures(model, 1 + seed % 2, seed))
            if not torch.allclose(found, wanted[seed], rtol=1e-4, atol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in wanted]
    for thread in threads:
        thread.start()
    answers = {pipe.ask(picture, "What is this?", 8) for _ in range(3)}
    for thread in threads:
        thread.join()
    assert not wrong
    assert answers == {said}


def test_answers_about_pictures_are_the_same(pipe: Any) -> None:
    picture = Image.new("RGB", (80, 60), (200, 30, 30))
    answers = [pipe.ask(picture, "What is this?", 12) for _ in range(3)]
    assert made(pipe.model) == 1
    pipe.model.decoder.capture = False
    assert set(answers) == {pipe.ask(picture, "What is this?", 12)}


@pytest.mark.parametrize("name", ["janus-mini"])
def test_pictures_are_drawn_by_a_recording(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where that is worth it; it is the image tokenizer's own, beside the tower's."""
    model = pipe.model
    vq, grid, total = model.gen_vision_model, model.config.grid, model.config.num_codes
    codes = torch.randint(model.config.vq.codebook_size, (2, total), device=pipe.device)
    model.decode_codes(codes)
    assert not vq.worth_capturing(2, grid)  # in float32
    monkeypatch.setattr(vq, "worth_capturing", lambda count, grid: count <= 2)
    capturer = Twice() if pipe.device.type == "cpu" else graphed_module_of(vq, pipe.device).capturer
    graphed_module_of(vq, pipe.device).capturer = capturer
    with torch.no_grad():
        for seed in range(3):
            close(model.decode_codes(codes.roll(seed, 1)), vq.decode(codes.roll(seed, 1), grid))
            see(model, pictures(model, 1))
        model.decode_codes(codes.repeat(2, 1))
        model.decode_codes(codes.repeat(2, 1))
    assert capturer.made == 1
    assert made(model) == 1
    drawn = pipe.decode_codes(codes)
    monkeypatch.undo()
    for one, other in zip(drawn, pipe.decode_codes(codes), strict=True):
        difference = torch.tensor(np.asarray(one, dtype=int) - np.asarray(other, dtype=int))
        assert difference.abs().max() <= 1


@on_cuda
def test_recordings_go_with_their_model() -> None:
    pipe = VL2Pipeline.from_pretrained(FOLDER / "vl2-mini-mha", "cuda", progress=False)
    pixels = pictures(pipe.model, 2).to(pipe.dtype)
    for _ in range(2):
        see(pipe.model, pixels)
    assert made(pipe.model) == 1
    gone = weakref.ref(pipe.model)
    del pipe
    gc.collect()
    assert gone() is None
