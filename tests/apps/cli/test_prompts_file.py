"""Prompts from files in the forms and encodings that people have."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from bifrons import BifronsError, OptionError
from bifrons.apps.cli.prompts_file import read_prompts

TEXT = "# my prompts\r\na red star\r\n\r\n  zwei Äpfel 日本 \r\nan emoji 🌟, \u2028 and more"
LINES = ["a red star", "zwei Äpfel 日本", "an emoji 🌟, \u2028 and more"]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_texts_in_all_encodings(tmp_path, encoding):
    path = tmp_path / "prompts.txt"
    path.write_bytes(TEXT.encode(encoding))
    entries = read_prompts(str(path))
    assert [entry.prompt for entry in entries] == LINES
    assert [entry.where for entry in entries] == [f"{path} line {number}" for number in (2, 4, 5)]
    assert not any(entry.settings for entry in entries)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "p.jsonl",
            '{"prompt": "a, \\"b\\"", "seed": 7, "guidance_scale": 3}\r\n\r\n{"prompt": "Ä", "seed": null}\n',
        ),
        ("p.json", '[{"prompt": "a, \\"b\\"", "seed": 7, "guidance_scale": 3.0}, "Ä"]'),
        ("p.csv", 'Prompt,seed,guidance_scale\r\n"a, ""b""",7,3\r\n\r\nÄ,,\r\n'),
        ("p.csv", 'prompt;seed;guidance_scale\n"a, ""b""";7;3.0\nÄ;;\n'),
        ("p.tsv", 'seed\tprompt\tguidance_scale\n7\t"a, ""b"""\t3\n\tÄ\n'),
    ],
)
def test_prompts_with_settings(tmp_path, name, text, encoding):
    (tmp_path / name).write_bytes(text.encode(encoding))
    first, second = read_prompts(str(tmp_path / name))
    assert (first.prompt, first.settings) == ('a, "b"', {"seed": 7, "guidance_scale": 3.0})
    assert (second.prompt, second.settings) == ("Ä", {})
    assert isinstance(first.settings["guidance_scale"], float)


REFUSED = [
    ("p.txt", b"# nothing\n\n", "holds no prompts"),
    ("p.txt", b"fine\nb\xe4d\n", "line 2 is not UTF-8 (the byte 0xe4); save the file as UTF-8"),
    ("p.txt", b"fine\x00", "it holds NUL"),
    ("p.txt", b"PK\x03\x04\x14\x00", "p.txt is an archive, not prompts; unpack it"),
    ("p.json", b'{"grid": [2, 2], "codes": [1, 2, 3, 4]}', "p.json is codes, not prompts; bifrons decode"),
    (
        "p.jsonl",
        b'{"prompt": "x"}\n\n{"prompt": "x", "cfg": 3}',
        "line 3: 'cfg' is not known; accepted: prompt, seed",
    ),
    ("p.jsonl", b'{"seed": 1}', "line 1 has no prompt"),
    ("p.jsonl", b'{"prompt": " "}', "line 1: the prompt is ' '; accepted: a text that is not empty"),
    ("p.jsonl", b'{"prompt": 5}', "line 1: the prompt is 5"),
    ("p.jsonl", b"[1]", "line 1 is [1]; accepted: an object"),
    ("p.jsonl", b'{"prompt": "x"', "line 1 is not JSON"),
    ("p.json", b'{"prompt": "x"}', "holds no list"),
    ("p.json", b'["x", 3]', "entry 2 is 3"),
    ("p.csv", b"text\nx\n", "line 1: 'text' is not known"),
    ("p.csv", b"prompt,seed\nx,seven\n", "line 2: seed is 'seven'; accepted: a number"),
    ("p.csv", b"prompt\na red, round star\n", "line 2 has 2 cells, the header 1"),
    ("p.csv", b'prompt,seed\n"x"y,1\n', "line 2 can't be read as CSV"),
    ("p.csv", b"prompt,prompt\nx,y\n", "names a column twice"),
    ("p.csv", b"prompt,seed\n,4\n", "line 2 has no prompt"),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED, ids=[row[2] for row in REFUSED])
def test_what_is_refused_is_named_with_its_line(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BifronsError) as error:
        read_prompts(str(tmp_path / name))
    assert message in str(error.value)


def test_files_that_cannot_be_read(tmp_path):
    for name in ("missing.txt", "nul\0.txt", ""):
        with pytest.raises(OptionError, match="can't be read as prompts"):
            read_prompts(str(tmp_path / name))


def pipe(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def test_prompts_from_a_pipe(monkeypatch, tmp_path):
    pipe(monkeypatch, TEXT.encode("utf-16"))
    assert [entry.prompt for entry in read_prompts("-")] == LINES
    pipe(monkeypatch, b'{"prompt": "x", "top_k": 5}\n')
    assert read_prompts("-")[0].settings == {"top_k": 5}
    reader, writer = os.pipe()  # what a shell makes of `<(...)`
    os.write(writer, b"one\ntwo\n")
    os.close(writer)
    assert [entry.prompt for entry in read_prompts(f"/dev/fd/{reader}")] == ["one", "two"]
    os.close(reader)


def test_generate_from_a_file(loaded, bifrons, refused, janus_mini, tmp_path):
    path, out = tmp_path / "p.jsonl", tmp_path / "out"
    rows = [{"prompt": "a", "guidance_scale": 3}, {"prompt": "b b", "seed": 9, "num_images": 2}]
    path.write_text("\n".join(map(json.dumps, [*rows, {"prompt": "c", "guidance_scale": 3.0}])))
    words = ("generate", "--prompts", path, "-m", janus_mini, "-o", out)
    output = json.loads(bifrons(*words, "--seed", 4, "--top-k", 9, "--json").out)["pictures"]
    names = ["00001-a-seed4.png", "00002-b-b-seed9.png", "00003-b-b-seed10.png", "00004-c-seed4.png"]
    assert [Path(one["file"]).name for one in output] == names
    assert sorted(file.name for file in out.iterdir()) == names
    assert [one["guidance_scale"] for one in output] == [3.0, 5.0, 5.0, 3.0]
    assert {one["top_k"] for one in output} == {9}
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "top_p": 2}')
    assert f"{path} line 2: top_p is 2" in refused(*words)
    path.write_text('{"prompt": "a", "seed": -1}')
    assert f"{path} line 1: seed is -1" in refused(*words)
    path.write_text('{"prompt": "a", "num_images": 0}')
    assert f"{path} line 1: num_images is 0; accepted: at least 1" in refused(*words)
    path.write_text(json.dumps({"prompt": "word " * 3000}))
    assert f"{path} line 1: " in (text := refused(*words))
    assert "the context holds 2048" in text
    assert len(list(out.iterdir())) == 4
