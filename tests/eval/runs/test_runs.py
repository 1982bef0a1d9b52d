"""Recipes, suites and run folders, without a model."""

import errno
import hashlib
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from bifrons.blocks.errors import BifronsError, CheckpointError, OptionError
from bifrons.blocks.placement.fingerprint import model_fingerprint
from bifrons.blocks.vocabulary import read_vocabulary
from bifrons.eval.atomic_io import write_file
from bifrons.eval.geneval import suites
from bifrons.eval.runs.recipe import Recipe, differences, fingerprint
from bifrons.eval.runs.run_dir import ImageKey, RunDir, check_model, create_run, open_run
from bifrons.eval.runs.stages import prepare
from bifrons.nano.world.catalog import things
from bifrons.scale.placement import Placement
from PIL import Image

from ...models import SHAPES_JANUS

ROWS = suites.shapes_prompts(0)


def make(root: Path, **fields: object) -> RunDir:
    recipe = Recipe(**{"limit": 6, "images_per_prompt": 1, **fields})  # type: ignore[arg-type]
    return create_run(root, recipe, ROWS, "m" * 64)


def picture(run: RunDir, number: int = 0) -> tuple[ImageKey, Image.Image]:
    return run.image_keys()[number], Image.new("RGB", (8, 8), (number, 0, 0))


def test_a_recipe_is_data() -> None:
    recipe = Recipe(guidance_scale=3.5, limit=7, template="{prompt}, on a table")
    assert Recipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe
    assert recipe.prompt("a red {star}") == "a red {star}, on a table"
    with pytest.raises(BifronsError, match="fields"):
        Recipe.from_json({"suite": "shapes"})
    for wrong in ({"suite": "x"}, {"template": "no mark"}, {"limit": 0}, {"seed": -1}, {"top_p": 2.0}):
        with pytest.raises(OptionError, match="accepted"):
            Recipe(**wrong)  # type: ignore[arg-type]


def test_quantized_weights_are_another_recipe() -> None:
    plain, quantized = Recipe(), Recipe(quantize="int8")
    assert fingerprint(plain, "m") != fingerprint(quantized, "m")
    assert differences(plain, quantized) == ["quantize None, not 'int8'"]
    older = {name: value for name, value in plain.to_json().items() if name not in ("quantize", "adapters")}
    assert Recipe.from_json(older) == plain
    content = json.dumps({**older, "model": "m"}, sort_keys=True)
    assert fingerprint(plain, "m") == hashlib.sha256(content.encode()).hexdigest()
    with pytest.raises(OptionError, match="accepted: int8"):
        Recipe(quantize="int3")


def test_a_device_map_is_for_one_process_and_no_device() -> None:
    placement = Placement("auto", {"cpu": "4GiB"}, eager=True)
    assert placement.keywords("cuda:1") == {
        "device": None,
        "device_map": "auto",
        "max_memory": {"cpu": "4GiB"},
        "tensor_parallel": None,
        "capture": False,
    }
    placement.check(None, None)
    for device, processes in (("cpu", 1), (None, 2)):
        with pytest.raises(OptionError, match="accepted"):
            placement.check(device, processes)
    with pytest.raises(OptionError, match="max_memory has no device_map"):
        Placement(max_memory={"cpu": "4GiB"}).check(None, None)


def test_seeds() -> None:
    recipe = Recipe()
    seeds = {recipe.image_seed(i, j) for i in range(553) for j in range(4)}
    assert len(seeds) == 2212
    assert max(seeds) < 2**53
    official = Recipe(seed_policy="official")
    assert [official.image_seed(i, j) for i in (0, 9) for j in range(3)] == [42, 43, 44] * 2


def test_fingerprints_tell_recipes_and_models_apart(tmp_path: Path, janus_mini: Path) -> None:
    recipe = Recipe()
    others = [
        replace(recipe, temperature=0.9),
        replace(recipe, limit=5),
        replace(recipe, seed_policy="official"),
    ]
    prints = {fingerprint(one, "m") for one in (recipe, *others)} | {fingerprint(recipe, "other")}
    assert len(prints) == 5
    assert fingerprint(replace(recipe, model="elsewhere"), "m") in prints
    for path in janus_mini.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = model_fingerprint(tmp_path)
    assert before == model_fingerprint(janus_mini)
    weights = tmp_path / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    changed = model_fingerprint(tmp_path)
    assert changed != before
    (tmp_path / "tokenizer.json").write_bytes((tmp_path / "tokenizer.json").read_bytes() + b"\n")
    assert model_fingerprint(tmp_path) not in (before, changed)


def test_large_checkpoints_are_sampled_in_every_tensor(
    janus_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bifrons.blocks.checkpoints.reader import list_tensors
    from bifrons.blocks.placement import fingerprint as module

    monkeypatch.setattr(module, "_SMALL", 0)
    for path in janus_mini.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = model_fingerprint(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    for entry in list(list_tensors(tmp_path).values())[::40]:
        changed = bytearray(content)
        changed[entry.offset + entry.nbytes // 2] ^= 1
        weights.write_bytes(changed)
        assert model_fingerprint(tmp_path) != before, entry.name


def test_the_suite_of_shapes() -> None:
    assert Counter(row["tag"] for row in ROWS) == suites.OFFICIAL_COUNTS
    assert len({row["prompt"] for row in ROWS}) == len(ROWS) == 553
    assert suites.shapes_prompts(0) == ROWS != suites.shapes_prompts(1)
    chosen = suites.select_prompts(553, 6)
    assert len({ROWS[i]["tag"] for i in chosen}) == 6
    assert suites.select_prompts(553, 553) == suites.select_prompts(553, None) == list(range(553))
    with pytest.raises(OptionError, match="1 to 553"):
        suites.select_prompts(553, 554)


def test_official_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = suites.geneval_prompts()
    assert Counter(row["tag"] for row in rows) == suites.OFFICIAL_COUNTS
    content = suites.to_jsonl(rows)
    assert hashlib.sha256(content).hexdigest() == suites.OFFICIAL_SHA256
    with monkeypatch.context() as patch:
        patch.setattr(suites, "draw_prompts", lambda: rows[1:])
        with pytest.raises(BifronsError, match="--prompts FILE"):
            suites.geneval_prompts()
    other = tmp_path / "other.jsonl"
    for encoding in ("utf-8-sig", "utf-16"):
        other.write_bytes(content.decode().replace("\n", "\r\n").encode(encoding))
        assert suites.geneval_prompts(other) == rows
    other.write_bytes(content.splitlines(keepends=True)[0] + b'{"tag": "colors", "prompt": "x"}\n')
    with pytest.raises(BifronsError, match="line 2"):
        suites.geneval_prompts(other)


def test_suite_and_detector_are_chosen_by_what_the_model_knows(tmp_path: Path) -> None:
    shapes = read_vocabulary(Path(SHAPES_JANUS))
    assert shapes is not None
    every = replace(shapes, things=tuple(things()))
    assert [suites.suite_for(known) for known in (shapes, every, None)] == ["shapes", "geneval", "geneval"]
    official, questions = suites.geneval_prompts(), [{"prompt": "x", "questions": ["Is it?"]}]
    for known, kinds in (
        (shapes, ["shapes", "mask2former-official", None]),
        (every, ["world", "world", None]),
        (None, ["shapes", "mask2former-official", None]),
    ):
        assert [suites.detector_for(rows, known) for rows in (ROWS, official, questions)] == kinds
    run = prepare(tmp_path, {"limit": 1, "images_per_prompt": 1, "model": SHAPES_JANUS}, "cpu")
    assert (run.recipe.suite, run.detector) == ("shapes", "shapes")
    assert open_run(tmp_path) == run


def test_a_run_folder_keeps_to_one_recipe(tmp_path: Path) -> None:
    run = make(tmp_path)
    assert open_run(tmp_path) == make(tmp_path) == run
    with pytest.raises(BifronsError, match=r"guidance_scale 5\.0, not 3\.0"):
        make(tmp_path, guidance_scale=3.0)
    with pytest.raises(BifronsError, match="another recipe: model"):
        create_run(tmp_path, run.recipe, ROWS, "n" * 64)
    with pytest.raises(CheckpointError, match="not what this run began with"):
        check_model(run, "n" * 64)
    one, image = picture(run)
    run.save(one, image)
    other = make(tmp_path / "other", guidance_scale=3.0)
    other.save(one, image)
    for name in (one.filename, one.filename.replace("png", "json")):
        (run.images_dir / name).write_bytes((other.images_dir / name).read_bytes())
    with pytest.raises(BifronsError, match="another recipe or model"):
        run.unfinished(run.image_keys())
    content = json.loads((tmp_path / "run.json").read_bytes())
    content["recipe"]["temperature"] = 0.5
    (tmp_path / "run.json").write_text(json.dumps(content))
    with pytest.raises(BifronsError, match="changed since"):
        open_run(tmp_path)


def test_finished_means_whole_and_with_its_sidecar(tmp_path: Path) -> None:
    run = make(tmp_path)
    pictures = run.image_keys()
    assert [one.index for one in pictures] == suites.select_prompts(553, 6)
    assert run.unfinished(pictures) == pictures
    for number in range(4):
        run.save(*picture(run, number))
    assert run.unfinished(pictures) == pictures[4:]
    path = run.path(pictures[0])
    path.write_bytes(path.read_bytes()[:-10])
    run.path(pictures[1]).unlink()
    run.path(pictures[2]).with_suffix(".json").unlink()
    run.path(pictures[3]).with_suffix(".json").write_text("{")
    assert run.unfinished(pictures) == pictures
    folder = run.images_dir / f"{pictures[0].index:05d}"
    assert json.loads((folder / "metadata.jsonl").read_bytes()) == ROWS[pictures[0].index]
    sidecar = json.loads((folder / "samples" / "0000.json").read_bytes())
    assert sidecar["seed"] == run.recipe.image_seed(*pictures[0])
    assert (sidecar["fingerprint"], sidecar["temperature"]) == (run.fingerprint, 1.0)


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "denied")],
)
def test_a_disk_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, words: str) -> None:
    run = make(tmp_path)
    one, image = picture(run)
    run.write_metadata(one.index)

    def refuse(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(BifronsError, match=words):
            run.save(one, image)
    samples = run.path(one).parent
    assert list(samples.iterdir()) == []
    assert run.unfinished([one]) == [one]
    old = tmp_path / "results.jsonl"
    old.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(BifronsError, match=words):
            write_file(old, b"new and longer")
    assert old.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
