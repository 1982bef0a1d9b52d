"""The format of a row of detections, and its validation.

Shape suffixes: N boxes of one class; a box is x0, y0, x1, y1 in pixels and a score from 0 to 1.
"""

import numbers
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...blocks.errors import BifronsError
from ...nano.world.levels import HARD_KINDS

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
"""The six kinds of GenEval, in the order of its prompts file (Ghosh et al. 2023, arXiv 2310.11513)."""
ALL_TAGS = (*TAGS, *HARD_KINDS)
"""Those, and the kinds of the harder suite of the world of shapes."""
RELATIONS = ("left of", "right of", "above", "below")
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
SCORE_SLACK = 1e-3
"""How far a score may exceed 1: a detector multiplies two probabilities, with rounding."""


class Clause(NamedTuple):
    """A requirement: at least `count` (include) or fewer than `count` (exclude) objects of a class.

    color: of those objects (in an exclude clause: fewer than `count` of that color, which official prompts
    don't ask for). relation, target: their position relative to those of an earlier clause.
    """

    cls: str
    count: int
    color: str | None = None
    relation: str | None = None
    target: int = 0


@dataclass(frozen=True)
class Row:
    """A validated row. boxes: float32 [N, 5] per class. colors: a name per box, None if not classified."""

    name: str
    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...]
    boxes: dict[str, np.ndarray]
    colors: dict[str, list[str | None]]


def tags_of_suite(found: Iterable[str]) -> tuple[str, ...]:
    """All kinds of the suite to which some belong: GenEval's six, or the harder ones."""
    return HARD_KINDS if {*found} & {*HARD_KINDS} else TAGS


def read_row(row: Any) -> Row:
    """Validate a decoded row of detections.

    Raises BifronsError with the row's filename and the field for: a missing key or wrong type, an unknown
    tag, relation or clause key, a box that is not five finite numbers with a score from 0 to 1, a position
    that refers to no earlier clause, and colours that do not match the boxes of a class with a wanted colour.
    """
    name = repr(row.get("filename")) if isinstance(row, Mapping) else "?"
    where = f"row {name}"
    if not isinstance(row, Mapping):
        raise BifronsError(f"{where} is {_describe(row)}; accepted: {{filename, metadata, boxes, colors}}")
    _text(row, "filename", where)
    metadata = _mapping(row, "metadata", where)
    tag = _text(metadata, "tag", f"{where}: metadata")
    if tag not in ALL_TAGS:
        raise BifronsError(f"{where}: metadata['tag'] is {tag!r}; accepted: {', '.join(ALL_TAGS)}")
    _text(metadata, "prompt", f"{where}: metadata")
    include = _clauses(metadata.get("include"), "include", where)
    exclude = _clauses(metadata["exclude"], "exclude", where) if "exclude" in metadata else ()
    boxes = {
        cls: _boxes(value, f"{where}: boxes[{cls!r}]") for cls, value in _mapping(row, "boxes", where).items()
    }
    colors = {
        cls: _colors(value, f"{where}: colors[{cls!r}]")
        for cls, value in _mapping(row, "colors", where).items()
    }
    for cls in (clause.cls for clause in (*include, *exclude) if clause.color is not None):
        num_colors, num_boxes = len(colors.get(cls, [])), len(boxes.get(cls, []))
        if num_boxes and num_colors != num_boxes:
            raise BifronsError(
                f"{where}: colors[{cls!r}] names {num_colors} colours for {num_boxes} boxes; accepted: "
                "one for each box"
            )
    return Row(name, tag, include, exclude, boxes, colors)


def _clauses(value: Any, key: str, where: str) -> tuple[Clause, ...]:
    where = f"{where}: metadata[{key!r}]"
    if not isinstance(value, list | tuple) or (key == "include" and not value):
        raise BifronsError(
            f"{where} is {_describe(value)}; accepted: a list of clauses, not empty for include"
        )
    return tuple(_clause(clause, i, key, f"{where}[{i}]") for i, clause in enumerate(value))


def _clause(clause: Any, index: int, key: str, where: str) -> Clause:
    allowed = {"class", "count", "color", "position"} if key == "include" else {"class", "count", "color"}
    if not isinstance(clause, Mapping) or not set(clause) <= allowed:
        got = sorted(map(str, clause)) if isinstance(clause, Mapping) else _describe(clause)
        raise BifronsError(f"{where} has {got}; accepted: an object with keys of {sorted(allowed)}")
    cls, count = _text(clause, "class", where), _integer(clause.get("count"))
    if count is None or count < 1:
        raise BifronsError(f"{where}: 'count' is {clause.get('count')!r}; accepted: a whole number from 1")
    color = _text(clause, "color", where) if "color" in clause else None
    if "position" not in clause:
        return Clause(cls, count, color)
    position = clause["position"]
    if not isinstance(position, list | tuple) or len(position) != 2 or position[0] not in RELATIONS:
        raise BifronsError(f"{where}: 'position' is {position!r}; accepted: [one of {RELATIONS}, index]")
    target = _integer(position[1])
    if target is None or not 0 <= target < index:
        raise BifronsError(f"{where}: 'position' points at {position[1]!r}; accepted: an earlier clause")
    return Clause(cls, count, color, position[0], target)


def _boxes(value: Any, where: str) -> np.ndarray:
    if not isinstance(value, list | tuple | np.ndarray):
        raise BifronsError(f"{where} is {_describe(value)}; accepted: a list of [x0, y0, x1, y1, score]")
    for i, box in enumerate(value):
        if not isinstance(box, list | tuple | np.ndarray) or len(box) != 5:
            size = f"{len(box)} numbers" if isinstance(box, list | tuple | np.ndarray) else _describe(box)
            raise BifronsError(f"{where}[{i}] is {size}; accepted: [x0, y0, x1, y1, score]")
        if not all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in box):
            raise BifronsError(f"{where}[{i}] is {list(box)!r}; accepted: five numbers")
    try:
        # The detector's precision, in which thresholds and geometry are evaluated.
        with np.errstate(over="ignore"):
            boxes = np.array([[float(v) for v in box] for box in value], np.float64).astype(np.float32)
    except OverflowError as error:
        raise BifronsError(f"{where} holds a number that is not finite in float32") from error
    boxes = boxes.reshape(-1, 5)
    infinite = ~np.isfinite(boxes).all(axis=1)
    if infinite.any():
        raise BifronsError(f"{where}[{int(infinite.argmax())}] holds a number that is not finite in float32")
    out_of_range = (boxes[:, 4] < 0) | (boxes[:, 4] > 1 + SCORE_SLACK)
    if out_of_range.any():
        i = int(out_of_range.argmax())
        raise BifronsError(f"{where}[{i}] has the score {boxes[i, 4]}; accepted: 0 to 1")
    return boxes


def _colors(value: Any, where: str) -> list[str | None]:
    if not isinstance(value, list | tuple) or not all(v is None or isinstance(v, str) for v in value):
        raise BifronsError(f"{where} is {value!r}; accepted: a list of names, null where not looked at")
    return list(value)


def _mapping(owner: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = owner.get(key)
    if not isinstance(value, Mapping):
        raise BifronsError(f"{where}: {key!r} is {_describe_value(owner, key)}; accepted: an object")
    return value


def _text(owner: Mapping[str, Any], key: str, where: str) -> str:
    value = owner.get(key)
    if not isinstance(value, str) or not value:
        raise BifronsError(f"{where}: {key!r} is {_describe_value(owner, key)}; accepted: a text")
    return value


def _describe_value(owner: Mapping[str, Any], key: str) -> str:
    return _describe(owner[key]) if key in owner else "missing"


def _integer(value: Any) -> int | None:
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def _describe(value: Any) -> str:
    if value is None:
        return "missing (null)"
    if isinstance(value, str | list | tuple | dict) and not value:
        return f"an empty {type(value).__name__}"
    return f"a {type(value).__name__}"
