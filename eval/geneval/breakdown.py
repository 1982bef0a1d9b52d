"""Results by what the prompts ask for: class, colour, relation and count."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

PARTS = ("class", "color", "relation", "count")


def breakdown(results_rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, tuple[int, int, int]]]:
    """Per part and name, such as "color" and "red": correct images, all images, prompts. Sorted by name.

    A prompt counts under everything that its include clauses name: an image of "a red apple and a blue cup"
    is under apple, cup, red and blue, and is wrong under all of them if it is wrong at all. "count" is only
    of prompts of the kind counting. results_rows: checked rows (tag, correct, metadata as JSON).
    """
    cells: dict[str, dict[str, dict[str, list[int]]]] = {part: {} for part in PARTS}
    for row in results_rows:
        for part, name in _names(row["tag"], json.loads(row["metadata"])):
            cell = cells[part].setdefault(name, {}).setdefault(row["metadata"], [0, 0])
            cell[0] += row["correct"]
            cell[1] += 1
    return {
        part: {
            name: (sum(c[0] for c in prompts.values()), sum(c[1] for c in prompts.values()), len(prompts))
            for name, prompts in sorted(names.items())
        }
        for part, names in cells.items()
        if names
    }


def _names(tag: str, metadata: Mapping[str, Any]) -> set[tuple[str, str]]:
    """(part, name) of everything that a prompt asks for."""
    found: set[tuple[str, str]] = set()
    for clause in metadata["include"]:
        found.add(("class", clause["class"]))
        if "color" in clause:
            found.add(("color", clause["color"]))
        if "position" in clause:
            found.add(("relation", clause["position"][0]))
        if tag == "counting":
            found.add(("count", str(clause["count"])))
    return found
