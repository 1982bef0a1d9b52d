"""What vl2-nano 2 is trained on is what the pipeline will give it, and patches are labelled by the truth."""

from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from bifrons.blocks.checkpoints.hub import find_model_folder
from bifrons.blocks.errors import OptionError
from bifrons.learn.losses import TrainingModel
from bifrons.learn.objectives import ModelObjective
from bifrons.learn.packed import PackedRows, pack_rows
from bifrons.learn.pretraining import PretrainingOptions
from bifrons.learn.scratch import from_scratch
from bifrons.nano.recipes import things_vision, things_vl2
from bifrons.nano.recipes import things_vl2_data as data
from bifrons.nano.recipes.things_parts import MODEL, Job
from bifrons.nano.recipes.things_tokenizer import write_files
from bifrons.nano.recipes.things_train import PARTS, train
from bifrons.nano.recipes.things_vision import (
    LETTERS,
    NO_LETTER,
    NO_SLOT,
    SIGN,
    SIGN_SLOT,
    VisionObjective,
    frames_in,
    label_patches,
    normalize,
)
from bifrons.nano.recipes.things_vl2 import vl2_tasks
from bifrons.nano.recipes.things_vl2_spec import (
    FORMS,
    MAX_TILES,
    TILE,
    VIEWS,
    ConversationEncoder,
    processor_configs,
    tower_config,
    vl2_config,
)
from bifrons.nano.world.painting import Picture, paint
from bifrons.nano.world.phrases import NO_MATCH
from bifrons.nano.world.pictures import sample_view
from bifrons.nano.world.reading import read_request
from bifrons.nano.world.signs import hang_sign
from bifrons.vl2.grounding import parse_grounding
from bifrons.vl2.pipeline import VL2Pipeline
from tokenizers import Tokenizer

TOWER = replace(tower_config(), width=64, layers=2)
"""A small one."""
TURNS = [("What is this?", "cat"), ("How many cats are there?", "two")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("vl2-nano")
    tokenizer = Tokenizer.from_file(str(find_model_folder("vl2-nano") / "tokenizer.json"))
    config = vl2_config(tokenizer.get_vocab_size())
    config["vision_config"] |= {"width": TOWER.width, "layers": TOWER.layers}
    config["projector_config"] |= {"input_dim": TOWER.width}
    config["language_config"] |= {"num_hidden_layers": 2, "n_routed_experts": 4}
    write_files(path, tokenizer, config, processor_configs(tower_config(), MAX_TILES))
    return path


@pytest.fixture(scope="module")
def pipe(folder) -> VL2Pipeline:
    made = from_scratch(folder)
    assert isinstance(made, VL2Pipeline)
    made.model.eval()
    return made


@pytest.fixture
def small(monkeypatch):
    """Shards of two pairs."""
    for name, value in (("PAIRS", 2), ("FRAMED", 1), ("PICTURES", 5)):
        monkeypatch.setattr(data, name, value)


def _pictures(*sizes: tuple[int, int]) -> list[Picture]:
    return [
        paint(read_request("a red cat and a dog"), Random(width), width, height) for width, height in sizes
    ]


@pytest.mark.parametrize(
    ("form", "sizes"),
    [
        *((form, [(192, 192)]) for form, _ in FORMS[1]),
        *((FORMS[1][0][0], [size]) for size in ((320, 160), (160, 256), (130, 390), (400, 100), (90, 70))),
        *((form, [(250, 200), (320, 130)]) for form, _ in FORMS[2]),
    ],
)
def test_a_row_is_what_the_pipeline_reads(folder, pipe, form, sizes):
    pictures, encode = _pictures(*sizes), ConversationEncoder(folder)
    grids = [data.grid_of(picture) for picture in pictures]
    ids, learned, sources = encode(TURNS, grids, form, 999)
    content = {"content": form.format(TURNS[0][0]), "images": [picture.image() for picture in pictures]}
    messages = [
        {"role": "user", **content},
        {"role": "assistant", "content": TURNS[0][1]},
        {"role": "user", "content": TURNS[1][0]},
    ]
    prepared = pipe.processor.chat_inputs(messages)
    assert ids[: len(prepared.ids)] == prepared.ids.tolist()
    assert prepared.grids == tuple(grids)
    answers = [i for i, taught in zip(ids, learned, strict=True) if taught]
    assert pipe.tokenizer.decode(answers, skip_special_tokens=True) == "cattwo"

    tiles = [data.picture_arrays(picture)["tiles"] for picture in pictures]
    for ours, image in zip(tiles, prepared.images, strict=True):
        assert np.array_equal(ours[: len(image.tiles)], image.tiles)
    arrays = {"sources": np.array([sources]), **pack_rows([ids], [learned], len(ids))}
    rows = PackedRows.from_arrays({name: torch.from_numpy(array) for name, array in arrays.items()})
    batch = rows.reading_tiles(normalize(torch.from_numpy(np.concatenate(tiles)))[None])
    with torch.no_grad():
        x = TrainingModel(pipe.model)._embed(batch)[0, : len(prepared.ids)]
        expected = pipe.model.embed_prompts([prepared])[0].embeddings_TD
    torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)


def test_a_row_has_the_turns_that_fit(folder):
    encode = ConversationEncoder(folder)
    whole = encode(TURNS, [(2, 2)], FORMS[1][0][0], 999)
    short = encode(TURNS, [(2, 2)], FORMS[1][0][0], len(whole[0]) - 1)
    assert len(short[0]) < len(whole[0])
    assert all(a == b[: len(a)] for a, b in zip(short, whole, strict=True))
    assert sum(short[1]) < sum(whole[1])


def test_patches_are_labelled_with_what_is_visible_in_them():
    picture = _pictures((192, 192))[0]
    frames = [box for size in (96, 192) for box in frames_in((192, 192), (size, size), TILE)]
    labels = label_patches(picture, frames, 12)
    owner = picture.owner_HW.reshape(24, 8, 24, 8).transpose(0, 2, 1, 3).reshape(24, 24, 64)
    slots = labels["slot"][1:].reshape(2, 2, 12, 12).transpose(0, 2, 1, 3).reshape(24, 24)
    for number, one in enumerate(picture.seen):
        share = (owner == number).mean(-1)
        assert (slots[share > 0.5] == number).all()
        assert (share[slots == number] > 0.1).all()
        whole = labels["box"][0, number].astype(float) * 192
        assert np.allclose(whole, one.box, atol=0.2)
    assert (slots[(owner < 0).mean(-1) > 0.9] == NO_SLOT).all()
    assert (labels["letter"] == NO_LETTER).all()


def test_patches_of_signs_are_labelled_with_their_letters():
    picture = hang_sign(_pictures((192, 192))[0], "Hot Tea 7", Random(2))
    assert picture is not None
    assert picture.sign is not None
    written = picture.sign.letters
    assert "".join(letter for letter, _ in written) == "HotTea7"
    x0, y0, x1, y1 = picture.sign.box
    assert all(x0 <= a < c <= x1 and y0 <= b < d <= y1 for _, (a, b, c, d) in written)
    labels = label_patches(picture, frames_in((192, 192), (192, 192), 192), 24)
    assert {LETTERS[i] for i in labels["letter"][0] if i != NO_LETTER} == set("HotTea7")
    assert (labels["slot"][0][labels["letter"][0] != NO_LETTER] == SIGN_SLOT).all()
    assert labels["kind"][SIGN_SLOT] == SIGN
    # The letters' boxes hold their ink: nothing is written beside them on the board.
    light = picture.pixels_HW3.astype(int).mean(-1)
    board = np.median(light[round(y0) : round(y1), round(x0) : round(x1)])
    for _, (a, b, c, d) in written:
        inside = light[round(b) : round(d), round(a) : round(c)]
        assert np.abs(inside - board).max() > 60


def test_shards_count_their_pictures_on(folder, small):
    encode = ConversationEncoder(folder)
    first, second = (data.shard(seed, 7, encode) for seed in (7, 8))
    assert first["pictures.tiles"].shape == (5, VIEWS, 3, TILE, TILE)
    for name in data.WIDTHS:
        assert set(first[f"{name}.pictures"].flatten()) <= set(range(5))
        assert set(second[f"{name}.pictures"].flatten()) <= set(range(5, 10))
        used = first[f"{name}.sources"].max(1)
        assert (used >= 2).all()
        assert used.max() < 2 + VIEWS * 36 * (2 if name == "two" else 1)
        assert first[f"{name}.learned"].any(1).all()
    again = data.shard(7, 7, encode)
    assert all(np.array_equal(array, first[name]) for name, array in again.items())


def test_a_framed_thing_is_looked_for_in_the_other_picture():
    rng = Random(4)
    a, b = (sample_view(rng, size=(192, 192)) for _ in range(2))
    one = a.seen[0]
    changed = (data.framed(a, one).pixels_HW3 != a.picture.pixels_HW3).any(-1)
    x0, y0, x1, y1 = map(round, one.box)
    assert changed[y0:y1, x0:x1].any()
    assert not changed[y0 + 3 : y1 - 3, x0 + 3 : x1 - 3].any()
    answers = [data.example_query(one.thing, view, rng)[1] for view in (a, b)]
    assert len(parse_grounding(answers[0], (192, 192)).boxes) == len(a.matching(one.thing))
    assert (answers[1] == NO_MATCH) == (not b.matching(one.thing))


def test_all_tasks_and_the_tower_learn(folder, pipe, small, monkeypatch):
    monkeypatch.setattr(data, "WIDTHS", {"ask": 240, "point": 300, "two": 460})
    examples = data.make_examples(folder, 5, 3, 1, "cpu")
    torch.manual_seed(0)
    objective = ModelObjective(
        pipe.model, vl2_tasks(examples, {"ask": 2, "point": 1, "two": 1}), balance=0.02
    )
    losses = objective.losses()
    assert set(losses) == {"ask", "point", "two", "balance"}
    torch.stack(list(losses.values())).sum().backward()
    silent = [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()]
    # Experts that no token was routed to have no gradient.
    assert not [name for name in silent if ".experts." not in name]

    tower = VisionObjective(TOWER, examples["pictures"], 2, torch.float32)
    adam = torch.optim.AdamW(tower.parameters(), 3e-3)
    totals = []
    for _ in range(6):
        torch.manual_seed(1)  # the same pictures
        found = tower.losses()
        total = torch.stack([loss for loss in found.values() if loss.requires_grad]).sum()
        adam.zero_grad()
        total.backward()
        adam.step()
        totals.append(total.item())
    assert totals[-1] < 0.8 * totals[0]


def test_parts_are_trained_one_after_another_and_the_model_loads(folder, small, monkeypatch):
    monkeypatch.setattr(things_vl2, "tower_config", lambda: TOWER)
    for name, rows in (("vl2-vision", (1,)), ("vl2", (1, 1, 1))):
        options = PretrainingOptions(1e-3, steps=1, warmup=0.0)
        job = Job(folder, rows, (5,), 0, 1, torch.device("cpu"))
        train(name, replace(PARTS[name], options=options), job, 0.0)
    with pytest.raises(OptionError, match="is there already; accepted: a folder without a model"):
        PARTS["vl2"].make(job)
    pipe = VL2Pipeline.from_pretrained(folder / MODEL, "cpu")
    picture = _pictures((300, 100))[0].image()
    assert isinstance(pipe.ask(picture, "What is this?", 3), str)
    assert isinstance(pipe.locate(picture, "the cat", 3), list)


def test_janus_reads_pictures_of_any_shape(monkeypatch):
    monkeypatch.setattr(things_vision, "SHARD", 3)
    arrays = things_vision.janus_shard(1)
    assert arrays["tiles"].shape == (3, 1, 3, 192, 192)
    assert arrays["slot"].shape == (3, 1, 144)
    assert ((arrays["slot"] < NO_SLOT).sum((1, 2)) > 0).all()
