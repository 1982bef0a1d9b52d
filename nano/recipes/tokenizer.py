"""The text tokenizer of the models of the world of things, byte-level BPE learned from its texts, and the
list of the words that they know.

All bytes are in the vocabulary, so any text can be encoded; the words of the world are single tokens.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.pre_tokenizers import ByteLevel

from ...blocks.vocabulary import FILE, Vocabulary, words_of
from ..world.asking import KINDS as QUESTIONS
from ..world.asking import ask
from ..world.catalog import PAINTS, things
from ..world.describing import describe
from ..world.names import OTHER_WORDS, thing_words, vocabulary
from ..world.pictures import sample_view
from ..world.questions import Question
from ..world.requests import MAX_THINGS
from ..world.sampling import KINDS, MORE_KINDS, sample_request

VOCABULARY = 2560
"""Size of the learned vocabulary, the 256 bytes included, special tokens not."""
SPELLINGS = {
    "colour": "color",
    "colours": "colors",
    "coloured": "colored",
    "centre": "center",
    "grey": "gray",
}
"""Words that are read as others."""
CAPTION_REQUESTS = (
    "Describe the picture.",
    "Describe this image.",
    "Describe the scene.",
    "Describe what you see.",
    "Write a caption for this picture.",
)

_REPEATS = 200  # of each word, so that rare ones are single tokens too
_SMALL = (96, 96)  # pixels of pictures of which only the words count


def sentences(seed: int, count: int) -> Iterator[str]:
    """Sentences of all kinds that ask for a picture, of the training split."""
    rng = Random(seed)
    for index in range(count):
        kinds = (*KINDS, *MORE_KINDS)
        yield describe(sample_request(kinds[index % len(kinds)], rng), rng)


@lru_cache(maxsize=1)
def questions() -> tuple[Question, ...]:
    """Questions of all kinds about small random pictures."""
    rng, found = Random(0), []
    for _ in range(60):
        view = sample_view(rng, size=_SMALL)
        found += [ask(view, rng, rng.choice(QUESTIONS)) for _ in range(80)]
    return tuple(question for question in found if question is not None)


def asked(without: Collection[str] = ()) -> Iterator[str]:
    """What may be asked, but for some kinds of questions."""
    yield from CAPTION_REQUESTS
    yield from (question.text for question in questions() if question.kind not in without)


def known_words() -> frozenset[str]:
    """All words of sentences and of questions, but for the words on signs, which are any."""
    return frozenset(word for word in words_of((*vocabulary(), *asked(("says",)))) if word.isalpha())


def corpus() -> Iterator[str]:
    """Sentences, questions and answers with the whitespace that surrounds them in prompts; and every word."""
    for sentence in sentences(0, 6000):
        yield f" {sentence}"
    for question in questions():
        yield f"{question.text}\n\n"
        yield f" {question.answer}"
    for word in sorted(known_words()):
        yield from [f" {word}"] * _REPEATS


def build_tokenizer(
    texts: Iterable[str], specials: Sequence[str], size: int, lowercase: bool = False
) -> Tokenizer:
    """A tokenizer with `size` tokens learned from texts, followed by the special tokens.

    Line breaks and digits are split off, as in DeepSeek's pre-tokenizer; words keep the space before them.
    lowercase: texts are read in lower case.
    """
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"[\r\n]"), "isolated"),
            pre_tokenizers.Split(Regex(r"\s?\p{L}+"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return tokenizer


def train_tokenizer(
    specials: Sequence[str], extra_texts: Iterable[str] = (), lowercase: bool = True
) -> Tokenizer:
    """The tokenizer of the world of things; the same at every call. Its corpus has each of `extra_texts`
    many times."""

    def texts() -> Iterator[str]:
        yield from corpus()
        for text in extra_texts:
            yield from [text] * _REPEATS

    return build_tokenizer(texts(), specials, VOCABULARY, lowercase)


def write_vocabulary(folder: Path, painting: Iterable[str], reading: Iterable[str]) -> None:
    """Write `vocabulary.json` of a model that was trained on such texts: for painting, sentences with typing
    errors; for reading, questions. The names of all things and colors and the numbers of things are known."""
    digits = {str(number) for number in range(1, MAX_THINGS + 1)}
    names = words_of(thing_words()) | set(PAINTS) | digits
    painted, read = words_of(painting) & vocabulary(), words_of(reading)
    painted, read = (words and words | names for words in (painted, read))
    spellings = {word: meant for word, meant in SPELLINGS.items() if meant in painted | read}
    counts = tuple(things()), tuple(PAINTS), MAX_THINGS
    words = Vocabulary(*counts, painted, read, spellings, lookalikes=OTHER_WORDS)
    (folder / FILE).write_text(json.dumps(words.content(), indent=1) + "\n", encoding="utf-8")


def write_files(
    folder: Path,
    tokenizer: Tokenizer,
    config: dict[str, Any],
    processor_configs: Mapping[str, dict[str, Any]],
) -> None:
    """Write `tokenizer.json`, `config.json` and the other JSON files (by file name) of a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, content in {"config.json": config, **processor_configs}.items():
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
