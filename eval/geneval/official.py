"""GenEval's own 553 prompts, drawn as its authors drew them (Ghosh et al. 2023), so that no file is needed.

The published prompts are random: 80 classes in some order, then 100 draws of each of the other kinds by
numpy's generator with seed 43, each prompt kept once. No person has a color.
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...nano.world.wording import article
from .schema import COLORS, RELATIONS

# COCO's 80 classes in its order, three of them under GenEval's names.
_NAMES = (
    "person;bicycle;car;motorcycle;airplane;bus;train;truck;boat;traffic light;fire hydrant;stop sign;"
    "parking meter;bench;bird;cat;dog;horse;sheep;cow;elephant;bear;zebra;giraffe;backpack;umbrella;handbag;"
    "tie;suitcase;frisbee;skis;snowboard;sports ball;kite;baseball bat;baseball glove;skateboard;surfboard;"
    "tennis racket;bottle;wine glass;cup;fork;knife;spoon;bowl;banana;apple;sandwich;orange;broccoli;carrot;"
    "hot dog;pizza;donut;cake;chair;couch;potted plant;bed;dining table;toilet;tv;laptop;computer mouse;"
    "tv remote;computer keyboard;cell phone;microwave;oven;toaster;sink;refrigerator;book;clock;vase;"
    "scissors;teddy bear;hair drier;toothbrush"
)
CLASSES: tuple[str, ...] = tuple(_NAMES.split(";"))

_SEED, _DRAWS = 43, 100
_COUNTS = {2: "two", 3: "three", 4: "four"}


def draw_prompts() -> list[dict[str, Any]]:
    """The rows of GenEval's file in its order. `suites.py` compares them with the hash of the file."""
    rng = np.random.default_rng(_SEED)
    drawn = [
        _row("single_object", article(name), _clause(name)) for name in _pick(rng, CLASSES, len(CLASSES))
    ]
    for draw in (_two, _counting, _color, _position, _two_colors):
        drawn += [draw(rng) for _ in range(_DRAWS)]
    return list({json.dumps(row): row for row in drawn}.values())


def _pick(rng: np.random.Generator, names: tuple[str, ...], count: int) -> Iterator[str]:
    return (names[i] for i in rng.choice(len(names), count, replace=False))


def _two(rng: np.random.Generator) -> dict[str, Any]:
    a, b = _pick(rng, CLASSES, 2)
    return _row("two_object", f"{article(a)} and {article(b)}", _clause(a), _clause(b))


def _counting(rng: np.random.Generator) -> dict[str, Any]:
    name = CLASSES[rng.choice(len(CLASSES))]
    count = int(rng.integers(min(_COUNTS), max(_COUNTS), endpoint=True))
    plural = f"{name}es" if name.endswith("s") else f"{name}s"
    fewer = [_clause(name, count + 1)]
    return _row("counting", f"{_COUNTS[count]} {plural}", _clause(name, count), exclude=fewer)


def _color(rng: np.random.Generator) -> dict[str, Any]:
    name = CLASSES[1:][rng.choice(len(CLASSES) - 1)]
    color = COLORS[rng.choice(len(COLORS))]
    return _row("colors", f"{article(color)} {name}", _clause(name, color=color))


def _position(rng: np.random.Generator) -> dict[str, Any]:
    a, b = _pick(rng, CLASSES, 2)
    relation = RELATIONS[rng.choice(len(RELATIONS))]
    second = _clause(a, position=[relation, 0])
    return _row("position", f"{article(a)} {relation} {article(b)}", _clause(b), second)


def _two_colors(rng: np.random.Generator) -> dict[str, Any]:
    a, b = _pick(rng, CLASSES[1:], 2)
    one, other = _pick(rng, COLORS, 2)
    include = _clause(a, color=one), _clause(b, color=other)
    return _row("color_attr", f"{article(one)} {a} and {article(other)} {b}", *include)


def _clause(name: str, count: int = 1, **more: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **more}


def _row(tag: str, phrase: str, *include: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"tag": tag, "include": list(include), **more, "prompt": f"a photo of {phrase}"}
