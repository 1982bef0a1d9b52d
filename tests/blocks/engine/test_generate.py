"""Sequences of a pipeline: their order and their ends; several pipelines of one decoder at once."""

import copy
import gc
import threading
from typing import Any

import pytest
import torch
from bifrons.blocks.engine.generate import Sequences, scheduler_of
from bifrons.blocks.errors import PromptError
from bifrons.blocks.sampling.request import SamplingParams, TokenHead

DRAWN, GUIDED = SamplingParams(1.0), SamplingParams(guidance_scale=3.0)


@pytest.fixture
def maker(small_model, requests_of) -> Any:
    return requests_of(small_model("dense"))


def answers(maker: Any, seeds: range, new: int, length: int = 8, **more: Any) -> Sequences:
    prompts = [[maker.prompt(length + seed, seed)] for seed in seeds]
    return Sequences(maker.text_head, prompts, DRAWN, seeds, new, **more)


def test_every_sequence_gets_its_own_tokens_in_order(maker: Any) -> None:
    sequences = answers(maker, range(3), 9)
    expected = maker.alone(sequences.requests)
    assert list(sequences.run(maker.decoder)) == [list(step) for step in zip(*expected, strict=True)]
    assert sequences.tokens == expected
    assert scheduler_of(maker.decoder).rows_used == 0


def test_all_tokens_at_once(maker: Any) -> None:
    head = TokenHead(maker.model.embed_codes, maker.model.image_logits)
    prompts = [[maker.prompt(9, seed), maker.prompt(4, seed)] for seed in range(3)]
    sequences = Sequences(head, prompts, GUIDED, range(3), 12, priority=1)
    expected = torch.tensor(maker.alone(sequences.requests))
    assert torch.equal(sequences.run_all(maker.decoder), expected)


def test_sequences_that_end_yield_none_until_all_have(maker: Any) -> None:
    plain = maker.alone(answers(maker, range(3), 12).requests)
    eos = plain[1][4]
    expected = [tokens[: tokens.index(eos)] if eos in tokens else tokens for tokens in plain]
    assert len(expected[1]) <= 4
    steps = list(answers(maker, range(3), 12, eos_id=eos).run(maker.decoder))
    padded = [tokens + [None] * (len(steps) - len(tokens)) for tokens in expected]
    assert steps == [list(step) for step in zip(*padded, strict=True)]
    assert len(steps) == max(len(tokens) for tokens in expected)


def test_a_penalty_counts_the_prompt(maker: Any) -> None:
    ids = [maker.ids(30, seed) for seed in range(2)]
    prompts = [[maker.model.embed_text(row)] for row in ids]
    sampling = SamplingParams(0.0, repetition_penalty=9.0)
    sequences = Sequences(maker.text_head, prompts, sampling, [0, 1], 20, prompt_ids=ids)
    expected = maker.alone(sequences.requests)
    assert sequences.run_all(maker.decoder).tolist() == expected
    assert all(len({*tokens}) == 20 for tokens in expected)


def test_stopping_early_frees_the_rows_and_leaves_the_rest_usable(maker: Any) -> None:
    expected = maker.alone(answers(maker, range(2), 12).requests)
    for stop in (1, 2, 5):
        sequences = answers(maker, range(2), 12)
        steps = sequences.run(maker.decoder)
        found = [next(steps) for _ in range(stop)]
        assert scheduler_of(maker.decoder).rows_used == 2
        steps.close()
        assert scheduler_of(maker.decoder).rows_used == 0
        assert all(request.ended for request in sequences.requests)
        assert found == [[one[step] for one in expected] for step in range(stop)]
    assert answers(maker, range(2), 12).run_all(maker.decoder).tolist() == expected


def test_sequences_side_by_side(maker: Any) -> None:
    both = [answers(maker, range(2), 9), answers(maker, range(2, 4), 9)]
    expected = [maker.alone(one.requests) for one in both]
    for _ in zip(*(one.run(maker.decoder) for one in both), strict=True):
        pass
    assert [one.tokens for one in both] == expected


def test_a_forgotten_iterator_that_is_collected_within_a_step_blocks_nothing(maker: Any) -> None:
    """It ends its sequences, for which the scheduler must not wait for itself."""
    steps = answers(maker, range(2), 12).run(maker.decoder)
    next(steps)
    held = [steps]
    held.append(held)  # a cycle
    del steps, held
    request = maker.answer(7, DRAWN, 5, 6)
    (out,) = maker.outs([request])
    out.at, out.do = 2, lambda: gc.collect() and None
    expected = maker.alone([request])
    gc.disable()
    try:
        assert maker.run(scheduler_of(maker.decoder), [request]) == expected
    finally:
        gc.enable()


def test_threads_share_the_steps_of_one_decoder(maker: Any) -> None:
    many = [answers(maker, range(3 * index, 3 * index + 3), 15) for index in range(5)]
    expected = [maker.alone(one.requests) for one in many]
    found: list[Any] = [None] * len(many)

    def work(index: int) -> None:
        with torch.no_grad():
            found[index] = many[index].run_all(maker.decoder).tolist()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(many))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
    assert not scheduler_of(maker.decoder).has_work


def test_a_thread_reads_its_tokens_while_another_goes_on_stepping(maker: Any) -> None:
    """The thread of a long job must not keep that of a short one waiting until it is done."""
    long, steps = answers(maker, range(2), 230), 6
    job = threading.Thread(target=long.run_all, args=(maker.decoder,))
    job.start()
    progress = []
    for _ in answers(maker, range(2, 4), steps).run(maker.decoder):
        progress.append(len(long.tokens[0]))
    assert len(progress) == steps
    assert progress[-1] - progress[0] < 3 * steps  # read as they came, not all in the end
    job.join()
    assert [len(tokens) for tokens in long.tokens] == [230, 230]


def test_errors_are_raised_where_the_sequence_was_asked_for(maker: Any) -> None:
    def explode(hidden: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("out of memory")

    other = answers(maker, range(2), 9)
    expected = maker.alone(other.requests)
    other_steps = other.run(maker.decoder)
    next(other_steps)
    head = TokenHead(maker.model.embed_text, explode)
    broken = Sequences(head, [[maker.prompt(5)]], DRAWN, [0], 4)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(broken.run(maker.decoder))
    for _ in other_steps:
        pass
    assert other.tokens == expected


def test_too_long_a_prompt_is_refused(maker: Any) -> None:
    limit = maker.decoder.config.max_positions
    with pytest.raises(PromptError, match=f"the context holds {limit}"):
        next(answers(maker, range(1), limit).run(maker.decoder))
    assert not scheduler_of(maker.decoder).has_work


def test_a_decoder_that_changes_gets_another_scheduler(maker: Any) -> None:
    decoder = maker.decoder
    first = scheduler_of(decoder)
    assert scheduler_of(decoder) is first
    copied = copy.deepcopy(maker.model)
    assert copied.decoder.scheduler is None
    maker.model.to(torch.bfloat16)
    assert scheduler_of(decoder) is not first
    assert answers(maker, range(1), 3).run_all(decoder).shape == (1, 3)


def test_ctrl_c_in_the_main_thread_ends_the_caller(maker: Any) -> None:
    """Not a request: it is to end the process."""

    def interrupt(*args: object) -> Any:
        raise KeyboardInterrupt

    sequences = answers(maker, range(2), 5)
    sequences.requests[0].head = TokenHead(maker.text_head.embed, interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(sequences.run(maker.decoder))
    assert scheduler_of(maker.decoder).rows_used == 0
    assert sequences.requests[0].error is None
