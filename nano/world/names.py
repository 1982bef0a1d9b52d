"""The words of sentences about the world of things, and how a word that is spelled wrongly is read.

British and American spellings are read alike: "grey" and "gray", "colour" and "color".
"""

import re
from functools import lru_cache

from ...blocks.vocabulary import one_edit_apart
from .catalog import PAINTS, places, plural_of, things

NUMBERS = {
    "one": 1, "single": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8,
    "nine": 9, "ten": 10, "a pair of": 2, "a couple of": 2, "a trio of": 3, "half a dozen": 6,
}  # fmt: skip
"""Digits are read, too. A picture shows six things at most."""
COLOR_WORDS = {**{name: name for name in PAINTS}, "grey": "gray"}
SIZE_WORDS = {"small": "small", "little": "small", "tiny": "small", "large": "large", "big": "large",
              "huge": "large", "giant": "large"}  # fmt: skip
LINK_WORDS = {
    "left of": ("left of", "to the left of", "on the left of", "on the left side of", "at the left of"),
    "right of": ("right of", "to the right of", "on the right of", "on the right side of", "at the right of"),
    "above": ("above", "over", "higher than", "on top of", "on"),
    "below": ("below", "under", "beneath", "underneath", "lower than"),
    "in front of": ("in front of", "before"),
    "behind": ("behind", "at the back of"),
    "inside": ("inside", "in", "within", "inside of"),
}
"""Phrases of each relation; the first is GenEval's where it has the relation."""
SIDE_WORDS = {
    "left of": ("to its left", "on its left", "on the left of it"),
    "right of": ("to its right", "on its right", "on the right of it"),
    "above": ("above it", "over it"),
    "below": ("below it", "under it", "underneath it"),
    "in front of": ("in front of it",),
    "behind": ("behind it",),
    "inside": ("inside it", "in it"),
}
"""Phrases for "B with A to its left"."""
NOT_WORDS = (
    "no",
    "without",
    "without a",
    "without an",
    "without any",
    "but no",
    "and no",
    "with no",
    "not any",
)
NONE_OF_COLOR = ("but not", "that is not", "that are not", "none of them")
OPENINGS = (
    "a photo of", "a photograph of", "an image of", "a picture of", "a drawing of", "a painting of",
    "an illustration of", "there is", "there are", "draw", "please draw", "paint", "please paint", "paint me",
    "draw me", "show me", "make", "i want to see", "i would like", "i'd like", "can you draw", "imagine",
    "could you paint", "here is", "here are", "a scene with", "a photo with", "a picture with",
    "a picture that shows",
)  # fmt: skip
FILLERS = (
    "and", "with", "next to", "beside", "near", "together with", "along with", "as well as", "exactly",
    "just", "only", "that is", "that are", "which is", "which are", "is", "are", "stands", "standing", "sits",
    "sitting", "lies", "lying", "a", "an", "the", "some", "all", "of", "color", "colour", "colored",
    "coloured", "of the color", "of the colour", "pairs of", "please", "shape", "shapes", "them", "of them",
    "it", "or",
)  # fmt: skip
"""Words that say nothing about what the picture shows, but for "or", which continues a "no"."""
_OTHER_WORDS = (
    "able across act acts ample applies apply aside bail bank bard base battle beach beam beans beard "
    "bees bells bend bill bind binds bits blocks blow blur bone boom bowels bracket brackets brain "
    "bridge bright brow bunch buns bush busk bust busy cable cafe calls came cane cape card cards cast "
    "casts cave cells chai chain chains chat chip chips cite class classes click clicks cloak clue "
    "coach compute computed computers computes cone cook cooked cork cover cred criss crock crow crown "
    "curses dear dice dies dive does done dots dotted drain drains driver drivers drown ease ever fable "
    "fake fall falls fear fell fired fires flight flock fogs folks font fords form forms fort foul fowl "
    "fred fringe frown gear giants give glue goat goats gone grab grain grant greed greek greet grew "
    "hack halt heard hide hike hips hogs hook hooks hose host hour howl jugs kiss kits lake lakes "
    "larger lift links lite live lock locks logs lone look looks love loves makes marking mints mist "
    "moat moose mutt nurse once ones open opens orangey ouch owls pack packet packing paid pane pants "
    "parrot parses parsing pear phony pick pike ping pint place places plate ports pouch pour power "
    "prone pulse pure purge rain rakes range ranges read redo remove removes rice ride rite rook rows "
    "rugs sack sake sank sell shall sheet shims shin shot sick sided sides silk sites size skies skin "
    "skit slack sleep slight slower soar soft soon sorry sorts sour spool sport spotted stable stag "
    "stair stall start starts stay stays steep step stone stops store stores sweep swoon take takes "
    "tall tear tells thank they thin tidy tied tier tiers tile tiles time times tips tires toes tone "
    "took tops touch touches tour tow track tracks trail trait traits trans tray tree trick tricks "
    "tries trim trip trunk tuck twine uses vane vars vast vice vouch vows wake wakes wear while whip "
    "wind wing wins wipe wise work works worry worse write year years your zone"
)
OTHER_WORDS = frozenset(_OTHER_WORDS.split())
"""Common words a letter away from this world's: they are not spelling mistakes of those."""
PAIRED = ("scissors", "skis")
"""Things of which "a pair of" is one."""


def article(phrase: str) -> str:
    """The phrase with its indefinite article: "an orange", "a cup", "a umbrella" is "an umbrella"."""
    return f"{'an' if re.match(r'[aeio]|u(?!n[iu])', phrase) else 'a'} {phrase}"


def plural(name: str) -> str:
    """The plural of a thing's name or of one of its other names: "people", "benches", "mice", "mobile
    phones"."""
    return things()[name].plural if name in things() else _irregular(name)


def _irregular(name: str) -> str:
    return "mice" if name == "mouse" else plural_of(name)


@lru_cache(maxsize=1)
def thing_words() -> dict[str, str]:
    """Every name of every thing, singular and plural, and its thing. Regular plurals count for all ("sheeps",
    as in GenEval's prompts)."""
    found = {}
    for thing in things().values():
        for name in (thing.name, *thing.also):
            found |= dict.fromkeys((name, plural(name), plural_of(name), name + "s"), thing.name)
    return found


@lru_cache(maxsize=1)
def place_words() -> dict[str, str]:
    """Every phrase for a place, and the place."""
    return {phrase: place.name for place in places().values() for phrase in place.words}


@lru_cache(maxsize=1)
def vocabulary() -> frozenset[str]:
    """Every single word that sentences are made of, in lower case."""
    phrases = [
        *thing_words(), *place_words(), *NUMBERS, *COLOR_WORDS, *SIZE_WORDS, *NOT_WORDS, *NONE_OF_COLOR,
        *OPENINGS, *FILLERS,
        *(phrase for phrases in (*LINK_WORDS.values(), *SIDE_WORDS.values()) for phrase in phrases),
    ]  # fmt: skip
    return frozenset(word for phrase in phrases for word in phrase.split())


@lru_cache(maxsize=1)
def _repairable() -> frozenset[str]:
    """The words that a wrongly spelled one can stand for: of things, colors, numbers, sizes and relations."""
    phrases = [
        *thing_words(),
        *COLOR_WORDS,
        *NUMBERS,
        *SIZE_WORDS,
        *(w for group in LINK_WORDS.values() for w in group),
    ]
    return frozenset(word for phrase in phrases for word in phrase.split() if len(word) > 2)


@lru_cache(maxsize=4096)
def repair(word: str) -> str | None:
    """The word of the vocabulary that is meant: itself, or the only one a typing error away. None for others.

    Words of three letters are repaired only where two neighbors were swapped ("dgo"), and OTHER_WORDS never.
    """
    if word in vocabulary() or word.isdecimal():
        return word
    if len(word) < 3 or word in OTHER_WORDS:
        return None
    near = [known for known in sorted(_repairable()) if one_edit_apart(word, known)]
    if len(word) == 3:
        near = [known for known in near if sorted(known) == sorted(word)]
    meanings = {thing_words().get(known, known) for known in near}
    return near[0] if len(meanings) == 1 else None
