"""How fast a server answers: pictures, answers, and answers about a picture, some at once.

Requests come from a process of its own (`client.py`), so that it takes no time from the server's interpreter.
"""

import base64
import io
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from types import TracebackType
from typing import Any

from PIL import Image

from ...blocks.errors import BifronsError

AT_ONCE = (1, 16, 64)
"""Clients at a time."""
_PICTURE_SIDE = 384
_PICTURES_BESIDE = 32  # that are painted while a chat is watched
_LONG_CHAT = 4  # times as long as other answers

Call = tuple[str, dict[str, Any]]
"""Path and body of a request."""


@dataclass(frozen=True)
class Load:
    """What a server did under one kind of requests, `at_once` at a time. Times are in seconds.

    `rate` counts requests per second; `tokens` the answers' tokens per second. `first` is the time to the
    first piece of a streamed answer. `earliest` is the latency of the very first request.
    """

    work: str
    at_once: int
    requests: int
    rate: float
    tokens: float | None
    latency_p50: float
    latency_p99: float
    first_p50: float | None
    first_p99: float | None
    earliest: float
    retries: int

    def as_json(self) -> dict[str, Any]:
        """The fields as a dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class Gaps:
    """Seconds between two pieces of a chat while `pictures` pictures were painted; `step` is the time of a
    token."""

    pictures: int
    pieces: int
    p50: float
    p99: float
    longest: float
    step: float

    def as_json(self) -> dict[str, Any]:
        """The fields as a dictionary, with the p99 in steps."""
        return {**asdict(self), "p99_steps": self.p99 / self.step}


class LoadClient:
    """The client's process."""

    def __init__(self, url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.client", url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "LoadClient":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.communicate()  # closes stdin, which ends it

    def run(self, calls: Sequence[Call], at_once: int, lead: Call | None = None) -> dict[str, Any]:
        """The outcome of a job. Raises `BifronsError` if a request failed or the client did."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        job = {"calls": calls, "at_once": at_once, "lead": lead}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise BifronsError("the load client ended early; its error is above")
        outcome = json.loads(line)
        statuses = {reply["status"] for reply in [*outcome["replies"], outcome["lead"]] if reply}
        if statuses != {200}:
            raise BifronsError(f"the server answered with {sorted(statuses)}; expected: 200 only")
        return outcome


def picture_call(model: str, number: int) -> Call:
    """A picture to paint."""
    body = {"model": model, "prompt": f"a photo of thing number {number}", "seed": number}
    return "/v1/images/generations", body


def answer_call(model: str, number: int, tokens: int) -> Call:
    """A streamed answer of this many tokens to a text."""
    return _chat(model, number, tokens, f"Tell me story number {number}.")


def look_call(model: str, number: int, tokens: int) -> Call:
    """A streamed answer of this many tokens about a picture that no other number has."""
    parts = [
        {"type": "image_url", "image_url": {"url": _picture_url(number)}},
        {"type": "text", "text": "What is in it?"},
    ]
    return _chat(model, number, tokens, parts)


def _chat(model: str, number: int, tokens: int, content: Any) -> Call:
    body = {"model": model, "messages": [{"role": "user", "content": content}], "max_tokens": tokens}
    body |= {"temperature": 1.0, "seed": number, "stream": True, "stream_options": {"include_usage": True}}
    return "/v1/chat/completions", body


def picture(number: int) -> Image.Image:
    """A picture of coloured noise."""
    small = Image.effect_noise((24, 24), 100)
    colours = Image.merge("RGB", [small.rotate(90 * turn + number) for turn in range(3)])
    return colours.resize((_PICTURE_SIDE, _PICTURE_SIDE))


def _picture_url(number: int) -> str:
    stream = io.BytesIO()
    picture(number).save(stream, "JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that at least this part of the values doesn't exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def load_figures(work: str, at_once: int, outcome: dict[str, Any]) -> Load:
    """The figures of a client's outcome."""
    replies, seconds = outcome["replies"], outcome["seconds"]
    latencies = [reply["end"] - reply["start"] for reply in replies]
    firsts = [reply["arrivals"][0] - reply["start"] for reply in replies if reply["arrivals"]]
    tokens = sum(reply["tokens"] for reply in replies)
    return Load(
        work,
        at_once,
        len(replies),
        len(replies) / seconds,
        tokens / seconds if tokens else None,
        statistics.median(latencies),
        percentile(latencies, 0.99),
        statistics.median(firsts) if firsts else None,
        percentile(firsts, 0.99) if firsts else None,
        latencies[0],
        sum(reply["retries"] for reply in replies),
    )


def gap_figures(outcome: dict[str, Any]) -> Gaps:
    """The gaps in the stream that led, while the pictures were painted."""
    arrivals = outcome["lead"]["arrivals"]
    started = min(reply["start"] for reply in outcome["replies"])
    ended = max(reply["end"] for reply in outcome["replies"])
    gaps = [late - early for early, late in pairwise(arrivals) if started < late < ended]
    if not gaps:
        raise BifronsError(
            "no piece of the chat came while the pictures were painted; accepted: more --tokens"
        )
    step = (arrivals[-1] - arrivals[0]) / (outcome["lead"]["tokens"] - 1)
    return Gaps(
        len(outcome["replies"]), len(gaps), statistics.median(gaps), percentile(gaps, 0.99), max(gaps), step
    )


def measure_serving(
    url: str, model: str, *, paints: bool, tokens: int, requests: int, on_load: Callable[[Load], object]
) -> tuple[list[Load], Gaps | None]:
    """Load a server with all kinds of requests; `on_load` gets the figures of each load when they are there.

    `requests` is the most that are sent in a load; fewer are sent to few clients.
    """
    kinds: list[tuple[str, Callable[[int], Call]]] = [
        (f"answers of {tokens} tokens", lambda number: answer_call(model, number, tokens)),
        ("answers about a picture", lambda number: look_call(model, number, tokens)),
    ]
    if paints:
        kinds.insert(0, ("pictures", lambda number: picture_call(model, number)))
    loads, gaps, number = [], None, 0
    with LoadClient(url) as client:
        for work, make in kinds:
            for at_once in dict.fromkeys(min(count, requests) for count in AT_ONCE):
                count = min(requests, max(4, 3 * at_once))
                calls = [make(number + i) for i in range(count)]
                number += count
                loads.append(load_figures(work, at_once, client.run(calls, at_once)))
                on_load(loads[-1])
        if paints:
            calls = [picture_call(model, number + i) for i in range(min(requests, _PICTURES_BESIDE))]
            lead = answer_call(model, number, _LONG_CHAT * tokens)
            gaps = gap_figures(client.run(calls, len(calls), lead))
    return loads, gaps
