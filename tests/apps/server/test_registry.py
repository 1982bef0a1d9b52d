"""How many rows the models of a server get."""

from collections.abc import Sequence

import pytest
from bifrons.apps.server.registry import ModelRegistry, ServerOptions
from bifrons.blocks.engine import runners
from bifrons.blocks.errors import OptionError

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
