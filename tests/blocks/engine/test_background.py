"""A scheduler with a thread: what it accepts, and how it ends."""

import ctypes
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from bifrons.blocks.engine.background import BackgroundScheduler, QueueFull, SchedulerStopped
from bifrons.blocks.errors import OptionError
from bifrons.blocks.sampling.request import Request, SamplingParams

GREEDY, DRAWN = SamplingParams(0.0), SamplingParams(1.0)
SIZES = {"rows": 6, "context": 256, "max_waiting": 40}


@pytest.fixture
def scheduler(maker: Any) -> Iterator[BackgroundScheduler]:
    scheduler = BackgroundScheduler(maker.decoder, **SIZES)
    scheduler.start()
    yield scheduler
    assert scheduler.close(30)


def submit(scheduler: BackgroundScheduler, requests: list[Request]) -> None:
    scheduler.reserve(sum(request.rows for request in requests))
    scheduler.submit(requests)


def wait(scheduler: BackgroundScheduler) -> None:
    """Wait until nothing runs and nothing is reserved."""
    deadline = time.monotonic() + 30
    while scheduler.rows_promised or scheduler.has_work:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert scheduler.rows_used == 0


def test_requests_of_several_threads_get_the_tokens_that_they_get_alone(
    maker: Any, scheduler: BackgroundScheduler
) -> None:
    requests = [*maker.mixed(12), *maker.mixed(5)]
    expected = maker.alone(requests)

    def client(part: list[Request]) -> None:
        for request in part:
            submit(scheduler, [request])
            time.sleep(0.003)

    threads = [threading.Thread(target=client, args=(requests[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait(scheduler)
    assert [out.tokens for out in maker.outs(requests)] == expected


def test_callbacks_run_on_the_schedulers_thread(maker: Any, scheduler: BackgroundScheduler) -> None:
    names, request = [], maker.answer(7, GREEDY, 0, 2)
    request.on_token = lambda sampled: names.append(threading.current_thread().name)
    request.on_end = lambda reason: names.append(threading.current_thread().name)
    submit(scheduler, [request])
    wait(scheduler)
    assert names == ["bifrons-engine"] * 3


def test_the_queue_is_bounded(maker: Any, scheduler: BackgroundScheduler) -> None:
    scheduler.reserve(46)
    with pytest.raises(QueueFull, match="46 rows are in use or waiting"):
        scheduler.reserve(1)
    scheduler.release(46)
    submit(scheduler, [maker.image(7, SamplingParams(guidance_scale=2.0), 0, 3)])
    wait(scheduler)
    scheduler.reserve(46)
    scheduler.release(46)
    assert scheduler.rows_promised == 0
    with pytest.raises(OptionError, match="waiting is -1"):
        BackgroundScheduler(maker.decoder, **SIZES | {"max_waiting": -1})


def test_no_client_fills_the_queue_for_others_nor_pictures_for_chats(
    maker: Any, scheduler: BackgroundScheduler
) -> None:
    promised = [(46, "a", 1), (11, "b", 1), (11, "a", 0), (11, "c", 0)]
    for rows, client, priority in promised:
        with pytest.raises(QueueFull):
            scheduler.reserve(47 if client == "a" and priority else 12, client, priority)
        scheduler.reserve(rows, client, priority)
    with pytest.raises(QueueFull):
        scheduler.reserve(1, "a", 1)
    scheduler.reserve(11, "d")
    with pytest.raises(QueueFull):  # twice as many in all
        scheduler.reserve(3, "e")
    for rows, client, priority in [*promised, (11, "d", 0)]:
        scheduler.release(rows, client, priority)
    assert scheduler.rows_promised == 0
    assert not scheduler._shares


def test_the_client_with_fewer_rows_is_next(maker: Any) -> None:
    scheduler, ended = BackgroundScheduler(maker.decoder, **SIZES | {"rows": 2}), []
    requests = [maker.answer(7, DRAWN, 1, 5, client=client) for client in "aaaaabbc"]
    for number, request in enumerate(requests):
        request.on_end = lambda reason, number=number: ended.append(number)
        scheduler.reserve(1, request.client)
    scheduler.submit(requests)
    scheduler.start()
    assert scheduler.close(60)
    assert ended == [0, 5, 7, 1, 6, 2, 3, 4]


@pytest.mark.parametrize("rows", [3, 4, 7, 9])
def test_a_chat_does_not_wait_for_pictures(maker: Any, rows: int) -> None:
    scheduler, ended = BackgroundScheduler(maker.decoder, **SIZES | {"rows": rows}), []
    pictures = [maker.image(7, SamplingParams(guidance_scale=2.0), 0, 60, priority=1) for _ in range(6)]
    chat = maker.answer(7, DRAWN, 1, 5)

    def ask(sampled: object) -> None:
        if pictures[0].delivered == 10:
            scheduler.submit([chat])

    pictures[0].on_token = ask
    for request in (*pictures, chat):
        request.on_end = lambda reason, request=request: ended.append(request)
        scheduler.reserve(request.rows, priority=request.priority)
    scheduler.submit(pictures)
    scheduler.start()
    assert scheduler.close(60)
    assert ended[0] is chat
    assert len(ended) == 7


def test_all_requests_are_cancelled_at_once(maker: Any) -> None:
    scheduler = BackgroundScheduler(maker.decoder, **SIZES | {"rows": 2})
    scheduler.start()
    requests = [maker.answer(7, DRAWN, seed, 200) for seed in range(5)]
    submit(scheduler, requests)
    scheduler.cancel_all()
    assert scheduler.close(30)
    assert {out.reason for out in maker.outs(requests)} == {"cancelled"}
    assert scheduler.rows_promised == 0
    with pytest.raises(SchedulerStopped):
        scheduler.reserve(1)


def test_cancelled_and_failed_requests_release_their_rows(maker: Any, scheduler: BackgroundScheduler) -> None:
    def explode(sampled: object) -> None:
        raise RuntimeError("the client is gone")

    failing, cancelled, good = (maker.answer(7, DRAWN, seed, 40) for seed in range(3))
    expected, outs = maker.alone([good]), maker.outs([cancelled, good])
    failing.on_token = explode
    outs[0].at, outs[0].do = 2, cancelled.cancel
    submit(scheduler, [failing, cancelled, good])
    wait(scheduler)
    assert [out.reason for out in outs] == ["cancelled", "length"]
    assert str(failing.error) == "the client is gone"
    assert len(outs[0].tokens) == 2
    assert outs[1].tokens == expected[0]


def test_cancel_from_another_thread_has_freed_the_rows_when_it_returns(
    maker: Any, scheduler: BackgroundScheduler
) -> None:
    requests = [maker.answer(7, DRAWN, seed, 240) for seed in range(8)]
    submit(scheduler, requests)
    scheduler.cancel(requests)
    assert all(request.ended for request in requests)
    assert {out.reason for out in maker.outs(requests)} == {"cancelled"}
    wait(scheduler)


def test_closing_finishes_submitted_requests_and_refuses_new_ones(maker: Any) -> None:
    scheduler = BackgroundScheduler(maker.decoder, **SIZES | {"rows": 2})
    scheduler.start()
    requests = [maker.answer(7, DRAWN, 1, 30) for _ in range(4)]
    submit(scheduler, requests)
    assert scheduler.close(30)
    assert [(out.reason, len(out.tokens)) for out in maker.outs(requests)] == [("length", 30)] * 4
    with pytest.raises(SchedulerStopped):
        scheduler.reserve(1)


def test_closing_waits_for_rows_that_are_reserved(maker: Any) -> None:
    scheduler = BackgroundScheduler(maker.decoder, **SIZES)
    scheduler.start()
    scheduler.reserve(2)
    assert not scheduler.close(0.05)
    request = maker.answer(7, DRAWN, 1, 3)
    scheduler.submit([request])
    scheduler.release(1)
    assert scheduler.close(30)
    assert maker.outs([request])[0].reason == "length"


def test_closing_before_the_start_is_at_once(maker: Any) -> None:
    assert BackgroundScheduler(maker.decoder, **SIZES).close()


def test_a_fault_of_the_scheduler_itself_ends_requests_and_serves_the_next(
    maker: Any, scheduler: BackgroundScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault() -> None:
        raise RuntimeError("rows are lost")

    broken, later = (maker.answer(7, DRAWN, seed, 4) for seed in range(2))
    expected = maker.alone([later])
    with monkeypatch.context() as patch:
        patch.setattr(scheduler, "_admit", fault)
        submit(scheduler, [broken])
        wait(scheduler)
    assert broken.ended
    assert str(broken.error) == "rows are lost"
    submit(scheduler, [later])
    wait(scheduler)
    assert maker.outs([later])[0].tokens == expected[0]


class Panic(BaseException):
    """Like pyo3's PanicException."""


def failing_callback(request: Request, where: str, fail: Any) -> None:
    if where == "embed":
        request.prompts_TD, request.embed, request.inputs = (), fail, "a picture"
    elif where == "head":
        request.head = type(request.head)(request.head.embed, fail)
    else:
        setattr(request, where, fail)


@pytest.mark.parametrize("kind", [RuntimeError, Panic, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["on_token", "on_end", "embed", "head"])
def test_whatever_a_callback_raises_ends_its_request_only(
    maker: Any, scheduler: BackgroundScheduler, where: str, kind: type[BaseException]
) -> None:
    def fail(*args: object) -> Any:
        raise kind("a bug")

    broken, *others = (maker.answer(7, DRAWN, seed, 12) for seed in range(5))
    expected = maker.alone(others)
    failing_callback(broken, where, fail)
    submit(scheduler, [*others[:2], broken, others[2]])
    wait(scheduler)
    submit(scheduler, others[3:])
    wait(scheduler)
    assert [out.tokens for out in maker.outs(others)] == expected
    assert {out.reason for out in maker.outs(others)} == {"length"}
    assert broken.ended
    assert isinstance(broken.error, type(None) if where == "on_end" else kind)


def test_the_thread_survives_what_is_raised_while_it_waits(
    maker: Any, scheduler: BackgroundScheduler
) -> None:
    thread, request = scheduler._thread.ident, maker.answer(7, DRAWN, 1, 4)
    expected = maker.alone([request])
    assert ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(SystemExit))
    submit(scheduler, [broken := maker.answer(7, DRAWN, 2, 4)])  # wakes the thread
    wait(scheduler)
    assert broken.ended
    submit(scheduler, [request])
    wait(scheduler)
    assert [out.tokens for out in maker.outs([request])] == expected
