"""What people call: options, thoughts, saved and quantized folders."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from bifrons import OptionError, PictureError, PromptError, TextPipeline
from bifrons.apps.pipelines import load_pipeline
from bifrons.text.prompts import split_thought

USER = [{"role": "user", "content": "what is the sum of the first ten numbers?"}]


@pytest.fixture
def pipe(text_pair) -> TextPipeline:
    return text_pair("qwen2").pipe


def folder_of(pipe: TextPipeline) -> Path:
    assert pipe.source is not None
    return pipe.source.folder.path


def test_chat_complete_stream_and_batch_agree(pipe):
    options = {"max_new_tokens": 8, "seed": 3}
    answer = pipe.chat(USER, **options)
    assert answer == "".join(pipe.chat(USER, stream=True, **options)).strip()
    other = [{"role": "user", "content": "x"}]
    assert pipe.chat_batch([other, USER], **options) == [pipe.chat(other, **options), answer]
    assert pipe.chat_batch([]) == []
    prompt = "<｜User｜>what is the sum of the first ten numbers?<｜Assistant｜><think>\n"
    assert pipe.complete(prompt, **options).strip() == answer
    assert "".join(pipe.complete(prompt, stream=True, **options)) == pipe.complete(prompt, **options)
    assert pipe.ask(None, USER[0]["content"], **options) == answer


def test_the_folder_says_how_to_sample(pipe, tmp_path):
    """Temperature 0.6 and top-p 0.95; a folder that says nothing, or not to sample, is greedy."""
    assert (pipe.temperature, pipe.top_p) == (0.6, 0.95)
    sampled = {"temperature": 0.6, "top_p": 0.95, "seed": 1, "max_new_tokens": 8}
    assert pipe.chat(USER, seed=1, max_new_tokens=8) == pipe.chat(USER, **sampled)
    assert pipe.chat(USER, temperature=0.0, max_new_tokens=8) == pipe.chat(
        USER, temperature=0.0, max_new_tokens=8, seed=9
    )
    for content, expected in (({}, (0.0, 1.0)), ({"do_sample": False, "temperature": 0.6}, (0.0, 1.0))):
        copy = tmp_path / f"copy{len(content)}"
        copy.mkdir()
        for file in folder_of(pipe).iterdir():
            (copy / file.name).symlink_to(file)
        (copy / "generation_config.json").unlink()
        (copy / "generation_config.json").write_text(json.dumps(content))
        other = TextPipeline.from_pretrained(copy, "cpu", progress=False)
        assert (other.temperature, other.top_p) == expected


def test_scores_are_the_logits_step_by_step(pipe):
    scores = pipe.score_text(USER, "numbers")
    ids = pipe.tokenizer.encode("numbers", bos=False)
    assert len(scores) == len(ids) > 1
    assert torch.allclose(scores[0], pipe.next_logits(USER).log_softmax(-1)[ids[0]], atol=1e-5)


def test_a_thought_is_ended(pipe):
    """After so many tokens; then the answer goes on, in the form that is asked for."""
    end = pipe.tokenizer.token_id("</think>")
    for limit in (0, 3):
        text = pipe.chat(USER, 12, max_thinking_tokens=limit, seed=1)
        thought, _ = split_thought(text)
        assert "</think>" in text
        assert len(pipe.tokenizer.encode(thought or "", bos=False)) <= limit + 1
        assert text == "".join(pipe.chat(USER, 12, seed=1, max_thinking_tokens=limit, stream=True)).strip()
    form = {"choices": ["the sum", "the numbers"], "max_thinking_tokens": 2}
    text = pipe.chat(USER, 20, seed=2, **form)
    assert split_thought(text)[1] in form["choices"]
    (prompt,) = pipe.prompts([USER], 1)
    assert end not in prompt.ids
    continued = [*USER, {"role": "assistant", "content": "<think>\nso</think>\n\nit"}]
    assert pipe.chat(continued, 20, seed=2, choices=["the sum"]) == "the sum"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_thinking_tokens": -1}, "max_thinking_tokens is -1; accepted: at least 0"),
        ({"temperature": -1.0}, "temperature is -1"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"top_k": -2}, "top_k"),
    ],
)
def test_options_out_of_range(pipe, options, message: str):
    with pytest.raises(OptionError, match=message):
        pipe.chat(USER, **options)


def test_pictures_and_empty_prompts_are_refused(pipe, text_pair):
    with pytest.raises(PromptError, match="this is a text model"):
        pipe.ask("x.png", "what is it?")
    with pytest.raises(PictureError, match="is a text model, which reads no pictures"):
        pipe.processor.fit(1)
    for prompt in ("", None):
        with pytest.raises(PromptError, match="accepted: a text that is not empty"):
            pipe.complete(prompt)
    with pytest.raises(PromptError, match="the context holds 1024"):
        pipe.complete("x", 2000)
    plain = text_pair("qwen2").pipe.processor
    plain = type(plain)(plain.tokenizer, None, "it")
    with pytest.raises(PromptError, match="accepted: `complete`"):
        plain.chat_inputs(USER)


@pytest.mark.parametrize("kind", ["qwen2", "qwen2-tied", "deepseek_v3"])
def test_saved_and_pickled(text_pair, tmp_path, kind: str):
    pipe = text_pair(kind).pipe
    pipe.save_pretrained(tmp_path / "copy")
    expected = pipe.next_logits(USER)
    for other in (load_pipeline(str(tmp_path / "copy"), "cpu"), pickle.loads(pickle.dumps(pipe))):
        assert torch.equal(other.next_logits(USER), expected)


@pytest.mark.parametrize("kind", ["qwen2", "deepseek_v3"])
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_quantized(text_pair, tmp_path, bifrons_main, kind: str, quantize: str):
    """On loading, and in a folder that `bifrons convert` wrote: the same."""
    pipe = text_pair(kind).pipe
    folder = folder_of(pipe)
    quantized = TextPipeline.from_pretrained(folder, "cpu", quantize=quantize, progress=False)
    found = quantized.next_logits(USER)
    plain = pipe.next_logits(USER)
    # In V3's kind of model a changed score chooses other experts.
    most = {"int8": (0.05, 0.15), "int4": (0.6, 1.0)}[quantize][kind == "deepseek_v3"]
    assert 0 < (found - plain).norm() / plain.norm() < most
    assert bifrons_main("convert", folder, tmp_path / "q", "--quantize", quantize) == 0
    assert torch.equal(TextPipeline.from_pretrained(tmp_path / "q", "cpu").next_logits(USER), found)
