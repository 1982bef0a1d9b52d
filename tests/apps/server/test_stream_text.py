"""Tokens of a scheduler's thread on their way to the events of a stream."""

import asyncio
import json
import threading

import pytest
from bifrons.apps.server import responses
from bifrons.apps.server.chat_events import ChatEvents
from bifrons.apps.server.notifier import Notifier, OutputQueue, OutputSignal
from bifrons.apps.server.stream_text import ChoiceOutput, TextChunk, token_logprob
from bifrons.blocks.sampling.request import SampledToken
from bifrons.tokenizers.text import TextTokenizer


@pytest.fixture(scope="module")
def tokenizer(janus_mini) -> TextTokenizer:
    return TextTokenizer.from_folder(janus_mini)


class Signal:
    """Counts how often a choice asks for the event loop."""

    count = 0

    def set(self) -> None:
        self.count += 1


def output(tokenizer, stops=(), stream=True) -> tuple[ChoiceOutput, Signal]:
    signal = Signal()
    return ChoiceOutput(tokenizer, stops, signal, skip_special_tokens=True, stream=stream), signal


def deliver(choice: ChoiceOutput, ids: list[int]) -> None:
    for token in ids:
        assert not choice.on_token(SampledToken(token))


def test_what_has_accumulated_is_one_piece(tokenizer):
    ids = tokenizer.encode("a red star and two blue squares", bos=False)
    choice, signal = output(tokenizer)
    deliver(choice, ids[:5])
    first = choice.read()
    assert first.text
    assert first.finish_reason is None
    deliver(choice, ids[5:])
    choice.on_end("length")
    last = choice.read()
    assert first.text + last.text == "a red star and two blue squares"
    assert (last.finish_reason, choice.num_tokens, signal.count) == ("length", len(ids), len(ids) + 1)


def test_only_the_end_wakes_for_an_answer_that_is_not_streamed(tokenizer):
    ids = tokenizer.encode("a red star", bos=False)
    choice, signal = output(tokenizer, stream=False)
    deliver(choice, ids)
    assert signal.count == 0
    choice.on_end("stop")
    assert signal.count == 1
    assert choice.read() == TextChunk("a red star", [], "stop")


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_ends_a_choice_and_what_came_after_it_does_not_count(tokenizer, stream):
    ids = tokenizer.encode("one two three four", bos=False)
    choice, signal = output(tokenizer, ["three"], stream)
    deliver(choice, ids)
    assert signal.count == len(ids)
    needed = next(n for n in range(len(ids)) if "three" in tokenizer.decode(ids[:n]))
    assert choice.read() == TextChunk("one two", [], "stop")
    assert choice.num_tokens == needed
    assert needed < len(ids)
    choice.on_end("cancelled")
    assert choice.finish_reason == "stop"


def test_log_probabilities_are_those_of_the_tokens_that_count(tokenizer):
    ids = tokenizer.encode("one two three four", bos=False)
    choice, _ = output(tokenizer, ["two"])
    sampled = [SampledToken(token, -0.5 * i, ((token, -0.5 * i),)) for i, token in enumerate(ids)]
    for token in sampled:
        choice.on_token(token)
    logprobs = choice.read().logprobs
    assert logprobs == [token_logprob(tokenizer, token) for token in sampled[: choice.num_tokens]]
    assert len(logprobs) < len(ids)


def test_events_of_text_have_the_form_of_all_events():
    make = ChatEvents("chatcmpl-1", 5, 'a "null" \0 model')
    logprob = responses.TokenLogprob(token="é", logprob=-1.5, bytes=[195, 169], top_logprobs=[])
    for text in ("", "null", 'a "quote"\n', "\0", "é"):
        for logprobs in ([], [logprob]):
            line = make.text(3, TextChunk(text, logprobs), bool(logprobs))
            assert line.startswith(b"data: ")
            assert line.endswith(b"\n\n")
            content = json.loads(line[6:])
            chunk = responses.ChatChunk.model_validate(content)
            assert (chunk.id, chunk.created, chunk.model) == (make.id, make.created, make.model)
            (choice,) = chunk.choices
            assert (choice.index, choice.delta.content, choice.finish_reason) == (3, text, None)
            assert (choice.logprobs.content if choice.logprobs else []) == logprobs
            assert list(content) == list(json.loads(make.finish(0, "stop")[6:]))


def test_one_wake_up_for_all_outputs_of_a_step():
    async def run() -> tuple[int, list[list[int]]]:
        notifier, calls = Notifier(), []
        queues = [OutputQueue(OutputSignal(notifier)) for _ in range(20)]
        threadsafe = notifier.loop.call_soon_threadsafe
        notifier.loop.call_soon_threadsafe = lambda *call: (calls.append(call), threadsafe(*call))
        readers = [asyncio.ensure_future(read(queue)) for queue in queues]
        await asyncio.sleep(0)
        step = threading.Thread(target=lambda: [queue.put(i) for i in range(3) for queue in queues])
        step.start()
        step.join()
        return len(calls), await asyncio.gather(*readers)

    async def read(queue: OutputQueue) -> list[int]:
        return [await queue.get() for _ in range(3)]

    woken, outputs = asyncio.run(run())
    assert woken == 1
    assert outputs == [[0, 1, 2]] * 20


def test_no_output_is_lost_whatever_the_moment():
    """A thread that never pauses, against tasks that wait for each output."""

    async def run() -> list[int]:
        notifier = Notifier()
        queues = [OutputQueue(OutputSignal(notifier)) for _ in range(5)]

        def deliver() -> None:
            for i in range(400):
                for queue in queues:
                    queue.put(i)

        thread = threading.Thread(target=deliver)
        thread.start()
        async with asyncio.timeout(30):
            sums = [sum([await queue.get() for _ in range(400)]) for queue in queues]
        thread.join()
        return sums

    assert asyncio.run(run()) == [sum(range(400))] * 5
