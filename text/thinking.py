"""Thoughts before answers: limits on their length, and output formats that hold for the answer alone.

W words of a mask over the vocabulary.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np

from ..blocks.errors import OptionError, check_integer
from ..blocks.structured_output import OutputFormat
from ..blocks.token_masks import OutputMatcher, TokenVocabulary
from ..tokenizers.text import TextTokenizer
from .prompts import THINK_END


@dataclass(frozen=True)
class ThoughtFormat(OutputFormat):
    """A thought of up to `limit` tokens (None: any), which the token `end_id` ends, and an answer of the
    `answer` format, if there is one."""

    end_id: int = 0
    limit: int | None = None
    answer: OutputFormat | None = None

    def __post_init__(self) -> None:
        """There is no grammar to check: `matcher` needs none."""

    def matcher(self, vocabulary: TokenVocabulary, max_new_tokens: int) -> OutputMatcher:
        """What holds one text of up to `max_new_tokens` to this form. Raises `OptionError`."""
        return ThoughtMatcher(self, vocabulary, max_new_tokens)


def thought_format(
    tokenizer: TextTokenizer, thinks: bool, limit: int | None, answer: OutputFormat | None
) -> OutputFormat | None:
    """The form of a text that begins within a thought if it `thinks`. Raises `OptionError` for a limit where
    there are no thoughts, or none with a token that ends them."""
    if limit is not None:
        check_integer("max_thinking_tokens", limit, low=0)
    can_end = thinks and tokenizer.has(THINK_END)
    if limit is not None and not can_end:
        raise OptionError(
            f"max_thinking_tokens is {limit}, but this model's prompts open no thought; accepted: none"
        )
    if not can_end or (limit is None and answer is None):
        return answer
    return ThoughtFormat("the thought", "", tokenizer.token_id(THINK_END), limit, answer)


class ThoughtMatcher(OutputMatcher):
    """Holds a text to a `ThoughtFormat`: any tokens, then the end of the thought, then the answer."""

    def __init__(self, form: ThoughtFormat, vocabulary: TokenVocabulary, max_new_tokens: int) -> None:
        self._form, self._vocabulary, self._left = form, vocabulary, max_new_tokens
        self._answer: OutputMatcher | None = None
        self._thought: int | None = 0
        """Tokens of the thought so far; None once it is over."""
        if form.answer is not None:
            form.answer.matcher(vocabulary, max_new_tokens)  # refused now rather than later
        bits = np.zeros(32 * -(-vocabulary.rows // 32), dtype=np.uint8)
        bits[: vocabulary.rows] = 1
        self._any_W, bits[:] = _packed(bits), 0
        bits[form.end_id] = 1
        self._end_W = _packed(bits)

    @property
    def mask_W(self) -> np.ndarray:  # type: ignore[override]
        """The tokens that may come next, as in `OutputMatcher`."""
        if self._thought is not None:
            return self._end_W if self._thought == self._form.limit else self._any_W
        return self._any_W if self._answer is None else self._answer.mask_W

    def accept(self, token: int) -> bool:
        """Add a token to the text; returns whether it is complete."""
        self._left -= 1
        if self._answer is not None:
            return self._answer.accept(token)
        if self._thought is not None:
            self._thought += 1
            if token == self._form.end_id:
                self._thought = None
                if self._form.answer is not None:
                    self._answer = self._form.answer.matcher(self._vocabulary, max(1, self._left))
        return False

    def masks(self, drafts: Sequence[int]) -> list[np.ndarray]:
        """The masks of the next token and of those after each draft; after one that is not allowed, any."""
        ahead, masks = copy(self), [self.mask_W]
        for number, draft in enumerate(drafts):
            if ahead._answer is not None:
                masks[-1:] = ahead._answer.masks(drafts[number:])
                return masks
            ahead.accept(draft)
            masks.append(ahead.mask_W)
        return masks


def _packed(bits: np.ndarray) -> np.ndarray:
    return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)
