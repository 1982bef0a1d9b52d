"""Questions about two images of the synthetic world, with answers of one or two lower-case words."""

from random import Random

from ...vl2.prompts import example_prompt
from .phrases import GroundingQuery
from .questions import Question, sample_question
from .relations import matching, unique_objects
from .scene import COLORS, HELD_OUT_COLORINGS, SHAPES, Scene, SceneObject, is_held_out, sample_scene
from .wording import NUMBER_WORDS, article, plural

KINDS = ("which", "more", "total", "same", "one")
_WHICH_IMAGE = {  # by whether it applies to the first image, and to the second
    (True, False): "the first",
    (False, True): "the second",
    (True, True): "both",
    (False, False): "neither",
}


def _which(a: Scene, b: Scene, rng: Random) -> Question:
    """Which image shows an object, mostly one that occurs in at least one of them."""
    obj = rng.choice((rng.choice(a.objects), rng.choice(b.objects)))
    shape, color = rng.choice(((obj.shape, None), (obj.shape, obj.color), (None, obj.color)))
    if rng.random() < 0.2:
        shape, color = rng.choice(((rng.choice(SHAPES), None), (None, rng.choice(list(COLORS)))))
    noun = article(" ".join(word for word in (color, shape or "thing") if word))
    text = rng.choice((f"Which picture shows {noun}?", f"In which picture is there {noun}?"))
    held_out = shape is not None and (shape, color) in HELD_OUT_COLORINGS
    answer = _WHICH_IMAGE[bool(matching(a, shape, color)), bool(matching(b, shape, color))]
    return Question("which", text, answer, held_out)


def _countable(a: Scene, b: Scene, rng: Random) -> tuple[str, int, int]:
    """A plural noun, for all objects or those of one shape, and their number in each scene."""
    shape = rng.choice((None, rng.choice((*a.objects, *b.objects)).shape))
    noun = plural(shape) if shape else rng.choice(("things", "shapes"))
    return noun, len(matching(a, shape, None)), len(matching(b, shape, None))


def _more(a: Scene, b: Scene, rng: Random) -> Question:
    """Which image has more objects, of any or of one shape."""
    noun, first, second = _countable(a, b, rng)
    text = rng.choice((f"Which picture has more {noun}?", f"In which picture are there more {noun}?"))
    return Question("more", text, _WHICH_IMAGE[first > second, second > first], False)


def _total(a: Scene, b: Scene, rng: Random) -> Question:
    """The number of objects in both images, of any or of one shape."""
    noun, first, second = _countable(a, b, rng)
    texts = (
        f"How many {noun} are there in both pictures together?",
        f"How many {noun} do both pictures show?",
    )
    return Question("total", rng.choice(texts), NUMBER_WORDS[first + second], False)


def _same(a: Scene, b: Scene, rng: Random) -> Question | None:
    """Whether a shape that occurs once in each image has the same color in both."""
    colors_a = {obj.shape: obj.color for obj in unique_objects(a)}
    colors_b = {obj.shape: obj.color for obj in unique_objects(b)}
    shared = sorted(colors_a.keys() & colors_b.keys())
    if not shared:
        return None
    # Equal colors are rare, so shapes that have them are preferred.
    equal = [shape for shape in shared if colors_a[shape] == colors_b[shape]]
    shape = rng.choice(equal or shared)
    held_out = bool({(shape, colors_a[shape]), (shape, colors_b[shape])} & HELD_OUT_COLORINGS)
    texts = (
        f"Does the {shape} have the same color in both pictures?",
        f"Is the {shape} of the same color in both pictures?",
    )
    return Question("same", rng.choice(texts), "yes" if equal else "no", held_out)


def _one(a: Scene, b: Scene, rng: Random) -> Question:
    """A question about one of the two images."""
    first = rng.random() < 0.5
    question = sample_question(a if first else b, rng)
    ordinal = "first" if first else "second"
    text = f"In the {ordinal} picture, {question.text[0].lower()}{question.text[1:]}"
    return Question("one", text, question.answer, question.held_out)


_SAMPLERS = {"which": _which, "more": _more, "total": _total, "same": _same, "one": _one}


def sample_comparison(a: Scene, b: Scene, rng: Random, kind: str | None = None) -> Question:
    """A random question about two images, of one of KINDS (a random one by default).

    If the kind is impossible for the scenes, the question is of kind "more". Questions about scenes without
    held-out combinations never name one.
    """
    clean = not (is_held_out(a) or is_held_out(b))
    for name in (kind or rng.choice(KINDS), "more"):
        for _ in range(8):
            question = _SAMPLERS[name](a, b, rng)
            if question is not None and not (clean and question.held_out):
                return question
    raise AssertionError("two scenes can always be compared by number")


def sample_pair(rng: Random, split: str = "train") -> tuple[Scene, Scene]:
    """Two scenes of one split; in about a third of the pairs, they share an object of one shape and color."""
    a, b = sample_scene(rng, split), sample_scene(rng, split)
    if rng.random() < 0.35:
        for _ in range(20):
            b = sample_scene(rng, split)
            if {(t.shape, t.color) for t in a.objects} & {(t.shape, t.color) for t in b.objects}:
                break
    return a, b


def sample_example_query(a: Scene, b: Scene, rng: Random) -> tuple[SceneObject, str, GroundingQuery]:
    """In-context grounding: an object to frame in the first image, the prompt, and the query.

    The query's targets are the objects of the same shape in the second image.
    """
    obj = rng.choice(a.objects)
    label = rng.choice((None, obj.shape))
    targets = matching(b, obj.shape, None)
    return obj, example_prompt(label), GroundingQuery("example", label or "an object", targets, False)
