"""Text models beside those with pictures: thoughts, their limit, and the folder's own sampling."""

import shutil

import openai
import pytest
from bifrons import TextPipeline
from bifrons.text.prompts import split_thought

from ...transformers_text import make_folder

MESSAGES = [{"role": "user", "content": "what is the sum of the first ten numbers?"}]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory) -> TextPipeline:
    folder, _ = make_folder(tmp_path_factory.mktemp("text") / "r1-tiny", "qwen2")
    return TextPipeline.from_pretrained(folder, "cpu", progress=False)


@pytest.fixture(scope="module")
def client(start_server, pipe, tmp_path_factory) -> openai.OpenAI:
    """`r1-tiny`, and the same model in the folder `base`, whose template is no form of DeepSeek's."""
    assert pipe.source is not None
    folder, base = pipe.source.folder.path, tmp_path_factory.mktemp("text") / "base"
    shutil.copytree(folder, base)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    return start_server("-m", folder, "-m", base, "--rows", 8, "--context", 256).client()


def chat(client, **more):
    extra = {name: more.pop(name) for name in list(more) if name in ("max_thinking_tokens", "guided_choice")}
    fields = {"model": "r1-tiny", "messages": MESSAGES, "max_tokens": 24, "seed": 3, **more}
    return client.chat.completions.create(**fields, extra_body=extra)


@pytest.mark.parametrize("limit", [None, 4])
def test_the_thought_is_apart_from_the_answer(client, pipe, limit):
    """In one piece and streamed, with temperature and top-p of the folder."""
    limits = {} if limit is None else {"max_thinking_tokens": limit}
    thought, answer = split_thought(pipe.chat(MESSAGES, 24, seed=3, **limits))
    if limit is None:  # this model's thought goes on until it is cut off
        thought, answer = (thought or answer, "" if thought is None else answer)
    message = chat(client, **limits).choices[0].message
    assert (message.reasoning_content, message.content) == (thought or None, answer)
    explicit = chat(client, temperature=0.6, top_p=0.95, **limits).choices[0].message
    assert (explicit.reasoning_content, explicit.content) == (thought or None, answer)
    deltas = [event.choices[0].delta for event in chat(client, stream=True, **limits) if event.choices]
    thoughts = [getattr(delta, "reasoning_content", None) or "" for delta in deltas]
    assert "".join(thoughts) == thought
    assert "".join(delta.content or "" for delta in deltas) == answer
    last = max((number for number, text in enumerate(thoughts) if text), default=-1)
    assert not any(delta.content for delta in deltas[:last])


def test_forms_and_stop_strings_are_of_the_answer(client):
    message = chat(client, max_thinking_tokens=2, guided_choice=["the sum", "numbers"]).choices[0].message
    assert message.content in ("the sum", "numbers")
    assert message.reasoning_content is not None
    stopped = chat(client, max_thinking_tokens=6, stop=["a", "e", "i", "o"]).choices[0]
    assert stopped.message.reasoning_content
    assert not set(stopped.message.content) & set("aeio")


def test_a_thought_that_is_sent_back_changes_nothing(client):
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}, *MESSAGES]
    plain = chat(client, messages=history).choices[0].message
    history[1] = {**history[1], "reasoning_content": "a greeting " * 100}
    assert chat(client, messages=history).choices[0].message == plain


def test_what_text_models_refuse(client):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    text = {"type": "text", "text": "what is it?"}
    with pytest.raises(openai.BadRequestError, match="is a text model, which reads no pictures"):
        chat(client, messages=[{"role": "user", "content": [picture, text]}])
    continued = [*MESSAGES, {"role": "assistant", "content": "it is"}]
    with pytest.raises(openai.BadRequestError, match="max_thinking_tokens") as refused:
        chat(client, messages=continued, max_thinking_tokens=5)
    assert refused.value.param == "max_thinking_tokens"


def test_completions_are_as_they_were_generated(client, pipe):
    prompt = "<｜User｜>what is the sum?<｜Assistant｜><think>\n"
    expected = pipe.complete(prompt, 12, temperature=0.0)
    for model in ("r1-tiny", "base"):
        fields = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, "logprobs": 2}
        made = client.completions.create(**fields).choices[0]
        streamed = [event.choices[0] for event in client.completions.create(stream=True, **fields)]
        assert made.text == "".join(choice.text for choice in streamed) == expected
        assert all(1 <= len(top) <= 2 for top in made.logprobs.top_logprobs)  # some share a text
        assert [token for choice in streamed for token in choice.logprobs.tokens] == made.logprobs.tokens
    with pytest.raises(openai.BadRequestError, match="accepted: `complete`"):
        chat(client, model="base")


@pytest.mark.parametrize("limit", [None, 4])
def test_responses_have_the_thought_as_an_item(client, limit):
    """Before the answer; the stream has the same items, and a thought that is sent back changes nothing."""
    limits = {} if limit is None else {"max_thinking_tokens": limit}
    message = chat(client, **limits).choices[0].message
    body = {"seed": 3, **limits}
    ask = {"model": "r1-tiny", "input": MESSAGES, "max_output_tokens": 24, "extra_body": body}
    ask["include"] = ["message.output_text.logprobs"]
    whole = client.responses.create(**ask)
    thought = whole.output[0]
    assert (thought.type, thought.content[0].text) == ("reasoning", message.reasoning_content)
    assert whole.output_text == message.content
    used = whole.usage.output_tokens_details.reasoning_tokens
    if limit is None:  # cut off within it
        assert (len(whole.output), thought.status, used) == (1, "incomplete", whole.usage.output_tokens)
    else:
        assert (thought.status, used) == ("completed", limit + 1)
        assert len(whole.output[1].content[0].logprobs) == whole.usage.output_tokens - used
    events = list(client.responses.create(**ask, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    final = events[-1].response
    for one, other in zip(final.output, whole.output, strict=True):
        assert one.model_dump(exclude={"id"}) == other.model_dump(exclude={"id"})
    kinds = [event.type.removeprefix("response.") for event in events]
    kinds = [kind for kind, before in zip(kinds, [None, *kinds], strict=False) if kind != before]
    item = [
        "output_item.added",
        "content_part.added",
        "{}.delta",
        "{}.done",
        "content_part.done",
        "output_item.done",
    ]
    names = ["reasoning_text"] if limit is None else ["reasoning_text", "output_text"]
    assert kinds[2:-1] == [kind.format(name) for name in names for kind in item]
    for name, part in zip(names, (thought.content[0].text, whole.output_text), strict=False):
        assert "".join(event.delta for event in events if event.type == f"response.{name}.delta") == part
    history = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}, *MESSAGES]
    plain = client.responses.create(**{**ask, "input": history})
    back = client.responses.create(**{**ask, "input": [history[0], thought.model_dump(), *history[1:]]})
    assert plain.output_text == back.output_text
    with pytest.raises(openai.BadRequestError, match="it has no message"):
        client.responses.create(**{**ask, "input": [thought.model_dump()]})
