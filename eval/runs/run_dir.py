"""A run folder: images in GenEval's layout, each with a sidecar, and which of them are finished.

    R/run.json                          the recipe, the model's fingerprint and the run's
    R/prompts.jsonl                     the whole suite
    R/stages.jsonl                      how long which process worked; see `record.py`
    R/images/00000/metadata.jsonl       one line of it
    R/images/00000/samples/0000.png     an image
    R/images/00000/samples/0000.json    its sidecar: seed, settings, fingerprints, the image's sha256

An image is finished when its file has the sha256 in its sidecar, and the sidecar has the run's fingerprint.
The sidecar is written first, both atomically, so that a process can be killed at any time.
"""

import hashlib
import io
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ...blocks.errors import BifronsError, CheckpointError
from ...blocks.files import read_bounded
from ...blocks.image_io import write_png
from ...blocks.json_config import CONFIG_BYTES, TABLE_BYTES, decode_json
from ..atomic_io import disk_errors, make_folder, read_file, read_json, write_file, write_json
from ..geneval.suites import Row, detector_for, lines_sha256, parse_rows, select_prompts, to_jsonl
from .recipe import Recipe, differences, fingerprint
from .record import software

log = logging.getLogger(__name__)


class ImageKey(NamedTuple):
    """Image `number` of prompt `index`, both from 0; the index counts in the whole suite."""

    index: int
    number: int

    @property
    def filename(self) -> str:
        """Its path within the folder of images, and its name in every file of results."""
        return f"{self.index:05d}/samples/{self.number:04d}.png"


@dataclass(frozen=True)
class RunDir:
    """An open run folder; make one with `create_run` or `open_run`. `rows` is the whole suite; `detector` the
    kind of detector where none is named, None for suites of questions."""

    root: Path
    recipe: Recipe
    model_fingerprint: str
    rows: tuple[Row, ...]
    detector: str | None = None

    @property
    def fingerprint(self) -> str:
        """Identifies recipe and model; every sidecar has it."""
        return fingerprint(self.recipe, self.model_fingerprint)

    @property
    def images_dir(self) -> Path:
        """The folder of the images, in GenEval's layout."""
        return self.root / "images"

    def image_keys(self) -> list[ImageKey]:
        """All images of the run, in order."""
        indices = select_prompts(len(self.rows), self.recipe.limit)
        return [ImageKey(i, j) for i in indices for j in range(self.recipe.images_per_prompt)]

    def batches(self) -> list[list[ImageKey]]:
        """The images in batches that are generated together, the same for any number of processes."""
        keys, size = self.image_keys(), self.recipe.batch_size
        return [keys[start : start + size] for start in range(0, len(keys), size)]

    def path(self, key: ImageKey) -> Path:
        """The image's file."""
        return self.images_dir / key.filename

    def sha256(self, key: ImageKey) -> str | None:
        """The sha256 of a finished image, else None. Raises BifronsError where it is another run's."""
        path = self.path(key)
        try:
            content = read_bounded(path, TABLE_BYTES)
            sidecar = decode_json(read_bounded(path.with_suffix(".json"), CONFIG_BYTES))
        except FileNotFoundError as error:
            if str(error.filename) != str(path):
                log.warning("%s has no sidecar and is painted again", path)
            return None
        except OSError as error:
            raise BifronsError(f"{error.filename} can't be read: {error.strerror}") from error
        except ValueError:
            log.warning("%s has a damaged sidecar and is painted again", path)
            return None
        fingerprint = sidecar.get("fingerprint") if isinstance(sidecar, dict) else None
        if fingerprint != self.fingerprint:
            raise BifronsError(
                f"{path} was painted by another recipe or model (fingerprint {fingerprint}); accepted in "
                f"this run: {self.fingerprint}. Take another run folder, or remove that picture"
            )
        digest = hashlib.sha256(content).hexdigest()
        if digest != sidecar.get("sha256"):
            log.warning("%s is damaged and is painted again", path)
            return None
        return digest

    def unfinished(self, keys: Sequence[ImageKey]) -> list[ImageKey]:
        """Those of the images that are not finished. Raises BifronsError where one is another run's."""
        return [key for key in keys if self.sha256(key) is None]

    def write_metadata(self, index: int) -> None:
        """Write the prompt's metadata.jsonl if it is missing, or empty as a crash of the machine leaves it.

        Raises BifronsError where another prompt has it.
        """
        path = self.images_dir / f"{index:05d}" / "metadata.jsonl"
        content = to_jsonl([self.rows[index]])
        existing = read_file(path) if os.path.isfile(path) else b""
        if existing.strip(b"\0 \r\n"):
            if existing != content:
                raise BifronsError(f"{path} holds another prompt than this run's; take another run folder")
            return
        make_folder(path.parent / "samples")
        write_file(path, content, durable=False)

    def save(self, key: ImageKey, image: Image.Image) -> None:
        """Write a finished image and its sidecar. Raises BifronsError where the disk refuses."""
        stream = io.BytesIO()
        write_png(image, stream)
        content, sentence = stream.getvalue(), self.rows[key.index]["prompt"]
        sidecar = {
            "fingerprint": self.fingerprint,
            "model_fingerprint": self.model_fingerprint,
            "sha256": hashlib.sha256(content).hexdigest(),
            "width": image.width,
            "height": image.height,
            **self.recipe.to_json(),
            "prompt": self.recipe.prompt(sentence),
            "run_seed": self.recipe.seed,
            "seed": self.recipe.image_seed(*key),
        }
        path = self.path(key)
        self.write_metadata(key.index)
        write_json(path.with_suffix(".json"), sidecar, durable=False)
        write_file(path, content, durable=False)

    def remove_temporary_files(self) -> None:
        """Remove the unfinished files of killed processes; only while no process generates images."""
        with disk_errors(f"tidy {self.images_dir}"):
            for pattern in ("*/**/.*.part", "*/**/.*.tmp"):  # .tmp: in older run folders
                for path in self.images_dir.glob(pattern):
                    path.unlink(missing_ok=True)


def create_run(
    root: Path, recipe: Recipe, rows: Sequence[Row], model_fingerprint: str, detector: str | None = None
) -> RunDir:
    """Make a run folder, or open one with the same recipe, rows and model.

    `recipe.prompts_sha256` is computed from the rows. Raises BifronsError, with the fields that differ,
    where the folder belongs to another recipe or model, and where it can't be written.
    """
    recipe = Recipe(**{**recipe.to_json(), "prompts_sha256": lines_sha256(list(rows))})
    select_prompts(len(rows), recipe.limit)
    detector = detector or detector_for(rows)
    run = RunDir(root, recipe, model_fingerprint, tuple(rows), detector)
    if not os.path.exists(root / "run.json"):
        if os.path.exists(root / "images") and any((root / "images").iterdir()):
            raise BifronsError(f"{root} holds pictures but no run.json; accepted: a new folder, or a run's")
        make_folder(root)
        write_file(root / "prompts.jsonl", to_jsonl(list(rows)))
        began = datetime.now(UTC).isoformat(timespec="seconds")
        content: dict[str, Any] = {"fingerprint": run.fingerprint, "model_fingerprint": model_fingerprint}
        content |= {"began": began, "detector": detector}
        write_json(root / "run.json", {**content, "recipe": recipe.to_json(), "software": software()})
        return run
    run = open_run(root)
    check_same_recipe(run, recipe, model_fingerprint)
    return run


def check_same_recipe(run: RunDir, recipe: Recipe, model_fingerprint: str) -> None:
    """Raise BifronsError unless a run folder has this recipe (but for names of folders) and model."""
    folders = ("model ", "adapters ")
    changes = [line for line in differences(run.recipe, recipe) if not line.startswith(folders)]
    if model_fingerprint != run.model_fingerprint:
        old, new = (" with ".join((repr(one.model), *one.adapters)) for one in (run.recipe, recipe))
        changes.append(f"model {old} ({run.model_fingerprint[:12]}), not {new} ({model_fingerprint[:12]})")
    if changes:
        raise BifronsError(
            f"{run.root} is the run of another recipe: {'; '.join(changes)}. Two recipes never mix in one "
            "run; accepted: the same recipe, or another run folder"
        )


def open_run(root: Path, content: Any = None) -> RunDir:
    """Open an existing run folder. Raises BifronsError for another folder, or one that was changed.

    content: of run.json, where it is read already.
    """
    if content is None and os.path.isfile(root / "run.json"):
        content = read_json(root / "run.json")
    if not isinstance(content, Mapping) or not isinstance(content.get("recipe"), Mapping):
        raise BifronsError(f"{root} is no run folder with a recipe; accepted: one of `bifrons eval run`")
    recipe = Recipe.from_json(content["recipe"])
    source = root / "prompts.jsonl"
    rows = parse_rows(read_file(source) if os.path.isfile(source) else b"", str(source))
    detector = content.get("detector") or detector_for(rows)  # older folders don't say it
    run = RunDir(root, recipe, str(content.get("model_fingerprint")), tuple(rows), detector)
    if run.fingerprint != content.get("fingerprint") or lines_sha256(rows) != recipe.prompts_sha256:
        raise BifronsError(f"{root}: run.json or prompts.jsonl was changed since the run began")
    return run


def check_model(run: RunDir, fingerprint: str) -> None:
    """Raise CheckpointError unless the model's fingerprint is the run's."""
    if fingerprint != run.model_fingerprint:
        raise CheckpointError(
            f"the model {run.recipe.model!r} is not what this run began with: its fingerprint is now "
            f"{fingerprint[:12]}, the run's {run.model_fingerprint[:12]}; accepted: the same files, or "
            "another run folder"
        )
