"""Packed rows make the batches that their examples make."""

from dataclasses import replace

import pytest
import torch
from bifrons.blocks.errors import OptionError
from bifrons.janus.pipeline import JanusPipeline
from bifrons.learn.examples import PaintExample, read_example
from bifrons.learn.losses import TrainingModel, collate
from bifrons.learn.packed import PackedRows, load_rows, pack_rows, save_rows

from ..models import SHAPES_JANUS


@pytest.fixture(scope="module")
def pipe() -> JanusPipeline:
    return JanusPipeline.from_pretrained(SHAPES_JANUS, "cpu", "float32")


def rows_of(ids, learned, width, **more) -> PackedRows:
    arrays = pack_rows([one.tolist() for one in ids], [one.tolist() for one in learned], width)
    return PackedRows.from_arrays({name: torch.from_numpy(array) for name, array in arrays.items()} | more)


def test_losses_equal_those_of_examples(pipe, parity_picture) -> None:
    model = TrainingModel(pipe.model)
    texts = ("a red star", "two blue hearts above a green square")
    ids = [pipe.processor.generation_ids(text)[0] for text in texts]
    codes = torch.randint(0, 2048, (2, 256), generator=torch.Generator().manual_seed(1))
    paint = rows_of(ids, [torch.zeros(len(one), dtype=torch.bool) for one in ids], 32)
    pad = pipe.processor.pad_id
    with torch.no_grad():
        for share, dropped in ((0.0, False), (1.0, True)):
            batch = paint.painting(codes, pad, share)
            expected = collate(
                [PaintExample(*pair) for pair in zip(ids, codes, strict=True)], pad, [dropped] * 2
            )
            assert batch.dropped is not None
            assert batch.dropped.tolist() == [dropped] * 2
            torch.testing.assert_close(model(batch)["image"], model(expected)["image"])

    picture = parity_picture(1, 128, 128)
    examples = [
        read_example(
            pipe,
            [
                {
                    "role": "user",
                    "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}],
                },
                {"role": "assistant", "content": answer},
            ],
        )
        for text, answer in (("What is it?", "a star"), ("How many?", "three"))
    ]
    read = rows_of([one.inputs.ids for one in examples], [one.learned for one in examples], 128)
    places = examples[0].inputs.image_mask.nonzero()[:, 0].tolist()
    pixels = torch.cat([one.inputs.pixels for one in examples])[:, None]
    with torch.no_grad():
        batch = read.reading(pixels, places)
        torch.testing.assert_close(model(batch)["text"], model(collate(examples, pad, [False] * 2))["text"])
        # Images that stand apart, as two images of a conversation do.
        apart = replace(batch, pixels=pixels[:1])
        other = read.draw(1).reading(pixels[:1], [*places[:2], *places[3:5]])
    assert other.pictures is not None
    assert other.pictures.tolist() == [*places[:2], *places[3:5]]
    assert apart.amounts["pictures"] == 2 * len(places)


def test_rows_are_stored_and_drawn(tmp_path) -> None:
    arrays = pack_rows([[1, 2, 3], [40000]], [[False, True, True], [False]], 4)
    save_rows(tmp_path / "rows.safetensors", arrays | {"codes": arrays["ids"] + 1})
    rows = load_rows(tmp_path / "rows.safetensors")
    assert rows.ids.tolist() == [[1, 2, 3, 0], [40000, 0, 0, 0]]
    assert rows.lengths.tolist() == [3, 1]
    assert rows.learned.tolist() == [[False, True, True, False], [False] * 4]
    torch.manual_seed(0)
    drawn = rows.draw(50)
    assert set(drawn.lengths.tolist()) == {1, 3}
    assert torch.equal(drawn.more["codes"], drawn.ids + 1)
    with pytest.raises(OptionError, match="a row of 3 tokens does not fit in 2"):
        pack_rows([[1, 2, 3]], [[False] * 3], 2)
