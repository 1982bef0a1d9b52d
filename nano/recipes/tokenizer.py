"""The text tokenizer of the embedded models: byte-level BPE learned from the small world's own sentences.

Every byte is in the vocabulary, so any text can be read; the world's words are one token each.
"""

from collections.abc import Iterator, Sequence
from random import Random

from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.pre_tokenizers import ByteLevel

from ..world.questions import sample_question, sample_scene
from ..world.sentences import KINDS, sample_case

VOCABULARY = 768
"""Learned tokens, the 256 bytes among them; special tokens come on top."""


def corpus(seed: int, texts: int) -> Iterator[str]:
    """Sentences, questions and answers of the world, as they stand in prompts: after a space."""
    rng = Random(seed)
    for index in range(texts):
        yield " " + sample_case((*KINDS, "mixed")[index % 7], rng).metadata["prompt"]
        question = sample_question(sample_scene(rng, "train"), rng)
        yield f"{question.text}\n\n"
        yield f" {question.answer}"


def train_tokenizer(
    specials: Sequence[str], extra_texts: Sequence[str], seed: int = 0, texts: int = 20000, repeats: int = 100
) -> Tokenizer:
    """A `tokenizers.Tokenizer` of `VOCABULARY` learned tokens followed by `specials`.

    It learns from `texts` sentences and conversations and `repeats` times each of `extra_texts`.
    Lines and digits stand alone, as in DeepSeek's own pre-tokenizer; words keep the space before them.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\r\n]"), "isolated"),
            pre_tokenizers.Split(Regex(r"\s?\p{L}+"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )

    def everything() -> Iterator[str]:
        yield from corpus(seed, texts)
        for text in extra_texts:
            yield from [text] * repeats

    tokenizer.train_from_iterator(everything(), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer
