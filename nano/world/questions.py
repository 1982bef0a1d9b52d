"""Questions about images of the synthetic world, with answers of one or two lower-case words.

Only questions with an unambiguous answer are asked: positions well inside a cell of a 3 x 3 grid, clear
relations, and names that fit one object, or several with the same answer.
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
    matching,
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
    is_held_out,
)
from .wording import NUMBER_WORDS, article, plural

KINDS = ("what", "color", "count", "where", "yesno")
_DIRECTIONS = {"left of": "left", "right of": "right", "above": "above", "below": "below"}

Combination = tuple[str, ...]
"""(shape, color) or (shape, relation, shape)."""


@dataclass(frozen=True)
class Question:
    """A question with its answer. held_out: whether either depends on a held-out combination."""

    kind: str
    text: str
    answer: str
    held_out: bool


@dataclass(frozen=True)
class _Candidate:
    """Paraphrases of a question, its answer, and the combinations that either depends on."""

    texts: tuple[str, ...]
    answer: str
    combinations: frozenset[Combination]

    @property
    def held_out(self) -> bool:
        return bool(self.combinations & HELD_OUT_COLORINGS or self.combinations & HELD_OUT_RELATIONS)


def _candidate(texts: tuple[str, ...], answer: str, *combinations: Combination) -> _Candidate:
    return _Candidate(texts, answer, frozenset(combinations))


def _coloring(obj: SceneObject) -> Combination:
    return obj.shape, obj.color


def _what(scene: Scene, rng: Random) -> Iterable[_Candidate]:
    """The shape of an object given by its color, its position or its relation to a unique object."""
    objects = scene.objects
    if len(objects) == 1:
        texts = (
            "What shape is this?",
            "What shape is in the picture?",
            "What is in the picture?",
            "What do you see?",
        )
        yield _candidate(texts, objects[0].shape, _coloring(objects[0]))
    for obj in objects:
        color = obj.color
        if sum(other.color == color for other in objects) == 1:
            texts = (
                f"What shape is {color}?",
                f"What is {color}?",
                f"What shape is the {color} thing?",
                f"What is the {color} thing?",
            )
            yield _candidate(texts, obj.shape, _coloring(obj))
    for obj, position in located_objects(scene):
        texts = (f"What is {position}?", f"What shape is {position}?", f"Which shape do you see {position}?")
        yield _candidate(texts, obj.shape, _coloring(obj))
    for b in unique_objects(scene):
        for name in RELATIONS:
            others = [a for a in objects if a is not b and directed_offset(a, name, b) > MAX_FALSE_OFFSET]
            if len(others) == 1 and clear_relation(others[0], b) == name:
                texts = (f"What is {name} the {b.shape}?", f"Which shape is {name} the {b.shape}?")
                yield _candidate(
                    texts,
                    others[0].shape,
                    (others[0].shape, name, b.shape),
                    _coloring(others[0]),
                    _coloring(b),
                )


def _color(scene: Scene, rng: Random) -> Iterable[_Candidate]:
    """The color of an object or objects given by their shape or position."""
    for shape in dict.fromkeys(obj.shape for obj in scene.objects):
        colors = [obj.color for obj in scene.objects if obj.shape == shape]
        if len(set(colors)) > 1:
            continue
        verb, noun = ("are", plural(shape)) if len(colors) > 1 else ("is", shape)
        texts = (
            f"What color {verb} the {noun}?",
            f"Which color {verb} the {noun}?",
            f"What is the color of the {noun}?",
        )
        yield _candidate(texts, colors[0], (shape, colors[0]))
    if len(scene.objects) == 1:
        texts = ("What color is it?", "What color is the shape?", "Which color do you see?")
        yield _candidate(texts, scene.objects[0].color, _coloring(scene.objects[0]))
    for obj, position in located_objects(scene):
        texts = (f"What color is the shape {position}?", f"What color is the thing {position}?")
        yield _candidate(texts, obj.color, _coloring(obj))


def _count(scene: Scene, rng: Random) -> Iterable[_Candidate]:
    """The number of objects of a shape, a color or both, zero included."""

    def how_many(noun: str, shape: str | None, color: str | None) -> _Candidate:
        counted = matching(scene, shape, color)
        texts = (f"How many {noun} are there?", f"How many {noun} do you see?", f"Count the {noun}.",
                 f"How many {noun} are in the picture?")  # fmt: skip
        named = [(shape, color)] if shape and color else []
        return _candidate(texts, NUMBER_WORDS[len(counted)], *map(_coloring, counted), *named)

    yield how_many("shapes", None, None)
    yield how_many("things", None, None)
    shapes, colors = {t.shape for t in scene.objects}, {t.color for t in scene.objects}
    absent_shape = rng.choice([s for s in SHAPES if s not in shapes])
    absent_color = rng.choice([c for c in COLORS if c not in colors])
    for shape in [*sorted(shapes) * 2, absent_shape]:
        yield how_many(plural(shape), shape, None)
    for color in [*sorted(colors), absent_color]:
        yield how_many(f"{color} shapes", None, color)
    for shape in sorted(shapes):
        color = rng.choice(sorted(colors))
        yield how_many(f"{color} {plural(shape)}", shape, color)


def _where(scene: Scene, rng: Random) -> Iterable[_Candidate]:
    """The position of an object in the image, or relative to another one."""
    unique = unique_objects(scene)
    for obj in scene.objects:
        cell = grid_cell(obj, scene.aspect)
        if cell is None or sum(_coloring(other) == _coloring(obj) for other in scene.objects) > 1:
            continue
        named = f"{obj.color} {obj.shape}"
        if obj in unique:
            named = rng.choice((obj.shape, obj.shape, named))
        texts = (
            f"Where is the {named}?",
            f"Where in the picture is the {named}?",
            f"Where do you see the {named}?",
        )
        yield _candidate(texts, cell, _coloring(obj))
    for a in unique:
        for b in unique:
            name = None if a is b else clear_relation(a, b)
            if name is not None:
                texts = (f"Where is the {a.shape} relative to the {b.shape}?",
                         f"Where is the {a.shape}, seen from the {b.shape}?")  # fmt: skip
                yield _candidate(
                    texts, _DIRECTIONS[name], (a.shape, name, b.shape), _coloring(a), _coloring(b)
                )


def _exists(scene: Scene, rng: Random, yes: bool) -> Iterable[_Candidate]:
    """Whether an object of a shape, a color or both exists.

    Where the answer is no, the shape or the color of the pair mostly occurs in the scene.
    """
    answer = "yes" if yes else "no"
    pairs = {_coloring(obj) for obj in scene.objects}
    shapes, colors = sorted({s for s, _ in pairs}), sorted({c for _, c in pairs})
    if yes:
        shape, color = rng.choice(shapes), rng.choice(colors)
        pair = rng.choice(sorted(pairs))
    else:
        shape = rng.choice([s for s in SHAPES if s not in shapes])
        color = rng.choice([c for c in COLORS if c not in colors])
        crossed = [(s, c) for s in shapes for c in colors if (s, c) not in pairs]
        pair = rng.choice([(rng.choice(shapes), color), (shape, rng.choice(colors)), *crossed])
    named = article(f"{pair[1]} {pair[0]}")
    with_shape = [pair for pair in sorted(pairs) if pair[0] == shape] if yes else []
    with_color = [pair for pair in sorted(pairs) if pair[1] == color] if yes else []
    pair_question = _candidate(
        (f"Is there {named}?", f"Do you see {named}?", f"Does the picture show {named}?"), answer, pair
    )
    return [
        pair_question,
        pair_question,
        _candidate((f"Is there {article(shape)}?", f"Do you see {article(shape)}?"), answer, *with_shape),
        _candidate((f"Is there anything {color}?", f"Is something {color}?"), answer, *with_color),
    ]


def _number_claim(scene: Scene, rng: Random, yes: bool) -> tuple[str, int]:
    """A shape and its true or a false count; each count is false about as often as it is true."""
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


def _claims(scene: Scene, rng: Random, yes: bool) -> Iterable[_Candidate]:
    """Claims about the color of an object, the relation of two objects and the count of a shape."""
    answer, unique = "yes" if yes else "no", unique_objects(scene)
    for obj in unique:
        other_colors = [t.color for t in scene.objects if t.color != obj.color]
        wrong = rng.choice([*other_colors * 3, rng.choice([c for c in COLORS if c != obj.color])])
        color = obj.color if yes else wrong
        texts = (f"Is the {obj.shape} {color}?", f"Is the color of the {obj.shape} {color}?")
        yield _candidate(texts, answer, _coloring(obj), (obj.shape, color))
    for a in unique:
        for b in unique:
            if a is b:
                continue
            actual = clear_relation(a, b)
            if actual is None:
                continue
            false = [name for name in RELATIONS if directed_offset(a, name, b) < MAX_FALSE_OFFSET]
            name = rng.choice([actual] if yes else false)
            texts = (
                f"Is the {a.shape} {name} the {b.shape}?",
                f"Do you see the {a.shape} {name} the {b.shape}?",
            )
            relations = {(a.shape, name, b.shape), (a.shape, actual, b.shape)}
            yield _candidate(texts, answer, *relations, _coloring(a), _coloring(b))
    shape, count = _number_claim(scene, rng, yes)
    pairs = [_coloring(obj) for obj in scene.objects if obj.shape == shape]
    noun = f"{NUMBER_WORDS[count]} {shape if count == 1 else plural(shape)}"
    verb = "Is" if count == 1 else "Are"
    yield _candidate((f"{verb} there exactly {noun}?", f"Do you see exactly {noun}?"), answer, *pairs)


def _yesno(scene: Scene, rng: Random) -> Iterable[_Candidate]:
    """Candidates that share one answer, drawn first so that yes and no are equally frequent."""
    yes = rng.random() < 0.5
    generate = rng.choice((_exists, _claims))
    return generate(scene, rng, yes)


_GENERATORS: dict[str, Callable[[Scene, Random], Iterable[_Candidate]]] = {
    "what": _what,
    "color": _color,
    "count": _count,
    "where": _where,
    "yesno": _yesno,
}


def sample_question(scene: Scene, rng: Random, kind: str | None = None) -> Question:
    """A random question about a scene, of one of KINDS (a random one by default).

    If the kind is impossible for the scene, the question is of another one. Questions about a scene without
    held-out combinations never name one, not even in a claim to be denied. Raises OptionError for unknown
    kinds and for an empty scene.
    """
    if kind is not None and kind not in _GENERATORS:
        raise OptionError(f"kind {kind!r} is unknown; accepted: {', '.join(KINDS)}")
    if not scene.objects:
        raise OptionError("a question needs a scene with at least one object")
    shuffled = rng.sample(KINDS, len(KINDS))
    order = shuffled if kind is None else [kind, *(other for other in shuffled if other != kind)]
    clean = not is_held_out(scene)
    for name in order:
        # Yes-no candidates are random: draw again where all of them name a held-out combination.
        for _ in range(8 if name == "yesno" else 1):
            candidates = [c for c in _GENERATORS[name](scene, rng) if not (clean and c.held_out)]
            if candidates:
                candidate = rng.choice(candidates)
                return Question(name, rng.choice(candidate.texts), candidate.answer, candidate.held_out)
    raise AssertionError("objects can always be counted")
