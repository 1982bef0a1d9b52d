"""What `JanusPipeline` promises beyond the reference: rows alone and together, seeds, options, errors."""

from pathlib import Path
from typing import Any

import bifrons.janus.image_generation as painting
import pytest
import torch
from bifrons import JanusPipeline, OptionError, PromptError
from PIL import Image

from ..models import SHAPES_JANUS

PROMPTS = ["A red apple", "Three dogs left of the blue car and a green cup above the table", "a b c"]


@pytest.fixture(scope="module")
def pipe(janus_mini: Path) -> JanusPipeline:
    return JanusPipeline.from_pretrained(janus_mini, device="cpu", progress=False)


def codes(pipe: JanusPipeline, prompt: Any, **options: Any) -> list[list[int]]:
    return pipe.generate(prompt, output_type="codes", **options).tolist()


@pytest.mark.parametrize(
    "options", [{"temperature": 0.0}, {"top_k": 40}, {"top_p": 0.8}, {"guidance_scale": 1.0}]
)
def test_rows_of_a_batch_equal_each_alone(pipe, options) -> None:
    together = codes(pipe, PROMPTS, seed=7, num_images_per_prompt=2, **options)
    alone = [
        row for prompt in PROMPTS for row in codes(pipe, prompt, seed=7, num_images_per_prompt=2, **options)
    ]
    assert together == alone
    assert codes(pipe, PROMPTS[1], seed=8, **options)[0] == together[3]


def test_a_batch_split_by_memory_paints_the_same(pipe, monkeypatch) -> None:
    whole = codes(pipe, PROMPTS, seed=3)
    monkeypatch.setattr(painting, "batch_that_fits", lambda *_: 2)
    assert codes(pipe, PROMPTS, seed=3) == whole


def test_seeds(pipe) -> None:
    torch.manual_seed(0)
    first = codes(pipe, "a", seed=5)
    torch.manual_seed(1)
    torch.rand(10)
    assert codes(pipe, "a", seed=5) == first
    assert codes(pipe, "a", seed=6) != first
    assert codes(pipe, ["b", "a"], seed=[9, 5])[1] == first[0]
    unseeded = pipe.generate(["a", "a"])
    assert unseeded[0].info["seed"] != unseeded[1].info["seed"]
    again = pipe.generate("a", seed=int(unseeded[0].info["seed"]))
    assert again[0].tobytes() == unseeded[0].tobytes()


def test_no_unconditional_rows_without_guidance(pipe, monkeypatch) -> None:
    rows = []
    forward = pipe.model.decoder.forward

    def watch(x_BTD, cache=None, **kwargs):
        rows.append(len(x_BTD))
        return forward(x_BTD, cache, **kwargs)

    monkeypatch.setattr(pipe.model.decoder, "forward", watch)
    codes(pipe, PROMPTS, seed=1, guidance_scale=1.0)
    assert max(rows) == 3
    rows.clear()
    codes(pipe, PROMPTS, seed=1, guidance_scale=5.0)
    assert max(rows) == 6


def test_options_do_what_they_say(pipe) -> None:
    greedy = codes(pipe, "a red cube", temperature=0.0)
    assert codes(pipe, "a red cube", top_k=1, seed=1) == greedy
    assert codes(pipe, "a red cube", top_p=1e-9, seed=1) == greedy
    assert codes(pipe, "a red cube", temperature=1e-4, seed=1) == greedy
    free = codes(pipe, "a red cube", seed=1)
    assert free != greedy
    assert codes(pipe, "a red cube", seed=1, negative_prompt="blue") != free
    # The empty negative prompt is the reference's unconditional row; scale 0 sees that row alone.
    assert codes(pipe, "a red cube", seed=1, negative_prompt="") == free
    pair = ["dog cat", "cat dog"]
    assert len({len(pipe.processor.generation_ids(text)[0]) for text in pair}) == 1
    assert codes(pipe, pair[0], seed=1, guidance_scale=0.0) == codes(
        pipe, pair[1], seed=1, guidance_scale=0.0
    )
    assert codes(pipe, pair[0], seed=1) != codes(pipe, pair[1], seed=1)


def test_settings_travel_with_the_picture(pipe) -> None:
    picture = pipe.generate("a", seed=4, top_k=9, guidance_scale=2.5, negative_prompt="b")[0]
    expected = {"prompt": "a", "seed": "4", "top_k": "9", "guidance_scale": "2.5", "negative_prompt": "b"}
    expected["deterministic"] = "in any batch"  # float32 on the CPU
    assert expected.items() <= picture.info.items()


def test_callback_sees_every_step_and_can_stop(pipe) -> None:
    seen = []
    pipe.generate(
        PROMPTS[:2], seed=1, callback=lambda step, total, so_far: seen.append((step, total, so_far))
    )
    assert [step for step, _, _ in seen] == list(range(1, 37))
    assert seen[-1][1] == 36
    assert seen[-1][2].tolist() == codes(pipe, PROMPTS[:2], seed=1)

    def stop(step: int, total: int, so_far: torch.Tensor) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe.generate("a", callback=stop)


def test_codes_and_pictures(pipe) -> None:
    found = pipe.generate("a", seed=1, output_type="codes")
    picture = pipe.generate("a", seed=1)[0]
    assert pipe.decode_codes(found)[0].tobytes() == pipe.decode_codes(found[0].tolist())[0].tobytes()
    assert picture.tobytes() == pipe.decode_codes(found)[0].tobytes()
    assert picture.size == (96, 96)
    assert pipe.encode_image(Image.new("RGB", (300, 200), "red")).shape == (36,)


def test_streamed_answer_is_the_answer(pipe, parity_picture) -> None:
    picture = parity_picture(1, 200, 131)
    whole = pipe.ask(picture, "What is this?", max_new_tokens=20)
    assert "".join(pipe.ask(picture, "What is this?", max_new_tokens=20, stream=True)).strip() == whole
    sampled = pipe.ask(picture, "What is this?", max_new_tokens=20, temperature=1.0, seed=3)
    assert sampled == pipe.ask(picture, "What is this?", max_new_tokens=20, temperature=1.0, seed=3)


def test_sampled_answers_in_a_batch_equal_each_alone(pipe, parity_picture) -> None:
    conversations = [
        [{"role": "user", "content": "Count to ten."}],
        [
            {
                "role": "user",
                "content": [
                    {"type": "image", "image": parity_picture(0, 96, 96)},
                    {"type": "image", "image": parity_picture(2, 61, 300)},
                    {"type": "text", "text": "Which is larger?"},
                ],
            }
        ],
        [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ],
    ]
    options = {"max_new_tokens": 16, "temperature": 1.0, "top_p": 0.9, "seed": 11}
    assert pipe.chat_batch(conversations, **options) == [pipe.chat(one, **options) for one in conversations]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_close(pipe, janus_mini, dtype) -> None:
    half = JanusPipeline.from_pretrained(janus_mini, device="cpu", dtype=dtype, progress=False)
    assert half.dtype == getattr(torch, dtype)
    full, found = pipe.next_image_logits("a red cube"), half.next_image_logits("a red cube")
    assert (found - full).abs().max() < 0.1 * full.abs().max()
    assert half.generate("a", seed=1)[0].size == (96, 96)
    assert isinstance(half.ask(Image.new("RGB", (50, 50)), "What?", max_new_tokens=4), str)


BAD = [
    (PromptError, {"prompt": ""}),
    (PromptError, {"prompt": "  \n"}),
    (PromptError, {"prompt": []}),
    (PromptError, {"prompt": [None]}),
    (PromptError, {"prompt": "apple " * 3000}),
    (OptionError, {"num_images_per_prompt": 0}),
    (OptionError, {"num_images_per_prompt": 1.5}),
    (OptionError, {"guidance_scale": float("nan")}),
    (OptionError, {"guidance_scale": -1.0}),
    (OptionError, {"temperature": -0.1}),
    (OptionError, {"temperature": float("inf")}),
    (OptionError, {"top_k": -1}),
    (OptionError, {"top_p": 0.0}),
    (OptionError, {"top_p": 1.1}),
    (OptionError, {"seed": -1}),
    (OptionError, {"seed": 2**64}),
    (OptionError, {"seed": [1, 2, 3]}),
    (OptionError, {"output_type": "png"}),
    (OptionError, {"guidance_scale": 1.0, "negative_prompt": "b"}),
]


@pytest.mark.parametrize(("kind", "options"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_is_refused(pipe, kind, options) -> None:
    with pytest.raises(kind, match=r".{20,}"):
        pipe.generate(**{"prompt": "a", **options})


def test_bad_codes_are_refused(pipe) -> None:
    for bad in ([1, 2], [512] * 36, [-1] * 36, torch.zeros(36), [], torch.zeros(2, 2, 36).long(), "abc"):
        with pytest.raises(OptionError):
            pipe.decode_codes(bad)


def test_capture_is_an_option() -> None:
    for capture in (None, False):
        pipe = JanusPipeline.from_pretrained(SHAPES_JANUS, "cpu", capture=capture, progress=False)
        assert pipe.model.decoder.capture is capture
    for capture in (True, "yes"):
        with pytest.raises(OptionError, match="capture is"):
            JanusPipeline.from_pretrained(SHAPES_JANUS, "cpu", capture=capture, progress=False)
