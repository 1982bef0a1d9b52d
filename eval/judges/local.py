"""A judge in this process: a DeepSeek-VL2 or Janus model, or for questions without pictures a text model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...blocks.errors import PictureError, PromptError
from ...blocks.image_io import open_image
from ...scale.models import load_pipeline
from ..suites.questions import Answer, Draw, Question
from .endpoint import TOP, Refused


class LocalJudge:
    """A model in process; see `judge.Judge`. Beside the likeliest first tokens it tells those of all accepted
    answers, so that their probabilities are exact. load: arguments of `from_pretrained`."""

    threads = 1

    def __init__(
        self, family: str, model: str, load: Mapping[str, Any], adapters: Sequence[str] = ()
    ) -> None:
        self._pipe = load_pipeline(family, model, load, adapters)

    def ask(self, picture: Path, question: Question) -> Answer:
        """See `judge.Judge`."""
        pipe = self._pipe
        try:
            messages = self._messages(picture, question)
            first = self._first_tokens(messages, question) if question.accepted else {}
            longest = max(
                (len(choice.encode()) + 1 for choice in question.choices), default=question.max_tokens
            )
            answer = pipe.chat(messages, longest, choices=question.choices or None)
        except (PictureError, PromptError) as error:
            raise Refused(str(error)) from error
        assert isinstance(answer, str)
        return Answer(answer, first)

    def chat(self, conversations: Sequence[Sequence[Mapping[str, Any]]], draw: Draw) -> list[str]:
        """See `judge.Judge`."""
        batch = [[*map(dict, one)] for one in conversations]
        try:
            return self._pipe.chat_batch(batch, draw.max_new_tokens, draw.temperature, draw.top_p, draw.seed)
        except (PictureError, PromptError) as error:
            raise Refused(str(error)) from error

    def _messages(self, picture: Path, question: Question) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = [
            {"type": "image", "image": open_image(picture)},
            {"type": "text", "text": question.text},
        ]
        user = {"role": "user", "content": parts if question.picture_first else parts[::-1]}
        return [*([{"role": "system", "content": question.system}] if question.system else []), user]

    def _first_tokens(self, messages: list[dict[str, Any]], question: Question) -> dict[str, float]:
        tokenizer = self._pipe.tokenizer
        logprobs = torch.log_softmax(self._pipe.next_logits(messages).double(), dim=-1)
        ids = logprobs.topk(min(TOP, len(logprobs))).indices.tolist()
        encoded = [tokenizer.encode(text, bos=False) for text in question.accepted]
        wanted = {tokens[0] for tokens in encoded if tokens}
        first: dict[str, float] = {}
        for token in [*wanted, *ids]:
            text = tokenizer.decode([token], skip_special_tokens=False)
            # A longer or shorter beginning of an accepted answer would be taken for its first token.
            if token in wanted or not any(accepted.startswith(text) for accepted in question.accepted):
                first.setdefault(text, float(logprobs[token]))
        return first
