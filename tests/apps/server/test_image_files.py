"""Image files with extra content, sent to a server."""

import base64
from typing import Any

import httpx
import pytest

from ...models import SHAPES_JANUS

SHAPES = "shapes-janus"
LOGPROB_TOLERANCE = 1e-5
"""Prompts computed whole or after a shared prefix differed by up to 5e-7 on an Intel processor."""


@pytest.fixture(scope="module")
def server(start_server):
    return start_server("-m", SHAPES_JANUS, "--rows", 8, "--context", 512)


def choices(server: Any, file: bytes) -> list[dict[str, Any]]:
    """The answer to a question about an image file, with log-probabilities."""
    url = f"data:image/png;base64,{base64.b64encode(file).decode()}"
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What colour is it?"}]
    body = {"model": SHAPES, "messages": [{"role": "user", "content": parts}], "max_tokens": 8}
    body |= {"logprobs": True, "top_logprobs": 5}
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    return reply.json()["choices"]


def take_logprobs(content: Any) -> list[float]:
    """Remove all log-probabilities from an answer and return them."""
    if isinstance(content, list):
        return [value for item in content for value in take_logprobs(item)]
    if not isinstance(content, dict):
        return []
    own = [content.pop("logprob")] if "logprob" in content else []
    return own + [value for item in content.values() for value in take_logprobs(item)]


def test_extra_content_of_an_image_file_changes_no_answer(server, strange_files, bitwise_products):
    """A polyglot file is read as its image. Texts and tokens are equal everywhere; log-probabilities
    are equal bit for bit on processors where a row's results don't depend on the number of rows."""
    memory = server.memory()
    answers = [choices(server, file) for file in (strange_files.valid, *strange_files.equivalent)]
    assert server.memory() - memory < 100
    logprobs = [take_logprobs(answer) for answer in answers]
    assert len(logprobs[0]) >= 6
    assert all(answer == answers[0] for answer in answers)
    tolerance = 0.0 if bitwise_products else LOGPROB_TOLERANCE
    assert all(found == pytest.approx(logprobs[0], rel=0, abs=tolerance) for found in logprobs)
