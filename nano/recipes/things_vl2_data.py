"""Pictures and conversations that `vl2-nano` 2 is trained on, made by all processors: about one picture of
any shape, and about two.

Pictures are cut by the processor's own functions. Each is asked about in several conversations.

N pictures, S side of a tile in pixels.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from torch import Tensor

from ...learn.packed import Arrays, Turns, pack_rows, stream
from ...vl2.grounding import Box, draw_boxes
from ...vl2.prompts import GROUNDING, REF, REF_END, example_prompt, locate_prompt
from ...vl2.tiles import PixelNormalization, Size, candidate_resolutions, cut_tiles, select_best_resolution
from ..world.asking import CELLS, ask
from ..world.catalog import PAINTS, things
from ..world.comparing import KINDS as PAIR_KINDS
from ..world.comparing import WHICH, compare
from ..world.describing import mistype
from ..world.painting import Picture
from ..world.phrases import NO_MATCH
from ..world.pictures import sample_pair, sample_view
from ..world.pointing import boxed, boxed_caption, caption, point
from ..world.requests import Seen
from ..world.signs import WORDS
from ..world.view import PLACES, View
from ..world.wording import NUMBER_WORDS
from .things_tokenizer import CAPTION_REQUESTS, train_tokenizer, write_files, write_vocabulary
from .things_vision import frames_in, label_patches, soften
from .things_vl2_spec import (
    FORMS,
    MAX_TILES,
    SPECIAL_TOKENS,
    TILE,
    VIEWS,
    ConversationEncoder,
    processor_configs,
    tower_config,
    vl2_config,
)

WIDTHS = {"ask": 448, "point": 448, "two": 640}
"""Kinds of rows, with the tokens of the longest one: answers about one picture, boxes in one, and both about
two."""
PAIRS, FRAMED = 50, 10
"""Pairs of pictures of a shard, and those of them whose first picture is there once more with a thing
framed."""
PICTURES = 2 * PAIRS + FRAMED
"""Pictures of a shard."""
MAX_TURNS = 16
"""Question-answer pairs of the longest conversation."""

_KINDS = {
    "what": 3, "color": 3, "count": 6, "compare": 3, "exists": 4, "is color": 3, "is related": 4, "same": 6,
    "where": 4, "sign": 1, "missing": 4, "list": 1, "sort": 2, "number": 3, "all": 2, "either": 2,
    "extreme": 3, "place": 1, "says": 1,
}  # fmt: skip
_WITH_SIGN = {"sign": 10, "says": 4}  # where there is a sign
_PAIR_KINDS = {"same": 5, "total": 3, "sign": 3, "one": 4, "place": 1}  # others have 2
_ODD = 0.12  # share of pairs of unusual sizes
_ODD_SIDES, _ODD_ASPECTS = (96, 128, 160), (1.0, 2.0, 3.0, 4.0)
_NOWHERE = (-20.0, -20.0, -10.0, -10.0)  # the part of a picture that a tile shows that it does not have
_CANDIDATES = candidate_resolutions(MAX_TILES, TILE)
_BACKGROUND = PixelNormalization().background


def _questions(view: View, rng: Random) -> Turns:
    """Questions about a picture, each once; hard kinds are more frequent. Sometimes a caption."""
    weights = {**_KINDS, **_WITH_SIGN} if view.picture.sign else _KINDS
    turns: dict[str, str] = {}
    for kind in rng.choices(list(weights), list(weights.values()), k=rng.randint(4, MAX_TURNS)):
        if rng.random() < 0.06:
            turns[rng.choice(CAPTION_REQUESTS)] = caption(view)
        elif question := ask(view, rng, kind):
            turns[question.text] = question.answer
    return list(turns.items()) or [(CAPTION_REQUESTS[0], caption(view))]


def _phrases(view: View, rng: Random) -> Turns:
    """Phrases to locate in a picture, each once; sometimes a caption with boxes."""
    turns: dict[str, str] = {}
    for _ in range(rng.randint(2, MAX_TURNS)):
        if rng.random() < 0.12:
            turns[GROUNDING + rng.choice(CAPTION_REQUESTS)] = boxed_caption(view)
        else:
            phrase = point(view, rng)
            turns[locate_prompt(phrase.text)] = phrase.answer(view)
    return list(turns.items())


def _comparisons(a: View, b: View, rng: Random) -> Turns:
    """Questions about two pictures, each once; sometimes phrases to locate in the last one."""
    if rng.random() < 0.1:
        return _phrases(b, rng)[:4]
    turns: dict[str, str] = {}
    weights = [_PAIR_KINDS.get(kind, 2) for kind in PAIR_KINDS]
    for kind in rng.choices(PAIR_KINDS, weights, k=rng.randint(3, MAX_TURNS)):
        if question := compare(a, b, rng, kind):
            turns[question.text] = question.answer
    return list(turns.items()) or _phrases(b, rng)[:4]


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
    """`tiles` uint8 [VIEWS, 3, S, S] as the processor cuts them, and the labels of `label_patches`."""
    resolution = resolution_of(picture)
    height, width = picture.pixels_HW3.shape[:2]
    cut = cut_tiles(picture.image(), resolution, TILE, _BACKGROUND)
    tiles = np.full((VIEWS, 3, TILE, TILE), _BACKGROUND[0], np.uint8)
    tiles[: len(cut)] = cut
    size = width, height
    frames = [box for canvas in ((TILE, TILE), resolution) for box in frames_in(size, canvas, TILE)]
    frames += [_NOWHERE] * (VIEWS - len(frames))
    return {"tiles": tiles, **label_patches(picture, frames, TILE // tower_config().patch_size)}


def typed(text: str, rng: Random) -> str:
    """A question or a phrase as somebody types it: some in lower case or in capitals, without the mark at the
    end, or with one typing error."""
    if rng.random() < 0.04:
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


class _Rows:
    """Rows of one kind, as they are made."""

    def __init__(self, encode: ConversationEncoder, width: int) -> None:
        self.encode, self.width = encode, width
        self.rows: list[tuple[list[int], list[bool], list[int]]] = []
        self.pictures: list[tuple[int, ...]] = []

    def add(self, turns: Turns, pictures: dict[int, Picture], rng: Random) -> None:
        """A conversation about pictures, which are given by their number."""
        forms = dict(FORMS[len(pictures)])
        form = rng.choices(list(forms), list(forms.values()))[0]
        grids = [grid_of(picture) for picture in pictures.values()]
        turns = [typed_turn(*turn, rng) for turn in turns]
        self.rows.append(self.encode(turns, grids, form, self.width))
        self.pictures.append(tuple(pictures))

    def arrays(self) -> Arrays:
        """Those of `pack_rows`, `sources` int16 [N, L], and `pictures` int32 [N, 1 or 2]."""
        ids, learned, sources = zip(*self.rows, strict=True)
        places = np.full((len(ids), self.width), -1, np.int16)
        for row, source in zip(places, sources, strict=True):
            row[: len(source)] = source
        packed = pack_rows(ids, learned, self.width)
        return {**packed, "sources": places, "pictures": np.array(self.pictures, np.int32)}


def shard(seed: int, first_seed: int, encode: ConversationEncoder) -> Arrays:
    """Pictures (`picture_arrays`, named `pictures.*`) and rows (`ask.*`, `point.*`, `two.*`), whose numbers
    of pictures are right if shards of all seeds from `first_seed` on are put one after another."""
    rng, number = Random(seed), (seed - first_seed) * PICTURES
    pictures: list[Arrays] = []
    rows = {name: _Rows(encode, width) for name, width in WIDTHS.items()}

    def show(picture: Picture) -> int:
        pictures.append(picture_arrays(soften(picture, rng)))
        return number + len(pictures) - 1

    for index in range(PAIRS):
        a, b = _pair(rng)
        first, second = show(a.picture), show(b.picture)
        for view, shown in ((a, first), (b, second)):
            for _ in range(2):
                rows["ask"].add(_questions(view, rng), {shown: view.picture}, rng)
            rows["point"].add(_phrases(view, rng), {shown: view.picture}, rng)
        for _ in range(2):
            rows["two"].add(_comparisons(a, b, rng), {first: a.picture, second: b.picture}, rng)
        if index < FRAMED:
            one = rng.choice(a.seen)
            marked = framed(a, one)
            two = {show(marked): marked, second: b.picture}
            rows["two"].add([example_query(one.thing, b, rng)], two, rng)
    found = {f"pictures.{name}": np.stack([one[name] for one in pictures]) for name in pictures[0]}
    for name, of_kind in rows.items():
        found |= {f"{name}.{key}": value for key, value in of_kind.arrays().items()}
    return found


def conversation_texts(seed: int, pairs: int) -> Iterator[tuple[str, str]]:
    """Questions and answers as they occur in conversations."""
    rng = Random(seed)
    for _ in range(pairs):
        a, b = sample_pair(rng)
        yield from (*_questions(a, rng), *_phrases(a, rng), *_comparisons(a, b, rng))
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


Examples = dict[str, dict[str, Tensor]]
"""Tensors by "pictures" and the names of WIDTHS, then by their names."""


def make_examples(
    folder: Path, pictures: int, seed: int, workers: int, device: str | torch.device
) -> Examples:
    """At least so many pictures and the rows about them, on a device, made by this many processes.

    `folder` has the model's JSON files."""
    first = seed * 1_000_003
    one = partial(shard, first_seed=first, encode=ConversationEncoder(folder))
    parts: dict[str, list[Tensor]] = {}
    for arrays in stream(one, -(-pictures // PICTURES), first, workers):
        for name, array in arrays.items():
            parts.setdefault(name, []).append(torch.from_numpy(array).to(device))
    found: Examples = {}
    for name in list(parts):
        kind, key = name.split(".")
        found.setdefault(kind, {})[key] = torch.cat(parts.pop(name))
    return found
