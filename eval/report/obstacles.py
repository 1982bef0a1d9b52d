"""Why a run's score may not be called GenEval."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from ...blocks.errors import counted
from ..geneval.options import OFFICIAL
from ..geneval.suites import is_official, lines_sha256


def scorer_options(detector: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The options of GenEval's scorer that a run was scored with, official ones where nothing is said."""
    found: dict[str, Any] = asdict(OFFICIAL)
    for content in (detector.get("options"), summary.get("options")):
        if isinstance(content, Mapping):
            found |= {name: value for name, value in content.items() if name in found}
    return found


def find_obstacles(
    detector: Mapping[str, Any],
    recipe: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    missing: int,
    options: Mapping[str, Any],
) -> tuple[str, ...]:
    """GenEval is: the official detector and options on pictures, by whatever model, of all of the official
    prompts. missing: how many pictures and prompts were not scored."""
    obstacles = []
    if not detector:
        obstacles.append("the detector is not known")
    elif detector.get("official", detector.get("comparable")) is not True:
        obstacles.append("the detector is not GenEval's official Mask2Former with OpenAI's CLIP ViT-L/14")
    if recipe.get("suite", "geneval") != "geneval":
        obstacles.append(f"the suite is {recipe['suite']}, not GenEval's prompts")
    elif recipe.get("limit"):
        obstacles.append(f"the run has only {counted(recipe['limit'], 'prompt')} of the suite")
    elif not is_official(prompts_sha256(rows)):
        obstacles.append("the prompts that were scored are not GenEval's, all of them, in their order")
    if missing:
        obstacles.append(f"something was missing or could not be scored ({missing}, listed below)")
    for name, official in asdict(OFFICIAL).items():
        if options[name] != official:
            obstacles.append(f"the scorer's option {name} is {options[name]}, officially {official}")
    return tuple(obstacles)


def prompts_sha256(rows: Sequence[Mapping[str, Any]]) -> str:
    """sha256 of the prompts file whose lines are the metadata of the images' folders, in order."""
    folders: dict[str, str] = {}
    for row in rows:
        folders.setdefault(row["filename"].split("/")[0], row["metadata"])
    return lines_sha256([json.loads(folders[name]) for name in sorted(folders)])
