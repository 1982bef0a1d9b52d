"""`TextProcessor`: conversations and plain texts to token ids."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..blocks.chat.inputs import ChatInputs
from ..blocks.errors import PictureError, PromptError
from ..blocks.image_fit import Fit, FittedImage
from ..tokenizers.text import TextTokenizer
from .prompts import NO_IMAGE, THINK, THINK_END, ChatFormat

_NO_TABLE = np.zeros((3, 256), dtype=np.float32)


class TextProcessor:
    """Prepares texts for the model; `form` is that of its conversations, if it has one that is known."""

    image_token = NO_IMAGE
    image_id = -1

    def __init__(self, tokenizer: TextTokenizer, form: ChatFormat | None, name: str) -> None:
        self.tokenizer, self.form, self.name = tokenizer, form, name

    def fit(self, num_images: int) -> Fit:
        """What fits no image. Raises `PictureError` for any: a text model reads none."""
        if num_images:
            raise PictureError(f"{self.name} is a text model, which reads no pictures; accepted: texts alone")
        return _fit_none

    def chat_inputs(self, messages: Any, *, local_files: bool = True, exif: str = "apply") -> ChatInputs:
        """The model's inputs for a conversation, in either form of `blocks.chat.messages`; the options are
        about pictures, of which there can be none. Raises `PromptError`."""
        if self.form is None:
            raise PromptError(
                f"the vocabulary of {self.name} has no marks of DeepSeek's conversations (<｜User｜>); "
                "accepted: `complete`, which goes on from a text as it is"
            )
        pieces = self.form.render(messages)
        last = pieces[-1] if pieces[-1] != self.form.cue else ""
        ids = [self.tokenizer.bos_id, *self.tokenizer.encode(pieces, bos=False)]
        return text_inputs(ids, continues=bool(last) and not last[-1].isspace())

    def in_thought(self, ids: Sequence[int]) -> bool:
        """Whether a prompt with these ids ends within a thought that it has opened."""
        if not (self.tokenizer.has(THINK) and self.tokenizer.has(THINK_END)):
            return self.form is not None and self.form.thinks
        marks = [self.tokenizer.token_id(mark) for mark in (THINK, THINK_END)]
        return next((token == marks[0] for token in reversed(list(ids)) if token in marks), False)


def _fit_none(image: Any) -> FittedImage:
    raise AssertionError("a text model's conversations have no pictures")


def text_inputs(ids: Sequence[int], continues: bool) -> ChatInputs:
    """The model's inputs for token ids; with `continues` the answer goes on right after the last word."""
    mask = torch.zeros(len(ids), dtype=torch.bool)
    return ChatInputs(torch.tensor(ids, dtype=torch.long), mask, (), _NO_TABLE, 1, continues)
