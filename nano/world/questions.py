"""Questions about pictures of the small world, with answers of one or two lower-case words.

A question is asked only where its answer is beyond dispute: places well inside a cell of a 3 x 3 grid,
relations that hold clearly and alone, names that fit one thing (or several things with the same answer).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random

from ...blocks.errors import OptionError
from .relations import (
    MAX_FALSE_OFFSET,
    clear_relation,
    directed_offset,
    grid_cell,
    located_objects,
    unique_objects,
)
from .scene import (
    COLORS,
    HELD_OUT_COLORINGS,
    HELD_OUT_RELATIONS,
    RELATIONS,
    SHAPES,
    Scene,
    SceneObject,
    check_split,
    is_held_out,
    place,
    sample_colors,
)
from .wording import article, plural

KINDS = ("what", "color", "count", "where", "yesno")
NUMBERS = ("zero", "one", "two", "three", "four")
_SIDE = {"left of": "left", "right of": "right", "above": "above", "below": "below"}

Combination = tuple[str, ...]  # (shape, colour) or (shape, relation, shape)


@dataclass(frozen=True)
class Question:
    """`held_out`: it names, or its answer rests on, a thing or relation in the held-out tables."""

    kind: str
    text: str
    answer: str
    held_out: bool


@dataclass(frozen=True)
class _Draft:
    texts: tuple[str, ...]
    answer: str
    about: frozenset[Combination]

    @property
    def held_out(self) -> bool:
        return bool(self.about & HELD_OUT_COLORINGS or self.about & HELD_OUT_RELATIONS)


def _draft(texts: Iterable[str], answer: str, *about: Combination) -> _Draft:
    return _Draft(tuple(texts), answer, frozenset(about))


def _pair(obj: SceneObject) -> Combination:
    return obj.shape, obj.color


def _what(scene: Scene, rng: Random) -> list[_Draft]:
    objects, out = scene.objects, []
    if len(objects) == 1:
        texts = (
            "What shape is this?",
            "What shape is in the picture?",
            "What is in the picture?",
            "What do you see?",
        )
        out.append(_draft(texts, objects[0].shape, _pair(objects[0])))
    for obj in objects:
        c = obj.color
        if sum(other.color == c for other in objects) == 1:
            texts = (
                f"What shape is {c}?",
                f"What is {c}?",
                f"What shape is the {c} thing?",
                f"What is the {c} thing?",
            )
            out.append(_draft(texts, obj.shape, _pair(obj)))
    for obj, at in located_objects(scene):
        texts = (f"What is {at}?", f"What shape is {at}?", f"Which shape do you see {at}?")
        out.append(_draft(texts, obj.shape, _pair(obj)))
    for b in unique_objects(scene):
        for name in RELATIONS:
            near = [a for a in objects if a is not b and directed_offset(a, name, b) > MAX_FALSE_OFFSET]
            if len(near) == 1 and clear_relation(near[0], b) == name:
                texts = (f"What is {name} the {b.shape}?", f"Which shape is {name} the {b.shape}?")
                out.append(
                    _draft(texts, near[0].shape, (near[0].shape, name, b.shape), _pair(near[0]), _pair(b))
                )
    return out


def _color(scene: Scene, rng: Random) -> list[_Draft]:
    out = []
    for shape in dict.fromkeys(obj.shape for obj in scene.objects):
        colors = [obj.color for obj in scene.objects if obj.shape == shape]
        if len(set(colors)) > 1:
            continue
        texts = (
            f"What color is the {shape}?",
            f"Which color is the {shape}?",
            f"What is the color of the {shape}?",
        )
        if len(colors) > 1:
            many = plural(shape)
            texts = (
                f"What color are the {many}?",
                f"Which color are the {many}?",
                f"What is the color of the {many}?",
            )
        out.append(_draft(texts, colors[0], (shape, colors[0])))
    if len(scene.objects) == 1:
        texts = ("What color is it?", "What color is the shape?", "Which color do you see?")
        out.append(_draft(texts, scene.objects[0].color, _pair(scene.objects[0])))
    for obj, at in located_objects(scene):
        texts = (f"What color is the shape {at}?", f"What color is the thing {at}?")
        out.append(_draft(texts, obj.color, _pair(obj)))
    return out


def _count(scene: Scene, rng: Random) -> list[_Draft]:
    def ask(noun: str, shape: str | None, color: str | None) -> _Draft:
        found = [t for t in scene.objects if shape in (None, t.shape) and color in (None, t.color)]
        texts = (f"How many {noun} are there?", f"How many {noun} do you see?", f"Count the {noun}.",
                 f"How many {noun} are in the picture?")  # fmt: skip
        named = [(shape, color)] if shape and color else []
        return _draft(texts, NUMBERS[len(found)], *map(_pair, found), *named)

    out = [ask("shapes", None, None), ask("things", None, None)]
    shapes, colors = {t.shape for t in scene.objects}, {t.color for t in scene.objects}
    absent_shape = rng.choice([s for s in SHAPES if s not in shapes])
    absent_color = rng.choice([c for c in COLORS if c not in colors])
    for shape in [*sorted(shapes) * 2, absent_shape]:
        out.append(ask(plural(shape), shape, None))
    for color in [*sorted(colors), absent_color]:
        out.append(ask(f"{color} shapes", None, color))
    for shape in sorted(shapes):
        color = rng.choice(sorted(colors))
        out.append(ask(f"{color} {plural(shape)}", shape, color))
    return out


def _where(scene: Scene, rng: Random) -> list[_Draft]:
    out, unique = [], unique_objects(scene)
    for obj in scene.objects:
        cell = grid_cell(obj, scene.aspect)
        if cell is None or sum(_pair(other) == _pair(obj) for other in scene.objects) > 1:
            continue
        named = f"{obj.color} {obj.shape}"
        if obj in unique:
            named = rng.choice((obj.shape, obj.shape, named))
        texts = (
            f"Where is the {named}?",
            f"Where in the picture is the {named}?",
            f"Where do you see the {named}?",
        )
        out.append(_draft(texts, cell, _pair(obj)))
    for a in unique:
        for b in unique:
            name = None if a is b else clear_relation(a, b)
            if name is not None:
                texts = (f"Where is the {a.shape} relative to the {b.shape}?",
                         f"Where is the {a.shape}, seen from the {b.shape}?")  # fmt: skip
                out.append(_draft(texts, _SIDE[name], (a.shape, name, b.shape), _pair(a), _pair(b)))
    return out


def _exists(scene: Scene, rng: Random, yes: bool) -> list[_Draft]:
    """Is there a star? a red star? The false ones have a right shape or a right colour where they can."""
    answer = "yes" if yes else "no"
    pairs = {_pair(obj) for obj in scene.objects}
    shapes, colors = sorted({s for s, _ in pairs}), sorted({c for _, c in pairs})
    if yes:
        shape, color = rng.choice(shapes), rng.choice(colors)
        both = rng.choice(sorted(pairs))
    else:
        shape = rng.choice([s for s in SHAPES if s not in shapes])
        color = rng.choice([c for c in COLORS if c not in colors])
        crossed = [(s, c) for s in shapes for c in colors if (s, c) not in pairs]
        both = rng.choice([(rng.choice(shapes), color), (shape, rng.choice(colors)), *crossed])
    named = article(f"{both[1]} {both[0]}")
    found = [pair for pair in sorted(pairs) if pair[0] == shape] if yes else []
    tinted = [pair for pair in sorted(pairs) if pair[1] == color] if yes else []
    pair_draft = _draft(
        (f"Is there {named}?", f"Do you see {named}?", f"Does the picture show {named}?"), answer, both
    )
    return [
        pair_draft,
        pair_draft,
        _draft((f"Is there {article(shape)}?", f"Do you see {article(shape)}?"), answer, *found),
        _draft((f"Is there anything {color}?", f"Is something {color}?"), answer, *tinted),
    ]


def _number_claim(scene: Scene, rng: Random, yes: bool) -> tuple[str, int]:
    """A shape and a number of it, true or false; "one" is as often false as true, and so are the others."""
    shapes = [obj.shape for obj in scene.objects]
    repeated = [shape for shape in shapes if shapes.count(shape) > 1]
    if yes:
        shape = rng.choice(repeated or shapes)
        return shape, shapes.count(shape)
    if rng.random() < 0.6:
        return rng.choice(repeated or [shape for shape in SHAPES if shape not in shapes]), 1
    shape = rng.choice(shapes)
    count = shapes.count(shape)
    return shape, count + 1 if count < 4 else 3


def _claims(scene: Scene, rng: Random, yes: bool) -> list[_Draft]:
    """Claims on the colour of a named thing, a relation of two, and a number."""
    answer, unique, out = "yes" if yes else "no", unique_objects(scene), []
    for obj in unique:
        near = [t.color for t in scene.objects if t.color != obj.color]
        wrong = rng.choice([*near, *near, *near, rng.choice([c for c in COLORS if c != obj.color])])
        color = obj.color if yes else wrong
        texts = (f"Is the {obj.shape} {color}?", f"Is the color of the {obj.shape} {color}?")
        out.append(_draft(texts, answer, _pair(obj), (obj.shape, color)))
    for a in unique:
        for b in unique:
            if a is b:
                continue
            true = clear_relation(a, b)
            names = (
                [true]
                if yes
                else [name for name in RELATIONS if directed_offset(a, name, b) < MAX_FALSE_OFFSET]
            )
            if true is None:
                continue
            name = rng.choice(names)
            texts = (
                f"Is the {a.shape} {name} the {b.shape}?",
                f"Do you see the {a.shape} {name} the {b.shape}?",
            )
            about = {(a.shape, name, b.shape), (a.shape, true, b.shape)}
            out.append(_draft(texts, answer, *about, _pair(a), _pair(b)))
    shape, count = _number_claim(scene, rng, yes)
    pairs = [_pair(obj) for obj in scene.objects if obj.shape == shape]
    noun = f"{NUMBERS[count]} {shape if count == 1 else plural(shape)}"
    verb = "Is" if count == 1 else "Are"
    out.append(_draft((f"{verb} there exactly {noun}?", f"Do you see exactly {noun}?"), answer, *pairs))
    return out


def _yesno(scene: Scene, rng: Random) -> list[_Draft]:
    """Drafts that all have the same answer, drawn first, so that yes and no are equally frequent."""
    yes = rng.random() < 0.5
    family = rng.choice((_exists, _claims))
    return family(scene, rng, yes)


_SAMPLERS: dict[str, Callable[[Scene, Random], list[_Draft]]] = {
    "what": _what,
    "color": _color,
    "count": _count,
    "where": _where,
    "yesno": _yesno,
}


def sample_question(scene: Scene, rng: Random, kind: str | None = None) -> Question:
    """A question of one of KINDS (a random one by default) that the scene answers without ambiguity.

    Where the kind is impossible for the scene, another kind is asked and reported. Of a scene without
    held-out combinations no question names one, not even to be denied. Raises OptionError for other kinds
    and for a scene without things.
    """
    if kind is not None and kind not in _SAMPLERS:
        raise OptionError(f"kind {kind!r} is unknown; accepted: {', '.join(KINDS)}")
    if not scene.objects:
        raise OptionError("a question needs a scene with at least one thing")
    others = rng.sample(KINDS, len(KINDS))
    order = others if kind is None else [kind, *(other for other in others if other != kind)]
    clean = not is_held_out(scene)
    for name in order:
        # Yes-no questions are drawn anew where all drafts name a held-out combination.
        for _ in range(8 if name == "yesno" else 1):
            drafts = [draft for draft in _SAMPLERS[name](scene, rng) if not (clean and draft.held_out)]
            if drafts:
                draft = rng.choice(drafts)
                return Question(name, rng.choice(draft.texts), draft.answer, draft.held_out)
    raise AssertionError("a scene can always be counted")


def sample_scene(rng: Random, split: str = "train", aspect: float = 1.0) -> Scene:
    """A scene of 1 to 4 things of any shapes and colours, repeats allowed, to ask about.

    Split "train": no held-out combination; "held_out": at least one; "any": no restriction.
    """
    check_split(split)
    while True:
        shapes = [rng.choice(SHAPES) for _ in range(rng.randint(1, 4))]
        if len(shapes) > 1 and rng.random() < 0.25:
            repeats = rng.randint(2, len(shapes))
            shapes[:repeats] = shapes[:1] * repeats
        colors = sample_colors(rng, shapes, "train" if split == "train" else "any")
        scene = place(rng, shapes, colors, aspect)
        if split == "any" or is_held_out(scene) == (split == "held_out"):
            return scene
