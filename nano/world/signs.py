"""Signs with one to three short words in pictures of the world of things.

Words are common ones, numbers, and words that do not exist, so that a model learns to read letters.
"""

from dataclasses import replace
from functools import lru_cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .painting import Picture, Sign
from .requests import HELD_OUT_SHARE, hash_share
from .scene import Box

MAX_WORDS = 3
_WORDS = (
    "air apple art baby bag bakery ball bank bar barn beach bed bee bike bird blue boat book box bread bus "
    "cafe cake camp candy car cash cat city clean closed coat coffee cold cook corn dance danger day deep "
    "dinner dog door down drink east easy eat egg enter exit fair farm fast film fire fish flower food free "
    "fresh fruit fun garden gas gate girl gift glass go gold good green gym happy hello help here hill home "
    "honey hot hotel house ice in jam jazz juice key kids king lake lamp left lemon library lost low lunch "
    "mail map market meat menu milk moon movie museum music new news night no north nurse off office oil on "
    "open out paint park pay pen phone pie pizza play police pool post price pull push quiet rain red rent "
    "rice right river road room rose sale salt school sea shoes shop slow snow soap sold soup south spa "
    "star start stop street sugar sun surf sweet swim taxi tea tent ticket tour town toys train tree up "
    "vet wait walk warm wash water way welcome west wet wild wind wine wood yes zoo"
)
WORDS = tuple(_WORDS.split())
_KNOWN, _NUMBERS = 0.6, 0.1  # shares of common words and of numbers; the others do not exist
_CONSONANTS, _VOWELS = "bcdfghjklmnpqrstvwxyz", "aeiou"
_BOARDS = (
    ((250, 250, 250), (40, 40, 48)), ((252, 214, 60), (40, 40, 48)), ((58, 146, 82), (255, 255, 255)),
    ((46, 92, 190), (255, 255, 255)), ((206, 50, 48), (255, 255, 255)), ((150, 104, 64), (255, 246, 224)),
    ((44, 52, 60), (250, 250, 250)), ((250, 238, 210), (120, 40, 36)),
)  # fmt: skip
"""Colors of boards and of their letters."""
_EDGE, _POST = (36, 33, 43), (96, 92, 98)
_SIZES = (0.15, 0.13, 0.115, 0.1, 0.085, 0.075)
"""Heights of a line of text, in units of the picture's shorter side, in the order they are tried."""
_Letters = list[tuple[str, Box]]
_DETAIL = 4  # boards are drawn at this many times their size
_GAP = 3  # pixels between a board and other things


def held_out_word(word: str) -> bool:
    """Whether a word is left out of training: one in ten, however it is written."""
    return hash_share("word", word.lower()) < HELD_OUT_SHARE


def _word(rng: Random) -> str:
    draw = rng.random()
    if draw < _KNOWN:
        return rng.choice(WORDS)
    if draw < _KNOWN + _NUMBERS:
        return str(rng.randint(1, 10 ** rng.randint(1, 3)))
    letters = [rng.choice((_CONSONANTS, _VOWELS)[(i + rng.randrange(5) // 4) % 2]) for i in range(7)]
    return "".join(letters[: rng.randint(2, 6)])


def sample_words(rng: Random, split: str = "train") -> str:
    """One to three words, written in one of three ways. split: "train": none is held out; "held_out": at
    least one is; "any"."""
    while True:
        words = [_word(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))]
        text = " ".join(words)
        if len(text) <= 16 and (split == "any" or any(map(held_out_word, words)) == (split == "held_out")):
            return rng.choice((str.lower, str.upper, str.title))(text)


@lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _board(lines: list[str], height: int, post: int, style: int) -> tuple[Image.Image, int, _Letters]:
    """A board on a post of this many pixels (0 for none) as RGBA, the board's height, and the boxes of its
    letters. height: of a line, in pixels."""
    color, ink = _BOARDS[style]
    font, line = _font(round(0.9 * height * _DETAIL)), height * _DETAIL
    pad, edge = round(0.35 * line), max(_DETAIL, round(0.09 * line))
    widths = [font.getlength(text) for text in lines]
    width = round(max(widths)) + 2 * pad
    tall = round(1.15 * line * len(lines)) + pad
    image = Image.new("RGBA", (width, tall + post * _DETAIL), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    if post:
        middle, half = width // 2, max(_DETAIL, line // 6)
        draw.rectangle((middle - half, tall - edge, middle + half, image.height), _POST, _EDGE, edge // 2)
    draw.rounded_rectangle((0, 0, width - 1, tall - 1), round(0.25 * line), color, _EDGE, edge)
    letters: _Letters = []
    for i, text in enumerate(lines):
        center = (width / 2, pad / 2 + 1.15 * line * (i + 0.5))
        draw.text(center, text, ink, font, anchor="mm", stroke_width=round(0.035 * line), stroke_fill=ink)
        left, rows = center[0] - widths[i] / 2, (center[1] - line / 2, center[1] + line / 2)
        for n, letter in enumerate(text):
            x0, x1 = (left + font.getlength(text[:end]) for end in (n, n + 1))
            letters += [(letter, (x0 / _DETAIL, rows[0] / _DETAIL, x1 / _DETAIL, rows[1] / _DETAIL))]
    return image.reduce(_DETAIL), tall // _DETAIL, letters


def _free_places(picture: Picture, width: int, height: int) -> np.ndarray:
    """Top left corners [N, 2] (row, column) where a rectangle touches no thing."""
    taken_HW = np.pad(picture.owner_HW >= 0, ((1, 0), (1, 0)))
    total_HW = taken_HW.cumsum(0, dtype=np.int32).cumsum(1, dtype=np.int32)
    h, w = height + 2 * _GAP, width + 2 * _GAP
    if h >= total_HW.shape[0] or w >= total_HW.shape[1]:
        return np.empty((0, 2), dtype=int)
    sums = total_HW[h:, w:] - total_HW[:-h, w:] - total_HW[h:, :-w] + total_HW[:-h, :-w]
    return np.argwhere(sums == 0) + _GAP


def hang_sign(picture: Picture, words: str, rng: Random) -> Picture | None:
    """The picture with a sign in it that says this, where nothing else is; None where there is no room.

    Words stand in one line or in several. On the ground of a place the board has a post.
    """
    side = min(picture.pixels_HW3.shape[:2])
    parts, style = words.split(), rng.randrange(len(_BOARDS))
    forms = [parts, [words]] if len(parts) > 1 and rng.random() < 0.5 else [[words], parts]
    ground = picture.layout.place.ground
    for size in _SIZES[rng.randrange(3) :]:
        for lines in forms:
            height = round(size * side)
            post = round(1.2 * height) if ground is not None and rng.random() < 0.7 else 0
            board, tall, letters = _board(lines, height, post, style)
            places = _free_places(picture, board.width, board.height)
            if post and ground is not None:
                places = places[places[:, 0] + board.height > ground * picture.pixels_HW3.shape[0]]
            if len(places):
                top, left = map(int, places[rng.randrange(len(places))])
                image = picture.image()
                image.paste(board, (left, top), board)
                written = tuple(
                    (letter, (x0 + left, y0 + top, x1 + left, y1 + top))
                    for letter, (x0, y0, x1, y1) in letters
                    if not letter.isspace()
                )
                sign = Sign(words, (left, top, left + board.width, top + tall), written)
                return replace(picture, pixels_HW3=np.asarray(image), sign=sign)
    return None
