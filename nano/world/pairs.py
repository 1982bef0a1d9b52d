"""Questions about two pictures of the small world, with answers of one or two lower-case words."""

from random import Random

from ...vl2.prompts import example_prompt
from .phrases import GroundingQuery
from .questions import Question, sample_question, sample_scene
from .relations import unique_objects
from .scene import COLORS, HELD_OUT_COLORINGS, SHAPES, Scene, SceneObject, is_held_out
from .wording import article, plural

KINDS = ("which", "more", "total", "same", "one")
COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
_WHICH = {
    (True, False): "the first",
    (False, True): "the second",
    (True, True): "both",
    (False, False): "neither",
}


def _has(scene: Scene, shape: str | None, color: str | None) -> bool:
    return any(shape in (None, t.shape) and color in (None, t.color) for t in scene.objects)


def _which(a: Scene, b: Scene, rng: Random) -> Question:
    obj = rng.choice((rng.choice(a.objects), rng.choice(b.objects)))
    shape, color = rng.choice(((obj.shape, None), (obj.shape, obj.color), (None, obj.color)))
    if rng.random() < 0.2:
        shape, color = rng.choice(((rng.choice(SHAPES), None), (None, rng.choice(list(COLORS)))))
    noun = article(" ".join(word for word in (color, shape or "thing") if word))
    text = rng.choice((f"Which picture shows {noun}?", f"In which picture is there {noun}?"))
    held_out = shape is not None and (shape, color) in HELD_OUT_COLORINGS
    return Question("which", text, _WHICH[_has(a, shape, color), _has(b, shape, color)], held_out)


def _more(a: Scene, b: Scene, rng: Random) -> Question:
    shape = rng.choice((None, rng.choice((*a.objects, *b.objects)).shape))
    noun = plural(shape) if shape else rng.choice(("things", "shapes"))
    counts = [sum(shape in (None, t.shape) for t in scene.objects) for scene in (a, b)]
    text = rng.choice((f"Which picture has more {noun}?", f"In which picture are there more {noun}?"))
    return Question("more", text, _WHICH[counts[0] > counts[1], counts[1] > counts[0]], False)


def _total(a: Scene, b: Scene, rng: Random) -> Question:
    shape = rng.choice((None, rng.choice((*a.objects, *b.objects)).shape))
    noun = plural(shape) if shape else rng.choice(("things", "shapes"))
    count = sum(shape in (None, t.shape) for t in (*a.objects, *b.objects))
    forms = (
        f"How many {noun} are there in both pictures together?",
        f"How many {noun} do both pictures show?",
    )
    return Question("total", rng.choice(forms), COUNTS[count], False)


def _same(a: Scene, b: Scene, rng: Random) -> Question | None:
    """Whether a shape that each picture shows once has one colour."""
    ours = {t.shape: t.color for t in unique_objects(a)}
    theirs = {t.shape: t.color for t in unique_objects(b)}
    shared = sorted(ours.keys() & theirs.keys())
    if not shared:
        return None
    # Equal colours are rare: where there are some they are asked about.
    equal = [shape for shape in shared if ours[shape] == theirs[shape]]
    shape = rng.choice(equal or shared)
    held_out = bool({(shape, ours[shape]), (shape, theirs[shape])} & HELD_OUT_COLORINGS)
    forms = (
        f"Does the {shape} have the same color in both pictures?",
        f"Is the {shape} of the same color in both pictures?",
    )
    return Question("same", rng.choice(forms), "yes" if equal else "no", held_out)


def _one(a: Scene, b: Scene, rng: Random) -> Question:
    """A question about one of the two."""
    first = rng.random() < 0.5
    question = sample_question(a if first else b, rng)
    which = "first" if first else "second"
    text = f"In the {which} picture, {question.text[0].lower()}{question.text[1:]}"
    return Question("one", text, question.answer, question.held_out)


_SAMPLERS = {"which": _which, "more": _more, "total": _total, "same": _same, "one": _one}


def sample_comparison(a: Scene, b: Scene, rng: Random, kind: str | None = None) -> Question:
    """A question about two pictures, of one of KINDS (a random one by default).

    Where the kind is impossible, another is asked and reported. Of scenes without held-out combinations no
    question names one.
    """
    clean = not (is_held_out(a) or is_held_out(b))
    for name in (kind or rng.choice(KINDS), "more"):
        for _ in range(8):
            question = _SAMPLERS[name](a, b, rng)
            if question is not None and not (clean and question.held_out):
                return question
    raise AssertionError("two scenes can always be compared by number")


def sample_pair(rng: Random, split: str = "train") -> tuple[Scene, Scene]:
    """Two scenes of one split; in a third of the pairs the second repeats a thing of the first."""
    a, b = sample_scene(rng, split), sample_scene(rng, split)
    if rng.random() < 0.35:
        for _ in range(20):
            b = sample_scene(rng, split)
            if {(t.shape, t.color) for t in a.objects} & {(t.shape, t.color) for t in b.objects}:
                break
    return a, b


def sample_example_query(a: Scene, b: Scene, rng: Random) -> tuple[SceneObject, str, GroundingQuery]:
    """In-context grounding: a thing of the first picture that is to be framed, the question, and what it asks
    for, the things of the same shape in the second picture."""
    obj = rng.choice(a.objects)
    label = rng.choice((None, obj.shape))
    found = tuple(t for t in b.objects if t.shape == obj.shape)
    return obj, example_prompt(label), GroundingQuery("example", label or "an object", found, False)
