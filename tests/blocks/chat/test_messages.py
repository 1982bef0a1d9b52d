"""Both forms of messages give the same turns, and malformed conversations are refused with both numbers."""

import base64
import io

import pytest
from bifrons.blocks.chat.messages import is_unfinished
from bifrons.blocks.chat.messages import normalize_messages as normalize
from bifrons.blocks.errors import PictureError, PromptError
from bifrons.blocks.special_tokens import PlainText
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

MARK = "<image>"
PICTURE = Image.new("RGB", (3, 2), (255, 0, 0))


def normalize_messages(messages, mark, **options):
    return normalize(messages, mark, lambda count: lambda image: image, **options)


def _text(text):
    return {"type": "text", "text": text}


def _picture():
    return {"type": "image", "image": PICTURE}


def _user(content, **more):
    return {"role": "user", "content": content, **more}


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([_picture(), _text("Q")], "<image>\nQ"),
        ([_text("Q"), _picture()], "<image>\nQ"),
        ([_text("Q\n"), _picture(), _picture(), _text(" ")], "<image>\n<image>\nQ\n"),
        ([_text("A"), _picture(), _text("B\n"), _picture()], "A\n<image>\n<image>\nB\n"),
        ([_picture(), _text("A"), _picture(), _text("B")], "<image>\nA\n<image>\nB"),
        ([_text("A\n"), _picture(), _text("B")], "A\n<image>\nB"),
        ([_picture(), _picture(), _text("Q")], "<image>\n<image>\nQ"),
        ([_text("A"), _text("B")], "A\nB"),
        ([_picture()], "<image>\n"),
    ],
)
def test_parts_join_as_the_official_demos_write(parts, text):
    (turn,) = normalize_messages([_user(parts)], MARK)
    assert (turn.role, turn.text) == ("user", text)
    assert [p.size for p in turn.images] == [(3, 2)] * text.count(MARK)


def test_all_spellings_of_a_picture(tmp_path):
    path = tmp_path / "p.png"
    PICTURE.save(path)
    buffer = io.BytesIO()
    PICTURE.save(buffer, "PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
        {"type": "image_url", "image_url": url},
        {"type": "image_url", "image_url": {"url": str(path)}},
        {"type": "image", "image": path},
        {"type": "picture", "picture": buffer.getvalue()},
        {"type": "picture", "image": PICTURE},
    ]
    (turn,) = normalize_messages([_user(parts)], MARK)
    assert [p.tobytes() for p in turn.images] == [PICTURE.tobytes()] * 6


def test_official_and_openai_form_give_the_same():
    official = [
        {"role": "<|User|>", "content": f"{MARK}\nQ1", "images": [PICTURE]},
        {"role": "<|Assistant|>", "content": "A1"},
        {"role": "<|User|>", "content": "Q2"},
        {"role": "<|Assistant|>", "content": ""},
    ]
    openai = [
        _user([_picture(), _text("Q1")]),
        {"role": "assistant", "content": [_text("A1")]},
        _user("Q2"),
    ]
    for messages in (official, openai):
        turns = normalize_messages(messages, MARK)
        assert [(t.role, t.text, len(t.images)) for t in turns] == [
            ("user", f"{MARK}\nQ1", 1),
            ("assistant", "A1", 0),
            ("user", "Q2", 0),
        ]
    old = [{"role": "User", "content": "Q"}, {"role": "Assistant", "content": None}]
    assert [(t.role, t.text) for t in normalize_messages(old, MARK)] == [("user", "Q")]


ANSWER = {"role": "assistant", "content": "A"}
EMPTY = {"role": "assistant", "content": None}
SYSTEM = {"role": "system", "content": "S"}
OFFICIAL = {"role": "<|User|>", "content": f"{MARK}\nQ", "images": [PICTURE]}
USER, BOT = "user", "assistant"


@pytest.mark.parametrize(
    ("messages", "turns"),
    [
        ([SYSTEM, _user("Q")], [("system", "S"), (USER, "Q")]),
        ([_user("Q1"), _user(" Q2\n"), _user([_text("Q3")])], [(USER, "Q1\n\nQ2\n\nQ3")]),
        ([_user([_picture(), _text("Q1")]), _user([_text("Q2")])], [(USER, "<image>\nQ1\n\nQ2")]),
        ([_user([_picture()]), _user("Q")], [(USER, "<image>\nQ")]),
        ([_user("Q"), _user([_picture()])], [(USER, "<image>\nQ")]),
        ([_user("Q"), OFFICIAL], [(USER, "Q\n\n<image>\nQ")]),
        (
            [_user([_picture(), _text("A")]), _user([_text("B"), _picture()])],
            [(USER, "<image>\nA\n\n<image>\nB")],
        ),
        (
            [_user("Q"), SYSTEM, {"role": "developer", "content": "T"}, _user("R")],
            [("system", "S\n\nT"), (USER, "Q\n\nR")],
        ),
        ([{"role": "system", "content": ""}, _user("Q")], [(USER, "Q")]),
        ([{"role": "system", "content": [_text(" ")]}, SYSTEM, _user("Q")], [("system", "S"), (USER, "Q")]),
        ([ANSWER, _user("Q")], [(BOT, "A"), (USER, "Q")]),
        ([_user("Q"), EMPTY, _user("R")], [(USER, "Q\n\nR")]),
        ([_user("Q"), ANSWER, ANSWER, _user("R")], [(USER, "Q"), (BOT, "A\n\nA"), (USER, "R")]),
        ([_user("Q"), ANSWER, EMPTY, _user("R")], [(USER, "Q"), (BOT, "A"), (USER, "R")]),
        ([_user(" "), _user("Q"), EMPTY], [(USER, "Q")]),
        ([_user("Q"), ANSWER], [(USER, "Q"), (BOT, "A")]),
    ],
)
def test_roles_in_any_order(messages, turns):
    found = normalize_messages(messages, MARK)
    assert [(turn.role, turn.text) for turn in found] == turns
    assert [len(turn.images) for turn in found] == [text.count(MARK) for _, text in turns]


def test_an_unfinished_answer_goes_on_after_its_last_word():
    for text, expected in (("The colour is", True), ("The colour is ", False)):
        turns = normalize_messages([_user("Q"), {"role": "assistant", "content": text}], MARK)
        assert is_unfinished(turns) is expected
    assert not is_unfinished(normalize_messages([_user("Q")], MARK))


@pytest.mark.parametrize(
    "messages",
    [
        [_user(f"How do I write an {MARK} tag?")],
        [_user(f"How do I write an {MARK} tag?", images=[])],
        [_user([_picture(), _text(f"what is {MARK}?")])],
        [{"role": "system", "content": MARK}, {"role": "assistant", "content": MARK}, _user([_text(MARK)])],
    ],
)
def test_marks_in_texts_of_people_are_text(messages):
    pieces = [piece for turn in normalize_messages(messages, MARK) for piece in turn.pieces]
    trusted = "".join(piece for piece in pieces if not isinstance(piece, PlainText))
    assert trusted.count(MARK) == str(messages).count("PIL.Image")
    assert all(isinstance(piece, PlainText) for piece in pieces if MARK in piece and piece != f"{MARK}\n")


def test_special_tokens_count_in_the_official_form():
    for message in (OFFICIAL, _user(f"{MARK}\nQ", images=PICTURE), {"role": "User", "content": "Q"}):
        (turn,) = normalize_messages([message], MARK)
        assert not any(isinstance(piece, PlainText) for piece in turn.pieces)


@pytest.mark.parametrize("key", ["image", "picture", "url", "path", "base64"])
def test_keys_of_image_parts(key):
    (turn,) = normalize_messages([_user([{"type": "image", key: PICTURE}, _text("Q")])], MARK)
    assert (turn.text, len(turn.images)) == ("<image>\nQ", 1)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "list of messages, not str"),
        ({"role": "user"}, "list of messages, not dict"),
        (None, "NoneType"),
        ([], "empty list"),
        (["hello"], "message 0 must be a dict"),
        ([{"role": "tool", "content": "x"}], "'tool'"),
        ([{"content": "x"}], "role None"),
        ([{"role": ["user"], "content": "x"}], "role"),
        ([{"role": "user"}], "no content"),
        ([_user(3)], "type int"),
        ([_user("")], "message 0 .user. is empty"),
        ([_user([])], "empty"),
        ([_user("Q"), ANSWER, _user(" ")], "message 2 .user. is empty"),
        ([_user(["hello"])], "part 0 of message 0"),
        ([_user([{"type": "video"}])], "'video'; accepted: text"),
        ([_user([{"type": "text"}])], "'text'"),
        ([_user([{"type": "image"}])], "one picture"),
        ([_user([{"type": "image_url", "image_url": {}}])], "data: URL"),
        ([_user([{"type": "image_url", "image_url": {"url": "x", "detail": "x"}}])], "detail"),
        ([_user([{"type": "image", "image": PICTURE, "url": "x"}])], "one picture"),
        ([_user(f"{MARK}{MARK}", images=[PICTURE])], "2 mark.* and 1 picture"),
        ([_user("Q", images=[PICTURE, PICTURE])], "0 mark.* and 2 picture"),
        ([_user([_picture()], images=[PICTURE])], "not both"),
        ([_user("Q"), {"role": "<|Assistant|>", "content": MARK}, _user("Q")], "message 1 .assistant."),
        ([{"role": "assistant", "content": [_picture()]}, _user("Q")], "message 0 .assistant."),
        ([{"role": "System", "content": MARK}, _user("Q")], "message 0 .system."),
        ([ANSWER], "no message of the user"),
        ([SYSTEM], "must end with"),
        ([{"role": "assistant", "content": ""}], "must end with"),
    ],
)
def test_malformed_conversations_are_refused(messages, message):
    with pytest.raises(PromptError, match=message):
        normalize_messages(messages, MARK)


def test_bad_picture_and_paths_from_a_network_are_refused(tmp_path):
    path = tmp_path / "p.png"
    PICTURE.save(path)
    with pytest.raises(PictureError, match="does not exist"):
        normalize_messages([_user(MARK, images="nowhere.png")], MARK)
    for message in (_user([{"type": "image_url", "image_url": str(path)}]), _user(MARK, images=[path])):
        assert len(normalize_messages([message], MARK)[0].images) == 1
        with pytest.raises(PictureError, match="data: URL"):
            normalize_messages([message], MARK, local_files=False)


parts = st.lists(st.one_of(st.none(), st.text(alphabet="ab \n", max_size=5)), max_size=6)


@given(parts)
def test_any_parts_keep_their_texts_marks_and_order(given_parts):
    message = _user([_picture() if part is None else _text(part) for part in given_parts])
    pictures = given_parts.count(None)
    if not pictures and not "".join(part or "" for part in given_parts).strip():
        with pytest.raises(PromptError, match="empty"):
            normalize_messages([message], MARK)
        return
    (turn,) = normalize_messages([message], MARK)
    assert len(turn.images) == turn.text.count(MARK) == pictures
    filled = [part for part in given_parts if part is None or part.strip()]
    texts = [index for index, part in enumerate(filled) if part is not None]
    filled += [filled.pop(index) for index in texts[-1:]]
    squeezed = "".join(MARK if part is None else part for part in filled)
    assert turn.text.replace("\n", "") == squeezed.replace("\n", "")
    assert turn.text.count(f"{MARK}\n") == pictures
