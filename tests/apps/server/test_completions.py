"""`/v1/completions` and `/v1/responses` with the official client."""

import base64
import io
import json

import httpx
import openai
import pytest
from bifrons import JanusPipeline
from PIL import Image

from ...models import SHAPES_JANUS

SHAPES, VL2 = "shapes-janus", "vl2-mini-mla"
RED = Image.new("RGB", (64, 48), (220, 20, 20))


@pytest.fixture(scope="module")
def server(start_server, janus_mini):
    models = ["-m", SHAPES_JANUS, "-m", janus_mini.parent / VL2]
    return start_server(*models, "--rows", 16, "--context", 512)


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return server.client()


@pytest.fixture(scope="module")
def pipe() -> JanusPipeline:
    return JanusPipeline.from_pretrained(SHAPES_JANUS, device="cpu", progress=False)


def data_url(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def continued(pipe, prompt: str | list[int], tokens: int) -> tuple[str, list[int]]:
    """The greedy continuation of a text, by single steps of the model."""
    import torch

    ids = pipe.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
    made: list[int] = []
    with torch.no_grad():
        while len(made) < tokens:
            hidden = pipe.model.decoder(pipe.model.embed_text(torch.tensor([ids + made])))[0, -1]
            token = int(pipe.model.text_logits(hidden).argmax())
            if token == pipe.tokenizer.eos_id:
                break
            made.append(token)
    return pipe.tokenizer.decode(made), made


PROMPTS = ["<|User|>: What is red?\n\n<|Assistant|>:", "What colour is", "a photo of"]


def test_completions_go_on_from_a_text_or_its_tokens(client, pipe):
    expected = [continued(pipe, prompt, 16) for prompt in PROMPTS]
    assert any(text.startswith(" ") for text, _ in expected)
    reply = client.completions.create(model=SHAPES, prompt=PROMPTS)
    assert (reply.object, reply.id[:5]) == ("text_completion", "cmpl-")
    assert [choice.text for choice in reply.choices] == [text for text, _ in expected]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    ids = [pipe.tokenizer.encode(prompt) for prompt in PROMPTS]
    assert client.completions.create(model=SHAPES, prompt=ids).choices == reply.choices
    assert client.completions.create(model=SHAPES, prompt=ids[1]).choices[0].text == expected[1][0]
    assert reply.usage.prompt_tokens == sum(map(len, ids))


def test_a_streamed_completion_equals_the_whole_one(client):
    ask = {"model": VL2, "prompt": ["Hello", "One two"], "n": 2, "temperature": 1.0, "seed": 3, "logprobs": 2}
    whole = client.completions.create(**ask)
    assert [choice.finish_reason for choice in whole.choices] == ["length"] * 4
    assert whole.usage.completion_tokens == 4 * 16
    texts, tokens, offsets, ends, usage = [""] * 4, [[] for _ in range(4)], [[] for _ in range(4)], {}, None
    for chunk in client.completions.create(**ask, stream=True, stream_options={"include_usage": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens
            offsets[choice.index] += choice.logprobs.text_offset
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert offsets == [choice.logprobs.text_offset for choice in whole.choices]
    assert set(ends.values()) == {"length"}
    assert usage == whole.usage
    first = whole.choices[0].logprobs
    assert all(
        len(top) <= 2 and lp <= 0 for top, lp in zip(first.top_logprobs, first.token_logprobs, strict=True)
    )
    alone = client.completions.create(**{**ask, "prompt": "One two", "n": 1})
    assert alone.choices[0].text == texts[2]


def test_a_stop_string_ends_a_completion(client):
    ask = {"model": VL2, "prompt": "Hello", "temperature": 1.0, "seed": 1, "max_tokens": 30}
    text = client.completions.create(**ask).choices[0].text
    stop = text[len(text) // 2 :][:3]
    choice = client.completions.create(**ask, stop=stop).choices[0]
    assert (choice.text, choice.finish_reason) == (text[: text.index(stop)], "stop")


@pytest.mark.parametrize(
    ("fields", "param", "text"),
    [
        ({"echo": True}, "echo", "false"),
        ({"suffix": "end"}, "suffix", ""),
        ({"best_of": 3}, "best_of", ""),
        ({"prompt": []}, "prompt", ""),
        ({"prompt": [[]]}, "prompt[0]", ""),
        ({"prompt": ["a"] * 17}, "prompt", "16"),
        ({"prompt": 5}, "prompt", ""),
        ({"prompt": [10**6]}, "prompt", "token 1000000"),
        ({"prompt": [-1]}, "prompt[0]", ""),
        ({"prompt": "<image_placeholder>"}, "prompt", "/v1/chat/completions"),
        ({"prompt": "word " * 900}, "prompt", "--context"),
        ({"max_tokens": 600}, "prompt", "new tokens fit"),
        ({"logprobs": 21}, "logprobs", ""),
        ({"logprobs": True}, "logprobs", ""),
        ({"messages": []}, "messages", ""),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
    ],
)
def test_what_completions_refuse(server, fields, param, text):
    reply = httpx.post(f"{server.url}/v1/completions", json={"model": SHAPES, "prompt": "x", **fields})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (400, param), error
    assert text in error["message"]


def chat_answer(client, messages, **fields):
    return (
        client.chat.completions.create(model=SHAPES, messages=messages, **fields).choices[0].message.content
    )


def test_a_response_is_the_answer_of_a_chat(client):
    question, system = "What colour is it?", "Answer briefly."
    reply = client.responses.create(model=SHAPES, input="What is red?")
    assert (reply.object, reply.status, reply.error) == ("response", "completed", None)
    assert reply.output_text == chat_answer(client, [{"role": "user", "content": "What is red?"}])
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    url = data_url(RED)
    parts = [
        {"type": "input_image", "image_url": url, "detail": "auto"},
        {"type": "input_text", "text": question},
    ]
    first = client.responses.create(
        model=SHAPES, input=[{"role": "user", "content": parts}], instructions=system
    )
    image = {"type": "image_url", "image_url": {"url": url}}
    chat = [
        {"role": "system", "content": system},
        {"role": "user", "content": [image, {"type": "text", "text": question}]},
    ]
    assert first.output_text == chat_answer(client, chat)
    items = [{"role": "user", "content": parts}, *[item.model_dump() for item in first.output]]
    items.append({"type": "message", "role": "user", "content": "Are you sure?"})
    again = client.responses.create(model=SHAPES, input=items, instructions=system)
    chat += [
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "Are you sure?"},
    ]
    assert again.output_text == chat_answer(client, chat)


def test_a_streamed_response_equals_the_whole_one(client):
    ask = {"model": VL2, "input": "Hello", "temperature": 1.0, "max_output_tokens": 12, "top_logprobs": 1}
    ask["extra_body"] = {"seed": 4}
    whole = client.responses.create(**ask)
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    events = list(client.responses.create(**ask, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == [
        *["created", "in_progress", "output_item.added", "content_part.added"],
        *["output_text.delta"] * deltas,
        *["output_text.done", "content_part.done", "output_item.done", "incomplete"],
    ]
    assert deltas > 1
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text == events[-4].text
    assert events[-1].response.usage == whole.usage
    tokens = [token.token for token in whole.output[0].content[0].logprobs]
    assert [token.token for token in events[-4].logprobs] == tokens
    assert len(tokens) == 12
    with client.responses.stream(model=SHAPES, input="What is red?") as stream:
        final = stream.get_final_response()
    assert final.output_text == client.responses.create(model=SHAPES, input="What is red?").output_text


def test_a_response_of_a_given_form(client):
    schema = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    form = {"type": "json_schema", "name": "colour", "schema": schema, "strict": True}
    reply = client.responses.create(model=SHAPES, input="What is red?", text={"format": form})
    assert json.loads(reply.output_text)["colour"] in ("red", "blue")
    broken = {**form, "schema": {"type": "nonsense"}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.responses.create(model=SHAPES, input="x", text={"format": broken})
    assert refused.value.param == "text.format.schema"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": []}, "input"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role"),
        ({"input": [{"type": "function_call_output", "role": "user", "content": "x"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": "x", "k": 1}]}]},
         "input[0].content[0].k"),
        ({"input": "word " * 900}, "input"),
        ({"max_output_tokens": 600}, "input"),
        ({"text": {"verbosity": "high"}}, "text.verbosity"),
        ({"truncation": "auto"}, "truncation"),
    ],
)  # fmt: skip
def test_what_responses_refuse(server, fields, param):
    reply = httpx.post(f"{server.url}/v1/responses", json={"model": SHAPES, "input": "x", **fields})
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param), reply.text


@pytest.mark.parametrize("stream", [False, True])
def test_responses_name_unknown_words(client, stream: bool):
    """In a header, which the official client passes on; other models and known words have none."""

    def warning(reply) -> str | None:
        return reply.headers.get("X-Bifrons-Warning")

    raw, more = client.with_raw_response, {"model": SHAPES, "stream": stream}
    unknown = "Is it a \u732b?"
    messages = [{"role": "user", "content": unknown}]
    for reply in (
        raw.chat.completions.create(messages=messages, max_tokens=1, **more),
        raw.responses.create(input=unknown, max_output_tokens=1, **more),
        raw.completions.create(prompt=unknown, max_tokens=1, **more),
    ):
        assert warning(reply).startswith("shapes-janus knows 8 shapes, 10 colors, up to 4 at once: circle")
        assert warning(reply).endswith("not: '\\u732b'")
    image = raw.images.generate(prompt="a red cat", **more)
    assert warning(image).endswith("not: 'cat'")
    image.parse()
    messages = [{"role": "user", "content": "What colour is it?"}]
    assert warning(raw.chat.completions.create(messages=messages, max_tokens=1, **more)) is None
    messages = [{"role": "user", "content": unknown}]
    other = raw.chat.completions.create(messages=messages, max_tokens=1, model=VL2, stream=stream)
    assert warning(other) is None
