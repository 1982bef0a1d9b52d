"""Requests with an output format, penalties and biases beside free ones, in eager and in captured steps."""

import os
from typing import Any

import pytest
import torch
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.errors import BifronsError, OptionError
from bifrons.blocks.graphs.cuda_graphs import GraphCapturer
from bifrons.blocks.sampling.request import Request, SamplingParams
from bifrons.blocks.structured_output import OutputFormat
from bifrons.blocks.token_masks import TokenVocabulary
from tokenizers import Tokenizer

from ...models import SHAPES_VL2

TOKENIZER = Tokenizer.from_file(f"{SHAPES_VL2}/tokenizer.json")
EOS = TOKENIZER.token_to_id("<｜end▁of▁sentence｜>")
VOCABULARY = TokenVocabulary(TOKENIZER, 704, EOS)
FORMATS = [
    OutputFormat.json_schema({"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 2}),
    OutputFormat.choices(["yes", "no", "a red circle"]),
    OutputFormat.regex("[0-9]{3}"),
]
TUNED = [
    SamplingParams(0.9, min_p=0.05),
    SamplingParams(1.0, presence_penalty=1.5, frequency_penalty=-0.5),
    SamplingParams(0.0, frequency_penalty=2.0, repetition_penalty=1.2),
    SamplingParams(1.0, 9, logit_bias={7: 5.0, 11: -100.0}),
]


def held(maker: Any, new: int, count: int = 3) -> list[Request]:
    """Answers with output formats, of several ways of sampling."""
    samplings = (SamplingParams(1.0), SamplingParams(0.0), SamplingParams(0.8, 40, frequency_penalty=1.0))
    return [
        maker.answer(9 + i, samplings[i], i, new, eos_id=EOS, matcher=FORMATS[i].matcher(VOCABULARY, new))
        for i in range(count)
    ]


def texts(maker: Any, requests: list[Request]) -> list[str]:
    return [TOKENIZER.decode(out.tokens) for out in maker.outs(requests)]


@pytest.fixture(params=["dense", "experts"])
def maker(request: pytest.FixtureRequest, small_model, requests_of) -> Any:
    return requests_of(small_model(request.param))


@pytest.mark.parametrize("sizes", [{"rows": 12, "context": 64}, {}], ids=["fixed", "growing"])
def test_held_answers_match_and_free_ones_stay_the_same(maker: Any, sizes: dict[str, int]) -> None:
    expected = maker.alone(maker.mixed(7))
    alone = [maker.run(Scheduler(maker.decoder), [one])[0] for one in held(maker, 30)]
    requests, free = held(maker, 30), maker.mixed(7)
    found = maker.run(Scheduler(maker.decoder, **sizes), [*requests, *free])
    assert found == [*alone, *expected]
    listed, choice, digits = texts(maker, requests)
    assert {*listed[1:-1].split(", ")} <= {'"red"', '"blue"'}
    assert choice in ("yes", "no", "a red circle")
    assert len(digits) == 3
    assert digits.isdigit()
    assert {out.reason for out in maker.outs(requests)} == {"stop"}


def test_an_answer_that_is_cut_off_says_so(maker: Any) -> None:
    request = maker.answer(
        9,
        SamplingParams(0.0),
        1,
        2,
        eos_id=EOS,
        matcher=OutputFormat.regex("[0-9]{9}").matcher(VOCABULARY, 2),
    )
    maker.run(Scheduler(maker.decoder), [request])
    assert maker.outs([request])[0].reason == "length"


def test_a_format_that_becomes_too_complex_ends_its_request_only(maker: Any) -> None:
    broken, good = held(maker, 30, 1)[0], maker.answer(6, SamplingParams(1.0), 2, 5)

    def fail(token: int) -> bool:
        raise OptionError("too complex")

    broken.matcher.accept = fail  # type: ignore[union-attr, method-assign]
    expected = maker.alone([good])
    assert maker.run(Scheduler(maker.decoder), [broken, good])[1] == expected[0]
    assert isinstance(broken.error, OptionError)


def test_penalties_and_biases_are_a_requests_own(maker: Any) -> None:
    def make() -> list[Request]:
        return [maker.answer(8, one, 3, 9, seen_ids=maker.ids(8, 3)) for one in TUNED]

    expected = maker.alone(make())
    assert maker.run(Scheduler(maker.decoder), make()) == expected
    assert 11 not in expected[3]
    assert 7 in expected[3]


def test_a_bias_for_a_token_that_there_is_not_is_refused(maker: Any) -> None:
    request = maker.answer(8, SamplingParams(1.0, logit_bias={704: 1.0}), 3, 9)
    with pytest.raises(OptionError, match="0 to 703"):
        Scheduler(maker.decoder).submit([request])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_overflows_leaves_nothing_behind(maker: Any, value: float) -> None:
    """Neither to its neighbours nor to those that get its rows afterwards."""
    scheduler = Scheduler(maker.decoder, rows=4, context=64)
    for sampling in (SamplingParams(0.0), SamplingParams(1.0), SamplingParams(1.0, 5)):
        broken = [maker.answer(30 + i, sampling, i, 5) for i in range(3)]
        good = maker.answer(6, sampling, 2, 5)
        for request in broken:
            request.prompts_TD[0][3] = value
        later = [maker.answer(5 + i, sampling, 7 + i, 40) for i in range(4)]
        expected, *expected_later = maker.alone([good, *later])
        assert maker.run(scheduler, [*broken, good]) == [[], [], [], expected]
        for request in broken:
            assert isinstance(request.error, BifronsError)
            assert "not numbers" in str(request.error)
            assert "float32" in str(request.error)
        assert maker.run(scheduler, later) == expected_later


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="test_graph_runner_cuda.py")
@pytest.mark.usefixtures("few_programs")
def test_captured_steps_give_the_same(small_model, requests_of) -> None:
    maker = requests_of(small_model("dense-tiny"))

    def make() -> list[Request]:
        biased = maker.answer(5, TUNED[3], 4, 3)
        return [*held(maker, 3, 2), biased, maker.answer(5, SamplingParams(1.0), 5, 3)]

    expected = [maker.run(Scheduler(maker.decoder), [one])[0] for one in make()]
    assert maker.run(Scheduler(maker.decoder, capturer=GraphCapturer()), make()) == expected
