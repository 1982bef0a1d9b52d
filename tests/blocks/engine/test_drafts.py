"""Drafts change the number of steps and no token, of texts and pictures, whatever the sampling."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from bifrons.blocks.drafts import Drawn, JacobiDrafts, LookupDrafts, Pace, count_held, seen_before
from bifrons.blocks.engine.scheduler import Scheduler
from bifrons.blocks.errors import OptionError
from bifrons.blocks.speculate import check_speculate
from torch import Tensor


@dataclass(frozen=True)
class KnownDrafts:
    """Drafts of known tokens; those of every fifth step are wrong."""

    tokens: tuple[int, ...]

    def drafter(self, requests: int, vocabulary: int, tokens: int, device: torch.device) -> Any:
        return self

    def start(self, index: int, prompt_ids: Tensor | None, tokens: Sequence[int] = ()) -> None: ...

    def record(self, drawn: Drawn) -> None: ...

    def propose(self, drawn: Drawn, count: int) -> Tensor:
        first = int(drawn.steps_N + drawn.counts_N)
        known = [max(0, self.tokens[i] - (i % 5 == 4)) for i in range(first, first + count)]
        return torch.tensor([known])


def run(maker: Any, requests: list[Any], rows: int | None = None) -> list[list[int]]:
    """The tokens of requests that run together."""
    found: list[list[int]] = []
    for request in requests:
        tokens: list[int] = []
        request.on_token = lambda sampled, to=tokens: to.append(sampled.token)
        found.append(tokens)
    scheduler = Scheduler(maker.decoder, rows=rows, context=None if rows is None else 80)
    scheduler.submit(requests)
    while scheduler.has_work:
        scheduler.step()
    assert [request.error for request in requests] == [None] * len(requests)
    ended = sum(request.eos_id is not None for request in requests)
    assert scheduler.tokens == sum(map(len, found)) + ended
    assert scheduler.passes == sum(request.passes for request in requests)
    return found


@pytest.mark.parametrize("name", ["dense", "experts"])
@pytest.mark.parametrize("speculate", [2, 7, "auto"])
def test_tokens_are_those_without(small_model, requests_of, name, speculate):
    maker = requests_of(small_model(name))
    plain = run(maker, maker.mixed(24))
    requests = maker.mixed(24)
    for request in requests:
        drafts = LookupDrafts() if request.head == maker.text_head else JacobiDrafts(4)
        request.head, request.speculate = replace(request.head, drafts=drafts), speculate
    requests[1].speculate = False
    assert run(maker, requests) == plain


@pytest.mark.parametrize("rows", [None, 12])
def test_right_drafts_save_steps(maker, rows):
    plain = run(maker, maker.mixed(24), rows)
    requests = maker.mixed(24)
    for request, tokens in zip(requests, plain, strict=True):
        known = KnownDrafts(tuple(tokens) + (0,) * 30)
        request.head, request.speculate = replace(request.head, drafts=known), 10
    assert run(maker, requests, rows) == plain
    for request, tokens in zip(requests, plain, strict=True):
        # The first step draws one token; others go on up to a wrong draft, those of steps 4, 9, ..., and it.
        assert request.passes <= 2 + len(tokens) // 5


def test_an_end_within_a_window_is_the_end(maker):
    plain = run(maker, [maker.mixed(20)[0]])[0]
    (request,) = maker.mixed(20)[:1]
    request.head, request.speculate = replace(request.head, drafts=KnownDrafts(tuple(plain) + (0,) * 30)), 16
    request.eos_id = plain[3]
    assert run(maker, [request])[0] == plain[: plain.index(plain[3])]
    assert request.passes == 2


def test_drafts_are_refused_where_they_might_change_tokens(small_model, requests_of):
    maker = requests_of(small_model("dense", dtype=torch.bfloat16))
    request = maker.mixed(4)[0]
    request.speculate = 4
    with pytest.raises(OptionError, match=r"speculate is 4, but a step checks one .* torch\.bfloat16 on cpu"):
        Scheduler(maker.decoder).submit([request])
    request.speculate = "auto"
    assert len(run(maker, [request])[0]) == 4
    assert request.passes == 4


def test_look_up_repeats_what_followed_the_last_like_place():
    drafter = LookupDrafts().drafter(2, 50, 40, torch.device("cpu"))
    drafter.start(0, torch.tensor([5, 6, 7, 8, 9, 1, 6, 7]))
    drafter.start(1, torch.tensor([1, 2, 3]))
    tokens_NW = torch.tensor([[8, 40], [4, 4]])
    zero = torch.zeros(2, dtype=torch.long)
    drawn = Drawn(tokens_NW, torch.zeros(2, 2, 50), zero, zero + 1, lambda logits, steps: steps)
    drafter.record(drawn)
    # 6 7 8 was there before, followed by 9 1 6 7 8, and so on; of 2 3 4 there was nothing.
    assert drafter.propose(drawn, 6).tolist() == [[9, 1, 6, 7, 8, 9], [-1] * 6]


def test_codes_are_drafted_by_the_last_draws_and_from_the_row_above():
    drafter = JacobiDrafts(3).drafter(1, 9, 40, torch.device("cpu"))
    drafter.start(0, None)
    logits_1WV = torch.arange(4.0)[None, :, None].expand(1, 4, 9)  # of steps 10 to 13: their index
    drawn = Drawn(
        torch.tensor([[1, 2, 3, 4]]),
        logits_1WV,
        torch.tensor([10]),
        torch.tensor([2]),
        lambda logits, steps: 100 * logits[..., 0].long() + steps,
    )
    drafter.record(drawn)
    # Steps 12 and 13 were drawn; 14 and 15 are below 11 and 12, 16 is below 13, 17 after all that is known.
    assert drafter.propose(drawn, 6).tolist() == [[3, 4, 114, 215, 316, 317]]


def test_draws_hold_up_to_the_first_that_no_draft_foresaw():
    tokens_NW = torch.tensor([[1, 2, 3], [1, 5, 3], [4, 2, 3]])
    assert count_held(tokens_NW, torch.tensor([[1, 2]] * 3)).tolist() == [3, 2, 1]
    assert seen_before(torch.tensor([0, 1, 0]), [1, 2]).tolist() == [[0, 1, 0], [0, 2, 0], [0, 2, 1]]


def test_auto_follows_the_tokens_that_passes_give():
    pace = Pace(1.4)
    assert pace.window(16) == 16
    assert pace.window(8) == 8
    for _ in range(20):
        pace.record(1.8)
    assert pace.window(16) == 8
    windows = []
    for _ in range(200):
        windows.append(pace.window(16))
        if windows[-1] > 1:
            pace.record(1)
    assert windows.count(1) > 100  # drafts that never hold are tried now and then only
    assert windows[-100:].count(1) > 80


@pytest.mark.parametrize("bad", [True, 0, 1, 65, 2.5, "on", None])
def test_other_values_are_refused(bad):
    with pytest.raises(OptionError, match=r"speculate is .*accepted: 'auto', False, or 2 to 64 tokens"):
        check_speculate(bad)
