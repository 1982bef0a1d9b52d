"""Whether two answers are equal: as numbers and formulas, as lists of them, or as words."""

import re
from fractions import Fraction
from typing import NamedTuple

from ..suites.questions import NUMBERS
from .extract import after_thought, last_number, last_words, marked
from .formulas import MOST_CHARACTERS, Formula, NoFormula, Number

_POINTS = (Fraction(37, 29), Fraction(-101, 47), Fraction(613, 211))
"""Where formulas with variables are compared: equal at all three, they are taken to be equal."""
_TOLERANCE = 1e-9
"""Relative, of numbers that are not rational."""
_MOST_PARTS = 50
_SYMBOLS = str.maketrans(
    {"\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00f7": r"\div ", "\u00b7": r"\cdot ",
     "\u03c0": r"\pi ", "\u221a": r"\sqrt ", "\u00b0": r"^\circ ", "\u00b2": "^2", "\u00b3": "^3",
     "\u00b1": r"\pm ", "\u221e": r"\infty ", "\u222a": r"\cup ", "\u00bd": "1/2", "\u00bc": "1/4",
     "\u00be": "3/4", "\u00a0": " ", "\u202f": " ", "~": " "}
)  # fmt: skip
_REPLACED = [
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\[$]|[$\u20ac\u00a3\u00a5]|\\[()\[\]]", ""),  # currencies, and what a formula stands between
        (r"\\(?:left|right|displaystyle|big|Big|bigg|Bigg)(?![a-zA-Z])[lr]?", ""),
        (r"\\[!,;: ]|\\q?quad(?![a-zA-Z])", " "),
        (r"\{,\}", ","),
        (r"(?<=\d)[eE](?=[+-]?\d)", r"*10^"),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\%", "%"),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)", " degrees"),
        (r"\\(?:text|textbf|textit|mathrm|mathbf|mathit|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 "),
        (r"(?<![\d.])(\d+)\s*\\frac\s*\{(\d+)\}\s*\{(\d+)\}", r"(\1+\2/\3)"),  # mixed numbers
        (r"(?<![\d.])\\frac\s*(\d)\s*(\d)(?!\d)", r"(\1/\2)"),
        (r"(?<![\d./])(\d+) (\d+)/(\d+)(?![\d/])", r"(\1+\2/\3)"),
    )
]
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_NAMED = re.compile(r"^\s*\\?[a-zA-Z]\w{0,5}(?:_\{?\w\}?)?(?:\(\w\))?\s*(?:=|\\in(?![a-zA-Z]))\s*(?=\S)")
_QUANTITY = re.compile(
    r"^(.*[\d)}.])\s*(%|[a-zA-Z][a-zA-Z .]*(?:/\s*[a-zA-Z]+)?(?:\s*\^\s*\{?-?\d\}?)?)$", re.DOTALL
)
_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def is_right(text: str, expected: str) -> bool:
    """Whether a text's answer is the expected one.

    It is what the text marks as such (see `extract.marked`); else its last number, where a number is
    expected, and otherwise what its last line says after the last colon or equals sign.
    """
    text, wanted = after_thought(text), expected_answer(expected)
    found = marked(text)
    if found is None:
        found = last_words(text) if number_of(wanted) is None else last_number(text)
    return found is not None and same_answer(found, wanted)


def expected_answer(text: str) -> str:
    """What the answer of a data set comes to, which may be a whole solution with a box or `####`."""
    found = marked(text)
    return text.strip() if found is None else found


def same_answer(found: str, expected: str) -> bool:
    """Whether two answers are equal; one of them may have a unit, or be a percentage."""
    one, other = cleaned(found), cleaned(expected)
    if _words(one) == _words(other):
        return True
    if max(len(one), len(other)) > MOST_CHARACTERS:
        return False
    parts, others = _parts(one), _parts(other)
    if len(parts.items) > 1 or len(others.items) > 1:
        return parts.brackets == others.brackets and _same_parts(parts, others)
    return _same_quantity(parts.items[0], others.items[0])


def number_of(text: str) -> Fraction | None:
    """The rational number that an answer is, whatever its unit; None for anything else."""
    parts = _parts(cleaned(text)) if len(text) <= MOST_CHARACTERS else _Parts("", [])
    if len(parts.items) != 1:
        return None
    try:
        formula = Formula(_quantity(parts.items[0])[0])
    except NoFormula:
        return None
    value = formula.value({}) if not formula.variables else None
    return value if isinstance(value, Fraction) else None


def cleaned(text: str) -> str:
    """An answer without TeX's spaces and text styles, currencies, thousands separators, a full stop, and the
    name of what it is the value of (`x = `); a number from zero to ten in digits."""
    text = text[: 2 * MOST_CHARACTERS].translate(_SYMBOLS)
    for pattern, by in _REPLACED:
        text = pattern.sub(by, text)
    text = _NAMED.sub("", " ".join(text.split())).strip().rstrip(".").rstrip()
    if text.lower() in NUMBERS:
        return str(NUMBERS.index(text.lower()))
    return (
        text
        if text[:1] in ("(", "[", "{", "\\")
        else _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    )


class _Parts(NamedTuple):
    """The parts of a list and what it stands between: nothing for one part alone, and where order is free."""

    brackets: str
    items: list[str]


def _parts(text: str) -> _Parts:
    if "\\pm" in text:
        return _Parts("", [text.replace("\\pm", "+", 1), text.replace("\\pm", "-", 1)])
    if text.startswith("\\{") and text.endswith("\\}"):
        return _Parts("", _split(text[2:-2]))
    if text[:1] in ("(", "[") and text[-1:] in (")", "]") and len(items := _split(text[1:-1])) > 1:
        return _Parts(text[0] + text[-1], items)
    return _Parts("", _split(text))


def _split(text: str) -> list[str]:
    """The parts between commas, semicolons, "and", "or" and unions that stand in no brackets."""
    items, depth, start = [], 0, 0
    for match in re.finditer(r"[(\[{]|[)\]}]|[,;]|\\cup(?![a-zA-Z])|(?<=\s)(?:and|or)(?=\s)", text):
        mark = match[0]
        if mark in _BRACKETS:
            depth += 1
        elif mark in _BRACKETS.values():
            depth -= 1
        elif depth == 0:
            items.append(text[start : match.start()].strip())
            start = match.end()
    items.append(text[start:].strip())
    return [item for item in items if item] or [text]


def _same_parts(parts: _Parts, others: _Parts) -> bool:
    if len(parts.items) != len(others.items) or len(parts.items) > _MOST_PARTS:
        return False
    if parts.brackets:
        return all(map(same_answer, parts.items, others.items))
    left = list(others.items)
    for item in parts.items:
        match = next((one for one in left if same_answer(item, one)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _same_quantity(one: str, other: str) -> bool:
    (a, unit), (b, other_unit) = _quantity(one), _quantity(other)
    if unit and other_unit and unit != other_unit:
        return False
    try:
        left, right = Formula(a), Formula(b)
    except NoFormula:
        return False
    factors = [(Fraction(1), Fraction(1))]
    if "%" in (unit, other_unit) and unit != other_unit:
        factors.append((Fraction(1, 100), Fraction(1)) if unit == "%" else (Fraction(1), Fraction(1, 100)))
    return any(_same_formula(left, right, *pair) for pair in factors)


def _quantity(text: str) -> tuple[str, str]:
    """A number or formula, and its unit in lower case, without an s at its end; empty if there is none."""
    found = _QUANTITY.match(text)
    if found is None or (found[2] != "%" and len(found[2]) == 1 and not found[1].endswith(" ")
                         and not text[len(found[1])].isspace()):  # fmt: skip
        return text, ""
    return found[1], " ".join(found[2].lower().split()).removesuffix("s")


def _same_formula(left: Formula, right: Formula, scale: Fraction, other_scale: Fraction) -> bool:
    names = sorted(left.variables | right.variables)
    for shift, _ in enumerate(_POINTS if names else _POINTS[:1]):
        point: dict[str, Number] = {
            name: _POINTS[(number + shift) % len(_POINTS)] + number // len(_POINTS)
            for number, name in enumerate(names)
        }
        a, b = left.value(point), right.value(point)
        if a is None or b is None or not _close(a * scale, b * other_scale):  # type: ignore[operator]
            return False
    return True


def _close(a: Number, b: Number) -> bool:
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    try:
        a, b = complex(a), complex(b)
    except OverflowError:
        return False
    return abs(a - b) <= _TOLERANCE * max(abs(a), abs(b), 1e-3)


def _words(text: str) -> str:
    """A text as words are compared: without case, spaces, braces, and brackets around a letter."""
    plain = re.sub(r"[{}]|(?<!\d)\s|\s(?!\d)", "", text).lower()
    return plain[1:-1] if re.fullmatch(r"\([a-z]\)", plain) else plain
