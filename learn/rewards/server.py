"""A reward server: pictures or answers by HTTP, scores back."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ...blocks.errors import BifronsError, shown
from ...eval.judges.endpoint import check_url, make_client, request_json

AT_ONCE = 16
"""Samples of a request."""
SERVER_KEY = "REWARD_API_KEY"


class ServerReward:
    """The scores that a server gives.

    A request is a POST of `{"prompts": [text, ...], "rows": [row of the prompts file, ...]}` with `"images"`
    (base64 of PNG) or `"answers"` (texts) in the same order, at most `AT_ONCE` of them; the reply is
    `{"scores": [number or null, ...]}`. A key in the environment variable `key` is sent as a bearer token.
    Raises `BifronsError` for a server that can't be reached, fails or takes more than `timeout` seconds again
    and again, or replies anything else.
    """

    def __init__(self, url: str, key: str = SERVER_KEY, timeout: float = 120.0) -> None:
        check_url(url)
        self.url, self.timeout, self._client = url, timeout, make_client(key, timeout=timeout)

    def __call__(self, prompts: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> list[float | None]:
        """The score of each sample."""
        starts = range(0, len(outputs), AT_ONCE)
        parts = [self._ask(prompts[i : i + AT_ONCE], outputs[i : i + AT_ONCE]) for i in starts]
        return [score for part in parts for score in part]

    def _ask(self, prompts: Sequence[Mapping[str, Any]], outputs: Sequence[Any]) -> list[float | None]:
        texts, rows = [_text(one) for one in prompts], [dict(one) for one in prompts]
        body: dict[str, Any] = {"prompts": texts, "rows": rows}
        if isinstance(outputs[0], Image.Image):
            body["images"] = [_png(one) for one in outputs]
        else:
            body["answers"] = list(outputs)
        scores = request_json(self._client, "POST", self.url, body, self.timeout).get("scores")
        if not isinstance(scores, list) or len(scores) != len(outputs):
            raise BifronsError(
                f"{self.url} replied the scores {shown(scores)} for {len(outputs)} samples; accepted: "
                '{"scores": [a number, or null, for each]}'
            )
        return scores


def _text(prompt: Mapping[str, Any]) -> str:
    """The prompt, or the last message's text."""
    if "prompt" in prompt:
        return prompt["prompt"]
    content = prompt["messages"][-1].get("content", "")
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if isinstance(part, Mapping) and "text" in part)


def _png(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
