"""Words that a small model doesn't know."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from bifrons import JanusPipeline, VL2Pipeline
from bifrons.blocks.checkpoints.hub import EMBEDDED_FOLDER
from bifrons.blocks.errors import ConfigError, UnknownWordsWarning
from bifrons.blocks.vocabulary import Vocabulary, last_question, read_vocabulary, write_taught
from bifrons.learn.rows import PaintRow, new_words
from bifrons.nano.world.scene import COLORS, SHAPES

from ..models import SHAPES_JANUS, SHAPES_VL2

KNOWS = f"knows 8 shapes, 10 colors, up to 4 at once: {', '.join(SHAPES)}; {', '.join(COLORS)}; not: "


@pytest.fixture(scope="module")
def janus() -> JanusPipeline:
    return JanusPipeline.from_pretrained(SHAPES_JANUS, "cpu", "float32", progress=False)


@pytest.fixture(scope="module")
def vl2() -> VL2Pipeline:
    return VL2Pipeline.from_pretrained(SHAPES_VL2, "cpu", "float32", progress=False)


def vocabulary(model: str) -> Vocabulary:
    found = read_vocabulary(Path(model))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("A Red STAR above two blue hearts.", []),
        ("a red cat, a Cat and 'dogs'", ["cat", "dogs"]),
        ("3 hearts", []),
        ("7 hearts", ["7"]),
        ("five hearts", ["five"]),
        ("eine rote Katze, 猫", ["eine", "rote", "katze", "猫"]),
    ],
)
def test_words_for_painting(text: str, unknown: list[str]):
    assert vocabulary(SHAPES_JANUS).unknown([text], "painting") == unknown


@pytest.mark.parametrize("model", [SHAPES_JANUS, SHAPES_VL2])
def test_words_for_reading(model: str):
    texts = ["What color is the star?", "What COLOUR is it?", "<image>\nWhat is in the centre?", "Which dog?"]
    assert vocabulary(model).unknown(texts, "reading") == ["dog"]


def test_of_many_things_a_line_has_the_number():
    known = vocabulary(str(EMBEDDED_FOLDER / "janus-nano"))
    line = "knows 88 things, 11 colors, up to 6 at once (`bifrons info MODEL` lists them); not: 'wombat'"
    assert known.warning(["a red wombat"], "painting") == line


def test_long_texts_are_cut_and_many_words_counted():
    line = vocabulary(SHAPES_JANUS).warning(["z" * 10**7, *(f"w{'x' * i}" for i in range(20))], "painting")
    assert line is not None
    assert line.endswith(" and 13 more")
    assert len(line) < 1000


def test_generate_warns_once_a_call(janus):
    with pytest.warns(UnknownWordsWarning) as caught:
        janus.generate(["a cat", "a red star"], 2, 0, negative_prompt="dog", output_type="codes")
    assert [str(one.message) for one in caught] == [f"shapes-janus {KNOWS}'cat', 'dog'"]
    assert caught[0].filename == __file__  # not a line of ours


def test_known_words_do_not_warn(janus, parity_picture):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        janus.ask(parity_picture(0, 64, 64), "What colour is it?", 1)


@pytest.mark.parametrize("stream", [False, True])
def test_answers_warn_of_the_last_question(janus, vl2, stream: bool, parity_picture):
    for pipe in (janus, vl2):
        messages = pipe.question_messages(parity_picture(0, 64, 64), "Is it a dog?")
        messages += [{"role": "assistant", "content": "no"}, {"role": "user", "content": "Is it a cat?"}]
        with pytest.warns(UnknownWordsWarning) as caught:
            list(pipe.chat(messages, 1, stream=stream))
        assert [str(one.message) for one in caught] == [f"{Path(pipe.name).name} {KNOWS}'cat'"]
        assert caught[0].filename == __file__


def test_british_spelling_is_read_as_american(janus, vl2, parity_picture):
    picture = parity_picture(0, 64, 64)
    for pipe in (janus, vl2):
        questions = ("What color is in the center?", "What Colour is in the centre?")
        british, american = (
            pipe.next_logits(pipe.question_messages(picture, question)) for question in questions
        )
        assert torch.equal(british, american)
        assert pipe.tokenizer.encode("discoloured") != pipe.tokenizer.encode("discolored")


def test_other_models_never_warn(janus_mini):
    pipe = JanusPipeline.from_pretrained(janus_mini, "cpu", "float32", progress=False)
    assert pipe.unknown_words(["a cat"], "painting") is None


def test_adapters_bring_the_words_that_they_taught(janus, random_adapter, tmp_path: Path):
    rows = [PaintRow("1", "two Houses and a star", Path("a.png"))]
    taught = new_words(rows, vocabulary(SHAPES_JANUS))
    assert taught == {"painting": {"houses"}, "reading": set()}
    folder = shutil.copytree(random_adapter(), tmp_path / "houses")
    write_taught(folder, taught)
    other = janus.with_adapter(folder)
    assert other.unknown_words(["three houses"], "painting") is None
    line = other.unknown_words(["three houses and a dog"], "painting")
    assert line == f"shapes-janus {KNOWS}'dog'".replace("; not", "; taught: houses; not")
    assert "'house'" in str(other.unknown_words(["Where is the house?"], "reading"))
    assert "'houses'" in str(janus.unknown_words(["three houses"], "painting"))

    pipe = JanusPipeline.from_pretrained(SHAPES_JANUS, "cpu", "float32", progress=False)
    pipe.load_adapter(folder)
    saved = read_vocabulary(pipe.save_pretrained(tmp_path / "merged"))
    assert saved is not None
    assert saved.painting == vocabulary(SHAPES_JANUS).painting | {"houses"}
    pipe.unload_adapter()
    assert "'houses'" in str(pipe.unknown_words(["three houses"], "painting"))
    (folder / "taught_words.json").write_text('{"painting": "houses"}')
    with pytest.raises(ConfigError, match=r"taught_words\.json: painting is no list of words"):
        pipe.load_adapter(folder)
    assert not pipe.adapters


@pytest.mark.parametrize(
    "content",
    [
        {"shapes": "star"},
        {"things": "cat"},
        {"lookalikes": ["a\nb"]},
        {"painting": ["a\nb"]},
        {"reading": ["x" * 50]},
        {"most_things": -1},
        {"spellings": {"(": "x"}},
        {"spellings": {"colour": "x" * 10**6}},
    ],
)
def test_damaged_files_are_refused(content, tmp_path: Path):
    whole = {"most_things": 4, **content}
    (tmp_path / "vocabulary.json").write_text(json.dumps(whole))
    with pytest.raises(ConfigError, match=rf"vocabulary\.json.*{next(iter(content))}"):
        read_vocabulary(tmp_path)


def test_the_last_question_of_a_conversation():
    parts = [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Where?"}]
    messages = [{"role": "User", "content": parts}, {"role": "<|Assistant|>", "content": ""}]
    assert last_question(messages) == "Where?"
    assert last_question([]) == ""


def test_info_lists_the_words(bifrons_main, capsys):
    assert bifrons_main("info", SHAPES_JANUS) == 0
    printed = capsys.readouterr().out
    assert f"8 shapes   {', '.join(SHAPES)}" in printed
    assert "colour as color" in printed
    assert bifrons_main("info", SHAPES_VL2, "--json") == 0
    assert json.loads(capsys.readouterr().out)["vocabulary"] == vocabulary(SHAPES_VL2).content()


def test_the_command_line_warns_in_one_line(bifrons_main, capsys, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        command = f"--batch-size 1 --model {SHAPES_JANUS} --device cpu --seed 1"
        arguments = ("generate", "a cat", "a dog", *command.split())
        assert bifrons_main(*arguments, "-o", tmp_path / "pets") == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "warning" in line] == [f"warning: shapes-janus {KNOWS}'cat', 'dog'"]
