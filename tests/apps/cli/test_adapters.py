"""Adapters on the command line: loading, merging, settings of pictures, recipes, and the report of `info`."""

import json
import shutil

import pytest
import torch
from bifrons import JanusPipeline, VL2Pipeline
from bifrons.blocks.adapter_choice import AdapterChoice, parse_adapter, parse_named_adapter
from bifrons.blocks.errors import OptionError
from bifrons.eval.runs.stages import prepare
from safetensors.torch import load_file

from ...models import SHAPES_JANUS, SHAPES_VL2

QUESTION = [{"role": "user", "content": "What is red?"}]


def test_names_of_adapters(tmp_path):
    folder, odd = tmp_path / "stripes", tmp_path / "a:2=b"
    folder.mkdir()
    odd.mkdir()
    assert parse_adapter(str(folder)) == AdapterChoice(folder)
    assert parse_adapter(f"{folder}:-0.5") == AdapterChoice(folder, -0.5)
    assert parse_adapter(str(odd)) == AdapterChoice(odd)
    assert parse_named_adapter(f"my.one={folder}:2") == AdapterChoice(folder, 2.0, "my.one")
    assert parse_named_adapter(str(odd)).shown_name == "a:2=b"
    for text in (f"{folder}:much", f"{folder}:inf", f"{tmp_path}/none", f"{tmp_path}/none:2"):
        with pytest.raises(OptionError, match="accepted"):
            parse_adapter(text)
    with pytest.raises(OptionError, match="in NAME"):
        parse_named_adapter(f"a b={folder}")


def test_a_picture_carries_its_adapter(bifrons, refused, random_adapter, tmp_path):
    folder, picture = tmp_path / "stripes", tmp_path / "a.png"
    shutil.copytree(random_adapter(image_head=True), folder)
    paint = ("generate", "a red star", "-m", SHAPES_JANUS, "--seed", 1, "--device", "cpu", "-q")
    assert bifrons(*paint, "--adapter", f"{folder}:0.5", "-o", picture).status == 0
    assert bifrons(*paint, "-o", tmp_path / "plain.png").status == 0
    shown = json.loads(bifrons("show", picture, "--json").out)
    assert json.loads(shown["adapters"])[0].startswith(f"{folder}:0.5@")
    assert "adapters" not in json.loads(bifrons("show", tmp_path / "plain.png", "--json").out)
    again = bifrons("generate", "--like", picture, "-o", tmp_path / "b.png", "--json")
    assert json.loads(again.out)["same_pixels"] is True
    moved = folder.rename(tmp_path / "moved")
    error = refused("generate", "--like", picture, "-o", tmp_path / "c.png", status=1)
    assert "painted with the adapter" in error
    assert "--adapter" in error
    given = ("--adapter", f"{moved}:0.5", "--json", "-o", tmp_path / "c.png")
    assert json.loads(bifrons("generate", "--like", picture, *given).out)["same_pixels"] is True
    message = refused("generate", "x", "-o", tmp_path / "d.png", "--adapter", tmp_path / "none")
    assert "there is no folder" in message


@pytest.mark.parametrize("model", ["janus-mini", SHAPES_VL2], ids=("janus", "vl2"))
def test_a_merged_folder_equals_the_adapter_in_memory(model, bifrons, janus_mini, random_adapter, tmp_path):
    source = str(janus_mini) if model == "janus-mini" else model
    kind = VL2Pipeline if model == SHAPES_VL2 else JanusPipeline
    folder = random_adapter(source, 1, image_head=model == "janus-mini")
    assert bifrons("convert", source, tmp_path / "new", "--merge-adapter", f"{folder}:0.7").status == 0
    found = kind.from_pretrained(tmp_path / "new", "cpu", dtype="auto", progress=False).model.state_dict()
    pipe = kind.from_pretrained(source, "cpu", dtype="auto", progress=False)
    before = {name: tensor.clone() for name, tensor in pipe.model.state_dict().items()}
    pipe.load_adapter(folder, scale=0.7)
    expected = pipe.model.state_dict()
    # Of experts, each is its own tensor in the file, whose product is summed apart: to one step of bfloat16.
    step = 0.0 if kind is JanusPipeline else 2**-7
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=step, atol=step / 100)
    assert any(not torch.equal(before[name], tensor) for name, tensor in found.items())


@pytest.mark.parametrize("form", ["bin", "shards"])
def test_every_format_of_weights_is_merged(form, bifrons, janus_mini, random_adapter, tmp_path):
    source, folder = tmp_path / "source", random_adapter(str(janus_mini), 1, image_head=True)
    if form == "shards":
        assert bifrons("convert", janus_mini, source, "--max-shard-size", "300KB").status == 0
        assert len(list(source.glob("*.safetensors"))) > 2
    else:
        shutil.copytree(janus_mini, source, ignore=shutil.ignore_patterns("*.safetensors*"))
        torch.save(load_file(janus_mini / "model.safetensors"), source / "pytorch_model.bin")
    for name, model in (("new", source), ("expected", janus_mini)):
        assert bifrons("convert", model, tmp_path / name, "--merge-adapter", folder).status == 0
    found, expected, plain = (
        JanusPipeline.from_pretrained(path, "cpu", dtype="auto", progress=False).model.state_dict()
        for path in (tmp_path / "new", tmp_path / "expected", janus_mini)
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    assert any(not torch.equal(found[name], tensor) for name, tensor in plain.items())


def test_a_folder_is_quantized_after_the_merge(bifrons, janus_mini, random_adapter, tmp_path):
    folder = random_adapter(str(janus_mini), 1, image_head=True)
    pipe = JanusPipeline.from_pretrained(janus_mini, "cpu", progress=False)
    plain = pipe.next_logits(QUESTION)
    pipe.load_adapter(folder)
    options = ("--merge-adapter", folder, "--quantize", "int8")
    assert bifrons("convert", janus_mini, tmp_path / "int8", *options).status == 0
    found = JanusPipeline.from_pretrained(tmp_path / "int8", "cpu", dtype="float32", progress=False)
    expected, merged = pipe.next_logits(QUESTION), found.next_logits(QUESTION)
    assert (merged - expected).norm() < 0.2 * (plain - expected).norm()
    result = bifrons("convert", tmp_path / "int8", tmp_path / "x", "--merge-adapter", folder)
    assert result.status == 1
    assert "accepted: the folder of plain weights" in result.err


def test_info_on_an_adapter(bifrons, random_adapter, tmp_path):
    folder = random_adapter(image_head=True)
    report = json.loads(bifrons("info", folder, "--json").out)
    assert report["sound"]
    assert report["base"] == SHAPES_JANUS
    assert report["model_found"]
    assert report["rank"] == 4
    assert report["modules"]["q_proj"] == report["modules"]["down_proj"] > 0
    assert "gen_head.vision_head.weight" in report["whole"]
    text = bifrons("info", folder).out
    assert "a LoRA adapter" in text
    assert "it fits that model" in text
    assert "q_proj" in text
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    (bad / "adapter_model.safetensors").write_bytes(b"x" * 100)
    result = bifrons("info", bad)
    assert result.status == 1
    assert "would not load" in result.out
    settings = json.loads((folder / "adapter_config.json").read_text())
    shutil.copy(folder / "adapter_model.safetensors", bad)
    for base, found in (("someone/else", False), (SHAPES_VL2, None)):
        (bad / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": base}))
        report = json.loads(bifrons("info", bad, "--json").out)
        assert report.get("model_found") == found
        assert report["sound"] == (found is False)


def test_a_recipe_tells_adapters_apart(random_adapter, tmp_path):
    folder, other = random_adapter(image_head=True), tmp_path / "other"
    given = {"suite": "shapes", "limit": 1, "model": SHAPES_JANUS}
    with_one = prepare(tmp_path / "a", {**given, "adapters": (f"{folder}:1",)}, "cpu")
    plain = prepare(tmp_path / "b", given, "cpu")
    half = prepare(tmp_path / "c", {**given, "adapters": (f"{folder}:0.5",)}, "cpu")
    assert len({run.fingerprint for run in (with_one, plain, half)}) == 3
    assert prepare(tmp_path / "a", given, "cpu").recipe.adapters == (f"{folder}:1",)
    shutil.copytree(folder, other)
    moved = prepare(tmp_path / "a", {**given, "adapters": (f"{other}:1",)}, "cpu")
    assert moved.fingerprint == with_one.fingerprint
    with pytest.raises(Exception, match=r"is the run of another recipe: model '.*shapes-janus'"):
        prepare(tmp_path / "b", {**given, "adapters": (f"{folder}:1",)}, "cpu")


@pytest.mark.parametrize("model", [SHAPES_JANUS, SHAPES_VL2], ids=("janus", "vl2"))
def test_a_question_with_an_adapter(model, bifrons, random_adapter):
    ask = ("ask", "What is red?", "-m", model, "--device", "cpu", "-q")
    scaled = [bifrons(*ask, "--adapter", f"{random_adapter(model, 1)}:{scale}") for scale in (0, 4)]
    assert [one.status for one in scaled] == [0, 0]
    assert scaled[0].out == bifrons(*ask).out != scaled[1].out
    assert torch.get_default_dtype() == torch.float32
