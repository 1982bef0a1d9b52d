"""What the page suggests: sentences to paint in the words of a model, and what to ask about and to find in a
picture that a sentence describes."""

from collections.abc import Iterable

from ...blocks.vocabulary import Vocabulary, Work
from ...nano.world.names import COLOR_WORDS
from ...nano.world.wording import article
from .sentence import named_relations, named_things

_OPEN = (
    "a lighthouse on a cliff at dusk, waves below",
    "a bowl of oranges on a blue tablecloth",
    "a red fox asleep in fresh snow",
    "a narrow street with market stalls after rain",
)
"""For models without a vocabulary."""
_SMALL = (
    "a photo of a red elephant left of a blue umbrella",
    "three blue teddy bears",
    "an orange cat above a blue suitcase",
    "a green bear and a pink donut",
    "a photo of a red star and a blue circle",
    "three green hearts",
    "a photo of a yellow star above a purple square",
    "a pink heart and a black cross",
)
"""For models with one: those that it knows all words of."""
_MOST = 4


def sentences(vocabulary: Vocabulary | None) -> list[str]:
    """Up to four sentences to paint in words that a model knows. None: a model of all words."""
    return _known(_SMALL, vocabulary, "painting")[:_MOST] or list(_OPEN)


def phrase_for(vocabulary: Vocabulary | None) -> str:
    """Something to find, in words that a model knows. None: a model of all words."""
    return next(iter(_known(map(phrase_of, _SMALL), vocabulary, "reading")), phrase_of(_OPEN[0]))


def _known(texts: Iterable[str], vocabulary: Vocabulary | None, work: Work) -> list[str]:
    return [] if vocabulary is None else [text for text in texts if not vocabulary.unknown([text], work)]


def phrase_of(sentence: str, vocabulary: Vocabulary | None = None) -> str:
    """What to find in a picture: the first thing that its sentence names; empty if it names none.

    vocabulary: of the model that looks for it, if it has one.
    """
    things = named_things(sentence, vocabulary)
    return f"the {things[0].phrase}" if things else ""


def question_about(sentence: str) -> str:
    """A question about the picture that a sentence describes: what is somewhere, how many there are, or which
    color something has."""
    things = named_things(sentence)
    for relation in named_relations(sentence):
        return f"What is {relation.name} the {_noun(relation.second)}?"
    if not things:
        return "What does the picture show?"
    noun = _noun(things[0].phrase)
    if (things[0].count or 2) > 1:
        return f"How many {noun} are there?"
    return f"What color is the {noun}?" if noun != things[0].phrase else f"Is there {article(noun)}?"


def _noun(phrase: str) -> str:
    """A phrase without the colors before its noun; `orange` alone is a fruit."""
    words = phrase.split()
    while len(words) > 1 and words[0] in COLOR_WORDS:
        words.pop(0)
    return " ".join(words)
