"""Reading JSON from outside: what is refused, with which words, and what it may cost."""

import json
import os
import socket

import pytest
from bifrons.blocks.errors import BifronsError, ConfigError, OptionError, is_name, printable
from bifrons.blocks.files import open_regular, read_bounded
from bifrons.blocks.json_config import CONFIG_BYTES, Section, parse_json, read_json, read_value

TEXTS = {
    "nested": (b"[" * 200_000, "64 levels"),
    "nested a little": (b"[" * 65 + b"]" * 65, "64 levels"),
    "nested objects": (b'{"a":' * 100_000, "64 levels"),
    "digits": (b'{"a": ' + b"1" * 5000 + b"}", "5,000 digits"),
    "digits of a float": (b"1." + b"1" * 5000 + b"e999", "finite"),
    "too large a float": (b'{"a": 1e999}', "finite"),
    "NaN": (b'{"a": NaN}', "finite"),
    "infinity": (b"[-Infinity]", "finite"),
    "a name twice": (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' twice"),
    "values": (b"[" + b"0," * 2_000_001 + b"0]", "2,000,000 values"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "utf-8"),
    "UTF-32": ('{"a": 1}'.encode("utf-32-le"), "JSON"),
    "byte order mark": (b"\xef\xbb\xbf{}", "BOM"),
    "half a character": (b'{"a": "\xe2\x82"}', "utf-8"),
    "lone surrogate": (b'{"a": "\\ud800"}', "surrogate"),
    "control character": (b'{"a": "\x1b"}', "control character"),
    "nothing": (b"", "JSON"),
    "two": (b"{} {}", "JSON"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_are_refused(name):
    text, word = TEXTS[name]
    with pytest.raises(OptionError, match=word) as caught:
        parse_json(text, "codes.json", OptionError)
    assert str(caught.value).startswith("codes.json can't be read as JSON: ")
    assert len(str(caught.value)) < 500


def test_texts_that_are_read():
    content = {"a": [1, -(2**63), 1.5e-7, None, True, "\U0001f600 é"], "b": {"c": []}}
    for ascii_only in (True, False):
        assert parse_json(json.dumps(content, ensure_ascii=ascii_only).encode(), "x") == content
    assert parse_json(b"[" * 64 + b"]" * 64, "x")


def test_files_that_are_no_regular_files(tmp_path, monkeypatch):
    """None of them blocks, and nothing endless is read."""
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "loop.json").symlink_to("loop.json")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(tmp_path)
        listener.bind("socket.json")
        names = ["pipe.json", "folder.json", "zero.json", "loop.json", "socket.json", "a" * 300, "nul\0.json"]
        for name in names:
            with pytest.raises(ConfigError, match="can't be read as JSON"):
                read_value(tmp_path / name)
            with pytest.raises(OSError, match=r".") as caught:
                open_regular(tmp_path / name)
            assert caught.value.strerror


def test_large_files_are_refused_unread(tmp_path, run_bounded):
    path = tmp_path / "config.json"
    with path.open("wb") as stream:
        stream.truncate(20 << 30)
    code = """
from bifrons.blocks.json_config import read_json
try:
    read_json(Path(sys.argv[2]))
except BifronsError as error:
    print(error)
"""
    assert "larger than the accepted 4,194,304 bytes" in run_bounded(code, path, memory=64 << 20)
    with path.open("wb") as stream:
        stream.write(b" " * CONFIG_BYTES)
    assert len(read_bounded(path, CONFIG_BYTES)) == CONFIG_BYTES
    with pytest.raises(OSError, match="larger"):
        read_bounded(path, CONFIG_BYTES - 1)


def test_an_object_is_asked_for(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.json is missing; a model folder holds a config\.json"):
        read_json(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="holds a list"):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize("value", [2**63, 2**31, -1, 1.0, True, "1", [1], {}, 257, 0])
def test_counts(value):
    with pytest.raises(ConfigError, match="whole number from 1 to 256"):
        Section({"num_hidden_layers": value}, "x").integer("num_hidden_layers")


def test_other_types():
    section = Section({"depth": None, "mlp_ratio": -1.0, "name": [1], "flag": 1, "ch_mult": [1] * 11}, "x")
    assert section.integer("depth", 2) == 2
    for look_up, word in (
        (lambda: section.number("mlp_ratio", 4.0), "a number from 0.001 to 64"),
        (lambda: section.name("name"), "a name"),
        (lambda: section.flag("flag", True), "true or false"),
        (lambda: section.integers("ch_mult", (1,)), "1 to 10 whole numbers"),
        (lambda: section.section("name"), "not an object"),
        (lambda: section.integer("vocab_size"), "None; accepted"),
        (lambda: Section({"a": "b" * 9999}, "x").expect("a", 1), "9,999|10,001 characters"),
    ):
        with pytest.raises(ConfigError, match=word):
            look_up()


def test_what_errors_show_can_be_printed():
    error = BifronsError("a\x1b[31mb\x9b\u202e\ud800\tc\né")
    assert str(error) == "a\\u001b[31mb\\u009b\\u202e\\ud800\tc\né"
    assert printable("漢字 é\n") == "漢字 é\n"
    assert [is_name(text) for text in ("a.b", "漢", "a\nb", "a\tb", "\x7f", "a" * 1001, 3)] == [
        *(True, True),
        *[False] * 5,
    ]
