"""Numbers in options: Python's, numpy's and torch's are accepted; what is no number is refused shortly."""

# pyright: reportArgumentType=false

from fractions import Fraction

import numpy as np
import pytest
import torch
from bifrons.blocks.chat.text_generation import TextGenerationOptions, resolve_seed
from bifrons.blocks.errors import OptionError, check_integer, check_number, counted
from bifrons.blocks.sampling.request import Request, SamplingParams, TokenHead


@pytest.mark.parametrize(
    "value", [3, np.int8(3), np.uint64(3), np.int64(3), np.array(3), torch.tensor(3), torch.tensor(3).byte()]
)
def test_whole_numbers_of_all_kinds(value):
    found = check_integer("n", value, 0, 3)
    assert type(found) is int
    assert found == 3
    assert check_number("n", value) == 3.0


HALVES = [0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5), np.longdouble(0.5), np.array(0.5)]
HALVES += [torch.tensor(0.5), torch.tensor(0.5, dtype=torch.bfloat16), Fraction(1, 2)]
NO_NUMBERS = [True, np.True_, torch.tensor(True), "3", b"3", None, [3], np.array([3]), torch.tensor([3]), 3j]
NO_NUMBERS += [np.float64("nan"), float("inf"), np.datetime64("2026-01-01"), "9" * 10**6, 10**400]


@pytest.mark.parametrize("value", HALVES)
def test_floats_of_all_kinds(value):
    found = check_number("x", value, 0, 1)
    assert type(found) is float
    assert found == 0.5
    with pytest.raises(OptionError, match="accepted: a whole number"):
        check_integer("x", value, 0)


@pytest.mark.parametrize("value", [*NO_NUMBERS, pytest.param(10**5000, id="5000 digits")])
def test_what_is_no_number_is_refused_shortly(value):
    for check in (lambda: check_number("x", value), lambda: check_integer("x", value, 0, 9)):
        with pytest.raises(OptionError, match=r"x is .*accepted: ") as caught:
            check()
        assert len(str(caught.value)) < 300


def test_options_hold_pythons_numbers():
    text = TextGenerationOptions(np.int64(7), np.float32(0.5), np.float64(0.5), torch.tensor(1.5), np.int8(4))
    for options in (text, SamplingParams(np.float32(0.5), np.int32(3))):
        values = {name: value for name, value in vars(options).items() if name != "speculate"}
        assert {type(value) for value in values.values()} <= {int, float, type(None)}
    assert TextGenerationOptions(speculate=np.int64(8)).speculate == 8  # type: ignore[arg-type]
    assert (text.max_new_tokens, text.temperature, text.prefill_chunk) == (7, 0.5, 4)
    assert text.repetition_penalty == 1.5


def test_one_thing_is_no_plural():
    found = [counted(number, "picture") for number in (0, 1, 2, 2212)]
    assert found == ["0 pictures", "1 picture", "2 pictures", "2,212 pictures"]


LAST = 2**64 - 1


def test_a_request_takes_any_seed_of_64_bits():
    head = TokenHead(lambda ids: ids, lambda hidden: hidden)

    def seed_of(seed):
        return Request(head, [torch.zeros(1, 2)], SamplingParams(), seed, 1, lambda token: None, print).seed

    seeds = (0, 2**63 - 1, 2**63, LAST, LAST + 1)
    assert [seed_of(seed) for seed in seeds] == [0, 2**63 - 1, -(2**63), -1, 0]
    assert resolve_seed(np.uint64(LAST)) == LAST
    with pytest.raises(OptionError, match="accepted: 0 to 18446744073709551615"):
        resolve_seed(2**64)
