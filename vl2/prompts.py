"""DeepSeek-VL2's prompt, which is made of tokens: pieces of text are tokenised one by one and joined as ids.

BOS, then the system message's text if there is one, then for every message of the user
`<|User|>: text\\n\\n<|Assistant|>:`, cut at the pictures, and for each of the assistant its text and EOS. So
a history has no space after `<|Assistant|>:`, other than the printed form of the reference shows.
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
"""Marks that the vocabulary must hold; those that it lacks are appended in this order, after `<image>`."""


def encode_turns(tokenizer: TextTokenizer, turns: Sequence[Turn], mark: str = IMAGE) -> list[list[int]]:
    """Ids of a conversation that waits for the assistant, in stretches; between two of them is a picture."""
    if not turns or turns[-1].role != "user":
        raise PromptError("a conversation must end with a message of the user")
    stretches = [[tokenizer.bos_id]]
    for turn in turns:
        text = turn.text.strip()
        if turn.role == "user":
            first, *rest = f"{USER}: {text}\n\n{ASSISTANT}:".split(mark)
            stretches[-1] += tokenizer.encode(first, bos=False)
            stretches += [tokenizer.encode(piece, bos=False) for piece in rest]
        elif turn.role == "assistant":
            stretches[-1] += [*tokenizer.encode(text, bos=False), tokenizer.eos_id]
        else:
            stretches[-1] += tokenizer.encode(text, bos=False)
    return stretches


def locate_prompt(phrase: str) -> str:
    """The official question for the place of something (the caller puts the picture's mark before it)."""
    return f"{REF}{phrase}{REF_END}."


def example_prompt(label: str | None) -> str:
    """The official question for more of what is framed in the first of two pictures."""
    return (
        f"{GROUNDING}In the first image, {label or 'an object'} within the red rectangle is marked. "
        "Locate the object of the same category in the second image."
    )
