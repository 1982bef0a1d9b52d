"""The commands with valid input."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import bifrons as package
import numpy as np
import pytest
from bifrons.apps.cli import chat, images, main
from bifrons.apps.files import slug, write_new
from bifrons.janus.image_generation import ImageGenerationOptions
from bifrons.janus.pipeline import JanusPipeline
from PIL import Image

SEEDED = ("--seed", 5, "--device", "cpu")


@pytest.fixture
def picture(tmp_path: Path, parity_picture) -> Path:
    path = tmp_path / "picture.png"
    parity_picture(1, 70, 50).save(path)
    return path


def test_help_and_version_are_quick():
    code = (
        "import sys; from bifrons.apps.cli.main import main\n"
        "assert main(['--help']) == main(['--version']) == 0; sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "generate" in done.stdout
    assert done.stdout.endswith(f"bifrons {package.__version__}\n")


def test_help_shows_the_defaults_of_the_dataclasses(bifrons):
    text = " ".join(bifrons("generate", "--help").out.split())
    assert f"bring their own default (default: {ImageGenerationOptions.guidance_scale})" in text
    assert "(default: 512)" in bifrons("ask", "--help").out


def test_generate_into_a_folder(bifrons, janus_mini, tmp_path, monkeypatch):
    target = tmp_path / "pictures"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    words = ("generate", "A red apple", "zwei Äpfel 日本", "-m", janus_mini, "-n", 2, *SEEDED, "-o", target)
    first = bifrons(*words, "--top-k", 40)
    assert first.status == 0
    assert "painting: 100%" in first.err
    assert "144/144" in first.err
    files = [Path(line) for line in first.out.splitlines()]
    assert [file.name for file in files] == [
        "1-a-red-apple-seed5.png",
        "2-a-red-apple-seed6.png",
        "3-zwei-äpfel-日本-seed5.png",
        "4-zwei-äpfel-日本-seed6.png",
    ]
    assert sorted(target.iterdir()) == files
    with Image.open(files[3]) as image:
        settings = image.info
    assert settings["prompt"] == "zwei Äpfel 日本"
    assert {settings[name] for name in ("seed", "top_k", "guidance_scale")} == {"6", "40", "5.0"}
    assert settings["model"] == str(janus_mini)

    before = files[0].read_bytes()
    again = bifrons(*words)
    assert (again.status, again.out) == (2, "")
    assert again.err.startswith(f"error: {files[0]} exists; accepted: another --output, or --force")
    assert files[0].read_bytes() == before
    assert bifrons(*words, "--force").out == first.out
    assert sorted(target.iterdir()) == files
    assert files[0].read_bytes() != before  # without --top-k


def test_generate_passes_on_every_option(bifrons, janus_mini, tmp_path, monkeypatch):
    calls = []
    generate = JanusPipeline.generate

    def spy(*args, **options):
        calls.append({name: value for name, value in options.items() if name not in ("callback", "progress")})
        return generate(*args, **options)

    monkeypatch.setattr(JanusPipeline, "generate", spy)
    flags = ["--guidance-scale", 2, "--temperature", 0.5, "--top-k", 9, "--top-p", 0.9]
    flags += ["--negative-prompt", "a", "-o", tmp_path / "x.png", "--json"]
    result = bifrons("generate", "b", "-m", janus_mini, *SEEDED, *flags)
    given = {"guidance_scale": 2.0, "temperature": 0.5, "top_k": 9, "top_p": 0.9, "negative_prompt": "a"}
    assert calls == [given]
    output = json.loads(result.out)["pictures"][0]
    assert output | given | {"seed": 5, "file": str(tmp_path / "x.png")} == output


def test_a_models_own_guidance_scale_is_the_default(bifrons, folder, tmp_path):
    (folder / "generation_config.json").write_text('{"guidance_scale": 1.5}')
    output = json.loads(bifrons("generate", "b", "-m", folder, "-o", tmp_path / "x.png", "--json").out)
    assert output["pictures"][0]["guidance_scale"] == 1.5


def test_ask_streams_the_answer_that_json_reports(bifrons, janus_mini, picture):
    words = ("ask", picture, picture, "What is it?", "-m", janus_mini, "--max-new-tokens", 6, *SEEDED)
    output = json.loads(bifrons(*words, "--json").out)
    assert output["answer"]
    assert bifrons(*words).out.strip() == output["answer"]
    assert (output["images"], output["seed"], output["max_new_tokens"]) == ([str(picture)] * 2, 5, 6)
    pipe = JanusPipeline.from_pretrained(janus_mini, "cpu")
    assert output["answer"] == pipe.ask([str(picture)] * 2, "What is it?", max_new_tokens=6)


def test_ask_and_chat_with_vl2(bifrons, vl2_mini, picture, monkeypatch):
    asked = bifrons("ask", picture, "Hm?", "-m", vl2_mini, "--max-new-tokens", 5)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"/image {picture}\nHm?\n"))
    chatted = bifrons("chat", "-m", vl2_mini, "--max-new-tokens", 5)
    assert asked.status == chatted.status == 0
    assert asked.out == chatted.out != "\n"


def test_chat_remembers_until_reset(bifrons, janus_mini, picture, monkeypatch):
    lines = f"Hello\n\n/image {picture}\nWhat?\n/reset\nHello\n/nonsense\n/image nowhere.png\n/quit\nnever\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    seen = []
    chat = JanusPipeline.chat

    def spy(self, messages, **options):
        seen.append([(m["role"], len(m["content"])) for m in messages])
        return chat(self, messages, **options)

    monkeypatch.setattr(JanusPipeline, "chat", spy)
    result = bifrons("chat", "-m", janus_mini, "--system", "S.", "--max-new-tokens", 4, "--device", "cpu")
    assert result.status == 1  # the exit status tells a script that lines failed
    assert result.err.count("error: ") == 2
    assert [role for role, _ in seen[1]] == ["system", "user", "assistant", "user"]
    assert [size for role, size in seen[1] if role == "user"] == [1, 2]  # text only; image and text
    assert seen[2] == seen[0]
    assert len(seen) == 3


def test_ctrl_c_stops_the_answer_and_keeps_the_conversation(bifrons, janus_mini, monkeypatch):
    def stopped(self, messages, **options):
        sizes.append(len(messages))
        yield "some"
        raise KeyboardInterrupt

    sizes: list[int] = []
    monkeypatch.setattr(JanusPipeline, "chat", stopped)
    monkeypatch.setattr(sys, "stdin", io.StringIO("one\ntwo\n"))
    result = bifrons("chat", "-m", janus_mini, "--device", "cpu")
    assert result.status == 0
    assert sizes == [1, 3]
    assert result.err.count("(stopped)") == 2


@pytest.mark.parametrize("suffix", ["json", "npy"])
def test_encode_and_decode(bifrons, janus_mini, picture, tmp_path, suffix):
    codes = tmp_path / f"codes.{suffix}"
    assert bifrons("encode", picture, "-m", janus_mini, "-o", codes).out == f"{codes}\n"
    pipe = JanusPipeline.from_pretrained(janus_mini, "cpu")
    expected = pipe.encode_image(picture)
    if suffix == "npy":
        assert np.load(codes).tolist() == expected.reshape(6, 6).tolist()
    else:
        stored = json.loads(codes.read_text())
        assert stored == {"model": str(janus_mini), "grid": [6, 6], "codes": expected.tolist()}
        assert json.loads(bifrons("encode", picture, "-m", janus_mini).out) == stored
    named = () if suffix == "json" else ("-m", janus_mini)
    output = json.loads(bifrons("decode", codes, *named, "-o", tmp_path / "again.png", "--json").out)
    assert output["grid"] == [6, 6]
    assert Image.open(output["file"]).tobytes() == pipe.decode_codes(expected)[0].tobytes()


def test_convert(bifrons, janus_mini, tmp_path):
    target = tmp_path / "converted"
    output = json.loads(bifrons("convert", janus_mini, target, "--max-shard-size", "4MB", "--json").out)
    assert [name for name in output["files"] if name.startswith("model-")] == [
        f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)
    ]
    assert bifrons("info", target).status == 0


def test_convert_replaces_a_model_only_by_force(bifrons, refused, failed, janus_mini, tmp_path):
    target = tmp_path / "converted"
    bifrons("convert", janus_mini, target)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert "exists; accepted: another folder, or --force" in refused("convert", "no-such-model", target)
    assert "no folder" in failed("convert", "no-such-model", target, "--force")
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    assert bifrons("convert", janus_mini, target, "--quantize", "int8", "--force").status == 0
    assert "quantization" in (target / "config.json").read_text()
    assert bifrons("info", target).status == 0
    assert [path.name for path in tmp_path.iterdir()] == ["converted"]  # nothing of the old one is left


def test_convert_replaces_nothing_but_models(refused, failed, janus_mini, tmp_path):
    (tmp_path / "photos" / "2024").mkdir(parents=True)
    (tmp_path / "photos" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("photos", "file"):
        assert "exists; accepted: another folder" in refused("convert", janus_mini, tmp_path / name)
        assert "is not replaced" in failed("convert", janus_mini, tmp_path / name, "--force")
    assert (tmp_path / "photos" / "2024").is_dir()
    assert (tmp_path / "file").read_text() == "x"
    assert "is inside" in failed("convert", janus_mini, janus_mini, "--force")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").write_text("x")
    assert "is not replaced" in failed("convert", janus_mini, tmp_path / "notes", "--force")


def test_new_files_are_complete_and_never_replace_others(tmp_path):
    def broken(stream):
        stream.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_new(tmp_path / "a.bin", broken)
    assert list(tmp_path.iterdir()) == []
    for _ in range(3):
        write_new(tmp_path / "a.bin", lambda stream: stream.write(b"x"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-2.bin", "a-3.bin", "a.bin"]
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("...") == "picture"


def test_embedded_models_are_labelled(bifrons, janus_mini, monkeypatch):
    from bifrons.apps import pipelines
    from bifrons.apps.cli import inspect

    embedded = Path(package.__file__).parent / "nano" / "weights" / "janus-nano"
    known = json.loads((embedded / "vocabulary.json").read_text())
    things = f"{len(known.get('things') or known['shapes'])} {'things' if 'things' in known else 'shapes'}"
    colors, most = len(known["colors"]), known["most_things"]
    assert pipelines.label(embedded) == (
        f"janus-nano: embedded demonstration model, knows {things}, {colors} colors, up to {most} at once"
    )
    assert pipelines.label(janus_mini) is None
    for module in (pipelines, inspect):
        monkeypatch.setattr(module, "label", lambda folder: "a label")
    assert "a label\n" in bifrons("ask", "Hm?", "-m", janus_mini, "--max-new-tokens", 1).err
    assert "a label\n" in bifrons("info", janus_mini).out


def test_interruption_and_a_closed_pipe(bifrons, monkeypatch, janus_mini):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(images, "load_pipeline", interrupted)
    assert bifrons("generate", "x", "-m", janus_mini).status == 130
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "bifrons.apps.cli.main", "--help"]
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}  # else argparse hits the closed pipe and hides it
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=buffered)
    os.close(writer)
    assert (done.returncode, done.stderr) == (main.PIPE_CLOSED, "")


def test_chat_works_without_readline(monkeypatch):
    answers = iter(["hello", KeyboardInterrupt, "", EOFError])

    def typed(prompt):
        answer = next(answers)
        if isinstance(answer, str):
            return answer
        raise answer

    monkeypatch.setitem(sys.modules, "readline", None)
    monkeypatch.setattr("builtins.input", typed)
    assert list(chat.input_lines(interactive=True)) == ["hello"]


def test_commands_with_quantized_weights(bifrons, refused, janus_mini, vl2_mini, picture, tmp_path):
    model = ("-m", janus_mini, "--device", "cpu")
    painted = []
    for options in ((), *(("--quantize", kind) for kind in ("int8", "int4", "fp8"))):
        path = tmp_path / f"{len(painted)}.png"
        assert bifrons("generate", "a", *model, *options, "--seed", 1, "-o", path).status == 0
        painted.append(path.read_bytes())
    assert painted[2] != painted[0]  # int8 may well choose the same tokens
    for words in (("ask", picture, "What?", *model), ("locate", picture, "the dog", "-m", vl2_mini)):
        assert bifrons(*words, "--quantize", "int4").status == 0
        assert "quantize is 'int3'; accepted: int8, int4, fp8" in refused(*words, "--quantize", "int3")
    message = refused("convert", janus_mini, tmp_path / "x", "--quantize", "int3")
    assert "quantize is 'int3'; accepted: int8, int4, fp8" in message
    assert not (tmp_path / "x").exists()
