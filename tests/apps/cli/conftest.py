"""Models that several commands share, so that each is loaded once."""

import functools

import pytest
from bifrons.apps import pipelines
from bifrons.apps.cli import ask_many, chat, images

_load = functools.cache(pipelines.load_pipeline)


@pytest.fixture
def loaded(monkeypatch) -> None:
    """Commands take a model from memory that an earlier one has loaded with the same options."""
    for module in (ask_many, chat, images):
        monkeypatch.setattr(module, "load_pipeline", _load)
