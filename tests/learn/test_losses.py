"""Losses and their gradients equal those of transformers' Janus with the same random weights."""

import pytest
import torch
import torch.nn.functional as F
from bifrons.janus.weight_names import transformers_keys
from bifrons.learn.examples import PaintExample, read_example
from bifrons.learn.losses import TrainingModel, collate

from ..transformers_janus import make_pair

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def pair(tmp_path_factory, janus_mini):
    """transformers' model, and ours with its weights, both trainable."""
    theirs, ours = make_pair(tmp_path_factory.mktemp("hf"), janus_mini)
    ours.model.train().requires_grad_(True)
    return theirs, ours


def their_losses(model, prompts, codes, read):
    """The summed cross-entropy of the codes and of the answers' tokens, row by row."""
    image = torch.zeros(())
    for ids, row in zip(prompts, codes, strict=True):
        embedded = model.prepare_embeddings_for_image_generation(row[None, :-1])
        inputs = torch.cat((model.get_input_embeddings()(ids[None]), embedded), dim=1)
        hidden = model.model.language_model(inputs_embeds=inputs).last_hidden_state[0, len(ids) - 1 :]
        image = image + F.cross_entropy(model.model.generation_head(hidden), row, reduction="sum")
    ids = read.inputs.ids
    labels = torch.where(read.learned, ids, -100)
    loss = model(input_ids=ids[None], pixel_values=read.inputs.pixels, labels=labels[None]).loss
    return {"image": image, "text": loss * read.learned.sum()}


def test_losses_and_gradients_equal_those_of_transformers(pair, parity_picture) -> None:
    theirs, ours = pair
    generator = torch.Generator().manual_seed(1)
    prompts = [ours.processor.generation_ids(text)[0] for text in ("a red star", "two small blue hearts")]
    codes = [torch.randint(0, 512, (36,), generator=generator) for _ in prompts]
    image = {"type": "image", "image": parity_picture(1, 90, 60)}
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": "a star"},
        {"role": "user", "content": "Which color?"},
        {"role": "assistant", "content": "red"},
    ]
    read = read_example(ours, messages)
    examples = [*map(PaintExample, prompts, codes), read]
    batch = collate([examples[2], *examples[:2]], ours.processor.pad_id, [False] * 3)
    found = TrainingModel(ours.model)(batch)
    expected = their_losses(theirs, prompts, codes, read)
    for kind in ("image", "text"):
        assert abs(found[kind].item() / expected[kind].item() - 1) < 1e-5
    (found["image"] + found["text"]).backward()
    (expected["image"] + expected["text"]).backward()
    ours_by_name, compared = dict(ours.model.named_parameters()), 0
    # All gradients of a part are compared on its scale: those of the keys' biases are zero but for rounding.
    largest = max(p.grad.abs().max() for p in theirs.parameters() if p.grad is not None)
    for name, parameter in theirs.named_parameters():
        target = transformers_keys(name)
        assert target is not None
        gradient = ours_by_name[target.param].grad
        if parameter.grad is None:
            assert gradient is None
            continue
        if target.part is not None:
            gradient = gradient.chunk(target.part[1])[target.part[0]]
        error = (gradient.reshape(parameter.grad.shape) - parameter.grad).abs().max()
        assert error < 1e-5 * max(parameter.grad.abs().max(), 1e-4 * largest), name
        compared += 1
    assert compared > 40


def test_a_dropped_prompt_is_the_unconditional_one_of_generation(pair) -> None:
    _, ours = pair
    cond, uncond = ours.processor.generation_ids("a red star")
    codes = torch.zeros(36, dtype=torch.int64)
    batch = collate([PaintExample(cond, codes)] * 2, ours.processor.pad_id, [True, False])
    assert torch.equal(batch.ids, torch.stack((uncond, cond)))
    assert batch.counts == {"image": 72, "text": 0}


def test_a_row_does_not_depend_on_the_rows_beside_it(pair) -> None:
    _, ours = pair
    generator = torch.Generator().manual_seed(2)
    prompts = ("a star", "a much longer sentence about two small blue hearts above a square")
    codes = torch.randint(0, 512, (2, 36), generator=generator)
    rows = [
        PaintExample(ours.processor.generation_ids(text)[0], row)
        for text, row in zip(prompts, codes, strict=True)
    ]
    model = TrainingModel(ours.model)
    with torch.no_grad():
        together = model(collate(rows, 0, [False] * 2))["image"]
        alone = sum(model(collate([row], 0, [False]))["image"] for row in rows)
    assert abs(together / alone - 1) < 1e-6


def test_of_replayed_rows_what_was_likely_before_is_learned(pair) -> None:
    _, ours = pair
    generator = torch.Generator().manual_seed(4)
    codes = torch.randint(0, 512, (2, 36), generator=generator)
    prompts = [ours.processor.generation_ids(text)[0] for text in ("a red star", "two hearts")]
    old, new = (PaintExample(ids, row, ids is prompts[0]) for ids, row in zip(prompts, codes, strict=True))
    batch = collate([old, new], 0, [False] * 2)
    assert batch.codes is not None
    assert torch.equal(batch.codes, codes.flip(0))
    model = TrainingModel(ours.model)
    with torch.no_grad():
        alone = model(collate([new], 0, [False]))["image"]
        now, _ = model.logits(batch.of_replayed())["image"]
        assert abs(model(batch, (), now)["image"] / alone - 1) < 1e-5
        before = now + torch.randn(now.shape, generator=generator)
        p, q = before.softmax(-1), now.softmax(-1)
        expected = (p * (p / q).log()).sum()
        assert abs((model(batch, (), before)["image"] - alone) / expected - 1) < 1e-4


def test_logits_are_held_in_parts(pair, monkeypatch) -> None:
    _, ours = pair
    codes = torch.randint(0, 512, (36,), generator=torch.Generator().manual_seed(3))
    batch = collate([PaintExample(ours.processor.generation_ids("a star")[0], codes)], 0, [False])
    model = TrainingModel(ours.model)
    found = []
    for most in (1 << 27, 512 * 10):
        monkeypatch.setattr("bifrons.learn.losses._LOGITS", most)
        ours.model.zero_grad()
        loss = model(batch)["image"]
        loss.backward()
        found.append((loss.detach(), ours.model.gen_head.vision_head.weight.grad.clone()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
