"""What people call: options, forms of messages, bad inputs, places."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bifrons import Box, ConfigError, OptionError, PictureError, PromptError, VL2Pipeline
from bifrons.blocks.chat.messages import normalize_messages
from bifrons.blocks.chat.text_generation import TextGenerationOptions, generate_ids
from bifrons.tokenizers.text import TextTokenizer
from bifrons.vl2.config import read_config
from bifrons.vl2.processor import VL2Processor
from bifrons.vl2.prompts import encode_turns
from PIL import Image


@pytest.fixture
def pipe(vl2_cases) -> VL2Pipeline:
    return vl2_cases["mla"].pipe


def user(content, *images):
    return {"role": "user", "content": content, "images": list(images)}


PICTURE = Image.new("RGB", (100, 60), "teal")


def test_ask_chat_stream_and_batch_agree(pipe):
    answer = pipe.ask(PICTURE, "How many?", max_new_tokens=6)
    parts = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "How many?"}]
    openai = [{"role": "user", "content": parts}]
    assert answer == pipe.chat([user("<image>\nHow many?", PICTURE)], max_new_tokens=6)
    assert answer == pipe.chat(openai, max_new_tokens=6)
    assert answer == "".join(pipe.ask(PICTURE, "How many?", max_new_tokens=6, stream=True)).strip()
    assert [answer] == pipe.chat_batch([openai], max_new_tokens=6, prefill_chunk=9)
    assert pipe.chat_batch([]) == []


def test_sampling_follows_the_seed_and_not_the_batch(pipe):
    options = {"max_new_tokens": 8, "temperature": 1.0, "top_p": 0.9, "seed": 5}
    alone = pipe.chat([user("a word")], **options)
    assert alone == pipe.chat_batch([[user("<image>\nlonger", PICTURE)], [user("a word")]], **options)[1]
    assert alone != pipe.chat([user("a word")], **{**options, "seed": 6})


def test_repetition_penalty_forbids_what_was_there(pipe):
    prompts = pipe.prompts([[user("a word")]], 40)
    (plain,) = generate_ids(pipe.model, prompts, TextGenerationOptions(40), [0], -1)
    (found,) = generate_ids(pipe.model, prompts, TextGenerationOptions(40, repetition_penalty=1e6), [0], -1)
    assert len(set(plain)) < len(plain)
    assert len(set(found)) == len(found)
    assert not set(found) & set(prompts[0].ids.tolist())


def test_scores_are_the_logits_step_by_step(pipe):
    messages = [user("<image>\nwhat", PICTURE)]
    scores = pipe.score_text(messages, "dogs")
    ids = pipe.tokenizer.encode("dogs", bos=False)
    assert len(ids) == len(scores) > 1
    first = pipe.next_logits(messages).log_softmax(-1)[ids[0]]
    assert torch.allclose(scores[0], first, atol=1e-5)


def test_the_token_contract(pipe):
    """BOS, system text with no separator, no space before a past answer, EOS after it and nothing more."""
    text = pipe.tokenizer
    messages = [
        {"role": "system", "content": " Be brief. "},
        user(" <image>\nQ1 ", PICTURE),
        {"role": "assistant", "content": " A1 "},
        user("Q2"),
    ]
    turns = normalize_messages(messages, "<image>", lambda count: lambda image: image)
    before, after = encode_turns(text, turns)
    system, opening = (text.encode(piece, bos=False) for piece in ("Be brief.", "<|User|>: "))
    assert before == [text.bos_id, *system, *opening]
    assert after == [
        *text.encode("\nQ1\n\n<|Assistant|>:", bos=False),
        *text.encode("A1", bos=False),
        text.eos_id,
        *text.encode("<|User|>: Q2\n\n<|Assistant|>:", bos=False),
    ]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([user("<image>\n<image>\nwhat", PICTURE)], r"2 mark\(s\) <image> and 1 picture"),
        ([user("what", PICTURE)], r"0 mark\(s\)"),
        ([user("hi"), {"role": "<|Assistant|>", "content": "an <image>"}, user("so?")], "only the user's"),
        ([{"role": "<|System|>", "content": "an <image>"}, user("hi")], "only the user's"),
        ([{"role": "assistant", "content": "hi"}], "user"),
        ([user("   ")], "empty"),
        ([], "empty list"),
        ("hi", "list of messages"),
    ],
)
def test_malformed_conversations(pipe, messages, message: str):
    with pytest.raises(PromptError, match=message):
        pipe.chat(messages)


def test_options_and_questions_out_of_range(pipe):
    for wrong in (
        {"max_new_tokens": 0},
        {"temperature": -1},
        {"top_p": 0},
        {"repetition_penalty": 0},
        {"prefill_chunk": 0},
        {"seed": -1},
    ):
        with pytest.raises(OptionError, match="accepted"):
            pipe.ask(PICTURE, "what", **wrong)
    with pytest.raises(PromptError, match="writes one per picture"):
        pipe.ask(PICTURE, "<image>\nwhat")
    with pytest.raises(PromptError, match="not empty"):
        pipe.ask(PICTURE, " ")
    with pytest.raises(PictureError):
        pipe.ask(b"no picture", "what")


def test_a_conversation_too_long_says_what_fits(pipe):
    length = len(pipe.processor.chat_inputs([user("hi")]).ids)
    with pytest.raises(PromptError, match=f"at most {2048 - length} new tokens fit"):
        pipe.chat([user("hi")], max_new_tokens=2048)
    with pytest.raises(PromptError, match="shorten"):
        pipe.next_logits([user("word " * 3000)])


def test_more_tiles_by_choice(vl2_cases, pipe):
    folder = pipe.name
    wide = VL2Pipeline.from_pretrained(folder, device="cpu", max_tiles=6)
    picture = Image.new("RGB", (300, 200))
    assert pipe.processor.best_resolution(picture.size) == (144, 144)
    assert wide.processor.best_resolution(picture.size) == (216, 144)
    assert wide.processor.best_resolution(picture.size, num_images=3) == (72, 72)
    assert isinstance(wide.ask(picture, "what", max_new_tokens=2), str)


def test_messages_from_a_network_name_no_files(pipe, tmp_path):
    PICTURE.save(tmp_path / "a.png")
    messages = [user("<image>\nwhat", str(tmp_path / "a.png"))]
    assert isinstance(pipe.chat(messages, max_new_tokens=1), str)
    with pytest.raises(PictureError, match="data: URL"):
        pipe.chat(messages, max_new_tokens=1, local_files=False)


def test_bfloat16_keeps_the_gates_bias_in_float32(vl2_cases):
    wide = vl2_cases["noaux"].pipe
    half = VL2Pipeline.from_pretrained(wide.name, device="cpu", dtype="bfloat16")
    kinds = {name: p.dtype for name, p in half.model.named_parameters() if p.dtype != torch.bfloat16}
    assert len(kinds) == 3
    assert all(name.endswith("e_score_correction_bias") for name in kinds)
    assert set(kinds.values()) == {torch.float32}
    messages = [user("<image>\nwhat", PICTURE)]
    expected, found = wide.next_logits(messages), half.next_logits(messages)
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    assert isinstance(half.chat_batch([messages, [user("hi")]], max_new_tokens=4)[1], str)


def test_places_are_read_from_the_answer(pipe, monkeypatch):
    asked = []

    def answer(self, messages, *args, **kwargs):
        asked.append(messages[0])
        return "<|ref|>cup<|/ref|><|det|>[[0, 0, 500, 999], [1, 1]]<|/det|>"

    def question():
        return normalize_messages(asked[-1:], "<image>", lambda count: lambda image: image)[0].text

    monkeypatch.setattr(VL2Pipeline, "chat", answer)
    assert pipe.locate(PICTURE, "the cup") == [Box("cup", 0, 0, 50, 60, (0, 0, 500, 999))]
    assert question() == "<image>\n<|ref|>the cup<|/ref|>."
    big = Image.new("RGB", (1000, 1000), "white")
    (box,) = pipe.locate(PICTURE, example=(big, Box("cup", 100, 100, 300, 300)))
    assert (box.x2, box.y2) == (50, 60)  # in the second picture's pixels
    assert question().startswith("<image>\n<image>\n<|grounding|>In the first image, an object")
    assert asked[-1]["content"][0]["image"].getpixel((100, 200)) == (255, 0, 0)
    assert big.getpixel((100, 200)) == (255, 255, 255)
    caption = pipe.caption(PICTURE, grounded=True)
    assert (caption.text, len(caption.boxes), len(caption.problems)) == ("cup", 1, 1)
    assert question() == "<image>\n<|grounding|>Describe this image."


def test_places_that_can_not_be_asked_for(pipe):
    outside, short = (PICTURE, (9, 9, 101, 20)), (PICTURE, (0, 0, 1))
    for wrong in ({}, {"phrase": " "}, {"example": short}, {"example": outside}):
        with pytest.raises(PromptError, match=r"accepted|not inside"):
            pipe.locate(PICTURE, **wrong)
    with pytest.raises(PictureError, match="no picture"):
        pipe.ground([], "where")


def test_a_caption_is_a_text(pipe):
    assert isinstance(pipe.caption(PICTURE, max_new_tokens=3), str)


def test_settings_of_pictures_are_read_under_image_processor(tmp_path):
    """Where transformers 5 writes them."""
    source = Path(__file__).parent.parent / "data" / "vl2-mini-mla"
    settings = json.loads((source / "processor_config.json").read_text())
    tokenizer = TextTokenizer.from_folder(source)
    config = read_config(source)
    nested = {"image_processor": {**settings, "image_mean": [0.4, 0.5, 0.5]}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    processor = VL2Processor.from_folder(tmp_path, tokenizer, config)
    assert processor.normalization.mean == (0.4, 0.5, 0.5)
    assert processor.candidates == VL2Processor.from_folder(source, tokenizer, config).candidates
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ConfigError, match=r"image_mean is .* in preprocessor_config.json, but"):
        VL2Processor.from_folder(tmp_path, tokenizer, config)


def test_pictures_of_phones_are_read_upright(pipe, tmp_path):
    upright = Image.fromarray(np.arange(100 * 60 * 3, dtype=np.uint32).reshape(60, 100, 3).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = upright.transpose(Image.Transpose.ROTATE_90)
    lying.save(tmp_path / "phone.png", exif=exif)
    phone, question = str(tmp_path / "phone.png"), "what"
    part = [{"type": "image", "path": phone}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": part}]
    for options, same in (({}, upright), ({"exif": "ignore"}, lying)):
        expected = pipe.next_logits([user(f"<image>\n{question}", same)])
        assert torch.equal(pipe.next_logits(messages, **options), expected)
        scores = pipe.score_text(pipe.question_messages(same, question), "cat")
        assert torch.equal(pipe.score_text(messages, "cat", **options), scores)
        assert pipe.ask(phone, question, 3, **options) == pipe.ask(same, question, 3)
        streamed = pipe.chat(messages, 3, stream=True, **options)
        assert "".join(streamed).strip() == pipe.ask(same, question, 3)
        assert pipe.caption(phone, max_new_tokens=3, **options) == pipe.caption(same, max_new_tokens=3)
        grounding = pipe.ground(phone, question, 3, **options)
        assert grounding == pipe.ground(same, question, 3)
    with pytest.raises(OptionError, match="exif is 'no'; accepted: apply or ignore"):
        pipe.ask(phone, question, exif="no")


def test_boxes_are_in_pixels_of_the_upright_picture(pipe, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 8
    phone = Image.new("RGB", (60, 100))
    phone.info["exif"] = exif.tobytes()
    answer = "<|ref|>cup<|/ref|><|det|>[[0, 0, 500, 999]]<|/det|>"
    monkeypatch.setattr(VL2Pipeline, "chat", lambda self, messages, *args, **kwargs: answer)
    assert [box.pixels for box in pipe.locate(phone, "cup")] == [(0, 0, 50, 60)]
    assert [box.pixels for box in pipe.locate(phone, "cup", exif="ignore")] == [(0, 0, 30, 100)]
    example = (phone, (0, 0, 100, 60))  # the example's box is in the upright picture, too
    assert [box.pixels for box in pipe.locate(phone, example=example)] == [(0, 0, 50, 60)]
