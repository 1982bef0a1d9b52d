"""GenEval figures published by others, for comparison."""

from collections.abc import Mapping
from typing import NamedTuple

from .schema import TAGS


class Figures(NamedTuple):
    """A model's scores as shares, 0 to 1, per tag and for "overall"; absent where the source has none."""

    model: str
    values: Mapping[str, float]
    source: str


def _row(model: str, *values: float) -> Figures:
    return Figures(model, dict(zip((*TAGS, "overall"), values, strict=True)), _REPORT)


_REPORT = "Janus-Pro report (arXiv 2501.17811), table 4; its sampling settings are not given"

PUBLISHED: tuple[Figures, ...] = (
    _row("SDXL", 0.98, 0.74, 0.39, 0.85, 0.15, 0.23, 0.55),
    _row("DALL-E 3", 0.96, 0.87, 0.47, 0.83, 0.43, 0.45, 0.67),
    _row("SD3-Medium", 0.99, 0.94, 0.72, 0.89, 0.33, 0.60, 0.74),
    _row("Janus", 0.97, 0.68, 0.30, 0.84, 0.46, 0.42, 0.61),
    _row("Janus-Pro-1B", 0.98, 0.82, 0.51, 0.89, 0.65, 0.56, 0.73),
    _row("Janus-Pro-7B", 0.99, 0.89, 0.59, 0.90, 0.79, 0.66, 0.80),
)

REPRODUCED: tuple[Figures, ...] = (
    Figures(
        "Janus-Pro-1B",
        {"two_object": 0.70, "position": 0.46},
        "deepseek-ai/Janus issue 210: the repository's defaults (guidance 5, temperature 1, 576 tokens)",
    ),
)

_NAMES = {"janus-pro-1b": "Janus-Pro-1B", "janus-pro-7b": "Janus-Pro-7B", "janus-1.3b": "Janus"}


def of_model(name: str, figures: tuple[Figures, ...]) -> Figures | None:
    """The figures of a released model, by the last part of its name, or None."""
    known = _NAMES.get(name.rstrip("/").rsplit("/", 1)[-1].lower())
    return next((row for row in figures if row.model == known), None)
