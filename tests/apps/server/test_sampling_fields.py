"""Sampling fields of requests reach the sampler."""

import pytest
from bifrons.apps.server import schema
from bifrons.apps.server.chat import sampling_params
from bifrons.apps.server.errors import ApiError
from bifrons.blocks.sampling.request import SamplingParams
from pydantic import ValidationError


def asked(**fields) -> SamplingParams:
    messages = [{"role": "user", "content": "x"}]
    return sampling_params(
        schema.ChatRequest.model_validate({"model": "m", "messages": messages, **fields}), 50
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {}),
        ({"top_k": -1, "min_p": 0, "logit_bias": {}, "presence_penalty": None}, {}),
        ({"top_k": 5, "top_p": 0.5, "temperature": 0.7}, {"top_k": 5, "top_p": 0.5, "temperature": 0.7}),
        ({"min_p": 0.2, "repetition_penalty": 1.2}, {"min_p": 0.2, "repetition_penalty": 1.2}),
        (
            {"presence_penalty": -2, "frequency_penalty": 1.5},
            {"presence_penalty": -2.0, "frequency_penalty": 1.5},
        ),
        ({"logit_bias": {"7": -100, "49": 2.5}}, {"logit_bias": {7: -100.0, 49: 2.5}}),
    ],
)
def test_sampling_fields(fields, expected):
    given = asked(**fields)
    for name, default in {**vars(SamplingParams(temperature=0.0)), **expected}.items():
        assert (getattr(given, name) or None) == (default or None), name


def test_a_bias_of_a_token_that_is_not_there_is_refused():
    with pytest.raises(ApiError, match="49") as refused:
        asked(logit_bias={"50": 1})
    assert refused.value.param == "logit_bias"


@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty", "min_p", "logit_bias"])
@pytest.mark.parametrize("value", [-2.1, 2.1, "1", [1], True, {"x": 1}, {"9": 101}, {"9": "1"}, {"-1": 1}])
def test_values_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(ValidationError, match=name):
        asked(**{name: value})
