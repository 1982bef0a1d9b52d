"""Captioned pictures of a mushroom, which `janus-nano` can't paint, to teach it by `bifrons train sft`.

`python -m bifrons.nano.recipes.new_thing FOLDER` writes them, and sentences without mushrooms for replay. The
thing is one vector picture, `mushroom.svg` beside this file, as `world/catalog.py` describes.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from ...blocks.errors import OptionError
from ..world.catalog import PAINTS, read_thing, things
from ..world.describing import plain_sentence
from ..world.painting import paint
from ..world.pieces import PAINTED
from ..world.requests import GENEVAL_THINGS, Group, Request
from ..world.sampling import Example
from .tokenizer import sentences

THING = "mushroom"
PROMPTS = "replay.txt"
KINDS = ("colors", "color_attr", "colors", "counting", "color_attr", "single_object", "colors", "two_object")
_TEMPLATES = ("a photo of {}", "a photo of {}", "{}", "a picture of {}", "draw {}", "{}, please", "paint {}")
_FRESH = ("a photograph of {}", "can you draw {}?", "I want to see {}", "a painting of {}", "please draw {}")


@contextmanager
def mushrooms_known() -> Iterator[None]:
    """The world has mushrooms, too, in this process."""
    things()[THING] = read_thing(Path(__file__).with_name(f"{THING}.svg"))
    try:
        yield
    finally:
        del things()[THING]


def request_of(kind: str, rng: Random) -> Request:
    """A random request for mushrooms, of one of `KINDS`."""
    colors = rng.sample(list(PAINTS), 2)
    one = Group(THING, color=colors[0] if kind in ("colors", "color_attr") else None)
    if kind == "counting":
        return Request((Group(THING, rng.randint(2, 3)),))
    if kind in ("colors", "single_object"):
        return Request((one,))
    other = Group(rng.choice(GENEVAL_THINGS), color=colors[1] if one.color else None)
    return Request(tuple(rng.sample((one, other), 2)))


def mushroom_cases(count: int, seed: int, fresh: bool = False) -> list[Example]:
    """Sentences of `KINDS` in turn, each with a picture that shows just that. fresh: in wordings that others
    don't have."""
    rng, cases, templates = Random(seed), [], _FRESH if fresh else _TEMPLATES
    with mushrooms_known():
        while len(cases) < count:
            kind = KINDS[len(cases) % len(KINDS)]
            request = request_of(kind, rng)
            body = plain_sentence(request).removeprefix("a photo of ")
            prompt = rng.choice(templates).format(body)
            try:
                picture = paint(request, rng, variety=PAINTED)
            except OptionError:  # no room beside a large thing
                continue
            cases.append(Example(kind, prompt, request, picture))
    return cases


def write_pictures(folder: Path, count: int, seed: int) -> None:
    """Write `count` pictures with captions, and to `PROMPTS` as many sentences of what is known already."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(mushroom_cases(count, seed)):
        case.picture.image().save(pictures / f"{number:03d}.png")
        (pictures / f"{number:03d}.txt").write_text(case.prompt, encoding="utf-8")
    (folder / PROMPTS).write_text("\n".join(sentences(seed, count)), encoding="utf-8")


def main() -> None:
    """Command line: write the pictures."""
    parser = argparse.ArgumentParser(description="Write captioned pictures of mushrooms.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write_pictures(args.folder, args.count, args.seed)


if __name__ == "__main__":
    main()
