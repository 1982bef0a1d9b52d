"""One step of janus-nano's recipe, and what it writes."""

import pytest
import torch
from bifrons.blocks.checkpoints.hub import find_model_folder
from bifrons.janus.pipeline import JanusPipeline
from bifrons.nano.recipes import datasets
from bifrons.nano.recipes.datasets import conversation, conversation_shard, prompt_shard, save_examples
from bifrons.nano.recipes.janus import JanusTrainer, nucleus_loss
from bifrons.nano.recipes.janus_data import EXAMPLES, PAINT_WIDTH, READ_WIDTH
from bifrons.nano.recipes.janus_spec import PaintEncoder, TurnEncoder, write_folder
from bifrons.nano.recipes.trainer import RunConfig
from safetensors.torch import load_file, save_file

VQ = "gen_vision_model."


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "SHARD", 3)
    write_folder(tmp_path)
    shipped = load_file(find_model_folder("janus-nano") / "model.safetensors")
    save_file({k.removeprefix(VQ): v for k, v in shipped.items() if VQ in k}, tmp_path / "vq.safetensors")
    paint = prompt_shard(0, PaintEncoder(tmp_path), PAINT_WIDTH)
    read = conversation_shard(0, conversation, TurnEncoder(tmp_path), READ_WIDTH)
    save_examples(tmp_path / EXAMPLES, paint=paint, read=read)
    return tmp_path


def test_a_step_changes_all_but_the_tokenizer_and_loads(folder):
    trainer = JanusTrainer(RunConfig(folder, 60.0), find_model_folder("janus-nano"), (2, 4))
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    trainer.learning_rate.fill_(1e-3)
    losses = trainer.update()
    assert losses["paint"] < 5  # it began with trained weights: fresh ones give log(2048) = 7.6
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name]) == name.startswith(VQ), name
    trainer.save()
    pipe = JanusPipeline.from_pretrained(folder, "cpu")
    assert pipe.generate("a photo of a star", seed=1, output_type="codes").shape == (1, 256)


def test_the_nucleus_of_the_start_is_learned_and_of_blank_prompts_the_codes(folder):
    logits = torch.tensor([[[2.0, 1.0, 0.0, -9.0]]]).expand(2, 1, 4)
    codes, blank = torch.tensor([[3], [3]]), torch.tensor([False, True])
    kept = torch.tensor([2.0, 1.0, -torch.inf, -torch.inf]).softmax(-1)
    logs = logits[0, 0].log_softmax(-1)
    wanted = (-(kept[:2] * logs[:2]).sum() - logs[3]) / 2
    torch.testing.assert_close(nucleus_loss(logits, logits, codes, blank, 0.8), wanted)

    start = find_model_folder("janus-nano")
    trainer = JanusTrainer(RunConfig(folder, 60.0), start, (4, 4), nucleus=0.9)
    before = [p.clone() for p in trainer.teacher.parameters()]
    trainer.learning_rate.fill_(1e-3)
    first = trainer.update()["paint"]
    assert all(torch.equal(a, b) for a, b in zip(trainer.teacher.parameters(), before, strict=True))
    moved = zip(trainer.model.decoder.parameters(), trainer.teacher.decoder.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in moved)
    assert 0 < first < 5
