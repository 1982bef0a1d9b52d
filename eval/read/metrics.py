"""How an answer is compared with what a benchmark expects, by the benchmarks' own definitions."""

import re
from collections.abc import Sequence

Corners = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels."""


def iou(a: Corners, b: Corners) -> float:
    """Intersection over union of two boxes; 0 for boxes without an area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, width) * max(0.0, height)
    union = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)) - shared
    return shared / union if union > 0 else 0.0


def relaxed_match(answer: str, target: str) -> bool:
    """ChartQA's relaxed accuracy (Masry et al. 2022, section 5.1).

    Numbers may be off by 5%, other answers must be equal but for case. A percentage is its hundredth; a
    target of 0 must be met as a text.
    """
    value, wanted = _number(answer), _number(target)
    if value is not None and wanted:
        return abs(value - wanted) <= 0.05 * abs(wanted)
    return answer.strip().lower() == target.strip().lower()


def _number(text: str) -> float | None:
    text = text.strip()
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def anls(answer: str, targets: Sequence[str]) -> float:
    """DocVQA's average normalized Levenshtein similarity (Biten et al. 2019) for one answer.

    The best of the targets counts, and 0 below 0.5. As in the official script, case and spaces between words
    don't matter, but lengths are of the texts as they are.
    """
    best = 0.0
    for target in targets:
        length = max(len(answer), len(target))
        distance = levenshtein(" ".join(answer.lower().split()), " ".join(target.lower().split()))
        best = max(best, 1 - distance / length if length else 1.0)
    return best if best >= 0.5 else 0.0


def levenshtein(a: str, b: str) -> int:
    """Insertions, deletions and replacements from one text to the other."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def mme_verdict(answer: str) -> str:
    """yes, no or other, as MME's script reads an answer: by its first four letters."""
    start = answer.strip().lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def pope_verdict(answer: str) -> str:
    """yes or no, as POPE's script reads an answer: no if its first sentence holds no or not."""
    words = answer.partition(".")[0].replace(",", "").split()
    return "no" if {"No", "no", "not"} & {*words} else "yes"


def chosen_letter(answer: str, options: Sequence[tuple[str, str]]) -> str | None:
    """The option that an answer names, by its letter or else by its text; None where that isn't one option.

    options: (letter, text) each.
    """
    words = re.findall(r"[^\W_]+", answer)
    letters = {letter for letter, _ in options}
    named = [word for word in words if word in letters]
    # A sentence may begin with the article A.
    if (
        words
        and words[0] in letters
        and (len(words) == 1 or words[0] != "A" or answer.strip()[1:2] in ".):,")
    ):
        return words[0]
    lower = answer.lower()
    by_text = [letter for letter, text in options if text and text.lower() in lower]
    if len(by_text) == 1:
        return by_text[0]
    return named[0] if len({*named}) == 1 and named[0] != "A" else None
