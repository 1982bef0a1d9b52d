"""Questions asked in batches, and shares of right answers with intervals, as JSON and as Markdown.

P questions or prompts; 2: right and all answers or pictures of each.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...blocks.chat.pipeline import ChatPipeline
from ..geneval.intervals import intervals_of_counts
from ..read.metrics import Corners, iou

Counts = dict[str, np.ndarray]
"""By kind, an integer array [P, 2]."""
Figures = dict[str, dict[str, float]]
"""By kind and "overall": `score` with its 95% interval `low` to `high`, `right` and `of`."""
MIN_IOU = 0.5
"""Intersection over union from which a box is right."""
_LINE = 15  # pixels of a line under a picture


def ask_all(
    pipe: ChatPipeline,
    asked: Sequence[tuple[Sequence[Image.Image], str]],
    max_new_tokens: int,
    batch: int = 50,
    text_first: bool = False,
) -> list[str]:
    """The greedy answers to questions about pictures, each a conversation of its own. text_first: the
    question stands before the pictures, for which messages need the official form: parts are put in order."""
    token = pipe.processor.image_token
    messages = []
    for pictures, text in asked:
        marks = "\n".join([token] * len(pictures))
        content = f"{text}\n{marks}" if text_first else f"{marks}\n{text}"
        messages.append([{"role": "user", "content": content, "images": list(pictures)}])
    batches = [messages[start : start + batch] for start in range(0, len(messages), batch)]
    return [answer for part in batches for answer in pipe.chat_batch(part, max_new_tokens=max_new_tokens)]


def same_answer(answer: str, expected: str) -> bool:
    """Whether an answer is the expected one, up to case, spaces around it and a full stop."""
    return answer.strip().lower().rstrip(".") == expected.lower().rstrip(".")


def matched(predicted: Sequence[Corners], expected: Sequence[Corners]) -> int:
    """Number of expected boxes matched by a predicted box of their own, best overlaps first."""
    pairs = sorted(
        ((iou(p, e), i, j) for i, p in enumerate(predicted) for j, e in enumerate(expected)), reverse=True
    )
    matches: dict[int, int] = {}
    for value, i, j in pairs:
        if value >= MIN_IOU and i not in matches and j not in matches.values():
            matches[i] = j
    return len(matches)


def count(kinds: Sequence[str], right: Sequence[bool], per_prompt: int = 1) -> Counts:
    """Counts by kind, from the kind of each prompt and whether its `per_prompt` pictures or answers are
    right, prompt by prompt."""
    counts: dict[str, list[tuple[int, int]]] = {}
    for number, kind in enumerate(kinds):
        own = right[number * per_prompt : (number + 1) * per_prompt]
        counts.setdefault(kind, []).append((sum(own), per_prompt))
    return {kind: np.array(pairs) for kind, pairs in counts.items()}


def figures(counts: Counts, pooled: bool = False) -> Figures:
    """Scores with intervals. "overall" is the mean of the kinds, or with `pooled` the share of all."""
    spans = intervals_of_counts(counts)
    found = {kind: {"score": float(t[:, 0].sum() / t[:, 1].sum())} for kind, t in counts.items()}
    whole = np.concatenate(list(counts.values()))
    if pooled:
        spans["overall"] = intervals_of_counts({"all": whole})["all"]
        found["overall"] = {"score": float(whole[:, 0].sum() / whole[:, 1].sum())}
    else:
        found["overall"] = {"score": sum(kind["score"] for kind in found.values()) / len(found)}
    for kind, cell in found.items():
        table = counts.get(kind, whole)
        cell |= {"low": spans[kind].low, "high": spans[kind].high}
        cell |= {"right": int(table[:, 0].sum()), "of": int(table[:, 1].sum())}
    return {kind: {name: round(value, 4) for name, value in cell.items()} for kind, cell in found.items()}


def markdown(columns: Mapping[str, Figures]) -> str:
    """A table with a row for each kind, and a column for each set of figures."""
    kinds = list(dict.fromkeys(kind for cells in columns.values() for kind in cells if kind != "overall"))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for kind in [*kinds, "overall"]:
        cells = [shown(found[kind]) if kind in found else "" for found in columns.values()]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(cell: Mapping[str, float]) -> str:
    """ "97.3% (96.1 to 98.2)"."""
    return f"{cell['score']:.1%} ({100 * cell['low']:.1f} to {100 * cell['high']:.1f})"


def sheet(pictures: Sequence[Image.Image], texts: Sequence[str], columns: int, path: Path) -> None:
    """Write pictures of one size with their texts below, row by row, as a PNG."""
    font = ImageFont.load_default(12)
    width, height = pictures[0].size
    wrapped = [_wrapped(text, width - 6, font) for text in texts]
    below = max(map(len, wrapped)) * _LINE + 6
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (columns * (width + 8) + 8, rows * (height + below + 8) + 8), "white")
    draw = ImageDraw.Draw(page)
    for i, (picture, lines) in enumerate(zip(pictures, wrapped, strict=True)):
        left, top = 8 + i % columns * (width + 8), 8 + i // columns * (height + below + 8)
        page.paste(picture, (left, top))
        for number, line in enumerate(lines):
            draw.text((left + 2, top + height + 3 + number * _LINE), line, "black", font)
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def _wrapped(text: str, width: int, font: Any) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
