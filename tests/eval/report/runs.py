"""Scored runs without a model, for the tests of reports."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from bifrons.eval.runs.score import score_file
from PIL import Image

RIGHT = {"single_object": 19, "two_object": 14, "counting": 10, "colors": 18, "position": 9, "color_attr": 11}
OFFICIAL = {"name": "GenEval's own", "comparable": True}


def prompt_row(tag: str, prompt: str, i: int) -> dict[str, Any]:
    return {"tag": tag, "prompt": f"{prompt} {i}", "include": [{"class": "cow", "count": 1}]}


def make_run(
    root: Path,
    right: dict[str, int],
    recipe: dict[str, Any] | None,
    detector: dict[str, Any] | None,
    prompt: str = "a photo of a cow",
    side: int = 64,
) -> Path:
    """A scored run: 20 prompts a kind, one picture each, so many right; the wrong ones show a dog."""
    rng, lines = np.random.default_rng(0), []
    for kind, (tag, count) in enumerate(right.items()):
        for i in range(20):
            folder = f"{20 * kind + i:05d}"
            cls = "cow" if i < count else "dog"
            metadata = prompt_row(tag, prompt, i)
            box = [10.0, 12.0, 30.0, 40.0, 0.95]
            lines.append(
                {
                    "filename": f"{folder}/samples/0000.png",
                    "metadata": metadata,
                    "boxes": {cls: [box]},
                    "colors": {},
                }
            )
            path = root / "images" / folder / "samples" / "0000.png"
            path.parent.mkdir(parents=True)
            pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
    (root / "detections.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    score_file(root / "detections.jsonl", root / "results.jsonl")
    if recipe is not None:
        (root / "run.json").write_text(json.dumps({"fingerprint": "f" * 64, "recipe": recipe}))
    if detector is not None:
        (root / "detect.json").write_text(json.dumps(detector))
    return root


def official_recipe(**changes: Any) -> dict[str, Any]:
    recipe = {"suite": "geneval", "model": "deepseek-ai/Janus-Pro-1B", "limit": None, "template": "{prompt}"}
    return {**recipe, "guidance_scale": 5.0, **changes}
