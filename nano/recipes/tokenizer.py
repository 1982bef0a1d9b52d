"""The text tokenizer of the embedded models: byte-level BPE trained on texts about the synthetic world.

All bytes are in the vocabulary, so any text can be encoded; the words of the world are single tokens.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random

from tokenizers import Tokenizer

from ...blocks.vocabulary import FILE, Vocabulary, words_of
from ..world.questions import sample_question
from ..world.scene import COLORS, SHAPES, TRAINING_OBJECTS, sample_scene
from ..world.sentences import KINDS, sample_case
from .things_tokenizer import build_tokenizer

VOCABULARY = 768
"""Size of the learned vocabulary, the 256 bytes included, special tokens not."""

_AMERICAN = {"colour": "color", "colours": "colors", "centre": "center", "grey": "gray"}


def corpus(seed: int, texts: int) -> Iterator[str]:
    """Sentences, questions and answers with the whitespace that surrounds them in prompts."""
    rng = Random(seed)
    for index in range(texts):
        yield " " + sample_case((*KINDS, "mixed")[index % 7], rng).metadata["prompt"]
        question = sample_question(sample_scene(rng, "train"), rng)
        yield f"{question.text}\n\n"
        yield f" {question.answer}"


def train_tokenizer(
    specials: Sequence[str], extra_texts: Sequence[str], seed: int = 0, texts: int = 20000, repeats: int = 100
) -> Tokenizer:
    """Train a tokenizer with `VOCABULARY` learned tokens followed by the special tokens.

    The corpus has `texts` sentences, questions and answers, and each of `extra_texts` `repeats` times. Line
    breaks and digits are split off, as in DeepSeek's pre-tokenizer; words keep the space before them.
    """

    def training_texts() -> Iterator[str]:
        yield from corpus(seed, texts)
        for text in extra_texts:
            yield from [text] * repeats

    return build_tokenizer(training_texts(), specials, VOCABULARY)


def write_vocabulary(folder: Path, painting: Iterable[str], reading: Iterable[str]) -> None:
    """Write `vocabulary.json` from texts of a model's training; the numbers of things are known as digits."""
    digits = {str(number) for number in range(1, TRAINING_OBJECTS + 1)}
    painted, read = (words and words | digits for words in map(words_of, (painting, reading)))
    spellings = {british: word for british, word in _AMERICAN.items() if word in painted | read}
    counts = SHAPES, tuple(COLORS), TRAINING_OBJECTS
    content = Vocabulary(*counts, painted, read, spellings, "shapes").content()
    (folder / FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
