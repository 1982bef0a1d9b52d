"""The stages of an evaluation, each from files to files: generate, detect, score."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ...blocks.checkpoints.hub import find_model_folder
from ...blocks.device import resolve_device, resolve_dtype
from ...blocks.errors import BifronsError, OptionError
from ...janus.config import read_guidance_scale
from ..atomic_io import read_json
from ..geneval.scoring import Summary
from ..geneval.suites import Row, geneval_prompts, shapes_prompts
from .detect import collect, images_of_run
from .generate import generate_images
from .import_images import ImageSet, rescan_import
from .recipe import Recipe, model_fingerprint
from .run_dir import RunDir, check_same_recipe, create_run, open_run
from .score import score_file

__all__ = ["generate_images", "is_import", "load_images", "load_rows", "prepare", "score_run"]


def prepare(
    run_dir: Path, given: Mapping[str, Any], device: str | None = None, prompts: Path | None = None
) -> RunDir:
    """Open a run folder, or make it; `given` holds the recipe's fields that were said.

    In a new folder, what was not said is the recipe's default, but dtype is the device's own and
    guidance_scale the model's. In one that exists it is what the run has, and what was said must agree.
    prompts: a file for the suite `geneval`. Raises BifronsError, OptionError or CheckpointError.
    """
    unknown = set(given) - {field.name for field in fields(Recipe)}
    if unknown:
        raise OptionError(f"a recipe has no {', '.join(sorted(unknown))}")
    if (run_dir / "run.json").is_file():
        run = open_run(run_dir)
        said = Recipe(**{**run.recipe.to_json(), **_resolved(given, device)})
        if prompts is not None and load_rows(said, prompts) != list(run.rows):
            raise BifronsError(f"{run_dir} is a run of other prompts than {prompts}; take another folder")
        check_same_recipe(run, said, model_fingerprint(find_model_folder(said.model)))
        return run
    chosen = resolve_device(device)
    dtype = str(resolve_dtype(given.get("dtype"), chosen)).removeprefix("torch.")
    folder = find_model_folder(given.get("model", Recipe.model))
    own = read_guidance_scale(folder)
    guidance = {} if own is None else {"guidance_scale": own}
    recipe = Recipe(**{**guidance, **given, "dtype": dtype})
    return create_run(run_dir, recipe, load_rows(recipe, prompts), model_fingerprint(folder))


def _resolved(given: Mapping[str, Any], device: str | None) -> dict[str, Any]:
    """What was said, with the type's name in full (bf16 is bfloat16)."""
    if given.get("dtype") is None:
        return dict(given)
    dtype = resolve_dtype(given["dtype"], resolve_device(device))
    return {**given, "dtype": str(dtype).removeprefix("torch.")}


def load_rows(recipe: Recipe, prompts: Path | None = None) -> list[Row]:
    """The suite's rows. Raises OptionError where a file of prompts is named for a suite that has none."""
    if recipe.suite == "geneval":
        return geneval_prompts(prompts)
    if prompts is not None:
        raise OptionError("a file of prompts is for the suite 'geneval'; 'shapes' makes its own")
    return shapes_prompts(recipe.suite_seed)


def is_import(run_dir: Path) -> bool:
    """Whether the run folder holds an import. Raises BifronsError where it is no run folder at all."""
    path = run_dir / "run.json"
    if not path.is_file():
        raise BifronsError(f"{run_dir} is no run folder; accepted: one of `bifrons eval run` or `import`")
    content = read_json(path)
    return isinstance(content, dict) and content.get("kind") == "import"


def load_images(run_dir: Path) -> ImageSet:
    """The pictures of a run or of an import, and what of an import can't be used."""
    return rescan_import(run_dir) if is_import(run_dir) else ImageSet(images_of_run(open_run(run_dir)))


def score_run(run_dir: Path, found: ImageSet | None = None) -> tuple[Summary, list[dict[str, str]]]:
    """Gather a run's detections and score them: detections.jsonl, results.jsonl and summary.json.

    Also returns {filename, reason} for all that was not seen. `found`: from `load_images`, if at hand.
    Raises BifronsError where a picture has not been looked at, or there is none.
    """
    found = found or load_images(run_dir)
    if not found.images:
        raise BifronsError(f"{run_dir}: there is no picture that could be scored{_reasons(found.problems)}")
    unreadable = [{"filename": name, "reason": why} for name, why in collect(run_dir, found.images).items()]
    problems = [*found.problems, *unreadable]
    if len(unreadable) == len(found.images):
        raise BifronsError(f"{run_dir}: no picture could be read{_reasons(problems)}")
    return score_file(run_dir / "detections.jsonl", run_dir / "results.jsonl", problems), problems


def _reasons(problems: Sequence[Mapping[str, str]]) -> str:
    told = "; ".join(f"{item['filename']}: {item['reason']}" for item in problems[:3])
    return f" ({told}{'; ...' if len(problems) > 3 else ''})" if told else ""
