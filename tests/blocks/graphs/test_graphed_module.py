"""Vision towers as captured graphs; on the CPU a replay runs the captured work again."""

import threading

import pytest
import torch
from bifrons.blocks.graphs import graphed_module
from bifrons.blocks.graphs.graphed_module import graphed_module_of, run_graphed
from bifrons.blocks.model.siglip import SiglipConfig, build_siglip
from torch import Tensor, nn

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=on_cuda)]
SIGLIP = SiglipConfig(image_size=96, patch_size=16, width=64, layers=3, heads=4)


class VisionModel(nn.Module):
    """A vision tower beside a decoder, which says whether graphs are captured."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder, self.tower = decoder, build_siglip(SIGLIP)

    def embed_images(self, pixels: Tensor) -> Tensor:
        return run_graphed(self, self.decoder, (self.tower,), self.tower, pixels)


@pytest.fixture(params=DEVICES)
def model(
    request: pytest.FixtureRequest,
    small_model,
    draw_weights,
    warm_up_capturer,
    monkeypatch: pytest.MonkeyPatch,
) -> VisionModel:
    """A model in float32 whose tower is captured, on the CPU too."""
    model = VisionModel(small_model("dense").decoder)
    draw_weights(model)
    model.eval().requires_grad_(False).to(request.param)
    if request.param == "cpu":
        monkeypatch.setattr(graphed_module, "uses_cuda_graphs", lambda decoder: decoder.capture is not False)
        graphed_module_of(model, torch.device("cpu")).capturer = warm_up_capturer()
    return model


def encode(model: VisionModel, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.embed_images(pixels)


def encode_eagerly(model: VisionModel, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return model.tower(pixels)


def random_pixels(model: VisionModel, count: int, seed: int = 0) -> Tensor:
    side, generator = SIGLIP.image_size, torch.Generator().manual_seed(seed)
    return (2 * torch.rand(count, 3, side, side, generator=generator) - 1).to(model.decoder.device)


def assert_same(found: Tensor, expected: Tensor) -> None:
    if found.device.type == "cpu":
        assert torch.equal(found, expected)
    torch.testing.assert_close(found, expected)


def captured_batches(model: VisionModel) -> list[int]:
    """Batch sizes of the captured graphs, in the order of their captures."""
    return graphed_module_of(model, model.decoder.device).captured_batches


def captures_made(model: VisionModel) -> int:
    return graphed_module_of(model, model.decoder.device).capturer.made


def test_captured_output_is_the_eager_one_and_the_callers_own(model: VisionModel) -> None:
    outputs = []
    for seed in range(4):
        for count in (1, 3):
            outputs.append((count, seed, encode(model, random_pixels(model, count, seed))))
    assert captures_made(model) == 2
    for count, seed, found in outputs:  # after all runs: none wrote into an earlier output
        assert_same(found, encode_eagerly(model, random_pixels(model, count, seed)))


def test_a_batch_size_that_comes_once_is_not_captured(model: VisionModel) -> None:
    for count in (1, 2, 3, 4):
        encode(model, random_pixels(model, count))
    assert captured_batches(model) == []
    encode(model, random_pixels(model, 2))
    assert captured_batches(model) == [2]


def test_graphs_are_few_and_of_small_batches(model: VisionModel) -> None:
    for _ in range(3):
        encode(model, random_pixels(model, 17))
    assert captures_made(model) == 0
    for count in range(1, 17):
        for _ in range(2):
            encode(model, random_pixels(model, count))
    assert captured_batches(model) == [1, 2, 3, 4, 6, 8, 12, 16]
    assert captures_made(model) == 8


def test_padded_batches_are_the_eager_ones(model: VisionModel) -> None:
    """Also after larger ones of the same graph, whose images are still in its input."""
    for seed, count in enumerate((8, 8, 7, 8, 7)):
        found = encode(model, random_pixels(model, count, seed))
        expected = encode_eagerly(model, random_pixels(model, count, seed))
        torch.testing.assert_close(found, expected)
    assert captured_batches(model) == [8]


def test_moved_weights_are_captured_anew(model: VisionModel) -> None:
    for _ in range(3):
        encode(model, random_pixels(model, 1))
    weight = next(model.tower.parameters())
    weight.data = -weight.data
    assert_same(encode(model, random_pixels(model, 1)), encode_eagerly(model, random_pixels(model, 1)))
    assert captures_made(model) == 2
    with torch.no_grad():
        weight.mul_(-2)  # in place: the graph reads the new values
    assert_same(encode(model, random_pixels(model, 1)), encode_eagerly(model, random_pixels(model, 1)))
    assert captures_made(model) == 2


def test_gradients_eager_mode_and_other_devices_are_not_captured(
    model: VisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        model.requires_grad_(True)
        assert model.embed_images(random_pixels(model, 1)).requires_grad
        model.requires_grad_(False)
    model.decoder.capture = False
    for _ in range(3):
        encode(model, random_pixels(model, 1))
    model.decoder.capture = None
    monkeypatch.undo()
    if model.decoder.device.type == "cpu":
        for _ in range(3):
            encode(model, random_pixels(model, 1))
    assert captures_made(model) == 0


def test_inference_mode_changes_nothing(model: VisionModel) -> None:
    for _ in range(2):
        with torch.inference_mode():
            for _ in range(2):
                assert_same(
                    encode(model, random_pixels(model, 2)), encode_eagerly(model, random_pixels(model, 2))
                )
        assert_same(encode(model, random_pixels(model, 2)), encode_eagerly(model, random_pixels(model, 2)))


def test_threads_get_the_output_of_their_own_images(model: VisionModel) -> None:
    """While other threads capture and replay."""
    wrong = []
    with torch.no_grad():
        expected = {s: encode_eagerly(model, random_pixels(model, 1 + s % 2, s)) for s in range(6)}

    def work(seed: int) -> None:
        for _ in range(10):
            found = encode(model, random_pixels(model, 1 + seed % 2, seed))
            if not torch.allclose(found, expected[seed], rtol=1e-4, atol=1e-5):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
