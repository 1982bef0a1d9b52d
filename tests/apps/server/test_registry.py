"""How many rows the models of a server get, and how their images are decoded."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from bifrons.apps.server import registry
from bifrons.apps.server.registry import ModelRegistry, ServerOptions
from bifrons.blocks.engine import runners
from bifrons.blocks.errors import OptionError
from bifrons.janus.image_generation import decode_images

MODELS = ("janus-mini", "vl2-mini-mla")


@pytest.fixture
def open_models(janus_mini, monkeypatch):
    """`open_models(rows, free)`: the rows of two models, and the bytes that were asked for a row, where
    `free` rows would fit."""

    def run(rows: int | None, free: int, names: Sequence[str] = MODELS) -> tuple[list[int], list[int]]:
        asked = []

        def rows_that_fit(row_bytes, device, layout):
            asked.append(row_bytes)
            return free

        monkeypatch.setattr(runners, "rows_that_fit", rows_that_fit)
        models = ModelRegistry(ServerOptions(rows=rows, context=128))
        for name in names:
            models.load(str(janus_mini.parent / name), "cpu", None)
        models.open()
        models.close()
        served = list(models.models.values())
        for one in served:
            schedule = one.scheduler
            assert one.capacity.startswith(f"{schedule.rows} rows of up to {schedule.context} tokens")
        return [one.scheduler.rows for one in served], asked

    return run


@pytest.mark.parametrize(
    ("rows", "free", "expected"), [(None, 100, 32), (None, 7, 7), (40, 100, 40), (40, 1, 2)]
)
def test_rows_by_default_and_as_asked(open_models, rows, free, expected):
    assert open_models(rows, free)[0] == [expected, expected]
    with pytest.raises(OptionError, match="rows is 1"):
        ServerOptions(rows=1)


def test_models_divide_the_memory(open_models):
    """The first of two may take half of it, the second all that is left."""
    _, asked = open_models(None, 100)
    _, swapped = open_models(None, 100, MODELS[::-1])
    assert asked == [2 * swapped[1], swapped[0] / 2]


@pytest.mark.parametrize("together", [1, 8])
def test_threads_share_the_decoding_of_images(janus_mini, monkeypatch, together):
    models, batches = ModelRegistry(ServerOptions(context=128)), []
    served = models.load(str(janus_mini), "cpu", None)
    served._decoded_together = together
    codes = torch.randint(0, 64, (24, served.pipe.model.config.num_codes)).tolist()
    damaged = codes[5]

    def decode(model, codes_NT):
        batches.append(len(codes_NT))
        if damaged in codes_NT.tolist():
            raise ValueError("damaged")
        return decode_images(model, codes_NT)

    def result(one):
        try:
            return served.decode_image(one).tobytes()
        except ValueError as error:
            return str(error)

    monkeypatch.setattr(registry, "decode_images", decode)
    with ThreadPoolExecutor(8) as threads:
        results = list(threads.map(result, codes))
    expected = [image.tobytes() for image in decode_images(served.pipe.model, torch.tensor(codes))]
    failed = [index for index, found in enumerate(results) if found == "damaged"]
    assert 5 in failed
    assert len(failed) <= together
    assert sum(batches) == len(codes)
    assert max(batches) <= together
    for index, found in enumerate(results):
        assert index in failed or found == expected[index]
