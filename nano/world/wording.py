"""Sentence templates and GenEval metadata rows for prompts about the synthetic world."""

from collections.abc import Sequence
from random import Random
from typing import Any

GENEVAL_SHARE = 0.5
"""Probability of GenEval's own template, "a photo of ..."."""

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")


def article(phrase: str) -> str:
    """The phrase with its indefinite article."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(shape: str) -> str:
    """Plural of a shape's name: "crosses", "stars"."""
    return shape + ("es" if shape.endswith("s") else "s")


def _random_template(body: str, rng: Random, several: bool = False) -> str:
    """A noun phrase in a random template, capitalization and punctuation; `several` selects "there are"."""
    text = rng.choice(
        (
            body,
            f"a photo of {body}",
            f"an image of {body}",
            f"a picture of {body}",
            f"a painting of {body}",
            f"there {'are' if several else 'is'} {body}",
            f"draw {body}",
            f"paint {body}",
            f"show me {body}",
        )
    )
    if rng.random() < 0.3:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.3 else text


def word_prompt(plain: str, paraphrases: Sequence[str], rng: Random, several: bool = False) -> str:
    """A prompt: `plain` in GenEval's template with probability GENEVAL_SHARE, else `plain` or a paraphrase
    in a random one."""
    if rng.random() < GENEVAL_SHARE:
        return f"a photo of {plain}"
    return _random_template(rng.choice((plain, *paraphrases)), rng, several)


def _colored(color: str, shape: str, rng: Random) -> str:
    """A random noun phrase for one object of a color."""
    forms = (f"one {color} {shape}", f"a {shape} that is {color}", f"a single {color} {shape}")
    return rng.choice((article(f"{color} {shape}"), *forms))


def _related(a: str, name: str, b: str, rng: Random) -> list[str]:
    """Paraphrases of "`a` `name` `b`"; `a` and `b` are noun phrases with articles."""
    sides = {"left of": ("to the left of", "on the left of", "its left"),
             "right of": ("to the right of", "on the right of", "its right")}  # fmt: skip
    if name in sides:
        to, on, side = sides[name]
        return [f"{a} {to} {b}", f"{a} {on} {b}", f"{b} with {a} to {side}", f"{b} and, to {side}, {a}"]
    short, long = ("over", "higher than") if name == "above" else ("under", "lower than")
    return [f"{a} {short} {b}", f"{a} {long} {b}", f"{b} with {a} {name} it", f"{b} and, {name} it, {a}"]


def enumeration(phrases: Sequence[str]) -> str:
    """Phrases joined as in "a", "a and b", "a, b and c"."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def metadata_row(
    tag: str, prompt: str, include: list[dict[str, Any]], count: int | None = None
) -> dict[str, Any]:
    """A GenEval metadata row; `count` adds a clause that excludes more than `count` of the first class."""
    row: dict[str, Any] = {"tag": tag, "include": include}
    if count is not None:
        row["exclude"] = [{"class": include[0]["class"], "count": count + 1}]
    return {**row, "prompt": prompt}


def single_row(shapes: Sequence[str], rng: Random) -> dict[str, Any]:
    """Row and prompt of the kind "single_object"."""
    shape = shapes[0]
    prompt = word_prompt(article(shape), (f"one {shape}", f"a single {shape}", f"just a {shape}"), rng)
    return metadata_row("single_object", prompt, [{"class": shape, "count": 1}])


def two_row(shapes: Sequence[str], rng: Random) -> dict[str, Any]:
    """Row and prompt of the kind "two_object"."""
    a, b = article(shapes[0]), article(shapes[1])
    paraphrases = (
        f"{a} with {b}",
        f"{a} next to {b}",
        f"one {shapes[0]} and one {shapes[1]}",
        f"{a} together with {b}",
    )
    prompt = word_prompt(f"{a} and {b}", paraphrases, rng)
    return metadata_row("two_object", prompt, [{"class": shape, "count": 1} for shape in shapes])


def counting_row(shapes: Sequence[str], rng: Random) -> dict[str, Any]:
    """Row and prompt of the kind "counting": len(shapes) objects of one shape."""
    count, name = len(shapes), plural(shapes[0])
    word = NUMBER_WORDS[count]
    paraphrases = (
        f"{count} {name}",
        f"exactly {word} {name}",
        f"{count} {name}",
        f"{word} {shapes[0]} shapes",
    )
    prompt = word_prompt(f"{word} {name}", paraphrases, rng, several=True)
    return metadata_row("counting", prompt, [{"class": shapes[0], "count": count}], count)


def colors_row(shapes: Sequence[str], colors: Sequence[str], rng: Random) -> dict[str, Any]:
    """Row and prompt of the kind "colors": one object of a color."""
    color, shape = colors[0], shapes[0]
    prompt = word_prompt(article(f"{color} {shape}"), (_colored(color, shape, rng),), rng)
    return metadata_row("colors", prompt, [{"class": shape, "count": 1, "color": color}])


def attr_row(shapes: Sequence[str], colors: Sequence[str], rng: Random) -> dict[str, Any]:
    """Row and prompt of the kind "color_attr": two objects, each with its color."""
    plain = [article(f"{c} {s}") for s, c in zip(shapes, colors, strict=True)]
    relative = [f"{article(s)} that is {c}" for s, c in zip(shapes, colors, strict=True)]
    one = [f"one {c} {s}" for s, c in zip(shapes, colors, strict=True)]
    paraphrases = (" and ".join(relative), " and ".join(one), " next to ".join(plain), " with ".join(plain))
    prompt = word_prompt(" and ".join(plain), paraphrases, rng)
    include = [{"class": s, "count": 1, "color": c} for s, c in zip(shapes, colors, strict=True)]
    return metadata_row("color_attr", prompt, include)


def position_row(
    tag: str, shapes: Sequence[str], name: str, colors: Sequence[str] | None, rng: Random
) -> dict[str, Any]:
    """Row and prompt for "shapes[0] `name` shapes[1]"; as in GenEval, the second clause has the position."""
    include: list[dict[str, Any]] = [{"class": shapes[1], "count": 1}, {"class": shapes[0], "count": 1}]
    phrases = [article(shape) for shape in shapes]
    if colors is not None:
        include[0]["color"], include[1]["color"] = colors[1], colors[0]
        phrases = [article(f"{c} {s}") for s, c in zip(shapes, colors, strict=True)]
    include[1]["position"] = [name, 0]
    prompt = word_prompt(
        f"{phrases[0]} {name} {phrases[1]}", _related(phrases[0], name, phrases[1], rng), rng
    )
    return metadata_row(tag, prompt, include)
