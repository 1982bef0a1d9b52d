"""Commands with text models: chat and ask with dimmed thoughts, info without weights."""

import io
import json
import sys
from pathlib import Path

import pytest
from bifrons import TextPipeline
from bifrons.apps.cli.thoughts import shown_pieces
from bifrons.text.prompts import split_thought

from ...models import SHAPES_JANUS
from ...text.test_weight_names import CONFIGS, all_keys
from ...transformers_text import make_folder

QUESTION = "what is the sum?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("text") / "r1-tiny", "qwen2")[0]


@pytest.fixture(scope="module")
def pipe(folder) -> TextPipeline:
    return TextPipeline.from_pretrained(folder, "cpu", progress=False)


def test_ask_and_chat(bifrons, folder, pipe, monkeypatch):
    """With the folder's temperature and top-p, greedy on request; thoughts limited."""
    options = ("-m", folder, "--device", "cpu", "--max-new-tokens", 12, "--seed", 3)
    expected = pipe.ask(None, QUESTION, 12, seed=3)
    assert bifrons("ask", *options, QUESTION).out.strip() == expected
    report = json.loads(bifrons("ask", *options, "--json", "--max-thinking-tokens", 2, QUESTION).out)
    assert report["answer"] == pipe.ask(None, QUESTION, 12, seed=3, max_thinking_tokens=2)
    assert (report["temperature"], report["top_p"]) == (0.6, 0.95)
    greedy = bifrons("ask", *options, "--temperature", 0, QUESTION).out.strip()
    assert greedy == pipe.ask(None, QUESTION, 12, temperature=0.0)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{QUESTION}\n/quit\n"))
    assert bifrons("chat", *options).out.strip() == expected


def test_complete(bifrons, refused, folder, pipe, monkeypatch, tmp_path):
    """From an argument, a file or standard input, of which the last line break is left out."""
    prompt = "  the sum of the first ten numbers is"
    options = ("complete", "-m", folder, "--device", "cpu", "--max-new-tokens", 12)
    expected = pipe.complete(prompt, 12, seed=5)
    assert bifrons(*options, "--seed", 5, prompt).out == f"{expected}\n"
    (tmp_path / "text.txt").write_text(f"{prompt}\n")
    report = json.loads(bifrons(*options, "--seed", 5, "--json", "--file", tmp_path / "text.txt").out)
    assert (report["prompt"], report["text"], report["seed"]) == (prompt, expected, 5)
    assert (report["temperature"], report["top_p"]) == (0.6, 0.95)
    assert report["steps"] > 0
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{prompt}\n".encode())))
    greedy = bifrons(*options, "--temperature", 0, "-").out
    assert greedy == f"{pipe.complete(prompt, 12, temperature=0.0)}\n"
    assert "there is no prompt; accepted: one of" in refused(*options)
    assert "a prompt and a --file" in refused(*options, "x", "--file", tmp_path / "text.txt")
    assert "--file reads it from a file" in refused(*options, tmp_path / "text.txt")
    assert "missing.txt can't be read: No such file" in refused(*options, "--file", tmp_path / "missing.txt")
    assert "accepted: a text that is not empty" in refused(*options, "")


def test_complete_with_a_model_of_pictures(bifrons, refused, janus_mini):
    from bifrons import JanusPipeline

    options = ("complete", "-m", janus_mini, "--device", "cpu", "--max-new-tokens", 8)
    plain = JanusPipeline.from_pretrained(janus_mini, "cpu", progress=False)
    assert bifrons(*options, "a red").out == f"{plain.complete('a red', 8)}\n"
    message = refused(*options, f"what is {plain.processor.image_token}?")
    assert "the mark <image_placeholder>; pictures are for chats" in message


def test_thoughts_are_dimmed_on_terminals(pipe, monkeypatch):
    text = pipe.chat([{"role": "user", "content": QUESTION}], 12, seed=3, max_thinking_tokens=3)
    thought, answer = split_thought(text)
    pieces = [text[i : i + 3] for i in range(0, len(text), 3)]
    assert "".join(shown_pieces(iter(pieces), pipe)) == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = "".join(shown_pieces(iter(pieces), pipe))
    assert shown.replace("\x1b[0m\x1b[2m", "") == f"\x1b[2m{thought}\x1b[0m\n\n{answer}"


def test_models_without_thoughts_refuse_their_limit(refused, failed):
    assert "doesn't think first" in refused("ask", "-m", SHAPES_JANUS, "--max-thinking-tokens", 3, "hi")
    assert "doesn't think first" in refused(
        "ask", "-m", SHAPES_JANUS, "--max-thinking-tokens", 3, "hi", "--images", "x.png"
    )


def test_info_of_a_text_model(bifrons, folder):
    result = bifrons("info", folder)
    assert result.status == 0
    assert "a text model of no released size (text, model_type qwen2), transformers format" in result.out
    assert "all match" in result.out
    assert "GPUs needed" not in result.out


def test_info_without_weights_says_how_many_gpus(bifrons, tmp_path):
    """V3 and R1 by config and index alone: 671 B, with the layer for multi-token prediction 683 B."""
    config = CONFIGS["DeepSeek-V3 or R1"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    names = dict.fromkeys(all_keys(config), "model-00001-of-000163.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    result = bifrons("info", tmp_path)
    assert result.status == 1
    assert "DeepSeek-V3 or R1 (text, model_type deepseek_v3)" in result.out
    assert "Parameters: 683 B, 38" in result.out
    assert "1 of 1 weights files are missing" in result.out
    report = json.loads(bifrons("info", tmp_path, "--json").out)
    parameters, memory = report["parameters"], report["memory"]
    assert parameters["parts"]["multi-token prediction"] > 330_000_000
    assert 36e9 < parameters["active_per_token"] < 39e9
    assert memory["weights"]["bfloat16"] == pytest.approx(2 * 682.6e9, rel=0.01)
    gpus = memory["gpus"]
    # A layer with experts takes 23 GB in bfloat16: three fit into 72 GB, five into 127 GB; 59 have some.
    assert (gpus["80 GB"]["bfloat16"], gpus["141 GB"]["bfloat16"]) == (20, 12)
    assert gpus["80 GB"]["int4"] < gpus["80 GB"]["int8"] < gpus["80 GB"]["bfloat16"]
    line = next(line for line in result.out.splitlines() if line.startswith("  of 80 GB"))
    assert line.split()[3] == str(gpus["80 GB"]["bfloat16"])
