"""Curves of a run's figures, drawn as SVG from its log."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 180, 64, 28, 26
"""Of one panel, in pixels: its size, and the margins of its axes."""


def read_log(path: Path) -> list[dict[str, float]]:
    """The figures of a run, one dict a step."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def smoothed(values: Sequence[float], weight: float = 0.8) -> list[float]:
    """Exponentially smoothed values: each is `weight` times the last and the rest of its own."""
    found: list[float] = []
    for value in values:
        found.append(weight * found[-1] + (1 - weight) * value if found else value)
    return found


def curves(figures: Sequence[Mapping[str, float]], panels: Mapping[str, str]) -> str:
    """An SVG with a panel for each figure, named as `panels` says: values in grey, smoothed ones in blue."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT * len(panels)}" '
        f'width="{WIDTH}" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for number, (name, title) in enumerate(panels.items()):
        steps = [one["step"] for one in figures]
        parts += _panel(steps, [one[name] for one in figures], title, number * HEIGHT)
    return "\n".join([*parts, "</svg>\n"])


def _panel(steps: Sequence[float], values: Sequence[float], title: str, top: int) -> list[str]:
    low, high = min(values), max(values)
    span, length = (high - low) or 1.0, (steps[-1] - steps[0]) or 1.0
    floor, height, width = top + HEIGHT - BOTTOM, HEIGHT - BOTTOM - TOP, WIDTH - LEFT - 16

    def line(points: Sequence[float], color: str, thickness: float) -> str:
        places = (
            f"{LEFT + width * (step - steps[0]) / length:.1f},{floor - height * (value - low) / span:.1f}"
            for step, value in zip(steps, points, strict=True)
        )
        return (
            f'<polyline fill="none" stroke="{color}" stroke-width="{thickness}" points="{" ".join(places)}"/>'
        )

    return [
        f'<text x="{LEFT}" y="{top + 16}" font-weight="bold">{escape(title)}</text>',
        f'<text x="{LEFT - 6}" y="{floor}" text-anchor="end">{low:.3g}</text>',
        f'<text x="{LEFT - 6}" y="{floor - height + 8}" text-anchor="end">{high:.3g}</text>',
        f'<text x="{LEFT}" y="{floor + 16}">step {steps[0]:g}</text>',
        f'<text x="{LEFT + width}" y="{floor + 16}" text-anchor="end">{steps[-1]:g}</text>',
        f'<path d="M{LEFT} {floor - height}V{floor}H{LEFT + width}" fill="none" stroke="#888"/>',
        line(values, "#bbb", 1),
        line(smoothed(values), "#1f5fbf", 2),
    ]
