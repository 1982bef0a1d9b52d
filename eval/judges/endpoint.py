"""A judge behind an endpoint that speaks OpenAI's chat completions, such as `bifrons serve` or vLLM."""

import base64
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from ...blocks.errors import BifronsError, OptionError, one_line
from ...blocks.files import read_bounded
from ...blocks.image_source import part_source
from ...blocks.json_config import TABLE_BYTES, decode_json
from ..suites.questions import Answer, Draw, Question

TOP = 20
"""Tokens whose log-probabilities are asked for, the most that OpenAI's interface gives."""
TRIES, TIMEOUT = 6, 600.0
"""How often a request is sent until it succeeds, and the seconds that a reply may take in all."""
_CONNECT_TIMEOUT = 10.0
_LONGEST_WAIT = 60.0
_REPLY_BYTES = 4 << 20
_QUESTION_STATUS = (400, 413, 415, 422)
_TYPES = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp", b"GIF8": "image/gif"}


class Refused(BifronsError):
    """A judge can't answer this question about this picture; others may go on."""


def check_url(url: str) -> None:
    """Raise OptionError unless this is the address of an endpoint."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        good = good and not parts.username and not parts.password and not parts.query and not parts.fragment
    except ValueError:
        good = False
    if not good:
        raise OptionError(
            f"the judge's address is {url!r}; accepted: http(s)://host:port, with or without /v1; its key is "
            "read from the environment"
        )


def only_model(url: str, key: str) -> str:
    """The model that an endpoint serves. Raises BifronsError where it has none or several."""
    with make_client(key) as client:
        content = request_json(client, "GET", f"{_base(url)}/models", None)
    entries = content.get("data")
    names = (
        [e["id"] for e in entries if isinstance(e, dict) and isinstance(e.get("id"), str)]
        if isinstance(entries, list)
        else []
    )
    if len(names) != 1:
        listed = ", ".join(names[:10]) or "none"
        raise BifronsError(one_line(f"{url} serves {listed}; name the judge's model with --judge-model"))
    return names[0]


class EndpointJudge:
    """Asks by HTTP, again after a failure that may pass, with growing pauses; see `judge.Judge`."""

    def __init__(
        self,
        url: str,
        model: str,
        key: str,
        options: Mapping[str, Any],
        threads: int,
        timeout: float = TIMEOUT,
    ) -> None:
        self.threads, self._timeout = threads, timeout
        self._url, self._model, self._options = f"{_base(url)}/chat/completions", model, options
        self._client = make_client(key, threads, timeout)

    def ask(self, picture: Path, question: Question) -> Answer:
        """See `judge.Judge`."""
        parts = [_picture_part(picture), {"type": "text", "text": question.text}]
        user = {"role": "user", "content": parts if question.picture_first else parts[::-1]}
        system = [{"role": "system", "content": question.system}] if question.system else []
        logprobs = {"logprobs": True, "top_logprobs": TOP} if question.accepted else {}
        fields = {"max_tokens": question.max_tokens, "temperature": 0, **logprobs}
        text, choice = self._complete({"messages": [*system, user], **fields})
        first: dict[str, float] = {}
        with self._no_completion():
            if question.accepted:
                logprobs = choice.get("logprobs")
                if not logprobs or not logprobs.get("content"):
                    raise BifronsError(
                        f"{self._url} gives no logprobs, which this suite needs; accepted: an endpoint with "
                        "logprobs and top_logprobs, such as `bifrons serve` or vLLM"
                    )
                for entry in logprobs["content"][0]["top_logprobs"][:TOP]:
                    first.setdefault(str(entry["token"]), min(0.0, float(entry["logprob"])))
        return Answer(text, first)

    def chat(self, conversations: Sequence[Sequence[Mapping[str, Any]]], draw: Draw) -> list[str]:
        """See `judge.Judge`."""
        fields = {"max_tokens": draw.max_new_tokens, "temperature": draw.temperature, "top_p": draw.top_p}
        fields |= {} if draw.temperature == 0 else {"seed": draw.seed}
        return [self._complete({"messages": [*map(_sendable, one)], **fields})[0] for one in conversations]

    def _complete(self, fields: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
        """The text of a completion, and all of it."""
        body = {"model": self._model, **fields, **self._options}
        content = request_json(self._client, "POST", self._url, body, self._timeout)
        with self._no_completion():
            choice = content["choices"][0]
            text = choice["message"]["content"] or ""
            if not isinstance(text, str):
                raise TypeError("its content is no text")
            return text.strip(), choice
        raise AssertionError

    @contextmanager
    def _no_completion(self) -> Iterator[None]:
        try:
            yield
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise BifronsError(f"{self._url} answered with no chat completion: {error!r}") from error


def _picture_part(picture: Path) -> dict[str, Any]:
    data = _read(picture)
    kind = next((kind for magic, kind in _TYPES.items() if data.startswith(magic)), "image/png")
    url = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def _sendable(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with the pictures of local files within it."""
    if not isinstance(message.get("content"), list):
        return dict(message)
    return {**message, "content": [*map(_sendable_part, message["content"])]}


def _sendable_part(part: Any) -> Any:
    if not isinstance(part, Mapping) or part.get("type") not in ("image", "image_url"):
        return part
    source = part_source(part, "a picture")
    return _picture_part(Path(source)) if isinstance(source, str) and os.path.isfile(source[:4096]) else part


def _read(picture: Path) -> bytes:
    try:
        return read_bounded(picture, TABLE_BYTES)
    except OSError as error:
        raise BifronsError(f"{picture} can't be read: {error.strerror or error}") from error


def _base(url: str) -> str:
    url = url.rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"


def make_client(key: str, threads: int = 1, timeout: float = TIMEOUT) -> httpx.Client:
    """A client for `request_json`, with the key in the environment variable `key`. Raises `OptionError`."""
    times = httpx.Timeout(timeout, connect=min(timeout, _CONNECT_TIMEOUT))
    return httpx.Client(headers=_headers(key), timeout=times, limits=httpx.Limits(max_connections=threads))


def _headers(key: str) -> dict[str, str]:
    """The key in the environment variable `key`, if it is set. Raises OptionError for one that is no key."""
    value = os.environ.get(key, "").strip()
    if value and not (value.isascii() and value.isprintable()):
        raise OptionError(
            f"the environment variable {key} holds no key: accepted are printable ASCII characters"
        )
    return {"Authorization": f"Bearer {value}"} if value else {}


def request_json(
    client: httpx.Client, method: str, url: str, body: Any, timeout: float = TIMEOUT
) -> dict[str, Any]:
    """The JSON object of a reply. Raises Refused, or BifronsError once all tries have failed."""
    reason, pause = "", 0.5
    for attempt in range(TRIES):
        if attempt:
            time.sleep(pause)
        try:
            status, wait, text = _send(client, method, url, body, timeout)
        except httpx.HTTPError as error:
            reason, pause = f"{type(error).__name__}: {error}", min(2 * pause, _LONGEST_WAIT)
            continue
        if status == 200:
            try:
                content = decode_json(text)
            except ValueError as error:
                raise BifronsError(f"{url} answered with no JSON: {error}") from error
            if not isinstance(content, dict):
                raise BifronsError(f"{url} answered with no JSON object")
            return content
        reason = one_line(f"status {status}: {text[:500].decode(errors='replace')}")
        if status in _QUESTION_STATUS and body is not None:
            raise Refused(f"the judge refused: {reason}")
        if status not in (408, 409, 425, 429) and status < 500:
            raise BifronsError(f"{url} answered with {reason}")
        pause = min(wait if wait is not None else 2 * pause, _LONGEST_WAIT)
    raise BifronsError(
        f"{url} failed {TRIES} times, at last with {reason}; what is answered is kept: run the "
        "same command again"
    )


def _send(
    client: httpx.Client, method: str, url: str, body: Any, timeout: float
) -> tuple[int, float | None, bytes]:
    """Status, seconds that the server asks to wait, and the reply of at most `_REPLY_BYTES`."""
    end = time.monotonic() + timeout
    with client.stream(method, url, json=body) as response:
        text = b""
        for piece in response.iter_bytes():
            text += piece
            if time.monotonic() > end:  # the client's limit is that of a single read
                raise httpx.ReadTimeout(f"the reply took more than {timeout:g} seconds")
            if len(text) > _REPLY_BYTES:
                raise BifronsError(f"{url} answered with more than {_REPLY_BYTES:,} bytes")
        after = response.headers.get("retry-after", "")
        return response.status_code, float(after) if after.isdecimal() else None, text
