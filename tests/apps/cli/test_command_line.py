"""What all commands share: where options may stand, standard streams, files that exist, exit statuses."""

import argparse
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bifrons.apps.cli.arguments import CommandParser
from bifrons.apps.cli.main import main
from bifrons.apps.cli.options import add_model
from bifrons.apps.cli.parsers import build_parser
from PIL import Image

from ...models import SHAPES_JANUS

pytestmark = pytest.mark.usefixtures("loaded")
WITHOUT_A_MODEL = {
    *("show", "models", "completion"),  # they load nothing
    *("info", "convert"),  # they read a model's files, on the CPU, and have --revision
    *("bench janus", "bench vl2", "bench text", "bench serve"),  # of random weights
    *("eval detect", "eval import", "eval selftest"),  # a detector's, by --detector and --device
    *("eval score", "eval report", "eval compare", "eval leaderboard", "eval plan"),
}
"""Commands that load no Janus or DeepSeek-VL2 model: all others have every option of loading one."""


def leaves(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """All parsers of commands and subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, child in action.choices.items():
                yield from leaves(child, f"{name} {word}".strip())
            return
    yield name, parser


COMMANDS = dict(leaves(build_parser()))


def options(parser: argparse.ArgumentParser) -> set[str]:
    return {word for action in parser._actions for word in action.option_strings}


def loading(prefix: str = "") -> set[str]:
    parser = argparse.ArgumentParser(add_help=False)
    add_model(parser)
    return {f"--{prefix}{word[2:]}" for word in options(parser) if word.startswith("--")}


TRAINING = {name for name in COMMANDS if "train" in name.split()}  # which has options of its own


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - WITHOUT_A_MODEL - TRAINING - {"eval judge"}))
def test_every_command_that_loads_a_model_takes_the_same_options(name):
    assert loading() >= {"--model", "--device", "--dtype", "--quantize", "--device-map", "--max-memory"}
    assert options(COMMANDS[name]) >= loading()


@pytest.mark.parametrize("name", ["eval run", "eval judge"])
def test_a_judge_takes_the_options_of_a_model(name):
    """But for its name, vl2:MODEL or janus:MODEL with any @REVISION, the device of all stages, and what a
    judge has none of: adapters (`convert --merge-adapter` gives it a model with them) and tensor parallel."""
    others = {"--judge-revision", "--judge-device", "--judge-adapter", "--judge-tensor-parallel"}
    assert options(COMMANDS[name]) >= loading("judge-") - others
    assert "--device" in options(COMMANDS[name])


def test_commands_without_a_model_are_named_rightly():
    assert COMMANDS.keys() >= WITHOUT_A_MODEL
    for name in WITHOUT_A_MODEL:
        assert "--model" not in options(COMMANDS[name]), name


def test_every_command_can_be_quiet():
    assert all("quiet" in {action.dest for action in parser._actions} for parser in COMMANDS.values())


@pytest.mark.parametrize(
    "words",
    [
        "generate a b --seed 1 -n 2 --json",
        "generate --seed 1 a -n2 --json b",
        "--json generate --seed=1 a b -n 2",
        "--seed 1 -n 2 --json generate -- a b",
        "generate a --see 1 b -n 2 --json",
    ],
)
def test_options_may_stand_anywhere(words):
    args = build_parser().parse_args(words.split())
    assert (args.prompt, args.seed, args.n, args.json) == (["a", "b"], 1, 2, True)


def test_arguments_of_other_kinds():
    parse = build_parser().parse_args
    assert parse(["ask", "a.png", "--json", "What?"]).items == ["a.png", "What?"]
    assert parse(["generate", "--", "-x", "--seed"]).prompt == ["-x", "--seed"]
    assert parse(["generate", "-1", "--temperature", "0"]).prompt == ["-1"]
    assert parse(["eval", "--json", "compare", "a", "b"]).json
    assert parse(["convert", "a", "--quantise", "int8", "b"]).quantize == "int8"
    assert parse(["ask", "Q?", "--images", "a", "b", "-o", "c.jsonl"]).images == ["a", "b"]
    assert parse(["generate", "-qn", "3", "x"]).n == 3


def test_british_and_american_spelling():
    parser = CommandParser()
    for option in ("--color", "--gray-level", "--optimize"):
        parser.add_argument(option)
    args = parser.parse_args(["--colour", "a", "--grey-level=b", "--optimise", "c"])
    assert (args.color, args.gray_level, args.optimize) == ("a", "b", "c")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_usage_error_ends_with_2_and_is_json_too(name, capsys):
    assert main([*name.split(), "--nonsense", "--json"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"] in err
    assert err.startswith("usage: bifrons")
    assert "Traceback" not in err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_usage_above_an_error_is_one_line(name, capsys):
    assert main([*name.split(), "--nonsense"]) == 2
    usage, *rest = capsys.readouterr().err.splitlines()
    assert usage.startswith(f"usage: bifrons {name}")
    assert "[options]" in usage
    assert len(rest) == 1 or name == "ask"  # which has two forms


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["genrate", "x"], "generate"),
        (["eval", "rum"], "run"),
        (["completion", "bsh"], "bash"),
        (["ask", "x.png", "What?", "--exif", "aply"], "apply"),
    ],
)
def test_a_mistyped_word_of_a_few_is_named(refused, words, meant):
    assert refused(*words).strip().endswith(f"did you mean {meant}?")


def test_what_may_be_left_out_is_not_called_required(refused):
    assert refused("eval", "compare", "a").strip().endswith("required: B")


def test_words_without_quotes_are_named_as_prompts(bifrons):
    hint = "each of the 3 words is a prompt"
    assert hint in bifrons("generate", "a", "red", "star", "-m", "no-such-model").err
    assert hint not in bifrons("generate", "a star", "two", "hearts", "-m", "no-such-model").err


def test_the_parts_of_a_model_stand_in_columns(bifrons):
    block = bifrons("info", SHAPES_JANUS).out.split("Parameters:")[1].split("\n\n")[0]
    assert len({len(line) for line in block.splitlines()[1:]}) == 1


def test_a_mistyped_option_is_named(refused):
    assert "--guidence-scale; did you mean --guidance-scale?" in refused(
        "generate", "x", "--guidence-scale", "2"
    )


def test_ctrl_c_is_json_too(bifrons, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("bifrons.apps.cli.main._run", interrupt)
    result = bifrons("info", SHAPES_JANUS, "--json")
    assert (result.status, json.loads(result.out)) == (130, {"error": "interrupted"})


def stdin(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), "utf-8"))


def test_a_prompt_from_stdin_and_a_picture_to_stdout(capsysbinary, janus_mini, tmp_path, monkeypatch):
    words = ["-m", str(janus_mini), "--seed", "1", "--device", "cpu", "-q", "-o"]
    assert main(["generate", "a red star", *words, str(tmp_path / "a.png")]) == 0
    capsysbinary.readouterr()
    stdin(monkeypatch, b"a red star\n")
    assert main(["generate", "-", *words, "-"]) == 0
    out, err = capsysbinary.readouterr()
    assert out == (tmp_path / "a.png").read_bytes()
    assert err == b""


def test_what_stdout_can_not_be(refused, monkeypatch):
    assert "output is - and --json prints" in refused_json(refused, "generate", "x", "-o", "-", "--json")
    assert "output is -, but 2 pictures" in refused("generate", "x", "-n", 2, "-o", "-")
    stdin(monkeypatch, b"")
    assert "- is a prompt, but standard input holds nothing" in refused("generate", "-")
    stdin(monkeypatch, b"\x89PNG\xff\xfe")
    assert "standard input" in refused("ask", "a.png", "-")


def refused_json(refused, *words):
    with pytest.raises(AssertionError):  # stdout holds the error as JSON
        refused(*words)
    stream = io.StringIO()
    from contextlib import redirect_stdout

    with redirect_stdout(stream):
        assert main([str(word) for word in words]) == 2
    return json.loads(stream.getvalue())["error"]


@pytest.mark.parametrize(("suffix", "kind"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_the_suffix_is_the_format(bifrons, refused, janus_mini, tmp_path, suffix, kind):
    path = tmp_path / f"a.{suffix}"
    words = ("generate", "x", "-m", janus_mini, "--device", "cpu", "--seed", 1, "-o", path)
    assert bifrons(*words).out == f"{path}\n"
    with Image.open(path) as image:
        assert image.format == kind
    assert json.loads(bifrons("show", path, "--json").out)["prompt"] == "x"
    before = path.read_bytes()
    assert f"{path} exists; accepted: another --output, or --force" in refused(*words)
    assert bifrons(*words, "--skip-existing").status == 0
    assert bifrons(*words, "--force").status == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "words", [("encode", "PICTURE", "-o", "x.json"), ("decode", "codes.json"), ("locate", "PICTURE", "a")]
)
def test_outputs_are_refused_before_the_model_is_loaded(refused, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("p.png")
    (tmp_path / "codes.json").write_text("[1]")
    (tmp_path / "codes.png").write_text("")
    (tmp_path / "x.json").write_text("")
    words = ["p.png" if word == "PICTURE" else word for word in words]
    words += ["-o", "p.png"] if words[0] == "locate" else []
    assert "exists; accepted: another --output, or --force" in refused(*words, "-m", "no-such-model")
    assert sorted(path.name for path in Path().iterdir()) == ["codes.json", "codes.png", "p.png", "x.json"]


def test_models(bifrons, tmp_path, monkeypatch, janus_mini):
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_bytes((janus_mini / "config.json").read_bytes())
    (tmp_path / "models--owner--name" / "refs").mkdir()
    (tmp_path / "models--owner--name" / "refs" / "main").write_text("abc")
    other = tmp_path / "models--owner--other" / "snapshots" / "abc"
    other.mkdir(parents=True)
    (other / "config.json").write_text('{"model_type": "mistral"}')
    monkeypatch.setenv("BIFRONS_CACHE", str(tmp_path))
    found = {one["model"]: one for one in json.loads(bifrons("models", "--json").out)["models"]}
    assert list(found) == ["janus-nano", "vl2-nano", "owner/name"]
    assert found["owner/name"]["family"] == "Janus"
    assert found["owner/name"]["bytes"] == (snapshot / "config.json").stat().st_size
    assert found["janus-nano"]["embedded"]
    assert "owner/name" in bifrons("models").out


def test_the_model_of_the_environment(refused, failed, monkeypatch):
    monkeypatch.setenv("BIFRONS_MODEL", "no-such-model")
    for words in (("ask", "What?"), ("generate", "x"), ("serve", "--port", "0"), ("demo",)):
        assert "no folder 'no-such-model'" in failed(*words)
    assert "no folder 'other'" in failed("ask", "What?", "-m", "other")


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion(bifrons, shell):
    script = bifrons("completion", shell).out
    assert all(word in script for word in ("generate", "--guidance-scale", "selftest"))


def test_python_m_bifrons():
    words = [sys.executable, "-m", "bifrons", "info", "no-such-model", "--json"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no folder" in json.loads(done.stdout)["error"]


def test_no_bar_is_drawn_into_a_file(bifrons, janus_mini, tmp_path, monkeypatch):
    """On a terminal, `generate` draws one."""
    where = ("-m", janus_mini, "--device", "cpu")
    picture, run = tmp_path / "a.png", ("--suite", "shapes", "--limit", "1", "--images-per-prompt", "1")
    for words in (
        ("generate", "x", *where, "-o", picture),
        ("ask", "What?", "--images", picture, *where, "--max-new-tokens", 1),
        ("convert", janus_mini, tmp_path / "model"),
        ("eval", "run", "-R", tmp_path / "run", *where, *run, "--processes", 1),
    ):
        err = bifrons(*words).err
        assert not re.search(r"\r|\d%|/s\b|it/s", err), err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "painting: 100%" in bifrons("generate", "x", *where, "-o", tmp_path / "b.png").err
    assert "painting" not in bifrons("generate", "x", *where, "-o", tmp_path / "c.png", "-q").err
