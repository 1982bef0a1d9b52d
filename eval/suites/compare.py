"""What a run scored of each prompt, by a detector or a judge, for comparing runs."""

import os
from pathlib import Path

from ...blocks.errors import BifronsError
from ..atomic_io import read_json
from ..geneval.compare import read_results, scored
from ..geneval.paired import Scored
from .catalog import suite_named

_CONDITIONS = ("suite", "judge", "wording", "official_switch")


def read_scored(path: Path, name: str) -> Scored:
    """What a run folder's or a results.jsonl's rows say. name: of the run in errors.

    Beside the rows of a suite of questions lies their summary.json, which says by whom and how they were
    judged: runs judged otherwise are not compared. Raises BifronsError where a file can't be used.
    """
    rows = read_results(path)
    if not rows or "items" not in rows[0]:
        return scored(rows, name)
    folder = path if os.path.isdir(path) else path.parent
    summary = read_json(folder / "summary.json")
    counts: dict[str, dict[str, tuple[float, int]]] = {}
    try:
        weights = suite_named(summary["suite"]).weights(list(summary["groups"]))
        for row in rows:
            prompt = f"{row['filename'].split('/')[0]} {row['prompt']}"
            for group, value in row["items"] or ():
                total, number = counts.setdefault(group, {}).get(prompt, (0.0, 0))
                counts[group][prompt] = (total + float(value), number + 1)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BifronsError(f"{path} holds a line that is no results row: {error!r}") from error
    conditions = {key: summary.get(key) for key in _CONDITIONS}
    if isinstance(conditions["judge"], dict):  # an endpoint may have moved
        conditions["judge"] = {key: value for key, value in conditions["judge"].items() if key != "where"}
    return Scored({group: counts[group] for group in sorted(counts)}, weights, conditions)
