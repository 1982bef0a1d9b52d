"""Training janus-nano: what a step changes, and what is written."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bifrons.blocks.errors import OptionError
from bifrons.janus.pipeline import JanusPipeline
from bifrons.learn.packed import save_rows
from bifrons.learn.pretraining import Pretraining, PretrainingOptions
from bifrons.nano.recipes import datasets, train
from bifrons.nano.recipes.datasets import conversation, conversation_shard, prompt_shard
from bifrons.nano.recipes.janus import PAINT, READ
from bifrons.nano.recipes.janus_data import PAINT_WIDTH, READ_WIDTH
from bifrons.nano.recipes.janus_spec import write_folder
from bifrons.nano.recipes.things_janus_spec import PaintEncoder, TurnEncoder
from safetensors.torch import load_file, save_file

from ...models import SHAPES_JANUS

CPU = torch.device("cpu")
VQ, TOWER = "gen_vision_model.", "vision_model.vision_tower."
ONE_STEP = PretrainingOptions(1e-3, steps=1, warmup=0.0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "SHARD", 3)
    write_folder(tmp_path)
    shipped = load_file(Path(SHAPES_JANUS) / "model.safetensors")
    for prefix, name in ((VQ, train.VQ), (TOWER, train.TOWER)):
        part = {k.removeprefix(prefix): v for k, v in shipped.items() if k.startswith(prefix)}
        save_file(part, tmp_path / name)
    save_rows(tmp_path / PAINT, prompt_shard(0, PaintEncoder(tmp_path), PAINT_WIDTH))
    save_rows(tmp_path / READ, conversation_shard(0, conversation, TurnEncoder(tmp_path), READ_WIDTH))
    return tmp_path


def start_run(folder, rows, nucleus=None):
    part = replace(train.PARTS["janus"], rows=rows, options=ONE_STEP, nucleus=nucleus)
    objective, write = train.make("janus", part, folder, Path(SHAPES_JANUS), CPU)
    return objective, write, Pretraining(objective, ONE_STEP, folder / "run")


def test_a_step_changes_all_but_the_tokenizer_and_loads(folder):
    objective, write, run = start_run(folder, (2, 4))
    before = {k: v.clone() for k, v in objective.model.state_dict().items()}
    figures = []
    run.run(figures.append)
    assert 0 < figures[0]["paint_loss"] < 5  # it began with trained weights: fresh ones give log(2048) = 7.6
    assert set(figures[0]) == {"paint_loss", "read_loss", "rate", "step", "seconds"}
    for name, tensor in objective.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith(VQ), name
    with run.averaged():
        write()
    pipe = JanusPipeline.from_pretrained(folder / train.MODEL, "cpu")
    assert pipe.generate("a photo of a star", seed=1, output_type="codes").shape == (1, 256)
    shipped = load_file(Path(SHAPES_JANUS) / "model.safetensors")
    stored = load_file(folder / train.MODEL / "model.safetensors")
    assert {k: (v.shape, v.dtype) for k, v in stored.items()} == {
        k: (v.shape, v.dtype) for k, v in shipped.items()
    }


def test_a_new_model_has_the_parts_that_were_trained_before(folder):
    part = replace(train.PARTS["janus"], rows=(1, 1), options=ONE_STEP)
    objective, _ = train.make("janus", part, folder, None, CPU)
    for name, prefix in ((train.VQ, VQ), (train.TOWER, TOWER)):
        state = objective.model.state_dict()
        for key, tensor in load_file(folder / name).items():
            assert torch.equal(state[prefix + key], tensor.float()), key
    losses = objective.losses()
    assert abs(losses["paint"].item() - 7.62) < 0.3  # log(2048)


def test_the_nucleus_of_the_start_is_learned(folder):
    objective, _, run = start_run(folder, (4, 4), nucleus=0.9)
    (teacher,) = objective._teacher
    before = [p.clone() for p in teacher.parameters()]
    figures = []
    run.run(figures.append)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), before, strict=True))
    moved = zip(objective.model.decoder.parameters(), teacher.model.decoder.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in moved)
    assert 0 < figures[0]["paint_loss"] < 5


def test_a_part_is_trained_by_its_settings_and_goes_on(folder, capsys):
    part = replace(train.PARTS["janus-vision"], rows=(2,), scenes=2)
    train.train("janus-vision", replace(part, options=replace(ONE_STEP, steps=2)), folder, None, CPU)
    assert "2 steps done" in capsys.readouterr().out
    first = load_file(folder / train.TOWER)
    train.train("janus-vision", replace(part, options=replace(ONE_STEP, steps=2)), folder, None, CPU)
    out = capsys.readouterr().out
    assert "goes on from step 2" in out
    assert all(torch.equal(tensor, first[name]) for name, tensor in load_file(folder / train.TOWER).items())
    with pytest.raises(OptionError, match="a run with steps 2, not 3"):
        train.train("janus-vision", replace(part, options=replace(ONE_STEP, steps=3)), folder, None, CPU)
    with pytest.raises(OptionError, match="--start"):
        train.train("janus-nucleus", part, folder, None, CPU)
