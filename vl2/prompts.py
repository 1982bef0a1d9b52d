"""DeepSeek-VL2's prompt as token ids; pieces of text are tokenized one by one and concatenated.

A prompt is BOS, the text of the system message if there is one, then for each user message
`<|User|>: text\\n\\n<|Assistant|>:`, split at the images, and for each assistant message its text and EOS. So
earlier answers have no space after `<|Assistant|>:`, unlike in the text that the reference prints.
"""

from collections.abc import Sequence

from ..blocks.chat.messages import Turn
from ..blocks.errors import PromptError
from ..tokenizers.text import TextTokenizer

IMAGE = "<image>"
REF, REF_END = "<|ref|>", "<|/ref|>"
DET, DET_END = "<|det|>", "<|/det|>"
GROUNDING = "<|grounding|>"
USER, ASSISTANT = "<|User|>", "<|Assistant|>"

SPECIAL = (REF, REF_END, DET, DET_END, GROUNDING, USER, ASSISTANT)
"""Tokens that the vocabulary must have; missing ones are appended in this order, after `<image>`."""


def encode_turns(
    tokenizer: TextTokenizer, turns: Sequence[Turn], image_token: str = IMAGE
) -> list[list[int]]:
    """Ids of a conversation up to the assistant's next message, split at the images.

    There is an image between any two consecutive lists. Raises PromptError unless the user's turn is last.
    """
    if not turns or turns[-1].role != "user":
        raise PromptError("a conversation must end with a message of the user")
    pieces = [[tokenizer.bos_id]]
    for turn in turns:
        text = turn.text.strip()
        if turn.role == "user":
            first, *rest = f"{USER}: {text}\n\n{ASSISTANT}:".split(image_token)
            pieces[-1] += tokenizer.encode(first, bos=False)
            pieces += [tokenizer.encode(piece, bos=False) for piece in rest]
        elif turn.role == "assistant":
            pieces[-1] += [*tokenizer.encode(text, bos=False), tokenizer.eos_id]
        else:
            pieces[-1] += tokenizer.encode(text, bos=False)
    return pieces


def locate_prompt(phrase: str) -> str:
    """The official question for locating something, without the image token before it."""
    return f"{REF}{phrase}{REF_END}."


def example_prompt(label: str | None) -> str:
    """The official question for locating objects like the one framed in the first of two images."""
    return (
        f"{GROUNDING}In the first image, {label or 'an object'} within the red rectangle is marked. "
        "Locate the object of the same category in the second image."
    )
