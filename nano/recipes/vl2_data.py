"""Pictures and conversations that `vl2-nano` is trained on: about one picture of any shape, and about two.

Pictures are cut by the processor's own functions. Each is asked about in several conversations.

N pairs of pictures, S side of a tile in pixels.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from random import Random

import numpy as np

from ...learn.distributed import rank
from ...learn.packed import Arrays, Turns
from ...learn.pool import ExamplePool
from ...vl2.grounding import Box, draw_boxes
from ...vl2.prompts import GROUNDING, REF, REF_END, example_prompt, locate_prompt
from ...vl2.tiles import PixelNormalization, Size, candidate_resolutions, cut_tiles, select_best_resolution
from ..world.asking import CELLS, ask
from ..world.catalog import PAINTS, things
from ..world.comparing import KINDS as PAIR_KINDS
from ..world.comparing import WHICH, compare
from ..world.describing import mistype
from ..world.painting import Picture
from ..world.pictures import sample_pair, sample_view
from ..world.pointing import boxed, boxed_caption, caption, point
from ..world.questions import NO_MATCH
from ..world.requests import Seen
from ..world.signs import WORDS
from ..world.view import PLACES, View
from ..world.wording import NUMBER_WORDS
from .parts import Job
from .tokenizer import CAPTION_REQUESTS, train_tokenizer, write_files, write_vocabulary
from .vision import SIGN_SLOT, SLOTS, frames_in, label_patches, soften
from .vl2_rows import FIRST, FORMS, SHAPES, Row, RowEncoder, row_arrays
from .vl2_spec import (
    MAX_TILES,
    SPECIAL_TOKENS,
    TILE,
    VIEWS,
    processor_configs,
    tower_config,
    vl2_config,
)

PAIRS = 16
"""Pairs of pictures of a shard."""
_FRAMED = 0.15
"""Share of pairs whose first picture has a thing framed, which is looked for in the second one."""

_KINDS = {
    "what": 3, "color": 3, "count": 6, "compare": 3, "exists": 4, "is color": 3, "is related": 4, "same": 6,
    "where": 4, "sign": 1, "missing": 4, "list": 1, "sort": 2, "number": 3, "all": 2, "either": 2,
    "extreme": 3, "place": 1, "says": 1,
}  # fmt: skip
_WITH_SIGN = {"sign": 16, "says": 4}  # where there is a sign
_PAIR_KINDS = {"same": 5, "total": 3, "sign": 3, "one": 4, "place": 1}  # others have 2
_GOES_ON, _MOST_TURNS = 0.25, 3  # share of turns that another follows, and the most of a conversation
_REPEATED = 12  # questions that were there already, after which a picture has no more
_ODD = 0.12  # share of pairs of unusual sizes
_ODD_SIDES, _ODD_ASPECTS = (96, 128, 160), (1.0, 2.0, 3.0, 4.0)
_NOWHERE = (-20.0, -20.0, -10.0, -10.0)  # the part of a picture that a tile shows that it does not have
_CANDIDATES = candidate_resolutions(MAX_TILES, TILE)
_BACKGROUND = PixelNormalization().background


def _questions(view: View, rng: Random) -> Iterator[tuple[str, str]]:
    """Questions about a picture without end; hard kinds are more frequent. Sometimes a caption."""
    weights = {**_KINDS, **_WITH_SIGN} if view.picture.sign else _KINDS
    names, shares = list(weights), list(weights.values())
    while True:
        if rng.random() < 0.04:
            yield rng.choice(CAPTION_REQUESTS), caption(view)
        elif question := ask(view, rng, rng.choices(names, shares)[0]):
            yield question.text, question.answer


def _phrases(view: View, rng: Random) -> Iterator[tuple[str, str]]:
    """Phrases to locate in a picture without end; sometimes a caption with boxes."""
    while True:
        if rng.random() < 0.08:
            yield GROUNDING + rng.choice(CAPTION_REQUESTS), boxed_caption(view)
        else:
            phrase = point(view, rng)
            yield locate_prompt(phrase.text), phrase.answer(view)


def _comparisons(a: View, b: View, rng: Random) -> Iterator[tuple[str, str]]:
    """Questions about two pictures without end; sometimes phrases to locate in the last one."""
    weights = [_PAIR_KINDS.get(kind, 2) for kind in PAIR_KINDS]
    phrases = _phrases(b, rng)
    for number in count():
        question = compare(a, b, rng, rng.choices(PAIR_KINDS, weights)[0])
        if rng.random() < 0.06 or (question is None and number % 8 == 7):
            yield next(phrases)
        elif question:
            yield question.text, question.answer


def _conversations(turns: Iterator[tuple[str, str]], rng: Random) -> Iterator[Turns]:
    """Conversations of one or more turns, each turn once; they end after many that were there."""
    said: set[str] = set()
    repeated, conversation = 0, list[tuple[str, str]]()
    while repeated < _REPEATED:
        question, answer = next(turns)
        if question in said:
            repeated += 1
            continue
        said.add(question)
        conversation.append(typed_turn(question, answer, rng))
        if len(conversation) == _MOST_TURNS or rng.random() >= _GOES_ON:
            yield conversation
            conversation = []
    if conversation:
        yield conversation


def _pair(rng: Random) -> tuple[View, View]:
    """Two pictures, some of them small or very wide."""
    if rng.random() >= _ODD:
        return sample_pair(rng)
    side, aspect = rng.choice(_ODD_SIDES), rng.choice(_ODD_ASPECTS)
    other = round(side * aspect)
    return sample_pair(rng, size=(side, other) if rng.random() < 0.5 else (other, side))


def example_query(thing: str, b: View, rng: Random) -> tuple[str, str]:
    """The official question for things like the framed one, in the second picture, and its answer."""
    label = rng.choice((None, thing))
    targets = sorted((one.box for one in b.matching(thing)), key=lambda box: (box[0] + box[2], box[1]))
    answer = boxed(label or "an object", targets, b) if targets else NO_MATCH
    return example_prompt(label), answer


def framed(view: View, one: Seen) -> Picture:
    """The picture with a thing framed, as `VL2Pipeline.locate` frames an example."""
    x0, y0, x1, y1 = map(round, one.box)
    box = Box("", max(x0, 0), max(y0, 0), min(x1, view.width), min(y1, view.height))
    image = draw_boxes(view.picture.image(), box, labels=False, colour=(255, 0, 0))
    return replace(view.picture, pixels_HW3=np.asarray(image))


def resolution_of(picture: Picture) -> Size:
    """The size in pixels to which the processor fits a picture of a conversation of one or two."""
    height, width = picture.pixels_HW3.shape[:2]
    return select_best_resolution((width, height), _CANDIDATES)


def grid_of(picture: Picture) -> Size:
    """(columns, rows) of its local tiles."""
    width, height = resolution_of(picture)
    return width // TILE, height // TILE


def picture_arrays(picture: Picture) -> Arrays:
    """`tiles` uint8 [VIEWS, 3, S, S] as the processor cuts them, the labels of `label_patches`, and `place`
    float16 [K, 4], the boxes of things and sign in the picture, in 0..1."""
    resolution = resolution_of(picture)
    height, width = picture.pixels_HW3.shape[:2]
    cut = cut_tiles(picture.image(), resolution, TILE, _BACKGROUND)
    tiles = np.full((VIEWS, 3, TILE, TILE), _BACKGROUND[0], np.uint8)
    tiles[: len(cut)] = cut
    size = width, height
    frames = [box for canvas in ((TILE, TILE), resolution) for box in frames_in(size, canvas, TILE)]
    frames += [_NOWHERE] * (VIEWS - len(frames))
    labels = label_patches(picture, frames, TILE // tower_config().patch_size)
    place = np.zeros((SLOTS, 4), np.float16)
    for number, one in enumerate(picture.seen):
        place[number] = np.clip(np.array(one.box) / (size * 2), 0, 1)
    if picture.sign:
        place[SIGN_SLOT] = np.clip(np.array(picture.sign.box) / (size * 2), 0, 1)
    return {"tiles": tiles, "place": place, **labels}


def typed(text: str, rng: Random) -> str:
    """A question or a phrase as somebody types it: some in lower case or in capitals, without the mark at the
    end, or with one typing error."""
    if rng.random() < 0.02:
        text = mistype(text, rng)
    case = rng.random()
    text = text.lower() if case < 0.15 else text.upper() if case < 0.17 and "<|" not in text else text
    return text.rstrip("?.") if rng.random() < 0.1 else text


def typed_turn(question: str, answer: str, rng: Random) -> tuple[str, str]:
    """A question as it is typed, with its answer, which repeats a phrase as it is typed."""
    if not question.startswith(REF):
        return typed(question, rng), answer
    phrase = question[len(REF) : question.index(REF_END)]
    new = typed(phrase, rng)
    return locate_prompt(new), answer.replace(f"{REF}{phrase}{REF_END}", f"{REF}{new}{REF_END}")


def _form(forms: dict[str, int], rng: Random) -> str:
    return rng.choices(list(forms), list(forms.values()))[0]


def _rows_of_pair(a: View, b: View, opening: Turns, encode: RowEncoder, rng: Random) -> dict[str, list[Row]]:
    """The rows about a pair, by kind; those about the first picture come first. opening: turns about both
    that come first, each a conversation."""
    rows: dict[str, list[Row]] = {name: [] for name in SHAPES}
    for name, sample in (("ask", _questions), ("first", _questions), ("point", _phrases)):
        shape = SHAPES[name]
        for view in (a, b):
            turns = sample(view, rng)
            for _ in range(shape.rows // 2):
                form = _form(FIRST if name == "first" else FORMS[1], rng)
                conversations = _conversations(turns, rng)
                rows[name].append(encode(conversations, [grid_of(view.picture)], form, shape, rng))
    grids = [grid_of(view.picture) for view in (a, b)]
    for _ in range(SHAPES["two"].rows):
        conversations = chain(([turn] for turn in opening), _conversations(_comparisons(a, b, rng), rng))
        rows["two"].append(encode(conversations, grids, _form(FORMS[2], rng), SHAPES["two"], rng))
    return rows


def shard(seed: int, encode: RowEncoder | None) -> Arrays:
    """Pairs of pictures: `pictures.*`, [N, 2, ...] of `picture_arrays`; with an encoder also rows about them,
    `ask.*` and the other names of SHAPES, [N, rows of a pair, ...] of `row_arrays`."""
    rng = Random(seed)
    pictures: list[Arrays] = []
    rows: dict[str, list[Row]] = {name: [] for name in SHAPES}
    for _ in range(PAIRS):
        a, b = _pair(rng)
        opening: Turns = []
        if rng.random() < _FRAMED:
            one = rng.choice(a.seen)
            opening.append(example_query(one.thing, b, rng))
            a = View(framed(a, one))
        pictures += [picture_arrays(soften(view.picture, rng)) for view in (a, b)]
        if encode:
            for name, found in _rows_of_pair(a, b, opening, encode, rng).items():
                rows[name] += found
    arrays = {f"pictures.{name}": np.stack([one[name] for one in pictures]) for name in pictures[0]}
    for name, own in rows.items() if encode else ():
        arrays |= {f"{name}.{key}": array for key, array in row_arrays(own, SHAPES[name]).items()}
    return {name: array.reshape(PAIRS, -1, *array.shape[1:]) for name, array in arrays.items()}


def conversation_texts(seed: int, pairs: int) -> Iterator[tuple[str, str]]:
    """Questions and answers as they occur in conversations."""
    rng = Random(seed)
    for _ in range(pairs):
        a, b = sample_pair(rng)
        for turns in (_questions(a, rng), _phrases(a, rng), _comparisons(a, b, rng)):
            yield from islice(turns, 10)
        yield example_query(a.seen[0].thing, b, rng)


def write_folder(folder: Path) -> None:
    """Write everything of a vl2-nano folder but its weights; the same files at every call."""
    numbers = (*NUMBER_WORDS, "nine", "ten", "eleven", "twelve")
    names = [name for one in things().values() for name in (one.name, one.plural)]
    answers = [*names, *PAINTS, *numbers, *CELLS, "yes", "no", *PLACES.values(), *WHICH.values()]
    view = sample_view(Random(0), size=(192, 192))
    official = (boxed_caption(view), NO_MATCH, ":", example_prompt(None), CAPTION_REQUESTS[0])
    openings = (
        "what",
        "which",
        "how",
        "where",
        "is",
        "are",
        "do",
        "does",
        "can",
        "count",
        "read",
        "describe",
    )
    texts = [*answers, *official, *openings]
    tokenizer = train_tokenizer(SPECIAL_TOKENS, texts, lowercase=False)
    processors = processor_configs(tower_config(), MAX_TILES)
    write_files(folder, tokenizer, vl2_config(tokenizer.get_vocab_size()), processors)
    questions = (question for question, _ in conversation_texts(0, 200) if "sign say " not in question)
    write_vocabulary(folder, [], (*WORDS, *questions))


def make_pool(job: Job, with_rows: bool) -> ExamplePool:
    """Pairs of pictures, with rows about them or without, for a part: at least `job.examples[0]` pictures at
    first, and at most `job.examples[1]`. `job.folder` has the model's JSON files."""
    encode = RowEncoder(job.folder) if with_rows else None
    first, most = (-(-pictures // 2) for pictures in job.examples)
    seed = job.seed * 1_000_003 + rank() * 1_000_000_007
    return ExamplePool(partial(shard, encode=encode), first, max(first, most), seed, job.workers, job.device)
