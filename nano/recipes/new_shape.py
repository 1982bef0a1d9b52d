"""Captioned pictures of a shape that `janus-nano` can't paint, a house, to teach it by `bifrons train sft`.

`python -m bifrons.nano.recipes.new_shape FOLDER` writes them, and sentences without houses for replay.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from random import Random

from ..world.renderer import to_pil
from ..world.scene import BACKGROUNDS, COLORS, SHAPES, Scene, SceneObject, box_of, place
from ..world.sentences import Case, suite
from ..world.shapes import HOUSE
from ..world.wording import attr_row, colors_row, counting_row, single_row, two_row

PROMPTS = "replay.txt"
TOKENS = 16
"""Image tokens along a side of janus-nano's pictures."""
KINDS = ("colors", "color_attr", "colors", "counting", "color_attr", "single_object", "colors", "two_object")


def house_case(kind: str, rng: Random) -> Case:
    """A random sentence about a house, of one of `KINDS`, and a scene that shows just that."""
    shapes = [HOUSE]
    if kind == "counting":
        shapes = [HOUSE] * rng.randint(2, 3)
    elif kind in ("color_attr", "two_object"):
        shapes = rng.sample([HOUSE, rng.choice(SHAPES)], 2)
    colors = rng.sample(list(COLORS), len(shapes))
    match kind:
        case "colors":
            row = colors_row(shapes, colors, rng)
        case "color_attr":
            row = attr_row(shapes, colors, rng)
        case "counting":
            row = counting_row(shapes, rng)
        case "two_object":
            row = two_row(shapes, rng)
        case _:
            row = single_row(shapes, rng)
    return Case(row, _place(rng, shapes, colors))


def _place(rng: Random, shapes: Sequence[str], colors: Sequence[str]) -> Scene:
    """A scene with houses of one size on the grid of image tokens, on one of three backgrounds, so that they
    are made of few different tokens."""
    while True:
        scene = place(rng, shapes, colors)
        objects = [_on_grid(obj) if obj.shape == HOUSE else obj for obj in scene.objects]
        boxes = [box_of(obj) for obj in objects]
        inside = all(min(box) >= 0.03 and max(box) <= 0.97 for box in boxes)
        pairs = combinations(boxes, 2)
        if inside and all(a[2] < b[0] or b[2] < a[0] or a[3] < b[1] or b[3] < a[1] for a, b in pairs):
            return Scene(tuple(objects), rng.choice(BACKGROUNDS[:3]))


def _on_grid(house: SceneObject) -> SceneObject:
    """The house, 4 image tokens wide and 5 high, moved to the nearest place that covers whole tokens."""
    x, y = round(house.x * TOKENS) / TOKENS, (round(house.y * TOKENS - 0.5) + 0.5) / TOKENS
    return replace(house, x=x, y=y, size=5 / TOKENS)


def house_cases(count: int, seed: int, unlike: frozenset[str] = frozenset()) -> list[Case]:
    """Cases of `KINDS` in turn; none with a sentence of `unlike`, in any letters and punctuation."""
    rng, cases = Random(seed), []
    while len(cases) < count:
        case = house_case(KINDS[len(cases) % len(KINDS)], rng)
        if plain(case.metadata["prompt"]) not in unlike:
            cases.append(case)
    return cases


def plain(sentence: str) -> str:
    """A sentence without capitals and full stop."""
    return sentence.lower().rstrip(".")


def write_pictures(folder: Path, count: int, seed: int, side: int = 128) -> None:
    """Write `count` pictures with captions, and to `PROMPTS` as many sentences of what is known already."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(house_cases(count, seed)):
        to_pil(case.scene, side).save(pictures / f"{number:03d}.png")
        (pictures / f"{number:03d}.txt").write_text(case.metadata["prompt"], encoding="utf-8")
    known = [row["prompt"] for row in suite(count, seed)]
    (folder / PROMPTS).write_text("\n".join(known), encoding="utf-8")


def main() -> None:
    """Command line: write the pictures."""
    parser = argparse.ArgumentParser(description="Write captioned pictures of houses.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    write_pictures(args.folder, args.count, args.seed)


if __name__ == "__main__":
    main()
