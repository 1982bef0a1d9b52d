"""Small text models with random weights, beside transformers' own."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from bifrons import TextPipeline

from ..transformers_text import make_folder


class Pair(NamedTuple):
    """A pipeline, and transformers' model with the same weights."""

    pipe: TextPipeline
    theirs: Any


@pytest.fixture(scope="session")
def text_pair(tmp_path_factory) -> Callable[[str], Pair]:
    """`text_pair(kind)`: a small model of a kind of `transformers_text.SIZES`; the same one each time."""
    made: dict[str, Pair] = {}

    def make(kind: str) -> Pair:
        if kind not in made:
            folder, theirs = make_folder(tmp_path_factory.mktemp(kind), kind)
            made[kind] = Pair(TextPipeline.from_pretrained(folder, "cpu", progress=False), theirs)
        return made[kind]

    return make
