"""The options of GenEval's scorer, as its script takes them after `--options`, and the boxes that count.

Shape suffixes: N boxes of one class, 5 numbers each (x0, y0, x1, y1 in pixels, score).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from PIL import ImageColor

from ...blocks.errors import OptionError, check_integer, check_number

ORIGINAL = "original"


@dataclass(frozen=True)
class ScorerOptions:
    """The published scorer's options with its defaults. Raises OptionError for a value out of its range.

    threshold, counting_threshold: scores above which a box counts, the second for prompts of the kind
    counting. max_objects: boxes of a class that are looked at. max_overlap: a box that overlaps a better one
    of its class by this IoU or more is dropped; at 1 none is. position_threshold: the share of two boxes'
    extents by which their offset is reduced. bgcolor: behind an object whose colour is classified, a colour
    as in CSS or "original" for the picture itself. crop: whether the object is cut out by its box.
    """

    threshold: float = 0.3
    counting_threshold: float = 0.9
    max_objects: int = 16
    max_overlap: float = 1.0
    position_threshold: float = 0.1
    bgcolor: str = "#999"
    crop: bool = True

    def __post_init__(self) -> None:
        for name in ("threshold", "counting_threshold", "max_overlap", "position_threshold"):
            check_number(name, getattr(self, name), 0, 1)
        check_integer("max_objects", self.max_objects, low=1)
        if not isinstance(self.crop, bool):
            raise OptionError(f"crop is {self.crop!r}; accepted: 1 or 0")
        _ = self.background

    @property
    def background(self) -> tuple[int, int, int] | None:
        """RGB of `bgcolor`; None for the picture itself."""
        if self.bgcolor == ORIGINAL:
            return None
        try:
            red, green, blue, *_ = ImageColor.getrgb(self.bgcolor)
        except (ValueError, AttributeError) as error:
            raise OptionError(
                f"bgcolor is {self.bgcolor!r}; accepted: a colour such as #999 or white, or {ORIGINAL}"
            ) from error
        return red, green, blue

    def changed(self) -> dict[str, Any]:
        """The options that are not the published scorer's, by name."""
        return {name: value for name, value in asdict(self).items() if value != getattr(OFFICIAL, name)}

    def threshold_of(self, tag: Any) -> np.float32:
        """The score above which a box counts, for prompts of this kind."""
        return np.float32(self.counting_threshold if tag == "counting" else self.threshold)


OFFICIAL = ScorerOptions()


def parse_options(pairs: Sequence[str]) -> ScorerOptions:
    """Options from texts such as "threshold=0.4". Raises OptionError for an unknown name or a wrong value."""
    kinds = {field.name: type(field.default) for field in fields(ScorerOptions)}
    values: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.replace("colour", "color")
        text = text.replace("grey", "gray") if name == "bgcolor" else text
        if not equals or name not in kinds:
            raise OptionError(f"option {pair!r} is unknown; accepted: NAME=VALUE with {', '.join(kinds)}")
        try:
            values[name] = {"0": False, "1": True}[text] if kinds[name] is bool else kinds[name](text)
        except (ValueError, KeyError) as error:
            accepted = "1 or 0" if kinds[name] is bool else "a number"
            raise OptionError(f"{name} is {text!r}; accepted: {accepted}") from error
    return ScorerOptions(**values)


def read_options(content: Any) -> ScorerOptions:
    """Options from what `changed` gave, read back from JSON. Raises OptionError for anything else."""
    if not isinstance(content, Mapping) or not set(content) <= {
        field.name for field in fields(ScorerOptions)
    }:
        raise OptionError(f"the scorer's options are {content!r}; accepted: an object of their names")
    return ScorerOptions(**content)


def select_boxes(boxes_N5: np.ndarray, tag: Any, options: ScorerOptions = OFFICIAL) -> np.ndarray:
    """Indices of the boxes of a class that count for a prompt of kind `tag`, best first.

    boxes_N5: float32. The order is that of the published scorer, numpy's default argsort reversed: *equal*
    scores come in the order of numpy's sorting network for this processor (highest index first where it has
    none). A stable sort would give other verdicts.
    """
    scores_N = boxes_N5[:, 4]
    order = np.argsort(scores_N)[::-1]
    order = order[scores_N[order] > options.threshold_of(tag)][: options.max_objects]
    if options.max_overlap == 1:
        return order
    chosen: list[int] = []
    for index in order.tolist():
        if all(overlap(boxes_N5[best], boxes_N5[index]) < options.max_overlap for best in chosen):
            chosen.append(index)
    return np.array(chosen, order.dtype)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of two boxes, whose last pixels belong to them (a side is x1 - x0 + 1, at least 0)."""

    def area(x0: float, y0: float, x1: float, y1: float) -> float:
        return max(x1 - x0 + 1, 0.0) * max(y1 - y0 + 1, 0.0)

    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a[:4].tolist(), b[:4].tolist()
    both = area(max(ax0, bx0), max(ay0, by0), min(ax1, bx1), min(ay1, by1))
    union = area(ax0, ay0, ax1, ay1) + area(bx0, by0, bx1, by1) - both
    return both / union if union else 0.0
