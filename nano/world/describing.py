"""Sentences for requests, in many wordings; each is read back by `reading.read_request` as the same
request."""

from collections.abc import Callable
from random import Random

from .catalog import places, things
from .names import (
    LINK_WORDS,
    PAIRED,
    SIDE_WORDS,
    SIZE_WORDS,
    article,
    plural,
    repair,
)
from .requests import OPPOSITE, Absence, Group, Request
from .wording import NUMBER_WORDS, enumeration

PLAIN_SHARE = 0.4
"""Probability of GenEval's own wording, "a photo of ..."."""

_TYPING_ERRORS = 0.1  # probability of a sentence with one
_OTHER_NAMES = 0.25  # probability of another name of a thing that has some
_TEMPLATES = (
    "{}", "{}", "a photo of {}", "a photograph of {}", "an image of {}", "a picture of {}", "a drawing of {}",
    "a painting of {}", "there is {}", "draw {}", "please draw {}", "paint {}", "show me {}", "paint me {}",
    "I want to see {}", "I'd like {}", "can you draw {}?", "a picture that shows {}", "{}, please",
)  # fmt: skip


def _name(group: Group | Absence, rng: Random, many: bool = False) -> str:
    """A thing's name or, sometimes, another one of its names."""
    known = things()[group.thing or ""]
    name = rng.choice(known.also) if known.also and rng.random() < _OTHER_NAMES else known.name
    return plural(name) if many else name


def _color(color: str, rng: Random) -> str:
    return rng.choice(("gray", "grey")) if color == "gray" else color


def _adjectives(group: Group, rng: Random) -> str:
    """Size and color before a name, each with a space after it."""
    words = (
        [rng.choice([word for word, size in SIZE_WORDS.items() if size == group.size])] if group.size else []
    )
    words += [_color(group.color, rng)] if group.color else []
    return "".join(f"{word} " for word in words)


def plain_phrase(group: Group) -> str:
    """A group in GenEval's words: "a red car", "two clocks", "a skis"."""
    words = f"{group.size} " if group.size else ""
    words += f"{group.color} " if group.color else ""
    if group.count == 1:
        return article(words + group.thing)
    return f"{NUMBER_WORDS[group.count]} {words}{plural(group.thing)}"


def noun_phrase(group: Group, rng: Random) -> str:
    """A group in one of many wordings: "one grey car", "a pair of skis", "3 dogs that are black"."""
    after = ""
    if group.color and rng.random() < 0.2:
        color, verb = _color(group.color, rng), "is" if group.count == 1 else "are"
        spelling = rng.choice(("color", "colour"))
        after = rng.choice((f" that {verb} {color}", f" in {color}", f" of the {spelling} {color}"))
        group = Group(group.thing, group.count, None, group.size)
    before = _adjectives(group, rng)
    if group.count == 1:
        name = _name(group, rng)
        if group.thing in PAIRED:
            phrase = rng.choice((f"a pair of {before}{name}", f"{before}{name}", article(before + name)))
        else:
            phrase = rng.choice(
                (*[article(before + name)] * 4, f"one {before}{name}", f"a single {before}{name}")
            )
        return phrase + after
    words = [NUMBER_WORDS[group.count]] * 3 + [str(group.count)] * 2
    if group.thing in PAIRED:
        words += [f"{NUMBER_WORDS[group.count]} pairs of"] * 4
    else:
        words += {2: ["a pair of", "a couple of"], 3: ["a trio of"], 6: ["half a dozen"]}.get(group.count, [])
    return f"{rng.choice(words)} {before}{_name(group, rng, many=True)}{after}"


def _linked(request: Request, phrases: list[str], rng: Random) -> tuple[str, set[int]]:
    """The request's links as one phrase, and the groups in it: chains as "A left of B that is above C"."""
    used: set[int] = set()
    parts: list[str] = []
    last = -1
    for link in request.links:
        words = rng.choice(LINK_WORDS[link.name])
        if link.first == last and link.second not in used:
            parts[-1] += f" that is {words} {phrases[link.second]}"
        else:
            a, b, side = phrases[link.first], phrases[link.second], rng.choice(SIDE_WORDS[link.name])
            forms = [f"{a} {words} {b}"] * 4
            if len(request.links) == 1 and request.groups[link.second].count == 1:
                forms += [f"{b} with {a} {side}", f"{b} and, {side}, {a}"]
            parts.append(rng.choice(forms))
        used |= {link.first, link.second}
        last = link.second
    return " and ".join(parts), used


def _without(absence: Absence, rng: Random) -> str:
    """ "without a dog", "and no black dogs"."""
    color = f"{_color(absence.color, rng)} " if absence.color else ""
    one, many = (f"{color}{_name(absence, rng, many)}" for many in (False, True))
    return rng.choice(
        (
            f"without {article(one)}",
            f"and no {one}",
            f"but no {many}",
            f"with no {many}",
            f"without any {many}",
        )
    )


def _body(request: Request, rng: Random, phrase: Callable[[Group], str], plain: bool) -> str:
    phrases = [phrase(group) for group in request.groups]
    if plain and len(request.links) == 1:
        link = request.links[0]
        linked, used = f"{phrases[link.first]} {link.name} {phrases[link.second]}", {link.first, link.second}
    else:
        linked, used = _linked(request, phrases, rng)
    rest = [text for i, text in enumerate(phrases) if i not in used]
    body = enumeration([*([linked] if linked else []), *rest])
    for absence in request.absences:
        same = [g for g in request.groups if g.thing == absence.thing]
        if same and absence.color and len(request.groups) == 1:
            color = absence.color
            forms = (" but not {}", " that are not {}" if same[0].count > 1 else " that is not {}")
            body += rng.choice(forms).format(color if plain else _color(color, rng))
        else:
            body += f" and no {absence.thing}" if plain else f" {_without(absence, rng)}"
    if request.place and places()[request.place].words:
        words = places()[request.place].words
        body += f" {words[0] if plain else rng.choice(words)}"
    return body


def plain_sentence(request: Request) -> str:
    """The request in GenEval's words."""
    return f"a photo of {_body(request, Random(0), plain_phrase, plain=True)}"


def restate(request: Request) -> str:
    """What each group of a request is: "one backpack: purple, above cups; two cups: yellow, below backpack".
    Whoever learns to say it of sentences learns what belongs together in them."""
    names = [group.thing if group.count == 1 else plural(group.thing) for group in request.groups]
    said = [[word for word in (group.size, group.color) if word] for group in request.groups]
    for link in request.links:
        said[link.first].append(f"{link.name} {names[link.second]}")
        said[link.second].append(f"{OPPOSITE.get(link.name, 'around')} {names[link.first]}")
    parts = [
        f"{NUMBER_WORDS[group.count]} {name}" + (": " if words else "") + ", ".join(words)
        for group, name, words in zip(request.groups, names, said, strict=True)
    ]
    parts += [f"no {' '.join(filter(None, (absence.color, absence.thing)))}" for absence in request.absences]
    return "; ".join([*parts, request.place] if request.place else parts)


def mistype(text: str, rng: Random) -> str:
    """One letter left out, doubled, swapped with its neighbor or changed, where the word can still be
    read."""
    words = text.split(" ")
    places_of = [i for i, word in enumerate(words) if word.isalpha() and len(word) > 3]
    for _ in range(6):
        if not places_of:
            break
        i = rng.choice(places_of)
        word, at = words[i], rng.randrange(1, len(words[i]) - 1)
        letter = rng.choice("abcdefghijklmnopqrstuvwxyz")
        wrong = rng.choice(
            (
                word[:at] + word[at + 1 :],
                word[:at] + word[at] + word[at:],
                word[:at] + word[at + 1] + word[at] + word[at + 2 :],
                word[:at] + letter + word[at + 1 :],
            )
        )
        if wrong != word and repair(wrong.lower()) == word.lower() != wrong.lower():
            return " ".join([*words[:i], wrong, *words[i + 1 :]])
    return text


def describe(request: Request, rng: Random) -> str:
    """A random sentence that makes the request: GenEval's words with probability PLAIN_SHARE, else one of
    many wordings, with British or American spelling, capitals or none, and now and then one typing
    error."""
    if rng.random() < PLAIN_SHARE:
        return plain_sentence(request)
    body = _body(request, rng, lambda group: noun_phrase(group, rng), plain=False)
    text = rng.choice(_TEMPLATES).format(body)
    if request.total > 1 and request.groups[0].count > 1:
        text = text.replace("there is", "there are", 1)
    if rng.random() < _TYPING_ERRORS:
        text = mistype(text, rng)
    case = rng.random()
    text = text[0].upper() + text[1:] if case < 0.35 else text.upper() if case < 0.38 else text
    ends = text.endswith("?") or rng.random() < 0.65
    return text if ends else text + rng.choice((".", ".", "!"))
