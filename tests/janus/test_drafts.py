"""A trained model generates the same codes with drafts and without, in about a third of the steps."""

import pytest
import torch
from bifrons.apps.pipelines import StepMeter
from bifrons.blocks.errors import OptionError
from bifrons.janus.pipeline import JanusPipeline

from ..models import SHAPES_JANUS

TEXTS = ["a photo of a red star and a blue circle", "three green hearts", "a black cross"]


@pytest.fixture(scope="module")
def nano() -> JanusPipeline:
    return JanusPipeline.from_pretrained(SHAPES_JANUS, device="cpu", progress=False)


@pytest.mark.parametrize(
    ("texts", "options"),
    [
        (TEXTS[1:2], {"guidance_scale": 1.0, "top_k": 40}),
        (TEXTS[2:], {"temperature": 0.0}),
        (TEXTS, {"top_p": 0.8, "speculate": 8}),
    ],
    ids=["top-k", "greedy", "three"],
)
def test_codes_are_those_without_drafts(nano, texts, options):
    options = {"seed": 5, "output_type": "codes", **options}
    plain = nano.generate(texts, **{**options, "speculate": False})
    meter = StepMeter(nano)
    assert torch.equal(nano.generate(texts, **options), plain)
    assert meter.tokens_per_step > 2


def test_pictures_tell_their_steps(nano):
    (picture,) = nano.generate(TEXTS[0], seed=1, speculate=16)
    assert 40 < picture.info["steps"] < 110  # of 256
    (plain,) = nano.generate(TEXTS[0], seed=1, speculate=False)
    assert plain.info["steps"] == 256
    assert {**plain.info, "steps": 0} == {**picture.info, "steps": 0}
    assert plain.tobytes() == picture.tobytes()


def test_other_numbers_of_drafts_are_refused(nano):
    with pytest.raises(OptionError, match=r"speculate is 1; accepted: 'auto', False, or 2 to 64"):
        nano.generate(TEXTS[0], speculate=1)
