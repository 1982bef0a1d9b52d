"""A row of detections, checked before anything is scored from it.

Shape legend: N boxes of one class; a box is x0, y0, x1, y1 in pixels and a score in 0..1.
"""

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ...blocks.errors import BifronsError

# The six kinds of GenEval, in the order of its prompts file (Ghosh et al. 2023, arXiv 2310.11513).
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
# A detector multiplies two probabilities; rounding may leave the product a hair above 1.
SCORE_SLACK = 1e-3


class Clause(NamedTuple):
    """One demand: at least `count` (include) or fewer than `count` (exclude) objects of a class."""

    cls: str
    count: int
    color: str | None = None
    relation: str | None = None
    target: int = 0


@dataclass(frozen=True)
class Row:
    """A checked row: `boxes` float32 [N, 5] per class, `colors` a name per box (None: not looked at)."""

    name: str
    tag: str
    include: tuple[Clause, ...]
    exclude: tuple[Clause, ...]
    boxes: dict[str, np.ndarray]
    colors: dict[str, list[str | None]]


def read_row(row: Any) -> Row:
    """Check a decoded row of detections.

    Raises BifronsError that names the row (its filename) and the field: a missing or mistyped key, an
    unknown tag, relation or clause key, a box that is not five finite numbers with a score in 0..1, a
    position that points at no earlier clause, or a list of colours that does not match the boxes of a class
    whose colour is asked for.
    """
    name = repr(row.get("filename")) if isinstance(row, Mapping) else "?"
    where = f"row {name}"
    if not isinstance(row, Mapping):
        raise BifronsError(f"{where} is {_kind(row)}; accepted: {{filename, metadata, boxes, colors}}")
    _text(row, "filename", where)
    metadata = _mapping(row, "metadata", where)
    tag = _text(metadata, "tag", f"{where}: metadata")
    if tag not in TAGS:
        raise BifronsError(f"{where}: metadata['tag'] is {tag!r}; accepted: {', '.join(TAGS)}")
    _text(metadata, "prompt", f"{where}: metadata")
    include = _clauses(metadata.get("include"), "include", where)
    exclude = _clauses(metadata["exclude"], "exclude", where) if "exclude" in metadata else ()
    given = _mapping(row, "boxes", where)
    boxes = {cls: _boxes(value, f"{where}: boxes[{cls!r}]") for cls, value in given.items()}
    given = _mapping(row, "colors", where)
    colors = {cls: _colors(value, f"{where}: colors[{cls!r}]") for cls, value in given.items()}
    for cls in (clause.cls for clause in include if clause.color is not None):
        named, seen = len(colors.get(cls, [])), len(boxes.get(cls, []))
        if seen and named != seen:
            raise BifronsError(
                f"{where}: colors[{cls!r}] names {named} colours for {seen} boxes; accepted: one for each box"
            )
    return Row(name, tag, include, exclude, boxes, colors)


def _clauses(value: Any, key: str, where: str) -> tuple[Clause, ...]:
    where = f"{where}: metadata[{key!r}]"
    if not isinstance(value, list | tuple) or (key == "include" and not value):
        raise BifronsError(f"{where} is {_kind(value)}; accepted: a list of clauses, not empty for include")
    return tuple(_clause(clause, i, key, f"{where}[{i}]") for i, clause in enumerate(value))


def _clause(clause: Any, index: int, key: str, where: str) -> Clause:
    allowed = {"class", "count", "color", "position"} if key == "include" else {"class", "count"}
    if not isinstance(clause, Mapping) or not set(clause) <= allowed:
        got = sorted(map(str, clause)) if isinstance(clause, Mapping) else _kind(clause)
        raise BifronsError(f"{where} has {got}; accepted: an object with keys of {sorted(allowed)}")
    cls, count = _text(clause, "class", where), _whole(clause.get("count"))
    if count is None or count < 1:
        raise BifronsError(f"{where}: 'count' is {clause.get('count')!r}; accepted: a whole number from 1")
    color = _text(clause, "color", where) if "color" in clause else None
    if "position" not in clause:
        return Clause(cls, count, color)
    position = clause["position"]
    if not isinstance(position, list | tuple) or len(position) != 2 or position[0] not in RELATIONS:
        raise BifronsError(f"{where}: 'position' is {position!r}; accepted: [one of {RELATIONS}, index]")
    target = _whole(position[1])
    if target is None or not 0 <= target < index:
        raise BifronsError(f"{where}: 'position' points at {position[1]!r}; accepted: an earlier clause")
    return Clause(cls, count, color, position[0], target)


def _boxes(value: Any, where: str) -> np.ndarray:
    if not isinstance(value, list | tuple | np.ndarray):
        raise BifronsError(f"{where} is {_kind(value)}; accepted: a list of [x0, y0, x1, y1, score]")
    for i, box in enumerate(value):
        if not isinstance(box, list | tuple | np.ndarray) or len(box) != 5:
            size = f"{len(box)} numbers" if isinstance(box, list | tuple | np.ndarray) else _kind(box)
            raise BifronsError(f"{where}[{i}] is {size}; accepted: [x0, y0, x1, y1, score]")
        if not all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in box):
            raise BifronsError(f"{where}[{i}] is {list(box)!r}; accepted: five numbers")
    try:
        # float32 as the detector works: the thresholds and the geometry are judged at that precision.
        with np.errstate(over="ignore"):
            boxes = np.array([[float(v) for v in box] for box in value], np.float64).astype(np.float32)
    except OverflowError as error:
        raise BifronsError(f"{where} holds a number that is not finite in float32") from error
    boxes = boxes.reshape(-1, 5)
    broken = ~np.isfinite(boxes).all(axis=1)
    if broken.any():
        raise BifronsError(f"{where}[{int(broken.argmax())}] holds a number that is not finite in float32")
    odd = (boxes[:, 4] < 0) | (boxes[:, 4] > 1 + SCORE_SLACK)
    if odd.any():
        i = int(odd.argmax())
        raise BifronsError(f"{where}[{i}] has the score {boxes[i, 4]}; accepted: 0 to 1")
    return boxes


def _colors(value: Any, where: str) -> list[str | None]:
    if not isinstance(value, list | tuple) or not all(v is None or isinstance(v, str) for v in value):
        raise BifronsError(f"{where} is {value!r}; accepted: a list of names, null where not looked at")
    return list(value)


def _mapping(owner: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    value = owner.get(key)
    if not isinstance(value, Mapping):
        raise BifronsError(f"{where}: {key!r} is {_missing(owner, key)}; accepted: an object")
    return value


def _text(owner: Mapping[str, Any], key: str, where: str) -> str:
    value = owner.get(key)
    if not isinstance(value, str) or not value:
        raise BifronsError(f"{where}: {key!r} is {_missing(owner, key)}; accepted: a text")
    return value


def _missing(owner: Mapping[str, Any], key: str) -> str:
    return _kind(owner[key]) if key in owner else "missing"


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None


def _kind(value: Any) -> str:
    if value is None:
        return "missing (null)"
    if isinstance(value, str | list | tuple | dict) and not value:
        return f"an empty {type(value).__name__}"
    return f"a {type(value).__name__}"
