"""Results don't depend on what the caller has set in torch: autocast, default device and dtype, and so on."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from bifrons import JanusPipeline, OptionError, VL2Pipeline
from bifrons.blocks import device
from torch import Tensor

MINIS = {"janus-mini": JanusPipeline, "vl2-mini-mla": VL2Pipeline}


@contextlib.contextmanager
def setting(put: Callable[[Any], Any], value: Any, usual: Any) -> Iterator[None]:
    put(value)
    try:
        yield
    finally:
        put(usual)


def default_dtype(dtype: torch.dtype) -> AbstractContextManager:
    return setting(torch.set_default_dtype, dtype, torch.float32)


STATES: dict[str, Callable[[], AbstractContextManager]] = {
    "autocast bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast float16": lambda: torch.autocast("cpu", torch.float16),
    "default device meta": lambda: setting(torch.set_default_device, "meta", None),
    "device meta": lambda: torch.device("meta"),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "deterministic": lambda: setting(torch.use_deterministic_algorithms, True, False),
    "medium precision": lambda: setting(torch.set_float32_matmul_precision, "medium", "highest"),
}


def results(pipe: Any, picture: Any) -> dict[str, Any]:
    """What every kind of call gives."""
    messages = pipe.question_messages(picture, "What is this?")
    found = {
        "ask": pipe.ask(picture, "What is this?", 3, temperature=1.0, seed=3),
        "stream": "".join(pipe.ask(picture, "What is this?", 3, stream=True)),
        "next_logits": pipe.next_logits(messages),
        "score_text": pipe.score_text(messages, "a red star"),
    }
    if isinstance(pipe, JanusPipeline):
        codes = pipe.generate("a red star", seed=1, output_type="codes")
        assert isinstance(codes, Tensor)
        found |= {
            "codes": codes,
            "pixels": [image.tobytes() for image in pipe.decode_codes(codes.tolist()[0])],
            "encode_image": pipe.encode_image(picture),
            "next_image_logits": pipe.next_image_logits("a star"),
            "score_image": pipe.score_image("a red star", codes[0].tolist()),
        }
    return found


def load(name: str) -> Any:
    folder = Path(__file__).parent / "data" / name
    return MINIS[name].from_pretrained(folder, device="cpu", progress=False)


@pytest.fixture(scope="module", params=MINIS)
def plain(request, parity_picture):
    """A checkpoint's name, its pipeline, a picture, and the results without any of the states."""
    pipe, picture = load(request.param), parity_picture(1, 90, 70)
    return request.param, pipe, picture, results(pipe, picture)


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        if not isinstance(value, Tensor):
            assert found[name] == value, name
            continue
        assert found[name].dtype == value.dtype, name
        assert found[name].device.type == "cpu", name
        assert not found[name].is_inference(), name
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("state", STATES)
def test_results_are_the_same_in_any_state(plain, state):
    """For a model that is loaded in that state, and used in it and after it."""
    name, pipe, picture, expected = plain
    with STATES[state]():
        loaded = load(name)
        found = results(loaded, picture)
    assert_same(found, expected)
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert {t.device.type for t in (*loaded.model.parameters(), *loaded.model.buffers())} == {"cpu"}
    assert not any(t.is_inference() for t in (*loaded.model.parameters(), *loaded.model.buffers()))
    with STATES[state]():
        messages = pipe.question_messages(picture, "What is this?")
        assert torch.equal(pipe.next_logits(messages), expected["next_logits"])
    assert torch.equal(loaded.next_logits(messages), expected["next_logits"])


def test_the_state_is_left_as_it_was(plain):
    _, pipe, picture, _ = plain
    torch.manual_seed(5)
    random = torch.get_rng_state()
    with STATES["float64"](), STATES["medium precision"](), STATES["default device meta"]():
        results(pipe, picture)
        assert torch.get_default_dtype() == torch.float64
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.get_default_device().type == "meta"
    with STATES["autocast bfloat16"](), torch.inference_mode():
        results(pipe, picture)
        assert torch.is_autocast_enabled("cpu")
        assert torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random)


def test_an_error_leaves_the_state_as_it_was(plain):
    _, pipe, _, _ = plain
    with STATES["float64"]():
        with pytest.raises(OptionError):
            pipe.chat([{"role": "user", "content": "x"}], max_new_tokens=0)
        with pytest.raises(TypeError):
            pipe.next_logits()
        assert torch.get_default_dtype() == torch.float64


def test_a_stream_leaves_the_state_of_its_reader_alone(plain):
    _, pipe, picture, expected = plain
    pieces = []
    with STATES["autocast bfloat16"]():
        for piece in pipe.ask(picture, "What is this?", 3, stream=True):
            assert torch.is_autocast_enabled("cpu")
            assert torch.is_grad_enabled()
            pieces.append(piece)
    assert "".join(pieces) == expected["stream"]


def test_codes_without_numbers_are_refused(plain):
    _, pipe, _, _ = plain
    if isinstance(pipe, JanusPipeline):
        with pytest.raises(OptionError, match="on meta; accepted: whole numbers"):
            pipe.decode_codes(torch.zeros(36, dtype=torch.long, device="meta"))


@pytest.mark.parametrize(
    ("emulated", "native", "expected"), [(True, False, torch.float16), (True, True, torch.bfloat16)]
)
def test_a_gpu_that_emulates_bfloat16_takes_float16(monkeypatch, emulated, native, expected):
    def supported(including_emulation: bool = True) -> bool:
        return emulated if including_emulation else native

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert device.resolve_dtype(None, torch.device("cuda")) == expected
