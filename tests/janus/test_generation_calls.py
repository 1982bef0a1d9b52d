"""Calls of `generate`: progress bar, previews, lists of negative prompts, the form of diffusers; repr."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from bifrons import JanusPipeline, OptionError, PromptError
from PIL import Image

from ..models import SHAPES_JANUS


@pytest.fixture(scope="module")
def pipe(janus_mini: Path) -> JanusPipeline:
    return JanusPipeline.from_pretrained(janus_mini, device="cpu", progress=False)


class Terminal:
    """A stderr that is a terminal."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return True


def test_previews_show_what_is_painted(pipe):
    previews = {}

    def watch(step, total, codes):
        if int(step) in (1, 15, 36):
            previews[int(step)] = step.preview()

    pictures = pipe.generate("a", 2, seed=1, callback=watch)
    assert [len(images) for images in previews.values()] == [2, 2, 2]
    for done, (image, _) in previews.items():
        assert (image.mode, image.size) == ("RGBA", (96, 96))
        painted = np.array(image)[8::16, 8::16, 3].reshape(-1) == 255
        assert painted.tolist() == [place < done for place in range(36)]
    assert [one.convert("RGB").tobytes() for one in previews[36]] == [one.tobytes() for one in pictures]


@pytest.mark.parametrize(
    ("progress", "on_terminal"), [(None, True), (True, False), (False, True), (None, False)]
)
def test_the_bar_is_for_terminals_unless_asked_for(pipe, progress, on_terminal, monkeypatch, capsys):
    terminal, steps = Terminal(), []
    if on_terminal:
        monkeypatch.setattr("sys.stderr", terminal)
    pipe.generate("a", 2, seed=1, progress=progress, callback=lambda *step: steps.append(step))
    shown = terminal.text if on_terminal else capsys.readouterr().err
    if progress or (progress is None and on_terminal):
        assert "painting: 100%" in shown
        assert "72/72" in shown
    else:
        assert shown == ""
    assert len(steps) == 36


def test_another_progress_is_refused(pipe):
    with pytest.raises(OptionError, match="progress is 'no'; accepted: True, False, or None"):
        pipe.generate("a", progress="no")


def test_a_callback_that_is_no_function_is_refused(pipe):
    with pytest.raises(OptionError, match="callback is 5; accepted: a function"):
        pipe.generate("a", callback=5)


@pytest.mark.parametrize("prompt", [None, 5, b"a star"])
def test_a_prompt_that_is_no_text_is_refused(pipe, prompt):
    with pytest.raises(PromptError, match=r"the prompt is .*; accepted: a text or a list"):
        pipe.generate(prompt)


def test_negative_prompts_by_prompt(pipe):
    options = {"seed": 3, "output_type": "codes"}
    together = pipe.generate(["a", "b", "c"], 2, negative_prompt=["blue", None, "red cube"], **options)
    alone = [
        pipe.generate(text, 2, negative_prompt=negative, **options)
        for text, negative in (("a", "blue"), ("b", None), ("c", "red cube"))
    ]
    assert torch.equal(together, torch.cat(alone))
    infos = [image.info for image in pipe.generate(["a", "b"], negative_prompt=["blue", None], seed=3)]
    assert [info.get("negative_prompt") for info in infos] == ["blue", None]
    with pytest.raises(OptionError, match="negative_prompt has 1 texts; accepted: one, or 2, one per prompt"):
        pipe.generate(["a", "b"], negative_prompt=["c"])
    with pytest.raises(OptionError, match="negative_prompt is 3; accepted: a text or None"):
        pipe.generate(["a", "b"], negative_prompt=["c", 3])


def test_called_as_in_diffusers(pipe):
    output = pipe("a", num_images_per_prompt=2, seed=1)
    expected = pipe.generate("a", 2, seed=1)
    assert [one.tobytes() for one in output.images] == [one.tobytes() for one in expected]
    assert isinstance(output.images[0], Image.Image)
    assert output[0] is output.images


def test_first_logits_are_guided_as_generate_is(pipe):
    own = copy.copy(pipe)
    own.guidance_scale = 2.5
    assert torch.equal(own.next_image_logits("a"), pipe.next_image_logits("a", 2.5))
    assert not torch.equal(own.next_image_logits("a"), pipe.next_image_logits("a"))
    assert torch.equal(pipe.next_image_logits("a"), pipe.next_image_logits("a", 5.0))


def test_repr(pipe, janus_mini):
    assert repr(pipe) == f"JanusPipeline({str(janus_mini)!r}, device='cpu', dtype='float32')"
    options = {"dtype": "bfloat16", "quantize": "int8", "parts": "paint", "progress": False}
    other = JanusPipeline.from_pretrained(SHAPES_JANUS, "cpu", **options)
    settings = "device='cpu', dtype='bfloat16', quantize='int8', parts='paint'"
    assert repr(other) == f"JanusPipeline({SHAPES_JANUS!r}, {settings})"
