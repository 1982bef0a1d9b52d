"""What vl2-nano is trained on is what the pipeline will give it; and what it is asked has right answers."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest
import torch
from bifrons.eval.nano.scores import matched
from bifrons.eval.nano.vl2 import judge_query
from bifrons.learn.losses import TrainingModel
from bifrons.learn.objectives import BalanceLoss
from bifrons.learn.packed import PackedRows, pack_rows, save_rows
from bifrons.learn.pretraining import Pretraining, PretrainingOptions
from bifrons.learn.scratch import initialize
from bifrons.nano.recipes import datasets, train
from bifrons.nano.recipes.datasets import conversation_shard
from bifrons.nano.recipes.pictures import SIDE, to_pixels
from bifrons.nano.recipes.vision import NOTHING, TOWERS, PatchLabeller, Views, label_patches, vision_losses
from bifrons.nano.recipes.vl2 import ONE, TWO, draw_frames
from bifrons.nano.recipes.vl2_data import ONE_WIDTH, image_pair_shard, single_image_conversation
from bifrons.nano.recipes.vl2_spec import ConversationEncoder, write_folder
from bifrons.nano.world.pairs import KINDS as PAIR_KINDS
from bifrons.nano.world.pairs import sample_comparison, sample_pair
from bifrons.nano.world.phrases import KINDS as QUERY_KINDS
from bifrons.nano.world.phrases import NO_MATCH, GroundingQuery, answer, normalized_box, sample_query
from bifrons.nano.world.renderer import pack, render, render_packed, to_pil
from bifrons.nano.world.scene import SHAPES, Scene, SceneObject, is_held_out, sample_scene
from bifrons.tokenizers.text import TextTokenizer
from bifrons.vl2.config import read_config
from bifrons.vl2.grounding import Box, draw_boxes, parse_grounding
from bifrons.vl2.model import VL2Model
from bifrons.vl2.pipeline import VL2Pipeline
from bifrons.vl2.processor import VL2Processor
from bifrons.vl2.weight_names import keep_float32
from safetensors.torch import save_file

GREY = (204, 208, 212)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vl2-nano")
    write_folder(path)
    return path


@pytest.fixture(scope="module")
def model(folder) -> VL2Model:
    torch.manual_seed(0)
    made = VL2Model(read_config(folder))
    initialize(made, made.config.decoder.num_layers)
    return made.eval()


@pytest.mark.parametrize("count", [1, 2])
def test_a_row_is_embedded_as_the_pipeline_does(folder, model, count):
    scenes = [sample_scene(Random(seed)) for seed in range(count)]
    encode = ConversationEncoder(folder)
    ids, learn = encode([("What is it?", "star"), ("Count the stars.", "two")], count)
    processor = VL2Processor.from_folder(folder, TextTokenizer.from_folder(folder), model.config)
    messages = [
        {
            "role": "user",
            "content": "<image>\n" * count + "What is it?",
            "images": [to_pil(s) for s in scenes],
        },
        {"role": "assistant", "content": "star"},
        {"role": "user", "content": "Count the stars."},
    ]
    prepared = processor.chat_inputs(messages)
    asked = len(prepared.ids)
    assert ids[:asked] == prepared.ids.tolist()
    assert [i for i, taught in zip(ids, learn, strict=True) if taught][-1] == encode.tokenizer.eos_id
    assert encode.tokenizer.decode([i for i, t in zip(ids, learn, strict=True) if t]).count("star") == 1

    views = TOWERS["vl2"][1]
    packed = {name: torch.from_numpy(array) for name, array in pack_rows([ids], [learn], len(ids)).items()}
    rows = PackedRows.from_arrays(packed)
    places = encode.image_places[: count * encode.image_tokens]
    batch = rows.reading(views.cut(to_pixels(render(scenes, SIDE))), places)
    with torch.no_grad():
        x = TrainingModel(model)._embed(batch)[:, :asked]
    # Both scale with the same cubic kernel, the pipeline's in 8-bit steps.
    torch.testing.assert_close(x[0], model.embed_prompts([prepared])[0].embeddings_TD, atol=0.02, rtol=0.02)
    assert batch.targets is not None
    found = [t for t in batch.targets.tolist() if t >= 0]
    assert found == [i for i, taught in zip(ids, learn, strict=True) if taught]


def test_frames_are_those_that_are_drawn():
    scene = sample_scene(Random(3))
    box = Box.from_normalized("", normalized_box(scene.objects[0]), (SIDE, SIDE))
    drawn = draw_boxes(to_pil(scene, SIDE), [box], labels=False, colour=(255, 0, 0))
    pixels = to_pixels(render([scene, scene], SIDE))
    frames = torch.tensor([[v / 999 for v in normalized_box(scene.objects[0])], [0.0] * 4])
    ours = draw_frames(pixels, frames)
    want = torch.tensor(list(drawn.tobytes()), dtype=torch.uint8).view(SIDE, SIDE, 3).permute(2, 0, 1)
    assert torch.equal(((ours[0] + 1) * 127.5).round().to(torch.uint8), want)
    assert torch.equal(ours[1], pixels[1])


def test_patches_are_labelled_with_what_covers_them():
    # A square over the left half of the picture's middle row, nothing elsewhere.
    scene = Scene((SceneObject("square", "red", 0.25, 0.5, 0.5),), GREY)
    views = Views(image=128, side=64, patch=16, grid=2)
    labels = label_patches(pack([scene]), views)
    square = SHAPES.index("square")
    whole = labels.shape[0, 0].view(4, 4)
    assert (whole[1:3, :2] == square).all()
    assert (whole == NOTHING).sum() == 12
    top_left = labels.shape[0, 1].view(4, 4)
    assert (top_left[2:] == square).all()
    assert (top_left[:2] == NOTHING).all()
    torch.testing.assert_close(labels.box[0, 1, 15], torch.tensor([0.0, 0.5, 1.0, 1.0]))
    assert (labels.shape[0, 2] == NOTHING).all()


def test_a_tower_learns_from_its_patches():
    torch.manual_seed(0)
    config, views = TOWERS["vl2"]
    labeller = PatchLabeller(config)
    initialize(labeller, config.layers)
    packed = pack([sample_scene(Random(seed)) for seed in range(2)])
    pixels = to_pixels(render_packed(packed, SIDE, "cpu"))
    adam = torch.optim.AdamW(labeller.parameters(), 2e-3)
    first = torch.stack([*vision_losses(labeller, packed, pixels, views).values()]).sum().item()
    for _ in range(8):
        adam.zero_grad()
        losses = vision_losses(labeller, packed, pixels, views).values()
        torch.stack([v for v in losses if v.requires_grad]).sum().backward()
        adam.step()
    assert torch.stack([*vision_losses(labeller, packed, pixels, views).values()]).sum() < 0.7 * first


def test_phrases_name_what_they_say():
    rng, seen = Random(5), set()
    for _ in range(400):
        scene = sample_scene(rng)
        query = sample_query(scene, rng)
        seen.add((query.kind, bool(query.targets)))
        assert not query.held_out
        words = query.phrase.removeprefix("the ").split()
        for obj in query.targets:
            assert obj in scene.objects
            assert obj.color in words or any(w.startswith(obj.shape) for w in words)
        messages = answer(query)
        assert judge_query(messages, query, scene) == (True, len(query.targets), len(query.targets))
        read = parse_grounding(messages, (SIDE, SIDE))
        assert not read.problems
        assert (messages == NO_MATCH) == (not query.targets)
    assert {kind for kind, _ in seen} == set(QUERY_KINDS)
    assert ("related", True) in seen
    assert ("related", False) in seen


def test_judging_finds_faults():
    scene = Scene(
        (SceneObject("star", "red", 0.25, 0.25, 0.25), SceneObject("star", "blue", 0.75, 0.75, 0.25)), GREY
    )
    query = GroundingQuery("named", "the stars", scene.objects, False)
    right = answer(query)
    assert judge_query(right, query, scene)[0]
    one = answer(GroundingQuery("named", "the stars", scene.objects[:1], False))
    assert judge_query(one, query, scene) == (False, 1, 2)
    assert judge_query(NO_MATCH, query, scene) == (False, 0, 2)
    assert judge_query(right, GroundingQuery("absent", "the heart", (), False), scene) == (False, 0, 0)
    assert matched([(0, 0, 100, 100)] * 2, [(0, 0, 100, 100)]) == 1
    assert matched([(0, 0, 100, 49)], [(0, 0, 100, 100)]) == 0


def test_comparisons_have_right_answers():
    rng, seen = Random(7), set()
    for _ in range(300):
        a, b = sample_pair(rng)
        question = sample_comparison(a, b, rng)
        seen.add(question.kind)
        assert not question.held_out
        assert not is_held_out(a)
        if question.kind == "more" and "things" in question.text:
            want = "neither" if len(a.objects) == len(b.objects) else "the first"
            want = "the second" if len(a.objects) < len(b.objects) else want
            assert question.answer == want
    assert seen == set(PAIR_KINDS)
    same = Scene((SceneObject("star", "red", 0.5, 0.5, 0.25),), GREY)
    assert sample_comparison(same, same, rng, "same").answer == "yes"
    assert sample_comparison(same, same, rng, "total").answer == "two"


def test_a_short_training_writes_a_model_that_loads(folder, model, monkeypatch):
    monkeypatch.setattr(datasets, "SHARD", 4)
    monkeypatch.setattr("bifrons.nano.recipes.vl2_data.SHARD", 4)
    save_file(model.vision.state_dict(), folder / train.TOWER)
    encode = ConversationEncoder(folder)
    one = conversation_shard(0, single_image_conversation, partial(encode, images=1), ONE_WIDTH)
    save_rows(folder / ONE, one)
    save_rows(folder / TWO, image_pair_shard(0, encode))
    options = PretrainingOptions(1e-3, steps=1, warmup=0.0)
    part = replace(train.PARTS["vl2"], rows=(2, 1), options=options)
    cpu, figures = torch.device("cpu"), []
    objective, write = train.make("vl2", part, folder, None, cpu)
    assert torch.equal(objective.model.vision.norm.weight, model.vision.norm.weight)
    before = {name: tensor.clone() for name, tensor in objective.model.state_dict().items()}
    run = Pretraining(objective, options, folder / "run")
    run.run(figures.append)
    assert figures[0]["balance_loss"] >= 0.99  # 1 is perfect balance
    assert figures[0]["one_loss"] > 0
    assert figures[0]["two_loss"] > 0
    assert not any(torch.equal(tensor, before[k]) for k, tensor in objective.model.state_dict().items())
    last = {name: tensor.clone() for name, tensor in objective.model.state_dict().items()}
    averages = dict(run.state.average.named_buffers())
    with run.averaged():
        write()
    pipe = VL2Pipeline.from_pretrained(folder / train.MODEL, "cpu")
    for name, tensor in pipe.model.state_dict().items():
        ours = averages[f"training_model/model/{name.replace('.', '/')}"]
        kind = torch.float32 if keep_float32(name) else torch.bfloat16
        torch.testing.assert_close(tensor, ours.to(kind).float(), atol=0, rtol=0)
    assert isinstance(pipe.ask(to_pil(sample_scene(Random(0)), SIDE), "What is it?", 4), str)

    again, _ = train.make("vl2", part, folder, None, cpu)
    assert Pretraining(again, options, folder / "run").resume() == 1
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, last[name]), name


def test_balance_is_least_where_experts_are_used_alike(model):
    balance = BalanceLoss(model)
    gate = balance.gates[0]
    gate(torch.randn(64, model.config.decoder.hidden_size))
    even = balance.take()
    with torch.no_grad():
        gate.weight[0] += 1.0
    gate(torch.randn(64, model.config.decoder.hidden_size).abs())
    assert balance.take() > even
