"""A model that is trained in bfloat16 has its weights and the sums of its gradients in float32."""

import pytest
import torch
from bifrons import JanusPipeline
from bifrons.blocks.errors import CheckpointError
from bifrons.learn.losses import TrainingModel, collate
from bifrons.learn.updates import Updates

pytest.importorskip("peft")
from ..models import SHAPES_JANUS
from .distributed_work import examples


def start() -> tuple[JanusPipeline, TrainingModel, Updates]:
    pipe = JanusPipeline.from_pretrained(SHAPES_JANUS, "cpu", "bfloat16", progress=False)
    pipe.model.requires_grad_(False).train()
    for module in (pipe.model.language_model, pipe.model.gen_head):
        module.requires_grad_(True)
    model = TrainingModel(pipe.model)
    return pipe, model, Updates(model, weight_decay=0.0, clip=1e9)


def test_masters(tmp_path) -> None:
    pipe, model, updates = start()
    batch = collate(examples(pipe)[:1], 0, [False])
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name, _ in updates.weights.named_parameters()} == names
    before = {name: value.clone() for name, value in updates.weights.named_parameters()}
    # Steps far below bfloat16's resolution add up.
    for _ in range(8):
        for _ in range(2):
            model(batch)["image"].backward()
        assert all(p.grad is None for p in model.parameters())
        gradients = [p.grad for p in updates.trained if p.grad is not None]
        assert {gradient.dtype for gradient in gradients} == {torch.float32}
        updates.apply(2e-5)
    head = "model.gen_head.vision_head.weight"
    moved = (updates.weights.get_parameter(head) - before[head]).abs()
    assert moved.max() > 1e-4
    for name, copy in model.named_parameters():
        if name in names:
            assert copy.dtype == torch.bfloat16
            assert torch.equal(copy, updates.weights.get_parameter(name).bfloat16())

    updates.save(tmp_path, 8)
    _, other, again = start()
    lm_head = again.weights.get_parameter("model.language_model.lm_head.weight")
    again.load(tmp_path / "step-8")
    for one, two in ((model, other), (updates.weights, again.weights)):
        assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    assert lm_head not in again.optimizer.state  # it had no gradient: its moments begin when it has one
    assert len(again.optimizer.state) == len(updates.optimizer.state) == len(again.trained) - 1
    pipe.model.requires_grad_(True)
    with pytest.raises(CheckpointError, match="of another model"):
        Updates(model, weight_decay=0.0, clip=1.0).load(tmp_path / "step-8")
