"""What vl2-nano is trained on is what the pipeline will give it, and patches are labelled by the truth."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from bifrons.blocks.checkpoints.hub import find_model_folder
from bifrons.blocks.errors import OptionError
from bifrons.learn.pretraining import PretrainingOptions
from bifrons.learn.scratch import from_scratch
from bifrons.nano.recipes import vl2 as vl2_recipe
from bifrons.nano.recipes import vl2_data as data
from bifrons.nano.recipes import vl2_objective as objectives
from bifrons.nano.recipes.parts import MODEL, Job
from bifrons.nano.recipes.tokenizer import write_files
from bifrons.nano.recipes.train import PARTS, train
from bifrons.nano.recipes.vision import (
    VisionObjective,
)
from bifrons.nano.recipes.vl2_objective import (
    ConversationObjective,
    coordinate_loss,
    named,
    place_features,
)
from bifrons.nano.recipes.vl2_rows import (
    FIRST,
    FORMS,
    FULL_WEIGHT,
    LAST_DIGIT,
    SHAPES,
    RowEncoder,
    Shape,
    row_arrays,
)
from bifrons.nano.recipes.vl2_spec import (
    MAX_TILES,
    TILE,
    VIEWS,
    processor_configs,
    tower_config,
    vl2_config,
)
from bifrons.nano.world.painting import Picture, paint
from bifrons.nano.world.pictures import sample_view
from bifrons.nano.world.questions import NO_MATCH
from bifrons.nano.world.reading import read_request
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
    """Shards of one pair."""
    monkeypatch.setattr(data, "PAIRS", 1)


def _pictures(*sizes: tuple[int, int]) -> list[Picture]:
    return [
        paint(read_request("a red cat and a dog"), Random(width), width, height) for width, height in sizes
    ]


def _states(pipe, tiles: Sequence[np.ndarray], arrays: dict[str, np.ndarray]) -> torch.Tensor:
    """The hidden states [L, D] of a row in training, about such pictures."""
    objective = ConversationObjective.__new__(ConversationObjective)
    torch.nn.Module.__init__(objective)
    objective.model = pipe.model
    objective._layers = [objectives.TrainedLayer(layer) for layer in pipe.model.decoder.layers]
    rows = {name: torch.from_numpy(array) for name, array in arrays.items()}
    _, features = objective._encode(torch.from_numpy(np.stack(tiles)))
    return objective._decode(rows, features.flatten(0, 1)[None])[0][0]


@pytest.mark.parametrize(
    ("form", "sizes"),
    [
        *((form, [(192, 192)]) for form in (*FORMS[1], *FIRST)),
        *(("<image>\n{}", [size]) for size in ((320, 160), (160, 256), (130, 390), (400, 100), (90, 70))),
        *((form, [(250, 200), (320, 130)]) for form in FORMS[2]),
    ],
)
def test_a_conversation_of_a_row_is_what_the_pipeline_reads(folder, pipe, form, sizes):
    pictures, encode = _pictures(*sizes), RowEncoder(folder)
    grids = [data.grid_of(picture) for picture in pictures]
    shape = Shape(999, 99, 1)
    # Some conversations before this one, if the pictures come first: they must not matter.
    others = (
        [[("Is there a dog?", "yes")], [("Is it?", "no"), ("Why?", "cat")]] if form.endswith("{}") else []
    )
    row = encode([*others, TURNS], grids, form, shape, Random(0))
    own = [row.conversations[place] for place in row.learned][-1]
    answers = [row.ids[place] for place in row.learned if row.conversations[place] == own]
    assert pipe.tokenizer.decode(answers, skip_special_tokens=True) == "cattwo"

    tiles = [data.picture_arrays(picture)["tiles"] for picture in pictures]
    places = [i for i, one in enumerate(row.conversations) if one in (0, own)]
    for tail in FORMS[len(sizes)] if len(sizes) == 1 and form.endswith("{}") else (form,):
        asked = {"content": tail.format(TURNS[0][0]), "images": [picture.image() for picture in pictures]}
        messages = [
            {"role": "user", **asked},
            {"role": "assistant", "content": TURNS[0][1]},
            {"role": "user", "content": TURNS[1][0]},
        ]
        prepared = pipe.processor.chat_inputs(messages)
        if [row.ids[i] for i in places][: len(prepared.ids)] == prepared.ids.tolist():
            break
    else:
        pytest.fail("no form of the question gives these tokens")
    assert prepared.grids == tuple(grids)
    for ours, image in zip(tiles, prepared.images, strict=True):
        assert np.array_equal(ours[: len(image.tiles)], image.tiles)
    arrays = row_arrays([row], shape)
    with torch.no_grad():
        found = _states(pipe, tiles, arrays)[places][: len(prepared.ids)]
        embedded = pipe.model.embed_prompts([prepared])[0].embeddings_TD
        expected = pipe.model.decoder(embedded[None])[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_row_has_the_conversations_that_fit(folder):
    encode = RowEncoder(folder)
    one, other = [TURNS[0]], [("Is this a long question about a picture that has a cat in it?", "no")]
    whole = encode([one, other], [(2, 2)], "<image>\n{}", Shape(999, 99, 1), Random(0))
    assert max(whole.conversations) == 2
    for shape in (Shape(len(whole.ids) - 1, 99, 1), Shape(999, len(whole.learned) - 1, 1)):
        short = encode([one, other], [(2, 2)], "<image>\n{}", shape, Random(0))
        assert max(short.conversations) == 1
        assert short.learned == whole.learned[: len(short.learned)]
    # Each conversation follows the pictures.
    first, second = (whole.conversations.index(number) for number in (1, 2))
    assert whole.positions[first] == whole.positions[second] == first


def test_last_digits_of_coordinates_weigh_less(folder):
    encode = RowEncoder(folder)
    answer = "<|ref|>cat 12<|/ref|><|det|>[[5, 12, 345, 999]]<|/det|>"
    row = encode([[("Where?", answer)]], [(1, 1)], "<image>\n{}", SHAPES["point"], Random(0))
    texts = [encode.tokenizer.decode([row.ids[place]]) for place in row.learned]
    light = [text for text, weight in zip(texts, row.weights, strict=True) if weight == LAST_DIGIT]
    assert light == ["2", "5", "9"]
    assert set(row.weights) == {LAST_DIGIT, FULL_WEIGHT}


def test_shards_have_rows_about_their_pictures(folder, small):
    encode = RowEncoder(folder)
    found = data.shard(7, encode)
    assert found["pictures.tiles"].shape == (1, 2, VIEWS, 3, TILE, TILE)
    for name, shape in SHAPES.items():
        assert found[f"{name}.ids"].shape == (1, shape.rows, shape.width)
        most = found[f"{name}.sources"].max(-1)
        assert (most >= 2).all()
        assert most.max() < 2 + VIEWS * 36 * (2 if name == "two" else 1)
        assert found[f"{name}.weights"].any(-1).all()
    again = data.shard(7, encode)
    assert all(np.array_equal(array, found[name]) for name, array in again.items())
    pictures = data.shard(7, None)
    assert all(name.startswith("pictures.") for name in pictures)


def test_boxes_of_image_tokens_are_those_of_the_picture(folder):
    picture = _pictures((300, 150))[0]
    arrays = data.picture_arrays(picture)
    for number, one in enumerate(picture.seen):
        assert np.allclose(arrays["place"][number] * [300, 150, 300, 150], one.box, atol=0.3)
    slots = objectives._token_slots(torch.from_numpy(arrays["slot"])[None])[0].view(VIEWS, 6, 6)
    for number, one in enumerate(picture.seen):
        x, y = (sum(one.box[axis::2]) / 2 / side for axis, side in enumerate((300, 150)))
        # The whole picture is in the middle half of the first tile.
        near = slots[0, int((0.25 + y / 2) * 6), int(x * 6)]
        assert near in (number, *range(number))  # or one that stands before it


def test_coordinates_are_learned_between_two_classes():
    logits = torch.zeros(1, 4, 5)
    logits[..., 2] = 9.0
    right, near, wrong = (coordinate_loss(logits, torch.full((1, 4), at)).item() for at in (0.5, 0.55, 0.9))
    assert right < near < wrong
    assert abs(right) < 0.01


def test_features_are_placed_and_their_gradients_summed():
    text, features = torch.randn(2, 4, 3), torch.randn(2, 5, 3, requires_grad=True)
    sources = torch.tensor([[-1, 0, 0, 4], [2, -1, -1, 2]])
    placed = place_features(text, features, sources)
    expected = torch.stack([
        torch.stack([text[b, i] if s < 0 else features[b, s] for i, s in enumerate(row)])
        for b, row in enumerate(sources.tolist())
    ])  # fmt: skip
    assert torch.equal(placed, expected)
    placed.sum().backward()
    assert features.grad is not None
    assert features.grad[:, :, 0].tolist() == [[2, 0, 0, 0, 1], [0, 0, 2, 0, 0]]


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


def test_all_tasks_and_the_tower_learn(folder, small, monkeypatch):
    pool = data.make_pool(Job(folder, (), (2, 2), 3, 1, torch.device("cpu")), with_rows=True)
    model = from_scratch(folder).model
    torch.manual_seed(0)
    objective = ConversationObjective(model, pool, 1)
    losses = objective.losses()
    assert {*SHAPES, "shown", "patches", "balance"} == {n for n, loss in losses.items() if loss.requires_grad}
    torch.stack([loss for loss in losses.values() if loss.requires_grad]).sum().backward()
    assert not [name for name, p in objective.named_parameters() if p.grad is None or not p.grad.any()]

    def draw() -> dict[str, torch.Tensor]:
        return named(pool.draw(1))["pictures"]

    tower = VisionObjective(TOWER, draw, torch.device("cpu"), torch.float32)
    adam = torch.optim.AdamW(tower.parameters(), 3e-3)
    totals = []
    for _ in range(6):
        found = tower.losses()
        total = torch.stack([loss for loss in found.values() if loss.requires_grad]).sum()
        adam.zero_grad()
        total.backward()
        adam.step()
        totals.append(total.item())
    assert totals[-1] < 0.8 * totals[0]


def test_parts_are_trained_one_after_another_and_the_model_loads(folder, small, monkeypatch):
    monkeypatch.setattr(vl2_recipe, "tower_config", lambda: TOWER)
    for name in ("vl2-vision", "vl2"):
        options = PretrainingOptions(1e-3, steps=1, warmup=0.0)
        job = Job(folder, (1,), (2, 2), 0, 1, torch.device("cpu"))
        train(name, replace(PARTS[name], options=options), job, 0.0)
    with pytest.raises(OptionError, match="is there already; accepted: a folder without a model"):
        PARTS["vl2"].make(job)
    pipe = VL2Pipeline.from_pretrained(folder / MODEL, "cpu")
    picture = _pictures((300, 100))[0].image()
    assert isinstance(pipe.ask(picture, "What is this?", 3), str)
    assert isinstance(pipe.locate(picture, "the cat", 3), list)

    before = (folder / MODEL).rename(folder / "before")
    again = replace(job, start=before, seed=1)
    objective, _ = PARTS["vl2"].make(again)
    for name, tensor in VL2Pipeline.from_pretrained(before, "cpu", "float32").model.state_dict().items():
        assert torch.equal(objective.model.state_dict()[name], tensor), name
