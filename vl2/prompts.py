"""DeepSeek-VL2's prompt as token ids; pieces of text are tokenized one by one and concatenated.

A prompt is BOS, the text of the system message if there is one, then for each user message
`<|User|>: text\\n\\n<|Assistant|>:`, split at the images, and for each assistant message its text and EOS. So
earlier answers have no space after `<|Assistant|>:`, unlike in the text that the reference prints.
"""

from collections.abc import Sequence

from ..blocks.chat.messages import Turn
from ..blocks.errors import PromptError
from ..blocks.special_tokens import strip_pieces
from ..tokenizers.text import TextTokenizer

IMAGE = "<image>"
REF, REF_END = "<|ref|>", "<|/ref|>"
DET, DET_END = "<|det|>", "<|/det|>"
GROUNDING = "<|grounding|>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"

GROUNDING_TOKENS = (REF, REF_END, DET, DET_END, GROUNDING)
"""Special tokens that people may write."""
SPECIAL = (*GROUNDING_TOKENS, USER, ASSISTANT)
"""Tokens that the vocabulary must have; missing ones are appended in this order, after `<image>`."""


def encode_turns(
    tokenizer: TextTokenizer, turns: Sequence[Turn], image_token: str = IMAGE
) -> list[list[int]]:
    """Ids of a conversation up to the assistant's next message or unfinished one, split at the images.

    There is an image between any two consecutive lists.
    """
    image_id, ids, asked = tokenizer.token_id(image_token), [tokenizer.bos_id], False
    for turn in turns:
        pieces = strip_pieces(turn.pieces)
        if turn.role == "user":
            pieces = [f"{USER}: ", *pieces, f"\n\n{ASSISTANT}:"]
        elif turn.role == "assistant" and not asked:
            pieces = [f"{ASSISTANT}:", *pieces]
        ids += tokenizer.encode(pieces, bos=False)
        if turn.role == "assistant" and turn is not turns[-1]:
            ids.append(tokenizer.eos_id)
        asked = turn.role == "user"
    segments: list[list[int]] = [[]]
    for token in ids:
        if token == image_id:
            segments.append([])
        else:
            segments[-1].append(token)
    return segments


def locate_prompt(phrase: str) -> str:
    """The official question for locating something, without the image token before it.

    Raises `PromptError` for a phrase with a special token of grounding, which would end the phrase.
    """
    _check_label(phrase)
    return f"{REF}{phrase}{REF_END}."


def example_prompt(label: str | None) -> str:
    """The official question for locating objects like the one framed in the first of two images.

    Raises `PromptError` for a label with a special token of grounding.
    """
    _check_label(label or "")
    return (
        f"{GROUNDING}In the first image, {label or 'an object'} within the red rectangle is marked. "
        "Locate the object of the same category in the second image."
    )


def _check_label(text: str) -> None:
    if found := next((token for token in GROUNDING_TOKENS if token in text), None):
        raise PromptError(f"the phrase holds {found}; accepted: words alone, since tokens are put around")
