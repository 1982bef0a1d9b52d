"""The stages of an evaluation, each from files to files: generate, detect, score."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from ...blocks.checkpoints.hub import find_model_folder
from ...blocks.device import resolve_device, resolve_dtype
from ...blocks.errors import BifronsError, OptionError
from ...blocks.placement.fingerprint import weights_fingerprint
from ...blocks.vocabulary import read_vocabulary
from ...janus.config import read_guidance_scale
from ..atomic_io import read_json
from ..geneval.options import read_options
from ..geneval.scoring import Summary
from ..geneval.suites import (
    Row,
    detector_for,
    geneval_prompts,
    hard_prompts,
    shapes_prompts,
    suite_for,
)
from ..suites.catalog import CATALOG
from .detect import collect, images_of_run
from .import_images import ImageSet, rescan_import
from .recipe import Recipe
from .run_dir import RunDir, check_same_recipe, create_run, open_run
from .score import score_file


def prepare(
    run_dir: Path, given: Mapping[str, Any], device: str | None = None, prompts: Path | None = None
) -> RunDir:
    """Open or make a run folder for a recipe, of which `given` has the fields that the user set.

    In a new folder, the other fields get the recipe's defaults, except that dtype is the device's,
    guidance_scale the model's, suite `shapes` for a model that knows nothing else, and images_per_prompt that
    of a suite of questions. In an existing
    one they are the run's, and the given ones must agree with it. prompts: a file for the suite `geneval`, or
    the data of a suite of questions. Raises BifronsError, OptionError or CheckpointError.
    """
    unknown = set(given) - {field.name for field in fields(Recipe)}
    if unknown:
        raise OptionError(f"a recipe has no {', '.join(sorted(unknown))}")
    if os.path.isfile(run_dir / "run.json"):
        run = open_run(run_dir)
        recipe = Recipe(**{**run.recipe.to_json(), **_resolved(given, device)})
        if prompts is not None and load_rows(recipe, prompts) != list(run.rows):
            raise BifronsError(f"{run_dir} is a run of other prompts than {prompts}; take another folder")
        check_same_recipe(run, recipe, weights_fingerprint(recipe.model, recipe.adapters))
        return run
    chosen = resolve_device(device)
    dtype = str(resolve_dtype(given.get("dtype"), chosen)).removeprefix("torch.")
    folder = find_model_folder(given.get("model", Recipe.model))
    own = read_guidance_scale(folder)
    vocabulary = read_vocabulary(folder)
    defaults: dict[str, Any] = {"suite": suite_for(vocabulary)}
    if own is not None:
        defaults["guidance_scale"] = own
    if given.get("suite") in CATALOG:
        defaults["images_per_prompt"] = CATALOG[given["suite"]].images_per_prompt
    recipe = Recipe(**{**defaults, **given, "dtype": dtype})
    fingerprint = weights_fingerprint(recipe.model, recipe.adapters)
    rows = load_rows(recipe, prompts)
    return create_run(run_dir, recipe, rows, fingerprint, detector_for(rows, vocabulary))


def _resolved(given: Mapping[str, Any], device: str | None) -> dict[str, Any]:
    """The given fields, with the dtype's full name (bfloat16 for bf16)."""
    if given.get("dtype") is None:
        return dict(given)
    dtype = resolve_dtype(given["dtype"], resolve_device(device))
    return {**given, "dtype": str(dtype).removeprefix("torch.")}


def _shapes(recipe: Recipe, prompts: Path | None) -> list[Row]:
    if prompts is not None:
        raise OptionError(f"a file of prompts is for the other suites; {recipe.suite!r} makes its own")
    make = shapes_prompts if recipe.suite == "shapes" else hard_prompts
    return make(recipe.suite_seed)


def _questions(recipe: Recipe, prompts: Path | None) -> list[Row]:
    return CATALOG[recipe.suite].read_rows(prompts)


_LOADERS: dict[str, Callable[[Recipe, Path | None], list[Row]]] = {
    "shapes": _shapes,
    "shapes-hard": _shapes,
    "geneval": lambda recipe, prompts: geneval_prompts(prompts),
    **dict.fromkeys(CATALOG, _questions),
}
"""For each of SUITES: its rows, which are objects with a text "prompt", from a recipe and a user's file."""


def load_rows(recipe: Recipe, prompts: Path | None = None) -> list[Row]:
    """The suite's rows. Raises OptionError for a file of prompts with a suite that takes none."""
    return _LOADERS[recipe.suite](recipe, prompts)


def load_images(run_dir: Path) -> ImageSet:
    """The images of a run or of an import, and the import's problems.

    Raises BifronsError where it is no run folder, or a run whose images are not all generated yet.
    """
    path = run_dir / "run.json"
    if not os.path.isfile(path):
        raise BifronsError(f"{run_dir} is no run folder; accepted: one of `bifrons eval run` or `import`")
    content = read_json(path)
    if isinstance(content, dict) and content.get("kind") == "import":
        return rescan_import(content)
    run = open_run(run_dir, content)
    return ImageSet(images_of_run(run), detector=run.detector)


def score_run(
    run_dir: Path, image_set: ImageSet | None = None, official_reasons: bool = False
) -> tuple[Summary, list[dict[str, str]]]:
    """Gather a run's detections and score them: detections.jsonl, results.jsonl and summary.json.

    image_set: from `load_images`, if at hand. official_reasons: see `score_row`. Also returns {filename,
    reason} of what was not scored. Raises BifronsError where an image has no detections yet, or there is no
    image that can be scored.
    """
    image_set = image_set or load_images(run_dir)
    images = image_set.images
    if not images:
        reasons = _reasons(image_set.problems)
        raise BifronsError(f"{run_dir}: there is no picture that could be scored{reasons}")
    unreadable = [{"filename": name, "reason": why} for name, why in collect(run_dir, images).items()]
    problems = [*image_set.problems, *unreadable]
    if len(unreadable) == len(images):
        raise BifronsError(f"{run_dir}: no picture could be read{_reasons(problems)}")
    detector = read_json(run_dir / "detect.json")
    options = read_options(detector.get("options", {}))
    about = {**describe_run(run_dir), "detector": detector}
    about["recipe"] = {**about.get("recipe", {}), "scorer_options": asdict(options)}
    files = run_dir / "detections.jsonl", run_dir / "results.jsonl"
    return score_file(*files, problems, options, official_reasons, about), problems


def describe_run(run_dir: Path) -> dict[str, Any]:
    """What a run's run.json says of it, without what depends on when it was made."""
    content = read_json(run_dir / "run.json")
    names = ("kind", "model", "note", "recipe", "model_fingerprint", "fingerprint", "software")
    return {name: content[name] for name in names if content.get(name) is not None}


def _reasons(problems: Sequence[Mapping[str, str]]) -> str:
    """The first problems as a bracket at the end of an error."""
    listed = "; ".join(f"{item['filename']}: {item['reason']}" for item in problems[:3])
    return f" ({listed}{'; ...' if len(problems) > 3 else ''})" if listed else ""
