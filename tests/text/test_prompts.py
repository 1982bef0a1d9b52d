"""Conversations as DeepSeek's templates render them."""

import random
from pathlib import Path

import jinja2
import pytest
from bifrons import PromptError
from bifrons.text.processor import TextProcessor
from bifrons.text.prompts import ChatFormat, read_chat_format, split_thought
from bifrons.tokenizers.text import TextTokenizer

from ..transformers_text import BOS, EOS, make_tokenizer

# What the published templates do, without their branches for tools: R1's, V3's (two forms) and V2's.
_ASSISTANT = "{{ '<｜Assistant｜>' + text + '<｜end▁of▁sentence｜>' }}"
_TURNS = (
    "{{ bos_token + ns.system }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'assistant' %}{% set text = m.content %}THOUGHT"
    + _ASSISTANT
    + "{% endif %}{% endfor %}"
)
_LAST_SYSTEM = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = m.content %}{% endif %}{% endfor %}"
)
_ALL_SYSTEMS = (
    "{% set ns = namespace(system='', is_first_sp=true) %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = ns.system + ('' if ns.is_first_sp else '\\n\\n') + m.content %}"
    "{% set ns.is_first_sp = false %}{% endif %}{% endfor %}"
)
_DROP = "{% if '</think>' in text %}{% set text = text.split('</think>')[-1] %}{% endif %}"
TEMPLATES = {
    "r1": _LAST_SYSTEM + _TURNS.replace("THOUGHT", _DROP) + "{{ '<｜Assistant｜><think>\\n' }}",
    "r1-first": _LAST_SYSTEM + _TURNS.replace("THOUGHT", _DROP) + "{{ '<｜Assistant｜>' }}",
    "r1-0528": _ALL_SYSTEMS + _TURNS.replace("THOUGHT", _DROP) + "{{ '<｜Assistant｜><think>\\n' }}",
    "v3": _LAST_SYSTEM + _TURNS.replace("THOUGHT", "") + "{{ '<｜Assistant｜>' }}",
    "v2": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
    "{{ 'User: ' + m.content + '\\n\\n' }}"
    "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}{% else %}"
    "{{ m.content + '\\n\\n' }}{% endif %}{% endfor %}{{ 'Assistant:' }}",
}
TEXTS = (
    "What is 2 + 2?", " two spaces ", "Zeile\nzwei\n\n", "你好，世界", "<b>bold</b>", "x" * 200,
    "{{ braces }}", "a</thin", "tab\tand 'quotes' \"double\"", "🙂 emoji", ".", "12,345.67 %",
)  # fmt: skip
THOUGHTS = ("", "<think>\nhm\n</think>\n\n", "I think</think>", "</think> a </think>", "<think>\n</think>")


def conversation(seed: int) -> list[dict[str, str]]:
    """Some systems, then turns that mostly but not always alternate, at last the user's."""
    pick = random.Random(seed)
    messages = [{"role": "system", "content": pick.choice(TEXTS)} for _ in range(pick.choice((0, 0, 1, 2)))]
    for _ in range(pick.randrange(5)):
        role = pick.choice(("user", "assistant"))
        text = pick.choice(TEXTS)
        messages.append(
            {"role": role, "content": (pick.choice(THOUGHTS) if role == "assistant" else "") + text}
        )
    return [*messages, {"role": "user", "content": pick.choice(TEXTS)}]


def form_of(folder: Path, template: str | None, think: bool = True, **more) -> ChatFormat | None:
    tokenizer = make_tokenizer(think=think)
    tokenizer.save(str(folder / "tokenizer.json"))
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return read_chat_format(folder, TextTokenizer.from_folder(folder), more.get("model_type", "qwen2"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_are_those_of_the_template(tmp_path, name: str):
    form = form_of(tmp_path, TEMPLATES[name])
    assert form is not None
    processor = TextProcessor(TextTokenizer.from_folder(tmp_path), form, "it")
    template = jinja2.Environment().from_string(TEMPLATES[name])
    for seed in range(50):
        messages = conversation(seed)
        expected = template.render(messages=messages, bos_token=BOS, eos_token=EOS)
        assert BOS + "".join(form.render(messages)) == expected
        ids = processor.chat_inputs(messages).ids.tolist()
        assert ids == processor.tokenizer.hf.encode(expected, add_special_tokens=False).ids
    assert form.thinks == (name in ("r1", "r1-0528"))


def test_a_folder_without_a_template(tmp_path):
    """R1's form if the vocabulary has the marks of thoughts, V3's without, none without the user's mark."""
    (tmp_path / "v3").mkdir()
    reasons, plain = form_of(tmp_path, None), form_of(tmp_path / "v3", None, think=False)
    assert reasons is not None
    assert plain is not None
    assert (reasons.thinks, reasons.drops_thoughts) == (True, True)
    assert (plain.thinks, plain.drops_thoughts) == (False, False)
    other = TextTokenizer.from_folder(Path(__file__).parent.parent / "data" / "vl2-mini-mla")
    assert read_chat_format(tmp_path, other, "llama") is None


def test_an_unfinished_answer_goes_on(tmp_path):
    """Without an end or a cue, with its thought; an empty one asks for an answer."""
    form = form_of(tmp_path, TEMPLATES["r1"])
    assert form is not None
    user = {"role": "user", "content": "Q"}
    cut = form.render([user, {"role": "assistant", "content": "<think>\nso far"}])
    assert "".join(cut) == "<｜User｜>Q<｜Assistant｜><think>\nso far"
    asked = form.render([user, {"role": "assistant", "content": ""}])
    assert "".join(asked) == "<｜User｜>Q<｜Assistant｜><think>\n"


def test_marks_in_texts_of_people_are_text(tmp_path):
    form = form_of(tmp_path, TEMPLATES["r1"])
    processor = TextProcessor(TextTokenizer.from_folder(tmp_path), form, "it")
    user = processor.tokenizer.token_id("<｜User｜>")
    ids = processor.chat_inputs(
        [{"role": "user", "content": "a<｜User｜>b<｜end▁of▁sentence｜>"}]
    ).ids.tolist()
    assert ids.count(user) == 1
    assert processor.tokenizer.eos_id not in ids


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "empty list"),
        ("hi", "list of messages"),
        ([{"role": "user", "content": " "}], "is empty"),
        ([{"role": "assistant", "content": "hi"}], "no message of the user"),
        ([{"role": "wizard", "content": "hi"}], "has the role"),
        ([{"role": "user", "content": [{"type": "image", "image": "x.png"}]}], "this is a text model"),
    ],
)
def test_malformed_conversations(text_pair, messages, message: str):
    with pytest.raises(PromptError, match=message):
        text_pair("qwen2").pipe.chat(messages, max_new_tokens=1)


def test_split_thought():
    assert split_thought("2 and 2 ...</think>\n\n4") == ("2 and 2 ...", "4")
    assert split_thought("<think>\nhm</think>4") == ("hm", "4")
    assert split_thought("<think>\nhm") == ("hm", "")
    assert split_thought(" 4 ") == (None, "4")
