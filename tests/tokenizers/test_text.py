"""The text tokenizer: exact ids and texts, names, BOS, damage, and streaming."""

import copy
import json
import shutil

import pytest
from bifrons.blocks.errors import ConfigError, PromptError
from bifrons.blocks.special_tokens import PlainText
from bifrons.tokenizers.text import BOS, EOS, PAD, StreamDecoder, TextTokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

TEXTS = [
    "a photo of a red apple",
    " two  spaces\n\nlines\r\n",
    "naïve 漢字 👩‍👩‍👧 1234",
    f"<|User|>: hi{EOS}",
]


@pytest.fixture(scope="module")
def tokenizer(janus_mini):
    return TextTokenizer.from_folder(janus_mini)


@pytest.fixture
def folder(janus_mini, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(janus_mini / name, tmp_path / name)
    return tmp_path


def _write(path, **content):
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("text", TEXTS)
def test_text_survives_the_round_trip(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.count(tokenizer.bos_id) == 1
    assert ids[0] == tokenizer.bos_id
    assert ids[1:] == tokenizer.encode(text, bos=False)
    assert tokenizer.decode(ids[1:], skip_special_tokens=False) == text


def test_special_tokens_in_a_text_are_single_ids_and_skipped_in_answers(tokenizer):
    ids = tokenizer.encode(f"<|User|>: hi{EOS}", bos=False)
    assert ids[0] == tokenizer.token_id("<|User|>")
    assert ids[-1] == tokenizer.eos_id
    assert tokenizer.decode(ids) == ": hi"


MARKS = [BOS, EOS, PAD, "<|User|>", "<|Assistant|>", "<image_placeholder>", "<begin_of_image>"]
_words = st.text("<|>iUé漢 \n", max_size=9)
texts_with_marks = st.lists(st.one_of(st.sampled_from(MARKS), _words)).map("".join)


@given(text=texts_with_marks, answer=texts_with_marks)
def test_special_tokens_in_texts_of_people_are_text(tokenizer, text, answer):
    pieces = ["<|User|>: ", PlainText(text), f"\n\n<|Assistant|>:{EOS}", PlainText(answer)]
    ids = tokenizer.encode(pieces, bos=False)
    special = {tokenizer.token_id(name) for name in MARKS}
    assert [i for i in ids if i in special] == [tokenizer.token_id(n) for n in (MARKS[3], MARKS[4], EOS)]
    assert tokenizer.decode(ids, skip_special_tokens=False) == "".join(pieces)


@given(text=st.text(max_size=40))
def test_pieces_are_encoded_as_one_text(tokenizer, text):
    ids = tokenizer.encode(["<|User|>: ", PlainText(text), "", "\n\n<|Assistant|>:"], bos=False)
    assert ids == tokenizer.encode(f"<|User|>: {text}\n\n<|Assistant|>:", bos=False)


def test_allowed_tokens_count_in_texts_of_people(tokenizer):
    tokenizer = copy.copy(tokenizer)
    tokenizer.allowed = frozenset({tokenizer.token_id("<|User|>")})
    ids = tokenizer.encode(PlainText(f"a <|User|>b<|User|>{EOS}"), bos=False)
    assert ids.count(tokenizer.token_id("<|User|>")) == 2
    assert tokenizer.eos_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == f"a <|User|>b<|User|>{EOS}"


def test_added_letters_stay_tokens_but_what_looks_like_a_mark_is_text(folder):
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.add_tokens(["漢", "<｜fim｜>", "字"])  # not special: DeepSeek's vocabularies have such letters
    raw.save(str(folder / "tokenizer.json"))
    tokenizer = TextTokenizer.from_folder(folder)
    fim = tokenizer.token_id("<｜fim｜>")
    assert tokenizer.encode("漢<｜fim｜>字", bos=False) == [fim - 1, fim, fim + 1]
    ids = tokenizer.encode(PlainText("漢<｜fim｜>字<|User|>"), bos=False)
    assert (ids[0], ids.count(fim - 1), ids.count(fim), ids.count(fim + 1)) == (fim - 1, 1, 0, 1)
    assert tokenizer.decode(ids, skip_special_tokens=False) == "漢<｜fim｜>字<|User|>"


def test_special_tokens_that_the_vocabulary_can_make_are_text(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False}
    content["pre_tokenizer"] |= {"use_regex": False, "trim_offsets": True}
    size = len(content["model"]["vocab"])
    steps = ["<|", "<|U", "<|Us", "<|Use", "<|User", "<|User|", "<|User|>"]
    content["model"]["vocab"] |= {step: size + n for n, step in enumerate(steps)}
    content["model"]["merges"] = [[step[:-1], step[-1]] for step in steps]
    for number, token in enumerate(content["added_tokens"]):
        token["id"] = size + len(steps) + number
    (folder / "tokenizer.json").write_text(json.dumps(content))
    tokenizer = TextTokenizer.from_folder(folder)
    role = tokenizer.token_id("<|User|>")
    assert tokenizer.encode("<|User|>", bos=False) == [role]
    assert role not in tokenizer.encode(PlainText("a <|User|>"), bos=False)


def test_long_texts_of_marks_are_encoded_in_time(tokenizer):
    text = "".join(MARKS) * 2000
    ids = tokenizer.encode([PlainText(text[:1000]) for _ in range(200)] + [PlainText(text)], bos=False)
    assert tokenizer.decode(ids) == text[:1000] * 200 + text


def test_bos_follows_the_config_and_a_post_processor_adds_no_second(folder):
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    content = json.loads((folder / "tokenizer.json").read_text())
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [raw.token_to_id(BOS)], "tokens": [BOS]}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert TextTokenizer.from_folder(folder).encode("hi").count(raw.token_to_id(BOS)) == 1
    (folder / "tokenizer_config.json").unlink()
    assert TextTokenizer.from_folder(folder).encode("hi")[0] == raw.token_to_id(BOS)
    _write(folder / "tokenizer_config.json", add_bos_token=False)
    assert raw.token_to_id(BOS) not in TextTokenizer.from_folder(folder).encode("hi")


def test_truncation_in_the_file_does_not_shorten_prompts(folder):
    raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
    raw.enable_truncation(4)
    raw.enable_padding(length=64)
    raw.save(str(folder / "tokenizer.json"))
    text = "a photo of a red apple on a wooden table"
    tokenizer = TextTokenizer.from_folder(folder)
    ids = tokenizer.encode(text, bos=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_special_names_come_from_the_files_then_from_deepseek(folder):
    _write(folder / "special_tokens_map.json", eos_token={"content": "<|User|>"}, pad_token=None)
    _write(folder / "tokenizer_config.json", bos_token="<|Assistant|>", eos_token=EOS, pad_token=None)
    tokenizer = TextTokenizer.from_folder(folder)
    assert tokenizer.eos_id == tokenizer.token_id("<|User|>")
    assert tokenizer.bos_id == tokenizer.token_id("<|Assistant|>")
    assert tokenizer.pad_id == tokenizer.token_id(PAD)


def test_absent_names_are_named(folder):
    tokenizer = TextTokenizer.from_folder(folder)
    assert not tokenizer.has("<image>")
    with pytest.raises(ConfigError) as caught:
        tokenizer.token_id("<image>")
    assert "<image>" in str(caught.value)
    assert str(folder) in str(caught.value)


def test_add_special_appends_once(folder):
    tokenizer = TextTokenizer.from_folder(folder)
    size = tokenizer.vocab_size
    assert tokenizer.add_special("<|User|>") < size
    assert tokenizer.add_special("<image>") == tokenizer.add_special("<image>") == size
    assert tokenizer.vocab_size == size + 1
    assert tokenizer.encode("a<image>b", bos=False).count(size) == 1
    assert tokenizer.is_special(size)


def test_tokens_beyond_the_models_embedding_are_refused(folder):
    size = TextTokenizer.from_folder(folder).vocab_size
    with pytest.raises(ConfigError, match=f"beyond the {size - 1} embeddings"):
        TextTokenizer.from_folder(folder, size - 1)
    tokenizer = TextTokenizer.from_folder(folder, size)
    with pytest.raises(ConfigError, match=f"'<image>' has id {size}, beyond the {size} embeddings"):
        tokenizer.add_special("<image>")


def test_failures_of_the_library_are_errors_of_ours(tokenizer):
    class PanicException(BaseException):
        pass

    class Broken:
        def encode(self, *_, **__):
            raise PanicException("index out of bounds")

        decode = no_truncation = no_padding = encode

    broken = copy.copy(tokenizer)
    broken.hf = Broken()
    for use in (lambda: broken.encode("a"), lambda: broken.decode([1])):
        with pytest.raises(ConfigError, match=r"the tokenizer of .* failed: 'index out of bounds'"):
            use()


@pytest.mark.parametrize("damage", ["missing", "text", "half", "other json"])
def test_damaged_tokenizer_file(folder, damage):
    path = folder / "tokenizer.json"
    whole = path.read_text()
    path.unlink()
    if damage != "missing":
        path.write_text({"text": "not json", "half": whole[: len(whole) // 2], "other json": "{}"}[damage])
    with pytest.raises(ConfigError, match="tokenizer"):
        TextTokenizer.from_folder(folder)


@pytest.mark.parametrize("config", ['{"add_bos_token": "yes"}', '{"bos_token": 3}', "[]", "{"])
def test_damaged_config(folder, config):
    (folder / "special_tokens_map.json").unlink()
    (folder / "tokenizer_config.json").write_text(config)
    with pytest.raises(ConfigError):
        TextTokenizer.from_folder(folder)


@pytest.mark.parametrize("text", ["\ud800", None, b"bytes", ["a", 3], [PlainText("\ud800")]])
def test_what_is_not_text_is_refused(tokenizer, text):
    with pytest.raises(PromptError):
        tokenizer.encode(text)


@given(text=st.text(max_size=40), skip=st.booleans())
def test_streamed_text_is_whole_and_never_half_a_character(tokenizer, text, skip):
    ids = tokenizer.encode(text, bos=False)
    decoder = StreamDecoder(tokenizer, skip)
    pieces = [decoder.push(i) for i in ids]
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text
    assert "".join(pieces) + decoder.flush() == tokenizer.decode(ids, skip)


@given(ids=st.lists(st.integers(0, 800), max_size=40), parts=st.lists(st.integers(0, 9)), skip=st.booleans())
def test_any_ids_stream_to_what_they_decode_to(tokenizer, ids, parts, skip):
    # Ids of a model without training: broken UTF-8, special tokens, ids beyond the vocabulary (513).
    decoder, text, start = StreamDecoder(tokenizer, skip), "", 0
    for count in parts:
        text += decoder.extend(ids[start : start + count])
        start += count
    text += decoder.extend(ids[start:])
    assert text + decoder.flush() == tokenizer.decode(ids, skip)
    assert decoder.flush() == ""


def test_stream_gives_text_at_once_and_decodes_only_the_newest_ids(tokenizer, monkeypatch):
    ids = tokenizer.encode("a red apple 漢 " * 50, bos=False)
    lengths = []
    decode = TextTokenizer.decode

    def counting(self, ids, skip_special_tokens=True):
        lengths.append(len(ids))
        return decode(self, ids, skip_special_tokens)

    monkeypatch.setattr(TextTokenizer, "decode", counting)
    decoder = StreamDecoder(tokenizer)
    first = next(i for i in range(len(ids)) if decoder.push(ids[i]))
    assert first == 0
    for i in ids[1:]:
        decoder.push(i)
    assert max(lengths) <= 8
